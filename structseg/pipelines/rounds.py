"""`structseg rounds`: scores and notices of a pipeline's rounds, and pictures of their artefacts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from structseg.messages import nearest
from structseg.metric_names import flat_metrics
from structseg.options.plain_parser import PlainParser
from structseg.pipelines.record import RECORD, read_record
from structseg.pipelines.round_report import REPORT, round_report
from structseg.pipelines.stages import round_and_arm
from structseg.tables import TextTable

if TYPE_CHECKING:
    from structseg.datamodules.weak.datamodule import WeaklySupervisedDataModule

# Columns with the scores of predictions: title, key of the score, digits.
_BEFORE_TEST = (
    ("cam\nmIoU", "cam_miou", 4),
    ("cam\nthreshold", "cam_threshold", 2),
    ("relation\nprecision", "relation_precision", 4),
    ("relation\ncoverage", "relation_coverage", 4),
    ("pseudo-mask\nmIoU", "pseudo_miou", 4),
    ("FP on\nobjects", "pseudo_mean_fp_object", 4),
    ("FP on\nbackground", "pseudo_mean_fp_background", 4),
    ("misses", "pseudo_mean_miss", 4),
)
_EXPLAINED = 8  # coefficients that are shown
_TEST = ("test\nmIoU", "test mIoU\nwith CRF")
_AFTER_TEST = (("mask mIoU\n(train)", "mask_miou", 4),)


@dataclass(frozen=True)
class Round:
    """The results of a round of a pipeline.

    Attributes:
        name: of its folder.
        report: by `round_report`, of the finished stages.
        finished: whether all stages are finished.
    """

    name: str
    report: Mapping[str, Any]
    finished: bool

    @classmethod
    def read(cls, folder: Path) -> Round:
        """Reads `report.json`, or where it is missing the records of the finished stages.

        Raises:
            ValueError: the report is damaged.
        """
        path = folder / REPORT
        if not path.is_file():
            records = {file.parent.name: read_record(file.parent) for file in _by_age(folder.glob(f"*/{RECORD}"))}
            done = {f"{folder.name}/{stage}": record for stage, record in records.items() if record is not None}
            return cls(folder.name, round_report(folder.name, done), finished=False)
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            for stage in report["stages"].values():
                _ = flat_metrics(stage["scores"]), list(stage["notices"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{path} is damaged; remove it and run the pipeline again, which writes it again"
            ) from None
        return cls(folder.name, report, finished=True)

    @property
    def notices(self) -> Iterator[tuple[str, str]]:
        """Pairs of a stage and one of its notices."""
        for stage, content in self.report["stages"].items():
            yield from ((stage, notice) for notice in content["notices"])

    def score(self, key: str) -> float:
        """A score of a prediction; nan where no stage has it."""
        values = (stage["scores"].get(key) for stage in self.report["stages"].values())
        return next((float(value) for value in values if isinstance(value, int | float)), math.nan)

    def explained_tags(self) -> list[str]:
        """One line with the coefficients of the tag offset, the largest first; empty without a tag offset."""
        trees = (stage["scores"].get("company") for stage in self.report["stages"].values())
        pairs = [
            (value, tag, name) for tree in trees if tree for tag, own in tree.items() for name, value in own.items()
        ]
        largest = sorted(pairs, key=lambda pair: -abs(pair[0]))[:_EXPLAINED]
        shown = ", ".join(f"{tag} by {name} ({value:.1f})" for value, tag, name in largest)
        return [f"{self.name}: tags explained by company (log odds): {shown}"] if pairs else []

    def tested(self) -> tuple[float, float]:
        """Mean IoU of the segmenter on the test images, without and with the CRF; nan where it was not tested so."""
        plain = refined = math.nan
        for stage in self.report["stages"].values():
            scores = flat_metrics(stage["scores"])
            for key in (key for key in scores if key == "miou" or key.endswith(".miou")):
                if scores.get(f"{key.removesuffix('miou')}crf"):  # 1 where the CRF was applied
                    refined = scores[key]
                else:
                    plain = scores[key]
        return plain, refined


def find_rounds(folder: Path, only: Sequence[str] | None = None) -> list[Path]:
    """The folders of a run's rounds: round 0, then those of each arm; or those in `only`, in that order.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: not a run of a pipeline with rounds, or no such round.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; give that of a pipeline's run, runs/PIPELINE/SEED")
    keys = {path: round_and_arm(path.name) for path in folder.iterdir() if path.is_dir()}
    order = {path: (key[0] > 0, key[1], key[0]) for path, key in keys.items() if key}
    found = {path.name: path for path in sorted(order, key=lambda path: order[path])}
    if not any(name.startswith("round_0") for name in found):
        near = next((path.parent for path in sorted(folder.glob("*/round_0"))), "runs/PIPELINE/SEED")
        raise ValueError(f"{folder} is not a run of a pipeline with rounds: it has no round_0; give {near}")
    for name in only or ():
        if name not in found:
            hint = nearest(name, found) or f"; there are {', '.join(found)}"
            raise ValueError(f"{folder} has no {name}{hint}")
    return [found[name] for name in only or found]


def run_datamodule(folder: Path, root: str | None = None) -> WeaklySupervisedDataModule:
    """The datamodule of a run's first classifier.

    Args:
        folder: of the run.
        root: folder of the data, if they have moved.

    Raises:
        FileNotFoundError: the configuration of that fit is missing.
        ValueError: the data have no root, or no tags.
    """
    from structseg.command.configs import make_datamodule  # takes seconds to load, and the table does not need it
    from structseg.datamodules.weak.datamodule import WeaklySupervisedDataModule
    from structseg.files import CONFIG_NAME

    first = next(iter(sorted(folder.glob("round_0*/classifier"))), folder / "round_0" / "classifier")
    record = read_record(first)
    paths = _by_age(first.glob(f"{record.run if record else '*'}/{CONFIG_NAME}"))
    if not paths:
        raise FileNotFoundError(f"no RUN_ID/{CONFIG_NAME} in {first}, whose configuration names the images")
    config = yaml.safe_load(paths[-1].read_text(encoding="utf-8"))
    if root is not None:
        if "root" not in config["data"]["init_args"]:
            raise ValueError(f"{config['data']['class_path'].rpartition('.')[2]} has no root; leave out --root")
        config["data"]["init_args"]["root"] = root
    made = make_datamodule(config)
    if not isinstance(made, WeaklySupervisedDataModule):
        raise ValueError(
            f"{paths[-1]}: {type(made).__name__} is not a datamodule of weak supervision, as CONTA's rounds need"
        )
    return made


def _by_age(files: Iterator[Path]) -> list[Path]:
    return sorted(files, key=lambda file: file.stat().st_mtime_ns)


def rounds_table(title: str, rounds: Sequence[Round]) -> TextTable:
    """The table of the rounds' scores, with notes on unfinished rounds."""
    lines, notes = [], []
    for one in rounds:
        before, after = (
            [_figure(one.score(key), digits) for _, key, digits in columns] for columns in (_BEFORE_TEST, _AFTER_TEST)
        )
        notices = len({notice for _, notice in one.notices})
        mark = "" if one.finished else " *"
        lines.append((one.name + mark, *before, *(_figure(value, 4) for value in one.tested()), *after, str(notices)))
        if not one.finished:
            done = ", ".join(one.report["stages"]) or "no stage"
            notes.append(f"* {one.name} is not finished: {done} done")
        if not math.isnan(tested := one.score("m_tested")):
            moved = (("m_zeroed", "without M"), ("m_swapped", "with another image's"))
            shares = [f"{one.score(key):.1%} {how}" for key, how in moved if not math.isnan(one.score(key))]
            verdict = "a test of M" if tested else "no test of M"
            notes.append(f"{one.name}: logits move by {', '.join(shares)}, of their deviation: {verdict}")
        notes += one.explained_tags()
    titles = (*(text for text, *_ in _BEFORE_TEST), *_TEST, *(text for text, *_ in _AFTER_TEST))
    return TextTable(("round", *titles, "notices"), lines, title=title, notes=notes)


def _figure(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def make_parser() -> PlainParser:
    """The options of `structseg rounds`."""
    parser = PlainParser(
        "rounds",
        description="Prints the scores of a pipeline's rounds (FP: false positives of the pseudo-masks, as shares "
        "of the pixels labelled so), or draws their artefacts.",
    )
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER", help="of a pipeline's run: runs/PIPELINE/SEED")
    parser.add_argument("--only", nargs="+", metavar="ROUND", help="these rounds, as round_0 round_1_sum; default: all")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--notices", action="store_true", help="print all notices, by stage")
    what.add_argument("--names", nargs="+", metavar="NAME", help="draw the artefacts of these training images")
    what.add_argument("--confounders", type=Path, metavar="PICTURE", help="draw the confounder sets and the true one")
    parser.add_argument("--out", type=Path, metavar="PICTURE", help="of --names, .png or .jpg; default: rounds.png")
    parser.add_argument("--root", metavar="FOLDER", help="folder of the data, if they have moved")
    return parser


def main(args: list[str]) -> None:
    """Entry point of `structseg rounds`."""
    parser = make_parser()
    given = parser.parse_args(args)
    if given.out and not given.names:
        parser.error("--out has no effect without --names")
    if given.root and not (given.names or given.confounders):
        parser.error("--root has no effect without --names or --confounders")
    folders = find_rounds(given.folder, given.only)
    if given.names or given.confounders:
        from structseg.pipelines.round_pictures import confounder_sheet, image_sheet, save_picture
    if given.names:
        out = given.out or Path("rounds.png")
        save_picture(image_sheet(folders, given.names, run_datamodule(given.folder, given.root)), out)
        print(out)
    elif given.confounders:
        save_picture(confounder_sheet(folders, run_datamodule(given.folder, given.root)), given.confounders)
        print(given.confounders)
    elif given.notices:
        lines = [f"{one.name}/{stage}: {text}" for one in map(Round.read, folders) for stage, text in one.notices]
        print("\n".join(lines or ["no notices"]))
    else:
        run = given.folder.absolute()
        print(rounds_table(f"{run.parent.name}, seed {run.name}", [Round.read(folder) for folder in folders]).text())
