"""Keeps what each image of an evaluation scored, for tests that pair images and to find those that went wrong."""

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
WORST = 20  # images that are drawn
TILE = 192  # pixels of a panel of theirs, at most
VALUES = ("component_error", "component_error_relative", "boundary_f1")


class ImageScores(Callback):
    """Writes `images_test.csv.gz` after `test`, `images_val.csv.gz` after `validate`, into the run's folder.

    A row an image, sorted by name, each image of all processes once: `name`; `tp/CLASS`, `fp/CLASS`, `fn/CLASS` in
    pixels; `component_error` and `component_error_relative` (`component_errors`); `boundary_f1`, the mean of
    `boundary_f1` over the image's classes, nan where it has none. 927 images of 3 classes make some 30 KB.

    The `WORST` images by their own mean IoU are drawn too, as `pictures/worst_test/01.jpg`, 02, ...: image, truth,
    prediction, and where these differ.

    Reads `label_space` of the module, `prediction` (N, H, W) of its step, `mask` and `name` of the batch.
    """

    def __init__(self) -> None:
        self._rows: list[list[str]] = []
        self._worst: list[tuple[float, str, Example]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts from nothing."""
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
                self._worst = sorted([*self._worst, (*key, example)], key=lambda known: known[:2])[:WORST]

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """As `on_test_batch_end`, where `validate` runs on its own."""
        if trainer.state.fn == "validate":
            self.on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file."""
        self._write(trainer, pl_module, "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After `validate`, writes the file."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, "val")

    def _write(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        (rows, self._rows), (worst, self._worst) = (self._rows, []), (self._worst, [])
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # it writes nothing
            return
        rows = [row for part in gathered(rows, trainer.world_size) for row in part]
        worst = [known for part in gathered(worst, trainer.world_size) for known in part]
        if not trainer.is_global_zero:
            return
        space: Any = pl_module.label_space
        path = images_file(Path(trainer.default_root_dir), split)
        once = sorted({tuple(row) for row in rows})
        try:
            write_table(path, [image_columns(space.classes), *once])
            _draw(worst, worst_folder(path.parent, split), space)
        except OSError as error:
            rank_zero_warn(f"the scores of each image could not be written ({error}); the run continues")


def _draw(worst: Sequence[tuple[float, str, Example]], folder: Path, space: LabelSpace) -> None:
    """The pictures of the worst images, in the place of those of the test before."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    once = {known[:2]: known[2] for known in worst}  # with several processes an image may come twice
    for number, key in enumerate(sorted(once)[:WORST], 1):
        error_tile(once[key], space).save(folder / f"{number:02d}.jpg", quality=88, subsampling=0)


def worst_folder(folder: Path, split: str) -> Path:
    """Where a run's folder has the pictures of the worst images of `test` or `val`."""
    return folder / "pictures" / f"worst_{split}"


def image_miou(row: Sequence[str], classes: int) -> float:
    """The mean IoU of one image, over the classes that its truth or prediction has; 1 where it has none.

    Args:
        row: the cells of the image, under `image_columns`.
        classes: K.
    """
    counts = np.array(row[1 : 1 + 3 * classes], float).reshape(3, classes)
    present = counts.sum(0) > 0
    return float((counts[0, present] / counts.sum(0)[present]).mean()) if present.any() else 1.0


def gathered(value: Any, processes: int) -> list[Any]:
    """What each process holds, by rank."""
    if processes == 1:
        return [value]
    found: list[Any] = [None] * processes
    torch.distributed.all_gather_object(found, value)
    return found


def images_file(folder: Path, split: str) -> Path:
    """Where a run's folder has the scores of each image of `test` or `val`."""
    return folder / f"images_{split}.csv.gz"


def image_columns(classes: Sequence[str]) -> list[str]:
    """The header of the file."""
    return ["name", *(f"{count}/{name}" for count in PIXELS for name in classes), *VALUES]


def image_rows(names: Sequence[str], prediction: Tensor, target: Tensor, space: LabelSpace) -> list[list[str]]:
    """The cells of each image of a batch, under `image_columns`.

    Args:
        names: N.
        prediction: (N, H, W) integer class indices.
        target: (N, H, W) integer class indices, the space's `ignore_index` where nothing counts.
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
    """Writes lines of cells as `.csv.gz`: beside, synced, then renamed; equal lines make equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    try:
        with beside.open("wb") as file:
            file.write(gzip.compress(text.getvalue().encode(), mtime=0))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_table(path: Path) -> list[list[str]]:
    """The lines that `write_table` wrote.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            return list(csv.reader(file))
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and make it again") from None
