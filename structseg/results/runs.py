"""`structseg runs`: lists the runs of a folder, compares two of them image by image, frees disk space."""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
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
from structseg.pipelines.round_report import size
from structseg.tables import TextTable
from structseg.yaml_files import flatten

_NOT_NEEDED = ("checkpoints/last.ckpt", "checkpoints/last.previous.ckpt", "failed_batch*.pt", "**/*.part")
_NOT_SETTINGS = ("ckpt_path", "runs_dir", "experiment", "trainer.default_root_dir", "trainer.logger")
_WIDTH = 44  # characters of the settings that are shown


@dataclass(frozen=True)
class OwnRun:
    """A run on the disk.

    Attributes:
        path: the folder.
        name: EXPERIMENT/RUN_ID, the path below the folder of all runs.
        settings: values of its resolved configuration by option.
        state: `running`, `finished` or `stopped`.
        epochs: how many are finished.
        best: the best value of the watched score, with its name; empty where nothing has been scored.
    """

    path: Path
    name: str
    settings: Mapping[str, Any]
    state: str
    epochs: int
    best: str

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return size(self.path)


def find_runs(root: Path) -> list[OwnRun]:
    """All runs below a folder, the newest first."""
    configs = []
    for place, folders, files in os.walk(root):
        if CONFIG_NAME in files:
            configs.append(Path(place) / CONFIG_NAME)
            folders.clear()  # trackers keep copies in a run's folder
    configs.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [_read(path.parent, root) for path in configs]


def _read(folder: Path, root: Path) -> OwnRun:
    try:
        content = yaml.safe_load((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        content = None
    settings = _settings(content) if isinstance(content, Mapping) else {}
    rows = []
    if (folder / "metrics.csv").is_file():
        with (folder / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
    whole = [
        row for row in rows if any(v and (k.startswith("val/") or k == "train/loss_epoch") for k, v in row.items())
    ]
    epochs = [int(row["epoch"]) + 1 for row in whole if (row.get("epoch") or "").isdecimal() and row.get("step")]
    state = "running" if is_locked(folder) else "finished" if (folder / FINISHED).is_file() else "stopped"
    key = settings.get("checkpoint.monitor") or "val/loss"
    scores = [float(row[key]) for row in rows if row.get(key)]
    pick = min if settings.get("checkpoint.mode") == "min" or key.endswith("loss") else max
    best = f"{key} {pick(scores):.4f}" if scores else ""
    return OwnRun(folder, str(folder.relative_to(root)), settings, state, max(epochs, default=0), best)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration by the options that set them."""
    values = {key: value for key, value in flatten(config).items() if value != {}}
    options = {re.sub(r"\.(init_args|class_path)\b", "", key): value for key, value in values.items()}
    return {option: value for option, value in options.items() if option not in _NOT_SETTINGS}


def differences(runs: Sequence[OwnRun]) -> list[str]:
    """For each run the settings in which it differs from most runs of its experiment: `key=value ...`."""
    texts = []
    for run in runs:
        group = [other.settings for other in runs if Path(other.name).parent == Path(run.name).parent]
        words = []
        for key, value in run.settings.items():
            values = [str(settings.get(key)) for settings in group]
            if len(set(values)) > 1 and (str(value) != max(values, key=values.count) or len(group) == 2):
                words.append(f"{key}={value}")
        texts.append(" ".join(words))
    return texts


def runs_table(runs: Sequence[OwnRun]) -> TextTable:
    """A line for each run."""
    lines = [
        (
            run.name,
            time.strftime("%Y-%m-%d %H:%M", time.localtime((run.path / CONFIG_NAME).stat().st_mtime)),
            run.state,
            str(run.epochs),
            run.best,
            f"{run.bytes / 1e6:.0f}",
            text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…",
        )
        for run, text in zip(runs, differences(runs), strict=True)
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
    header = ("setting", first.name, second.name)
    tables = [TextTable(header, [pair for pair in pairs if pair[1] != pair[2]] or [("nothing differs",)], left=3)]
    tested = []
    for run in (first, second):
        path = run.path / "images_test.csv.gz"
        if not path.is_file():
            raise ValueError(f"{run.name} has not been tested; structseg test {run.path}/checkpoints/best.ckpt")
        try:
            columns, *lines = list(csv.reader(io.StringIO(gzip.decompress(path.read_bytes()).decode(), newline="")))
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise ValueError(f"{path} is damaged ({error}); test the run again") from None
        tested.append((run.name, Images.of(dict(zip(columns, zip(*lines, strict=True), strict=True)), path)))
    return [*tables, compare_images(tested[0], tested[1], "of the test")]


def removable_files(run: OwnRun) -> list[Path]:
    """Files that a finished run does not need: the state to resume from, failed batches, half-written files."""
    return (
        sorted({path for pattern in _NOT_NEEDED for path in run.path.glob(pattern)}) if run.state == "finished" else []
    )


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
        removable = [path for run in chosen for path in removable_files(run)]
        freed = sum(path.stat().st_size for path in removable) / 1e6
        for path in removable:
            print(path)
            if given.yes:
                path.unlink()
        print(f"{freed:.0f} MB {'freed' if given.yes else 'would be freed; --yes removes these files'}")
    else:
        print(runs_table(chosen).text())
