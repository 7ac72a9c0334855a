"""Grids of pixels over one picture, and the things that are drawn on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from structseg.datamodules.drawing.geometry import Array, Frame
from structseg.datamodules.drawing.texture import noise


class Grid:
    """The pixel centres of a grid laid over a picture.

    A picture's coordinates run from -1 to 1 along its shorter side, 0 at the centre, y downwards, whatever the grid:
    an image and a larger mask of the same picture are two grids over it.

    Args:
        size: (h, w) of the grid.
        picture: (H, W) whose sides give the picture's shape; `size` where None.

    Attributes:
        x, y: (w,) and (h,) coordinates of the pixel centres.
        pixel: side of a pixel in the picture's units (geometric mean of both, where they differ).
    """

    def __init__(self, size: tuple[int, int], picture: tuple[int, int] | None = None) -> None:
        (h, w), (height, width) = size, picture or size
        half = min(height, width) / 2
        self.x = (((np.arange(w) + 0.5) * (width / w) - width / 2) / half).astype(np.float32)
        self.y = (((np.arange(h) + 0.5) * (height / h) - height / 2) / half).astype(np.float32)
        self.pixel = math.sqrt((width / w) * (height / h)) / half

    def patch(self, frame: Frame, bounds: tuple[float, float, float, float]) -> Patch:
        """The pixels that a rectangle (left, top, right, bottom) of the frame may touch; none where it lies outside."""
        left, top, right, bottom = bounds
        corners = [frame.at(u, v) for u in (left, right) for v in (top, bottom)]
        margin = 2 * self.pixel
        return Patch(
            self,
            frame,
            _between(self.y, min(c[1] for c in corners) - margin, max(c[1] for c in corners) + margin),
            _between(self.x, min(c[0] for c in corners) - margin, max(c[0] for c in corners) + margin),
        )


def _between(ordered: Array, low: float, high: float) -> slice:
    first, last = np.searchsorted(ordered, (low, high))
    return slice(int(first), int(last))


class Patch:
    """A rectangle of a grid, with the local coordinates of a frame.

    Attributes:
        box: (rows, columns) of the grid.
        x, y: (w,) and (h,) picture coordinates.
        scale: picture units in one local unit.
        u, v: (h, w) local coordinates of the pixel centres.
        pixel: side of a pixel in local units.
    """

    def __init__(self, grid: Grid, frame: Frame, rows: slice, columns: slice) -> None:
        self.box = (rows, columns)
        self._frame = frame
        self.x, self.y = grid.x[columns], grid.y[rows]
        self.scale = frame.scale
        det = frame.ux * frame.vy - frame.uy * frame.vx
        x, y = self.x - np.float32(frame.x), self.y - np.float32(frame.y)
        self.u: Array = x * np.float32(frame.vy / det) - (y * np.float32(frame.vx / det))[:, None]
        self.v: Array = (y * np.float32(frame.ux / det))[:, None] - x * np.float32(frame.uy / det)
        self.pixel = grid.pixel / frame.scale

    def cover(self, distance: Array, feather: float = 1.0) -> Array:
        """(h, w) share of each pixel in a shape, over an edge `feather` pixels wide; 0.5 where the distance is 0."""
        return np.clip(np.float32(0.5) - distance * np.float32(1.0 / (self.pixel * feather)), 0.0, 1.0)

    def near(self, points: Sequence[tuple[float, float]], margin: float) -> tuple[slice, slice]:
        """The rows and columns of this patch that lie within `margin` of local points' bounding box, and a few more."""
        places = [self._frame.at(u, v) for u, v in points]
        margin = margin * self.scale
        x, y = [place[0] for place in places], [place[1] for place in places]
        return _between(self.y, min(y) - margin, max(y) + margin), _between(self.x, min(x) - margin, max(x) + margin)

    def noise(self, numbers: Array, frequency: float) -> Array:
        """(h, w) smooth noise in 0..1 of `frequency` cells a local unit; `numbers` as `texture.noise` takes them."""
        return noise(self.x, self.y, numbers, frequency / self.scale)


@dataclass(frozen=True, eq=False)
class Thing:
    """An occluder, in the coordinates of its frame and thus at any size.

    Attributes:
        frame: its place in the picture.
        bounds: (left, top, right, bottom) in the frame that hold all of it.
        parts: signed distances (h, w) to its parts, negative inside; it is their union.
        paint: (colours (3, h, w) under a plain white light, opacity: a number or (h, w)) from the patch and the parts.
            What one looks through, such as the lenses of glasses, is less than opaque and still part of it.
    """

    frame: Frame
    bounds: tuple[float, float, float, float]
    parts: Callable[[Patch], list[Array]]
    paint: Callable[[Patch, list[Array]], tuple[Array, Array | float]]

    def patch(self, grid: Grid, margin: float = 0.0) -> Patch:
        """The pixels of a grid that it may touch, and those within `margin`, in the frame's units."""
        left, top, right, bottom = self.bounds
        return grid.patch(self.frame, (left - margin, top - margin, right + margin, bottom + margin))


def union(parts: list[Array]) -> Array:
    """The distance to all parts together."""
    whole = parts[0]
    for part in parts[1:]:
        whole = np.minimum(whole, part)
    return whole


def coloured(colour: Array, factor: Array) -> Array:
    """(3, h, w) of a colour (3,) times a factor (h, w)."""
    return colour.astype(np.float32)[:, None, None] * factor


def mixed(first: Array, second: Array, share: Array) -> Array:
    """(3, h, w) between two colours (3,): the second where share (h, w) is 1."""
    return first.astype(np.float32)[:, None, None] + coloured(second - first, share)
