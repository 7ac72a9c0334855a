"""Writes what `predict` finds: index PNG, overlay and areas of images; overlay video and areas of frames."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from structseg.datamodules.label_spaces import LabelSpace
from structseg.lightning_modules.callbacks.overlay_video import OverlayVideo
from structseg.lightning_modules.drawing.label_sheets import as_pixels, overlay

SUMMARY = "summary.csv"


class Areas(NamedTuple):
    """A row of the summary: how many pixels of an image each class has."""

    name: str
    width: int
    height: int
    pixels: tuple[int, ...]


class PredictionWriter(Callback):
    """For `sub/a.jpg`: `OUT/sub/a.png` (class indices, with the palette) and `OUT/sub/a_overlay.png`, at its own size.

    `OUT/summary.csv` has a row an image, sorted by name: each class's share of the image, 0..1, and its pixels. It
    tells of the last run alone. Of a video or camera there is one `OUT/STEM_overlay.mp4` instead, and a row a frame.
    Files are written beside and renamed, so that none is half there. A run that is interrupted keeps what it has done.

    The data set that is predicted has `names`, those of all its images, or `frame_rate`, where it is a video.

    Args:
        out: the folder, made if it is missing.
        label_space: the classes.
    """

    def __init__(self, out: Path, label_space: LabelSpace) -> None:
        self.out, self.label_space = out, label_space
        self._stems: dict[str, str] = {}
        self._rows: list[Areas] = []
        self._video: OverlayVideo | None = None
        self._frame_rate: Any = None
        self._frames = False
        self._ended = True

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settles the names of all outputs before the first is written.

        Raises:
            ValueError: frames on several devices, which would have no order.
            OSError: no such folder can be made.
        """
        data: Any = trainer.predict_dataloaders.dataset  # type: ignore[union-attr]
        self._frames = hasattr(data, "frame_rate")
        if self._frames and trainer.world_size > 1:
            raise ValueError(f"a video needs one device, not {trainer.world_size}; set --trainer.devices 1")
        self._frame_rate = data.frame_rate if self._frames else None
        self._stems = {} if self._frames else output_stems(data.names)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"no predictions can go to {self.out} ({error.strerror}); set --data.predict_out") from None
        self._rows, self._video, self._ended = [], None, False
        trainer.predict_loop.return_predictions = False  # they are on disk; in memory they would pile up

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes a batch: `outputs` are (h, w) uint8 class maps, one for each `original` and `name`."""
        for prediction, original, name in zip(outputs, batch["original"], batch["name"], strict=True):
            classes: NDArray[np.uint8] = prediction.cpu().numpy()
            picture = overlay(as_pixels(original), classes, self.label_space)
            if self._frames:
                if self._video is None:
                    stem = PurePosixPath(name).parent.as_posix()
                    self._video = OverlayVideo(self.out / f"{stem}_overlay.mp4", self._frame_rate)
                self._video.add(picture)
            else:
                self._write(name, classes, picture)
            height, width = classes.shape
            counts = np.bincount(classes.ravel(), minlength=len(self.label_space))
            self._rows.append(Areas(name, width, height, tuple(int(count) for count in counts)))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the video and writes the summary, with the rows of all ranks; says where it all is."""
        self._end(trainer)
        rank_zero_info(f"predictions: {self.out}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the video and writes the summary of what was done; not on several devices: they may not meet again."""
        if trainer.world_size == 1:
            self._end(trainer)

    def _end(self, trainer: Trainer) -> None:
        if self._ended:
            return
        self._ended = True
        if self._video is not None:
            self._video.close()
        if trainer.world_size > 1:
            part = self.out / f".{SUMMARY}.{trainer.global_rank}"
            write_areas(part, self._rows, self.label_space)
            trainer.strategy.barrier()
            if trainer.global_rank > 0:
                return
            parts = [self.out / f".{SUMMARY}.{rank}" for rank in range(trainer.world_size)]
            self._rows = [row for part in parts for row in read_areas(part, self.label_space)]
            for part in parts:
                part.unlink()
        write_areas(self.out / SUMMARY, sorted(set(self._rows)), self.label_space)

    def _write(self, name: str, classes: NDArray[np.uint8], picture: NDArray[np.uint8]) -> None:
        target = self.out / self._stems[name]
        target.parent.mkdir(parents=True, exist_ok=True)
        index = Image.fromarray(classes)
        colours = [value for colour in self.label_space.palette for value in colour]
        index.putpalette(
            colours + [0] * (3 * 256 - len(colours))
        )  # Pillow packs a short palette into fewer than 8 bits
        for suffix, image in ((".png", index), ("_overlay.png", Image.fromarray(picture))):
            file = target.with_name(target.name + suffix)
            beside = file.with_name(f".{file.name}.part")
            image.save(beside, "PNG", compress_level=1)  # twice as fast as the default, and a tenth larger
            beside.replace(file)


def output_stems(names: Sequence[str]) -> dict[str, str]:
    """What the outputs of each image are called, without `.png` and `_overlay.png`: the name without its suffix.

    Images of which two would write one file keep their suffixes, so that `a.jpg` becomes `a.jpg.png`.

    >>> output_stems(["a.jpg", "a.png", "b.jpg"])
    {'a.jpg': 'a.jpg', 'a.png': 'a.png', 'b.jpg': 'b'}
    """
    stems = {name: PurePosixPath(name).with_suffix("").as_posix() for name in names}
    while True:
        # Upper and lower case are one to the file systems of Windows and macOS.
        files = Counter((stem + end).casefold() for stem in stems.values() for end in (".png", "_overlay.png"))
        clashing = [
            name
            for name, stem in stems.items()
            if stem != name and any(files[(stem + end).casefold()] > 1 for end in (".png", "_overlay.png"))
        ]
        if not clashing:
            return stems
        stems.update({name: name for name in clashing})


def write_areas(path: Path, rows: Sequence[Areas], space: LabelSpace) -> None:
    """The rows as CSV: name, width, height, the share (0..1) of each class, and its pixels as `CLASS_pixels`."""
    beside = path.with_name(f".{path.name}.part")
    with beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "width", "height", *space.classes, *(f"{name}_pixels" for name in space.classes)])
        for row in rows:
            total = row.width * row.height
            shares = (f"{count / total:.6f}" for count in row.pixels)
            writer.writerow([row.name, row.width, row.height, *shares, *row.pixels])
    beside.replace(path)


def read_areas(path: Path, space: LabelSpace) -> list[Areas]:
    """The rows that `write_areas` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))[1:]
    return [Areas(line[0], int(line[1]), int(line[2]), tuple(map(int, line[3 + len(space) :]))) for line in lines]
