"""`structseg report`: a run, or rows of the results, as one self-contained HTML page."""

from __future__ import annotations

import base64
import csv
import io
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from structseg.command.processes import is_locked
from structseg.files import CONFIG_NAME, FINISHED, write_whole
from structseg.messages import UsageError
from structseg.options.plain_parser import PlainParser
from structseg.results.claims import CLAIMS, HEADER, RULE, judge, load_claims, runs_of
from structseg.results.dots import dot_plot
from structseg.results.files import read_runs
from structseg.results.manifest import MANIFEST, find_row, load_manifest
from structseg.results.table import BY_SEED, method_name, number

_DAMAGE = (OSError, ValueError, TypeError, LookupError, SyntaxError, yaml.YAMLError, csv.Error)


@dataclass
class Table:
    """A table of strings; the page aligns and sorts numbers as numbers."""

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    note: str = ""


@dataclass
class Picture:
    """A picture as a `data:` URL, with its caption."""

    caption: str
    address: str


@dataclass
class Page:
    """The content of `report.html`, in this order.

    Attributes:
        title: of the page.
        facts: names and values.
        notes: on missing parts.
        tables: shown before the pictures.
        plots: as SVG.
        pictures: wide pictures.
        worst: pictures of the worst images.
        images: scores of each image, if they are known.
    """

    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    worst: list[Picture] = field(default_factory=list)
    images: Table | None = None

    def html(self) -> str:
        """The page as self-contained HTML."""
        import jinja2  # not needed by the help

        loader = jinja2.FileSystemLoader(Path(__file__).parent)
        environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
        return environment.get_template("report.html").render(page=self)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Turns an error in a part of the page into a note."""
        try:
            yield
        except FileNotFoundError:
            self.notes.append(f"There is no {name} yet.")
        except _DAMAGE as error:
            self.notes.append(f"{name}: not shown, as it cannot be read ({' '.join(str(error).split())[:200]})")


def make_parser() -> PlainParser:
    """The options of `structseg report`."""
    parser = PlainParser(
        "report",
        ["runs/fasseg_v2/ID", "lfw_light_ce lfw_light_labels -o labels.html"],
        "Writes a run, or rows of the results, as one HTML page that needs no other file and no network.",
    )
    parser.add_argument("targets", nargs="+", metavar="ROW", help="rows of the results; or the folder of one run")
    parser.add_argument("-o", "--out", type=Path, default=Path("report.html"), metavar="FILE", help="the page")
    parser.add_argument("--manifest", type=Path, default=MANIFEST, metavar="FILE", help="file that lists the rows")
    return parser


def main(args: list[str]) -> None:
    """Entry point of `structseg report`."""
    given = make_parser().parse_args(args)
    runs = [path for path in map(_run_of, given.targets) if path is not None]
    if runs and len(given.targets) > 1:
        raise UsageError(f"report: {runs[0]} is a run; give only one run, or rows of the results")
    page = of_run(runs[0]) if runs else of_rows(given.targets, given.manifest)
    write_whole(given.out, page.html().encode())
    print(given.out)


def _run_of(target: str) -> Path | None:
    """The folder of the run at a path; None for the name of a row.

    Raises:
        FileNotFoundError: the path has no run.
    """
    path = Path(target)
    if path.suffix == ".ckpt" or path.name == "checkpoints":
        path = path.parent.parent if path.suffix == ".ckpt" else path.parent
    elif not (path / CONFIG_NAME).is_file() and len(path.parts) == 1 and "/" not in target:
        return None
    if (path / CONFIG_NAME).is_file():
        return path
    inside = sorted(path.glob(f"*/{CONFIG_NAME}"), key=lambda config: config.stat().st_mtime)
    hint = f"; the newest in it is {inside[-1].parent}" if inside else "; give runs/EXPERIMENT/ID"
    raise FileNotFoundError(f"no run in {target} (no {CONFIG_NAME}){hint}")


def of_run(folder: Path) -> Page:
    """The page of a run, finished or not."""
    # These load torch, which the page of rows does not need.
    from structseg.command.configs import differences
    from structseg.command.run_folder import NOTICES_NAME, START_NAME
    from structseg.lightning_modules.callbacks.image_scores import (
        VALUES,
        image_miou,
        images_file,
        read_table,
        worst_folder,
    )
    from structseg.lightning_modules.drawing.charts import loss_curves, read_curves

    folder = folder.resolve()
    page = Page(f"{folder.parent.name}/{folder.name}")
    if not (folder / FINISHED).is_file():
        page.notes.append("This run is still going: the page shows what there is." if is_locked(folder) else
                          "The fit is not finished, or was not made by this command.")  # fmt: skip
    with page.part(START_NAME):
        page.facts += [(key, str(value)) for key, value in json.loads(_text(folder / START_NAME)).items()]
    with page.part(CONFIG_NAME):
        config = yaml.safe_load(_text(folder / CONFIG_NAME))
        page.facts += [("method", config["model"]["class_path"]), ("data", config["data"]["class_path"])]
        page.tables.append(Table("Difference from the defaults", ("option", "value"), differences(config)))
    split = "test" if images_file(folder, "test").is_file() or not images_file(folder, "val").is_file() else "val"
    for path in sorted(folder.glob("classes_*.csv"), key=lambda path: (split not in path.stem, path.stem)):
        with page.part(path.name):
            header, *lines = csv.reader(io.StringIO(_text(path), newline=""))
            cells = [(name, *(number(float(value), 4) for value in values)) for name, *values in lines]
            page.tables.append(Table(f"Scores of each class: {path.stem.removeprefix('classes_')}", header, cells))
    with page.part("metrics.csv"), tempfile.TemporaryDirectory() as aside:
        loss_curves(read_curves(folder / "metrics.csv"), Path(aside) / "curves.png")
        page.pictures += _pictures([Path(aside) / "curves.png"], ["Curves"])
    confusion = folder / "pictures" / f"confusion_{split}.png"
    with page.part(confusion.name):
        page.pictures += _pictures([confusion], [f"Confusion, {split}"])
    with page.part(NOTICES_NAME):
        notices = _text(folder / NOTICES_NAME).splitlines() if (folder / NOTICES_NAME).is_file() else []
        page.tables += [Table("Notices of the test", ("notice",), [(line,) for line in notices])] if notices else []
    with page.part(images_file(folder, split).name):
        header, *rows = read_table(images_file(folder, split))
        classes = (len(header) - 1 - len(VALUES)) // 3
        scored = sorted((image_miou(row, classes), row) for row in rows)
        images = [(row[0], f"{miou:.4f}", row[-3], row[-1]) for miou, row in scored]
        columns = ("image", "mean IoU", "component error", "boundary F1")
        page.images = Table(f"Every image of {split}", columns, images)
        tiles = sorted(worst_folder(folder, split).glob("*.jpg"))
        page.worst = _pictures(tiles, [f"{name}: mean IoU {miou}" for name, miou, *_ in images[: len(tiles)]])
    if page.images and not page.worst:
        page.notes.append("There are no pictures of the worst images; another test makes them.")
    return page


def of_rows(names: Sequence[str], manifest: Path) -> Page:
    """The page of rows of the results.

    Raises:
        ValueError: there is no such row, or the results are damaged; the message has the nearest name.
    """
    rows = load_manifest(manifest, stages=False)
    chosen = {name: find_row(rows, name) for name in dict.fromkeys(names)}
    runs = read_runs(manifest.parent)
    page = Page(", ".join(chosen))
    for row in chosen.values():
        page.facts.append((row.name, f"{row.what} {row.decides}".strip()))
        if not runs_of(row, runs):
            page.notes.append(f"{row.name} is not measured yet: structseg results --run {row.name}")
    own = [run for row in chosen.values() for run in runs_of(row, runs)]
    found = judge(load_claims(manifest.parent / CLAIMS, rows), rows, runs)
    found = [item for item in found if {item.claim.row, item.claim.control} & set(chosen)]
    if found:
        lines = [(method_name(item.method), *item.cells) for item in found]
        page.tables.append(Table("Claims that these rows take part in", ("method", *HEADER), lines, RULE))
        lines = [(item.claim.claim, *item.by_seed, item.verdict) for item in found]
        page.tables.append(Table("Differences by seed", BY_SEED, lines))
    metrics = dict.fromkeys(key for run in own for key in run.metrics)
    means = [(key, *(number(_mean(runs_of(row, own), key)) for row in chosen.values())) for key in metrics]
    page.tables.append(Table("Means over the seeds", ("metric", *chosen), means))
    header = ("row", "seed", "headline", "commit", "date", "hardware", "minutes", "images")
    lines = [
        (run.row, str(run.seed), number(run.value(rows[run.row].headline), 4), run.commit, run.date[:10], run.processor,
         f"{run.minutes:g}", str(run.test_images))
        for run in own
    ]  # fmt: skip
    page.tables.append(Table("Runs", header, lines))
    for method in dict.fromkeys(row.method for row in chosen.values()):
        page.plots.append(dot_plot([row for row in chosen.values() if row.method == method], own))
    return page


def _mean(runs: Sequence[Any], metric: str) -> float:
    values = [run.metrics[metric] for run in runs if metric in run.metrics]
    return statistics.fmean(values) if values else float("nan")


def _text(path: Path) -> str:
    return path.read_bytes().decode()


def _pictures(paths: Sequence[Path], captions: Sequence[str]) -> list[Picture]:
    """The pictures at those of the paths that exist.

    Raises:
        OSError, SyntaxError: a picture is damaged.
    """
    from PIL import Image

    pictures = []
    for path, caption in zip(paths, captions, strict=True):
        if path.is_file():
            with Image.open(path) as image:
                kind = image.format
                image.load()
            data = base64.b64encode(path.read_bytes()).decode()
            pictures.append(Picture(caption, f"data:image/{str(kind).lower()};base64,{data}"))
    return pictures
