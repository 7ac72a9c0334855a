"""Training crops: their settings, and a crop with its size and place in the whole image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from structseg.datamodules.checks import raise_problems


class Crop(NamedTuple):
    """A window of a resized image, which may reach beyond it, mirrored or not.

    Attributes:
        window: (H, W) of the crop in pixels.
        resized: (h, w) that the whole image is resized to, with its aspect ratio kept up to a pixel.
        top: row of the resized image at which the window begins; negative if that is above the image.
        left: column at which the window begins; negative if that is left of the image.
        mirrored: whether the crop is flipped.
    """

    window: tuple[int, int]
    resized: tuple[int, int]
    top: int = 0
    left: int = 0
    mirrored: bool = False

    def affine(self) -> Tensor:
        """(2, 3) float32: the map from the crop's normalised coordinates to the image's, for `F.affine_grid`.

        -1 and 1 are the outer edges of the outer pixels (`align_corners=False`).
        """
        (height, width), (h, w) = self.window, self.resized
        turn = -1.0 if self.mirrored else 1.0
        return torch.tensor(
            [
                [turn * width / w, 0.0, (width + 2 * self.left) / w - 1],
                [0.0, height / h, (height + 2 * self.top) / h - 1],
            ]
        )

    def image(self, image: Image.Image, fill: tuple[int, int, int]) -> Image.Image:
        """The crop of an RGB image, bilinear with antialiasing; `fill` is the colour outside the image."""
        return self._apply(image, Image.Resampling.BILINEAR, fill)

    def mask(self, mask: NDArray[np.uint8], outside: int = 255) -> NDArray[np.uint8]:
        """The crop of an index mask of the whole image, of any size; `outside` is the value outside the image."""
        return np.asarray(self._apply(Image.fromarray(mask), Image.Resampling.NEAREST, outside))

    def _apply(self, image: Image.Image, filter_: Image.Resampling, fill: int | tuple[int, int, int]) -> Image.Image:
        (height, width), (h, w) = self.window, self.resized
        y0, y1 = max(0, -self.top), min(height, h - self.top)
        x0, x1 = max(0, -self.left), min(width, w - self.left)
        # Resizes only what is inside the window. Products first: rounding must not push the box over the image's edge.
        box = (
            (self.left + x0) * image.width / w,
            (self.top + y0) * image.height / h,
            (self.left + x1) * image.width / w,
            (self.top + y1) * image.height / h,
        )
        crop = image.resize((x1 - x0, y1 - y0), filter_, box=box)
        if crop.size != (width, height):
            inside, crop = crop, Image.new(image.mode, (width, height), fill)
            crop.paste(inside, (x0, y0))
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else crop


@dataclass
class CropSettings:
    """How training images are cropped. With neither range the whole image is resized to the window.

    The image is resized, keeping its aspect ratio, and a window of the datamodule's `size` is placed on it at random. A
    smaller image is placed at random in the window; the rest gets the datamodule's mean colour and is ignored in masks.

    Attributes:
        long_side: range of the longer side of the resized image in pixels; IRNet: 320 to 640 for windows of 512.
        scale: range of the factor by which the image is resized; DeepLab: 0.5 to 1.5 for windows of 321.
        flip: probability that a crop is mirrored.
    """

    long_side: tuple[int, int] | None = None
    scale: tuple[float, float] | None = None
    flip: float = 0.0

    def __post_init__(self) -> None:
        problems = []
        if self.long_side is not None and self.scale is not None:
            problems.append("long_side with scale (give one of them)")
        for name, given in (("long_side", self.long_side), ("scale", self.scale)):
            if given is not None and not 0 < given[0] <= given[1]:
                problems.append(f"{name}={tuple(given)} (0 < smallest <= largest is needed)")
        if not 0 <= self.flip <= 1:
            problems.append(f"flip={self.flip} (a probability, 0 to 1)")
        raise_problems("crops", problems)

    @property
    def whole(self) -> bool:
        """Whether every crop shows the whole image."""
        return self.long_side is None and self.scale is None

    def draw(self, size: tuple[int, int], window: tuple[int, int], random: np.random.Generator) -> Crop:
        """Draws a crop.

        Args:
            size: (h, w) of the image.
            window: (H, W) of the crop.
            random: the only source of randomness.
        """
        mirrored = bool(random.random() < self.flip)
        if self.long_side is not None:
            factor = int(random.integers(self.long_side[0], self.long_side[1] + 1)) / max(size)
        elif self.scale is not None:
            factor = float(random.uniform(*self.scale))
        else:
            return Crop(window, window, mirrored=mirrored)
        resized = (max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
        spare = (resized[0] - window[0], resized[1] - window[1])
        top, left = (int(random.integers(min(0, gap), max(0, gap) + 1)) for gap in spare)
        return Crop(window, resized, top, left, mirrored)
