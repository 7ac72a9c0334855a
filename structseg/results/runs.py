"""`structseg runs`: one's own runs: a list, two of them compared image by image, and disk space freed."""

from __future__ import annotations

import csv
import gzip
import io
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from structseg.command.processes import is_locked
from structseg.files import CONFIG_NAME, FINISHED
from structseg.messages import UsageError, nearest
from structseg.options.plain_parser import PlainParser
from structseg.tables import TextTable

_SPARE = ("checkpoints/last.ckpt", "checkpoints/last.previous.ckpt", "failed_batch*.pt", "**/*.part")
_NOT_SETTINGS = ("ckpt_path", "runs_dir", "experiment", "trainer.default_root_dir", "trainer.logger")
_WIDTH = 44  # characters of the settings that are shown


@dataclass(frozen=True)
class OwnRun:
    """A run's folder, as it is on the disk.

    Attributes:
        path: the folder.
        name: below the folder of all runs: EXPERIMENT/RUN_ID.
        settings: its resolved configuration, by dotted name.
        state: `running`, `finished` or `stopped`.
        epochs: that have been logged.
        best: the watched score at its best, with its key; empty where nothing has been scored.
    """

    path: Path
    name: str
    settings: Mapping[str, Any]
    state: str
    epochs: int
    best: str

    @property
    def bytes(self) -> int:
        """On the disk."""
        return sum(path.lstat().st_size for path in self.path.rglob("*") if path.is_file())


def find_runs(root: Path) -> list[OwnRun]:
    """All runs below a folder, the newest first."""
    configs = sorted(root.rglob(CONFIG_NAME), key=lambda path: path.stat().st_mtime, reverse=True)
    return [_read(path.parent, root) for path in configs]


def _read(folder: Path, root: Path) -> OwnRun:
    try:
        content = yaml.safe_load((folder / CONFIG_NAME).read_text())
    except (OSError, yaml.YAMLError):
        content = None
    settings = _dotted(content) if isinstance(content, Mapping) else {}
    rows = []
    if (folder / "metrics.csv").is_file():
        with (folder / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
    epochs = [int(row["epoch"]) + 1 for row in rows if (row.get("epoch") or "").isdecimal() and row.get("step")]
    state = "running" if is_locked(folder) else "finished" if (folder / FINISHED).is_file() else "stopped"
    key = settings.get("checkpoint.monitor") or "val/loss"
    found = [float(row[key]) for row in rows if row.get(key)]
    pick = min if settings.get("checkpoint.mode") == "min" or key.endswith("loss") else max
    best = f"{key} {pick(found):.4f}" if found else ""
    return OwnRun(folder, str(folder.relative_to(root)), settings, state, max(epochs, default=0), best)


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by the names that they have on the command line."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = prefix if key in ("init_args", "class_path") else f"{prefix}.{key}".lstrip(".")
        flat |= _dotted(value, name) if isinstance(value, Mapping) else {name: value}
    return {key: value for key, value in flat.items() if key not in _NOT_SETTINGS}


def differences(runs: Sequence[OwnRun]) -> list[str]:
    """What each run sets otherwise than the commonest of its experiment, in words."""
    said = []
    for run in runs:
        group = [other.settings for other in runs if Path(other.name).parent == Path(run.name).parent]
        words = []
        for key, value in run.settings.items():
            values = [str(settings.get(key)) for settings in group]
            if len(set(values)) > 1 and (str(value) != max(values, key=values.count) or len(group) == 2):
                words.append(f"{key}={value}")
        said.append(" ".join(words))
    return said


def runs_table(runs: Sequence[OwnRun]) -> TextTable:
    """A line a run."""
    lines = [
        (
            run.name,
            time.strftime("%Y-%m-%d %H:%M", time.localtime((run.path / CONFIG_NAME).stat().st_mtime)),
            run.state,
            str(run.epochs),
            run.best,
            f"{run.bytes / 1e6:.0f}",
            setting if len(setting) <= _WIDTH else setting[: _WIDTH - 1] + "…",
        )
        for run, setting in zip(runs, differences(runs), strict=True)
    ]
    total = sum(run.bytes for run in runs) / 1e6
    notes = [f"{len(runs)} runs, {total:.0f} MB. Settings: where a run differs from the others of its experiment."]
    header = ("run", "written", "state", "epochs", "best", "MB", "settings")
    return TextTable(header, lines, left=3, notes=notes)


def compare_runs(first: OwnRun, second: OwnRun) -> list[TextTable]:
    """The second run minus the first: settings that differ, and the test images that both have scored.

    Raises:
        ValueError: one has not been tested, or on other images.
    """
    from structseg.results.compare import Images, compare_images  # loads numpy

    keys = sorted(first.settings.keys() | second.settings.keys())
    pairs = [(key, str(first.settings.get(key)), str(second.settings.get(key))) for key in keys]
    named = ("setting", first.name, second.name)
    tables = [TextTable(named, [pair for pair in pairs if pair[1] != pair[2]] or [("nothing differs",)], left=3)]
    tested = []
    for run in (first, second):
        path = run.path / "images_test.csv.gz"
        if not path.is_file():
            raise ValueError(f"{run.name} has not been tested; structseg test {run.path}/checkpoints/best.ckpt")
        try:
            header, *lines = list(csv.reader(io.StringIO(gzip.decompress(path.read_bytes()).decode(), newline="")))
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise ValueError(f"{path} is damaged ({error}); test the run again") from None
        tested.append((run.name, Images.of(dict(zip(header, zip(*lines, strict=True), strict=True)), path)))
    return [*tables, compare_images(tested[0], tested[1], "of the test")]


def spare_files(run: OwnRun) -> list[Path]:
    """What a finished run can do without: the state to train on from, what has failed, half-written files."""
    return sorted({path for pattern in _SPARE for path in run.path.glob(pattern)}) if run.state == "finished" else []


def _named(runs: Sequence[OwnRun], name: str) -> OwnRun:
    """A run by its folder, its name, or the end of its name."""
    found = [run for run in runs if name.rstrip("/") in (run.name, str(run.path), run.path.name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{name} is the name of {len(found)} runs: {', '.join(run.name for run in found)}")
    raise UsageError(f"no run {name}{nearest(name, {run.name for run in runs})}; structseg runs lists them")


def make_parser() -> PlainParser:
    """The options of `structseg runs`."""
    parser = PlainParser(
        "runs",
        ("", "compare fasseg_v2/3f2a91c0 fasseg_v2/mine", "prune --yes"),
        "Lists your runs; `compare A B` pairs the test images of two; `prune` frees the disk space that finished runs "
        "do not need: best.ckpt, figures and pictures stay, but such a run cannot be trained for longer.",
    )
    parser.add_argument("what", nargs="?", choices=("list", "compare", "prune"), default="list")
    parser.add_argument("run", nargs="*", metavar="RUN", help="a run's folder, or EXPERIMENT/RUN_ID; prune: all runs")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"), metavar="FOLDER", help="of all runs")
    parser.add_argument("--yes", action="store_true", help="prune: remove, instead of saying what would be removed")
    return parser


def main(args: list[str]) -> None:
    """Entry point of `structseg runs`."""
    given = make_parser().parse_args(args)
    if not given.runs_dir.is_dir():
        raise UsageError(f"no folder {given.runs_dir}; give --runs_dir, or train: structseg fit CONFIG")
    runs = find_runs(given.runs_dir)
    chosen = [_named(runs, name) for name in given.run] or runs
    if given.what == "compare":
        if len(given.run) != 2:
            raise UsageError(f"runs compare takes two runs, not {len(given.run)}: structseg runs compare A B")
        print("\n\n".join(table.text() for table in compare_runs(*chosen)))
    elif given.what == "prune":
        spare = [path for run in chosen for path in spare_files(run)]
        freed = sum(path.stat().st_size for path in spare) / 1e6
        for path in spare:
            print(path)
            if given.yes:
                path.unlink()
        print(f"{freed:.0f} MB {'freed' if given.yes else 'would be freed; --yes removes these files'}")
    else:
        print(runs_table(chosen).text())
