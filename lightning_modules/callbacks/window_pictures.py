"""Pictures of STN-iCNN's steps: image, coarse mask, windows, part masks, remapped mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from structseg.datamodules.label_spaces import LabelSpace
from structseg.lightning_modules.drawing.label_sheets import as_pixels, colorize, legend, overlay

_SIDE = 288  # pixels of the large panels
_GAP = 6
_EDGES = ((255, 153, 51), (255, 204, 102), (51, 51, 255), (102, 204, 255), (76, 153, 0), (255, 0, 102))


class WindowView(NamedTuple):
    """The intermediate results for one face.

    Attributes:
        image: (3, h, w) in 0..1, at full size.
        coarse: (h', w') classes of the coarse mask.
        boxes: (P, 4), left, top, right, bottom of each window, in pixels of the image.
        crops: (P, 3, a, b) in 0..1, the image in the windows.
        parts: (P, a, b) classes of the windows' pixels.
        mask: (h, w) classes of the final mask.
    """

    image: Tensor
    coarse: Tensor
    boxes: Tensor
    crops: Tensor
    parts: Tensor
    mask: Tensor


class WindowPictures(Callback):
    """Writes `pictures/NAME.png` into the run's folder: the first faces of a test, step by step.

    The module's method `views(batch)` returns a `WindowView` for each face.

    Args:
        count: number of faces to draw.
        name: name of the picture, without its suffix.
    """

    def __init__(self, count: int = 4, name: str = "windows_test") -> None:
        self.count, self.name = count, name
        self._views: list[WindowView] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drops the faces of an earlier test."""
        self._views = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first faces."""
        if trainer.is_global_zero and not trainer.fast_dev_run and len(self._views) < self.count:  # type: ignore[attr-defined]
            views: list[WindowView] = pl_module.views(batch)  # type: ignore[operator]
            self._views += views[: self.count - len(self._views)]

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the faces."""
        views, self._views = self._views, []
        if not views:
            return
        space: Any = pl_module.label_space
        path = Path(trainer.default_root_dir) / "pictures" / f"{self.name}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_views(views, space).save(path)
        except OSError as error:
            rank_zero_warn(f"{path.name} could not be written ({error}); the run continues")


def draw_views(views: list[WindowView], space: LabelSpace) -> Image.Image:
    """A row for each face: image with windows | coarse mask | windows over part masks | final mask; then a legend."""
    lines = [_line(view, space) for view in views]
    labels = torch.cat([classes.flatten() for view in views for classes in (view.coarse, view.mask)]).unique().tolist()
    width = max(line.width for line in lines) + 2 * _GAP
    key = legend([int(label) for label in labels], space, width)
    height = sum(line.height + _GAP for line in lines) + _GAP + key.height
    page = Image.new("RGB", (max(width, key.width), height), "white")
    top = _GAP
    for line in lines:
        page.paste(line, (_GAP, top))
        top += line.height + _GAP
    page.paste(key, (0, top))
    return page


def _line(view: WindowView, space: LabelSpace) -> Image.Image:
    pixels = as_pixels(view.image)
    height, width = pixels.shape[:2]
    factor = _SIDE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(picture)
    for box, colour in zip(view.boxes.tolist(), _EDGES, strict=True):
        pen.rectangle([round(value * factor) for value in box], outline=colour, width=2)
    coarse = Image.fromarray(colorize(view.coarse, space)).resize(size, Image.Resampling.NEAREST)
    mask = Image.fromarray(overlay(pixels, view.mask, space, 0.7)).resize(size, Image.Resampling.BILINEAR)
    side = (_SIDE - _GAP) // 2
    tiles = []
    for crop, part in zip(view.crops, view.parts, strict=True):
        crop_image = Image.fromarray(as_pixels(crop)).resize((side, side), Image.Resampling.BILINEAR)
        part_image = Image.fromarray(colorize(part, space)).resize((side, side), Image.Resampling.NEAREST)
        tiles.append((crop_image, part_image))
    columns = len(tiles)
    length = 3 * size[0] + columns * side + (columns + 2) * _GAP
    line = Image.new("RGB", (length, max(size[1], 2 * side + _GAP)), "white")
    line.paste(picture, (0, 0))
    line.paste(coarse, (size[0] + _GAP, 0))
    left = 2 * (size[0] + _GAP)
    for column, (crop_image, part_image) in enumerate(tiles):
        line.paste(crop_image, (left + column * (side + _GAP), 0))
        line.paste(part_image, (left + column * (side + _GAP), side + _GAP))
    line.paste(mask, (left + columns * (side + _GAP), 0))
    return line
