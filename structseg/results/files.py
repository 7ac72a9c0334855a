"""What was measured: `runs.csv`, `metrics.csv` and the scores of images, their only reader and writer."""

from __future__ import annotations

import csv
import io
import lzma
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from structseg.command.processes import exclusive_lock
from structseg.files import write_whole
from structseg.messages import nearest

RUNS, METRICS, IMAGES = "runs.csv", "metrics.csv", "images"
_METRICS = ("row", "seed", "metric", "value")
_PATIENCE = 60.0  # seconds that a writer waits for another

T = TypeVar("T")
Tables = Mapping[str, Sequence[Sequence[str]]]


@dataclass(frozen=True)
class Run:
    """One measured seed of a row: a line of `runs.csv`, and its lines of `metrics.csv`.

    Attributes:
        row: name of the row.
        seed: its seed.
        commit: of the repository; `-dirty` at its end where the code held changes that it does not have.
        date: of the beginning, ISO 8601.
        hardware: the processor and its cores, or the GPU.
        threads: of torch on the processor; 0 on a GPU.
        minutes: of the fit and all tests together, with all stages that a pipeline's stage builds on.
        recipe: hash of the row's settings at the time: `Recipes`.
        train_images: images that it was trained on.
        test_images: images that it was scored on.
        metrics: values by path: `128.all.miou`.
    """

    row: str
    seed: int
    commit: str
    date: str
    hardware: str
    threads: int
    minutes: float
    recipe: str
    train_images: int
    test_images: int
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.row} seed {self.seed}"

    @property
    def processor(self) -> str:
        """What it ran on; figures of different ones are not compared."""
        return f"{self.hardware}, {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else self.hardware

    def value(self, metric: str) -> float:
        """A metric by its path.

        Raises:
            ValueError: it is not kept; the message has the nearest path.
        """
        if metric not in self.metrics:
            raise ValueError(f"{self} has no metric {metric}{nearest(metric, self.metrics)}")
        return self.metrics[metric]


_COLUMNS = tuple(item.name for item in fields(Run))[:-1]
_KINDS: Mapping[str, Callable[[str], Any]] = {"minutes": float} | dict.fromkeys(
    ("seed", "threads", "train_images", "test_images"), int
)


def read_runs(folder: Path) -> list[Run]:
    """Every measured run of a folder, by row and seed; nothing where nothing is measured.

    Figures without their run were left by a writer that was killed, and are not read.

    Raises:
        ValueError: a file is damaged or half-written, or a run has no figures; the message names the line.
    """
    metrics: dict[tuple[str, int], dict[str, float]] = {}
    for where, (row, seed, metric, value) in _lines(folder / METRICS, _METRICS):
        own = metrics.setdefault((row, _cell(int, seed, f"{where}: seed")), {})
        if metric in own:
            raise ValueError(f"{where}: {metric} of {row} seed {seed} stands twice; remove one of them")
        own[metric] = _cell(float, value, f"{where}: value")
    runs: dict[tuple[str, int], Run] = {}
    for where, cells in _lines(folder / RUNS, _COLUMNS):
        typed = {
            name: _cell(_KINDS.get(name, str), cell, f"{where}: {name}")
            for name, cell in zip(_COLUMNS, cells, strict=True)
        }
        key = (typed["row"], typed["seed"])
        if key in runs:
            raise ValueError(f"{where}: {runs[key]} stands twice; remove one of them")
        if key not in metrics:
            raise ValueError(f"{where}: {METRICS} has no figure of {key[0]} seed {key[1]}; measure it again")
        runs[key] = Run(**typed, metrics=metrics[key])
    return [runs[key] for key in sorted(runs)]


def write_run(folder: Path, run: Run, images: Tables | None = None) -> None:
    """Adds a run to a folder, or puts it in the place of the one that was there.

    The images' scores come first and the line of `runs.csv` last: a writer that is killed leaves no half of a run.

    Args:
        folder: of the results.
        run: what was measured.
        images: what the images scored in each test, header first, as `ImageScores` writes it; None keeps none.

    Raises:
        RuntimeError: another process has been writing there for a minute.
        ValueError: the files that are there are damaged.
    """
    with exclusive_lock(folder, _PATIENCE):
        for left in (*folder.glob(".*.part"), *(folder / IMAGES).glob(".*.part")):
            left.unlink()
        others = {(known.row, known.seed): known for known in read_runs(folder)}
        others[run.row, run.seed] = run
        runs = [others[key] for key in sorted(others)]
        path = images_path(folder, run.row, run.seed)
        if images:
            write_whole(path, _packed(images))
        else:
            path.unlink(missing_ok=True)
        figures = (
            (own.row, own.seed, key, str(round(own.metrics[key], 6))) for own in runs for key in sorted(own.metrics)
        )
        write_whole(folder / METRICS, _text(_METRICS, figures))
        write_whole(folder / RUNS, _text(_COLUMNS, (astuple(own)[:-1] for own in runs)))


def images_path(folder: Path, row: str, seed: int) -> Path:
    """Where the scores of a run's images are, if they are kept."""
    return folder / IMAGES / f"{row}.{seed}.csv.xz"


def read_images(path: Path) -> dict[str, dict[str, list[str]]]:
    """What the images of each test scored: cells by column, `name` among them; "" is a test without a name.

    Raises:
        ValueError: the file is damaged.
    """
    tests: dict[str, dict[str, list[str]]] = {}
    try:
        for test, column, *cells in csv.reader(io.StringIO(lzma.decompress(path.read_bytes()).decode(), newline="")):
            tests.setdefault(test, {})[column] = cells
    except (lzma.LZMAError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); measure the row again") from None
    if any(len({len(columns.get("name", ())), *map(len, columns.values())}) > 1 for columns in tests.values()):
        raise ValueError(f"{path} is damaged (its lines differ in length); measure the row again")
    return tests


def _packed(images: Tables) -> bytes:
    """A line a column, whose neighbours are alike: a third of the size of a line an image."""
    lines = [(test, *column) for test, table in images.items() for column in zip(*table, strict=True)]
    return lzma.compress(_text((), lines), preset=9)


def _text(header: Sequence[str], lines: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([*([header] if header else []), *lines])
    return text.getvalue().encode()


def _lines(path: Path, columns: Sequence[str]) -> Iterable[tuple[str, list[str]]]:
    """The lines below the header, each with where it stands."""
    if not path.is_file():
        return
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text; restore it") from None
    header, *lines = list(csv.reader(io.StringIO(text, newline=""))) or [[]]
    if tuple(header) != tuple(columns):
        raise ValueError(f"{path} has the columns {','.join(header)}; expected {','.join(columns)}; restore it")
    if not text.endswith("\n"):
        raise ValueError(f"{path} ends within a line, as half a file does; restore it")
    for number, cells in enumerate(lines, 2):
        if len(cells) != len(columns):
            raise ValueError(f"{path}, line {number}: {len(cells)} values, expected {len(columns)}; restore it")
        yield f"{path}, line {number}", cells


def _cell(kind: Callable[[str], T], text: str, where: str) -> T:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{where} is {text!r}, not a number; restore it") from None
