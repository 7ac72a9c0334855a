"""Training crops: which part of an image a network sees, at which size, and where that part lies."""

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
    """A crop of a resized image by a window that may reach beyond it, mirrored or not.

    Attributes:
        window: (H, W) of the crop in pixels.
        resized: (h, w) that the whole image is resized to, aspect kept up to a pixel.
        top: row of the resized image that the window begins at; negative where it begins above the image.
        left: column likewise.
        mirrored: whether the crop is flipped.
    """

    window: tuple[int, int]
    resized: tuple[int, int]
    top: int = 0
    left: int = 0
    mirrored: bool = False

    def affine(self) -> Tensor:
        """(2, 3) float32: from the crop's normalised coordinates to the image's, as `F.affine_grid` takes it.

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
        """The crop of an RGB image, bilinear with antialiasing; `fill` is the colour beyond it."""
        return self._apply(image, Image.Resampling.BILINEAR, fill)

    def mask(self, mask: NDArray[np.uint8], outside: int = 255) -> NDArray[np.uint8]:
        """The crop of an index mask of the whole image, of any size, nearest filter; `outside` is beyond it."""
        return np.asarray(self._apply(Image.fromarray(mask), Image.Resampling.NEAREST, outside))

    def _apply(self, image: Image.Image, filter_: Image.Resampling, fill: int | tuple[int, int, int]) -> Image.Image:
        (height, width), (h, w) = self.window, self.resized
        y0, y1 = max(0, -self.top), min(height, h - self.top)
        x0, x1 = max(0, -self.left), min(width, w - self.left)
        # Only what is seen is resized. Products first: a box that ends at the image's edge must not exceed it.
        box = (
            (self.left + x0) * image.width / w,
            (self.top + y0) * image.height / h,
            (self.left + x1) * image.width / w,
            (self.top + y1) * image.height / h,
        )
        seen = image.resize((x1 - x0, y1 - y0), filter_, box=box)
        if seen.size != (width, height):
            whole = Image.new(image.mode, (width, height), fill)
            whole.paste(seen, (x0, y0))
            seen = whole
        return seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else seen


@dataclass
class CropSettings:
    """How training images are cropped. With neither range the whole image is resized to the window.

    The image is resized, aspect kept, and a window of the datamodule's `size` is placed on it at random; where the
    image is smaller, it is placed at random in the window, the rest is of the datamodule's mean colour and ignored in
    masks.

    Attributes:
        long_side: range that the longer side is drawn from, in pixels; IRNet: 320 to 640 for windows of 512.
        scale: range that the factor of the image's own size is drawn from; DeepLab: 0.5 to 1.5 for windows of 321.
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
