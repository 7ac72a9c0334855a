"""Tables of class scores and confusion matrices, as files, in W&B and in the terminal."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_warn
from rich.console import Console
from rich.table import Table
from torch import nn

from structseg.lightning_modules.drawing.charts import confusion_figure
from structseg.lightning_modules.metrics.segmentation import SegmentationMetrics

_SCORES = ("iou", "precision", "recall", "f1")
_STRUCTURE = {
    "mean_boundary_f1": "boundary F1",
    "component_error": "component error (an image)",
    "component_error_relative": "component error (relative)",
}


@dataclass(frozen=True)
class Scores:
    """A copy of a metric's values.

    Attributes:
        classes: the K names.
        groups: names of the groups of classes.
        values: every value of `SegmentationMetrics.compute`, by its key.
        confusion: (K, K) pixels, rows truth, columns prediction, over all processes.
    """

    classes: tuple[str, ...]
    groups: tuple[str, ...]
    values: dict[str, float]
    confusion: NDArray[np.int64]

    @classmethod
    def of(cls, metric: SegmentationMetrics) -> Scores:
        """The present scores; all processes must call it, as their counts are summed."""
        values = {key: float(value) for key, value in metric.compute().items()}
        with metric.sync_context():
            confusion = metric.confusion.cpu().numpy().copy()
        return cls(metric.classes, tuple(metric.groups), values, confusion)


class ScoreTables(Callback):
    """Writes the scores of each class and the confusion matrix after a fit, `validate` and `test`.

    In the run's folder: `classes_val.csv`, `classes_test.csv` (nan for a class that is absent),
    `pictures/confusion_val.png`, `pictures/confusion_test.png`; for a named part of the test set
    `classes_test_PART.csv` and `pictures/confusion_test_PART.png`. In W&B, if it is among the loggers: `val/classes`,
    `val/confusion` (pixels, rows truth), `test/classes`, `test/confusion`, `test/PART/...`. After `test` the scores are
    printed.

    The scores are read before the module resets them: Lightning calls callbacks before the module.
    """

    def __init__(self) -> None:
        self._scores: dict[str, Scores] = {}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the epoch's scores, for the tables at the end of the fit."""
        metric = getattr(pl_module, "val_scores", None)
        if not trainer.sanity_checking and isinstance(metric, SegmentationMetrics):
            self._scores = {"val": Scores.of(metric)}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the tables after `validate`."""
        if trainer.state.fn == "validate":
            self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the tables of the last validation."""
        self._write(trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the scores of the test set and of its named parts."""
        parts = getattr(pl_module, "subset_scores", None)
        metrics = {"test": getattr(pl_module, "test_scores", None)}
        if isinstance(parts, nn.ModuleDict):
            metrics |= {f"test/{name}": metric for name, metric in parts.items()}
        self._scores = {
            key: Scores.of(metric) for key, metric in metrics.items() if isinstance(metric, SegmentationMetrics)
        }

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the tables."""
        self._write(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prints the scores and the paths of the pictures after `test`."""
        if stage == "test" and trainer.is_global_zero and self._scores:
            if trainer.progress_bar_callback is not None:  # a live bar would overlap the table
                trainer.progress_bar_callback.teardown(trainer, pl_module, stage)
            console = Console()
            if whole := self._scores.get("test"):
                loss = trainer.callback_metrics.get("test/loss")
                console.print(terminal_table("test", whole, None if loss is None else float(loss)))
            if parts := {key: scores for key, scores in self._scores.items() if key != "test"}:
                console.print(parts_table(parts))
            for path in sorted((Path(trainer.default_root_dir) / "pictures").glob("*test*.png")):
                console.print(str(path), markup=False, highlight=False, soft_wrap=True)
        self._scores = {}

    def _write(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for key, scores in self._scores.items():
            try:
                write_files(Path(trainer.default_root_dir), key.replace("/", "_"), scores)
            except OSError as error:
                rank_zero_warn(f"the score tables could not be written ({error}); the run continues")
            values = {key: None if math.isnan(value) else value for key, value in scores.values.items()}
            rows = [[name, *(values[f"{score}/{name}"] for score in _SCORES)] for name in scores.classes]
            counts = [[name, *row] for name, row in zip(scores.classes, scores.confusion.tolist(), strict=True)]
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    step = trainer.global_step
                    logger.log_table(f"{key}/classes", ["class", *_SCORES], rows, step=step)
                    logger.log_table(f"{key}/confusion", ["truth", *scores.classes], counts, step=step)


def write_files(folder: Path, name: str, scores: Scores) -> None:
    """Writes `classes_NAME.csv` and `pictures/confusion_NAME.png` into a run's folder."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    with (folder / f"classes_{name}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["class", *_SCORES])
        for label in scores.classes:
            table.writerow([label, *(f"{scores.values[f'{score}/{label}']:.6f}" for score in _SCORES)])
    confusion_figure(scores.confusion, scores.classes).savefig(folder / "pictures" / f"confusion_{name}.png", dpi=110)


def terminal_table(title: str, scores: Scores, loss: float | None = None) -> Table:
    """The scores of each class, of the groups, and their means, for the terminal; an absent class has a dash."""
    table = Table(title=title)
    table.add_column("class")
    for column in ("IoU", "F1", "precision", "recall"):
        table.add_column(column, justify="right")

    def cells(*keys: str) -> list[str]:
        return _four_digits(scores.values.get(key, math.nan) for key in keys)

    for name in scores.classes:
        table.add_row(name, *cells(f"iou/{name}", f"f1/{name}", f"precision/{name}", f"recall/{name}"))
    table.add_section()
    for name in scores.groups:
        table.add_row(f"{name} (group)", *cells(f"group_iou/{name}", f"group_f1/{name}"))
    if scores.groups:
        table.add_row("all groups", "", *cells("group_f1/overall"))
        table.add_section()
    table.add_row("mean", *cells("miou", "mean_f1", "mean_precision", "mean_recall"))
    table.add_row("pixel accuracy", *cells("pixel_accuracy"))
    for key, name in _STRUCTURE.items():
        if key in scores.values:
            table.add_row(name, *cells(key))
    if loss is not None:
        table.add_row("loss", f"{loss:.4f}")
    return table


def parts_table(parts: Mapping[str, Scores]) -> Table:
    """The means of each named part of the test set, one row each, for the terminal."""
    titles = {"miou": "mIoU", "mean_f1": "mean F1", "group_f1/overall": "group F1", "pixel_accuracy": "pixel accuracy"}
    titles |= _STRUCTURE
    keys = [key for key in titles if any(key in scores.values for scores in parts.values())]
    table = Table(title="parts of the test set")
    table.add_column("part")
    for key in keys:
        table.add_column(titles[key], justify="right")
    for name, scores in parts.items():
        cells = _four_digits(scores.values.get(key, math.nan) for key in keys)
        table.add_row(name.removeprefix("test/"), *cells)
    return table


def _four_digits(values: Iterable[float]) -> list[str]:
    return ["-" if math.isnan(value) else f"{value:.4f}" for value in values]
