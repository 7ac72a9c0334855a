"""The scores of each image of an evaluation, for paired comparisons and to find the worst images."""

from __future__ import annotations

import csv
import gzip
import io
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from structseg.datamodules.label_spaces import LabelSpace
from structseg.lightning_modules.drawing.label_sheets import Example, error_tile, make_example
from structseg.lightning_modules.metrics.structure import boundary_f1, component_errors

PIXELS = ("tp", "fp", "fn")
WORST = 20  # number of images that are drawn
TILE = 192  # longest side of a panel, in pixels
VALUES = ("component_error", "component_error_relative", "boundary_f1")


class ImageScores(Callback):
    """Writes `images_test.csv.gz` after `test`, `images_val.csv.gz` after `validate`, into the run's folder.

    One row for each image, sorted by name: `name`; `tp/CLASS`, `fp/CLASS`, `fn/CLASS` in pixels; `component_error` and
    `component_error_relative` (`component_errors`); `boundary_f1`, the mean over the image's classes, nan if it has
    none. 927 images of 3 classes make about 30 KB.

    The `WORST` images by mean IoU are drawn as `pictures/worst_test/01.jpg`, 02, ...: image, truth, prediction, and
    where these differ.

    Reads `label_space` of the module, `prediction` (N, H, W) of its step, `mask` and `name` of the batch.
    """

    def __init__(self) -> None:
        self._rows: list[list[str]] = []
        self._worst: list[tuple[float, str, Example]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drops the rows of an earlier evaluation."""
        self._rows, self._worst = [], []

    on_validation_start = on_test_start

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Scores the images of a batch."""
        space: Any = pl_module.label_space
        rows = image_rows(batch["name"], outputs["prediction"], batch["mask"], space)
        self._rows += rows
        for i, row in enumerate(rows):
            key = (image_miou(row, len(space)), row[0])
            if len(self._worst) < WORST or key < self._worst[-1][:2]:
                pixels = (batch["image"][i], batch["mask"][i], outputs["prediction"][i])
                example = make_example(*pixels, space, row[0], TILE)
                self._worst = sorted([*self._worst, (*key, example)], key=lambda entry: entry[:2])[:WORST]

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Like `on_test_batch_end`, in `validate` but not in a fit."""
        if trainer.state.fn == "validate":
            self.on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes file and pictures."""
        self._write(trainer, pl_module, "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes file and pictures after `validate`."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, "val")

    def _write(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        (rows, self._rows), (worst, self._worst) = (self._rows, []), (self._worst, [])
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # it writes nothing
            return
        rows = [row for part in gathered(rows, trainer.world_size) for row in part]
        worst = [entry for part in gathered(worst, trainer.world_size) for entry in part]
        if not trainer.is_global_zero:
            return
        space: Any = pl_module.label_space
        path = images_file(Path(trainer.default_root_dir), split)
        unique = sorted({tuple(row) for row in rows})
        try:
            write_table(path, [image_columns(space.classes), *unique])
            _draw(worst, worst_folder(path.parent, split), space)
        except OSError as error:
            rank_zero_warn(f"the scores of each image could not be written ({error}); the run continues")


def _draw(worst: Sequence[tuple[float, str, Example]], folder: Path, space: LabelSpace) -> None:
    """Draws the worst images, replacing the pictures of an earlier evaluation."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    unique = {entry[:2]: entry[2] for entry in worst}  # with several processes an image may occur twice
    for number, key in enumerate(sorted(unique)[:WORST], 1):
        error_tile(unique[key], space).save(folder / f"{number:02d}.jpg", quality=88, subsampling=0)


def worst_folder(folder: Path, split: str) -> Path:
    """The folder, in a run's folder, of the pictures of the worst images of `test` or `val`."""
    return folder / "pictures" / f"worst_{split}"


def image_miou(row: Sequence[str], classes: int) -> float:
    """The mean IoU of one image, over the classes in its truth or prediction; 1 if neither has a class.

    Args:
        row: the cells of the image, under `image_columns`.
        classes: number of classes K.
    """
    counts = np.array(row[1 : 1 + 3 * classes], float).reshape(3, classes)
    present = counts.sum(0) > 0
    return float((counts[0, present] / counts.sum(0)[present]).mean()) if present.any() else 1.0


def gathered(value: Any, processes: int) -> list[Any]:
    """The values of all processes, by rank."""
    if processes == 1:
        return [value]
    values: list[Any] = [None] * processes
    torch.distributed.all_gather_object(values, value)
    return values


def images_file(folder: Path, split: str) -> Path:
    """The file, in a run's folder, with the scores of each image of `test` or `val`."""
    return folder / f"images_{split}.csv.gz"


def image_columns(classes: Sequence[str]) -> list[str]:
    """The header of `images_file`."""
    return ["name", *(f"{count}/{name}" for count in PIXELS for name in classes), *VALUES]


def image_rows(names: Sequence[str], prediction: Tensor, target: Tensor, space: LabelSpace) -> list[list[str]]:
    """The cells of each image of a batch, under `image_columns`.

    Args:
        names: the N images' names.
        prediction: (N, H, W) integer class indices.
        target: (N, H, W) integer class indices, or the space's `ignore_index`.
        space: the K classes.
    """
    prediction, target = prediction.cpu(), target.cpu()
    size = len(space)
    errors, relative = component_errors(prediction, target, space.ignore_index)
    boundary = boundary_f1(prediction, target, size, space.ignore_index).nanmean(1)
    rows = []
    for i, name in enumerate(names):
        counted = target[i] != space.ignore_index
        cells = target[i][counted].long() * size + prediction[i][counted]
        confusion = torch.bincount(cells, minlength=size * size).view(size, size)
        hits = confusion.diagonal()
        pixels = torch.cat([hits, confusion.sum(0) - hits, confusion.sum(1) - hits]).tolist()
        values = [str(int(errors[i])), f"{float(relative[i]):.4f}", f"{float(boundary[i]):.4f}"]
        rows.append([name, *map(str, pixels), *values])
    return rows


def write_table(path: Path, lines: Iterable[Sequence[str]]) -> None:
    """Writes lines of cells as `.csv.gz`, atomically; equal lines give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    try:
        with part.open("wb") as file:
            file.write(gzip.compress(text.getvalue().encode(), mtime=0))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_table(path: Path) -> list[list[str]]:
    """The lines of a file by `write_table`.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            return list(csv.reader(file))
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and make it again") from None
