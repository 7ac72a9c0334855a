"""The only reader and writer of the measured results: `runs.csv`, `metrics.csv` and the scores of images."""

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
_PATIENCE = 60.0  # seconds that a writer waits for another one

T = TypeVar("T")
Tables = Mapping[str, Sequence[Sequence[str]]]


@dataclass(frozen=True)
class Run:
    """One measured seed of a row: a line of `runs.csv`, and its lines of `metrics.csv`.

    Attributes:
        row: name of the row.
        seed: of the run.
        commit: of the repository; ends with `-dirty` where there were uncommitted changes.
        date: of its start, ISO 8601.
        hardware: the processor and its cores, or the GPU.
        threads: of torch on the processor; 0 on a GPU.
        minutes: of the fit and all tests, with all stages that a pipeline's stage depends on.
        recipe: hash of the row's settings: `Recipes`.
        train_images: number of images that it was trained on.
        test_images: number of images that it was scored on.
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
        """The hardware with its number of threads; runs of different processors are not compared."""
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
    """All measured runs of a folder, sorted by row and seed.

    Figures without a run, which a killed writer leaves, are ignored.

    Raises:
        ValueError: a file is damaged or incomplete, or a run has no figures; the message names the line.
    """
    metrics: dict[tuple[str, int], dict[str, float]] = {}
    for where, (row, seed, metric, value) in _lines(folder / METRICS, _METRICS):
        own = metrics.setdefault((row, _cell(int, seed, f"{where}: seed")), {})
        if metric in own:
            raise ValueError(f"{where}: {metric} of {row} seed {seed} is there twice; remove one of them")
        own[metric] = _cell(float, value, f"{where}: value")
    runs: dict[tuple[str, int], Run] = {}
    for where, cells in _lines(folder / RUNS, _COLUMNS):
        typed = {
            name: _cell(_KINDS.get(name, str), cell, f"{where}: {name}")
            for name, cell in zip(_COLUMNS, cells, strict=True)
        }
        key = (typed["row"], typed["seed"])
        if key in runs:
            raise ValueError(f"{where}: {runs[key]} is there twice; remove one of them")
        if key not in metrics:
            raise ValueError(f"{where}: {METRICS} has no figure of {key[0]} seed {key[1]}; measure it again")
        runs[key] = Run(**typed, metrics=metrics[key])
    return [runs[key] for key in sorted(runs)]


def write_run(folder: Path, run: Run, images: Tables | None = None) -> None:
    """Adds a run to a folder, or replaces the earlier one of the same row and seed.

    The images' scores are written first and the line of `runs.csv` last, so that a killed writer leaves no partial run.

    Args:
        folder: of the results.
        run: the measured run.
        images: scores of the images in each test, header first, as `ImageScores` writes them; None keeps none.

    Raises:
        RuntimeError: another process has been writing there for a minute.
        ValueError: the existing files are damaged.
    """
    with exclusive_lock(folder, _PATIENCE):
        for part in (*folder.glob(".*.part"), *(folder / IMAGES).glob(".*.part")):
            part.unlink()
        by_key = {(known.row, known.seed): known for known in read_runs(folder)}
        by_key[run.row, run.seed] = run
        runs = [by_key[key] for key in sorted(by_key)]
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
    """The file of the scores of a run's images, which may not exist."""
    return folder / IMAGES / f"{row}.{seed}.csv.xz"


def read_images(path: Path) -> dict[str, dict[str, list[str]]]:
    """The scores of the images by test and column, with the column `name`; "" is a test without a name.

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
    """The tables, compressed: a line for each column, a third of the size of a line for each image."""
    lines = [(test, *column) for test, table in images.items() for column in zip(*table, strict=True)]
    return lzma.compress(_text((), lines), preset=9)


def _text(header: Sequence[str], lines: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([*([header] if header else []), *lines])
    return text.getvalue().encode()


def _lines(path: Path, columns: Sequence[str]) -> Iterable[tuple[str, list[str]]]:
    """The lines below the header, each with its position for messages."""
    if not path.is_file():
        return
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; restore it") from None
    header, *lines = list(csv.reader(io.StringIO(text, newline=""))) or [[]]
    if tuple(header) != tuple(columns):
        raise ValueError(f"{path} has the columns {','.join(header)}; expected {','.join(columns)}; restore it")
    if not text.endswith("\n"):
        raise ValueError(f"{path} ends within a line, so it is incomplete; restore it")
    for number, cells in enumerate(lines, 2):
        if len(cells) != len(columns):
            raise ValueError(f"{path}, line {number}: {len(cells)} values, expected {len(columns)}; restore it")
        yield f"{path}, line {number}", cells


def _cell(kind: Callable[[str], T], text: str, where: str) -> T:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{where} is {text!r}, not a number; restore it") from None
