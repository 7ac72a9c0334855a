"""Grids of pixels over one picture, and rectangles of them in the coordinates of a frame."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from structseg.datamodules.drawing.geometry import Array, Frame
from structseg.datamodules.drawing.texture import noise


class Grid:
    """The pixel centres of a grid laid over a picture.

    A picture's coordinates run from -1 to 1 along its shorter side, 0 at the centre, y downwards, for every grid: an
    image and a larger mask of the same picture are two grids over it.

    Args:
        size: (h, w) of the grid.
        picture: (H, W), the picture's aspect ratio; None: that of `size`.

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
        """The pixels that a rectangle (left, top, right, bottom) of the frame may touch; empty if it is outside."""
        left, top, right, bottom = bounds
        corners = [frame.at(u, v) for u in (left, right) for v in (top, bottom)]
        margin = 2 * self.pixel
        return Patch(
            self,
            frame,
            between(self.y, min(c[1] for c in corners) - margin, max(c[1] for c in corners) + margin),
            between(self.x, min(c[0] for c in corners) - margin, max(c[0] for c in corners) + margin),
        )


def between(ordered: Array, low: float, high: float) -> slice:
    """The slice of ascending values in low..high."""
    first, last = np.searchsorted(ordered, (low, high))
    return slice(int(first), int(last))


class Patch:
    """A rectangle of a grid, with the local coordinates of a frame.

    Attributes:
        box: (rows, columns) of the grid.
        frame: of the local coordinates.
        x, y: (w,) and (h,) picture coordinates.
        scale: picture units in one local unit.
        u, v: (h, w) local coordinates of the pixel centres.
        pixel: side of a pixel in local units.
    """

    def __init__(self, grid: Grid, frame: Frame, rows: slice, columns: slice) -> None:
        self.box = (rows, columns)
        self.frame = frame
        self.x, self.y = grid.x[columns], grid.y[rows]
        self.scale = frame.scale
        det = frame.ux * frame.vy - frame.uy * frame.vx
        det = det if abs(det) > 1e-9 else 1e-9
        x, y = self.x - np.float32(frame.x), self.y - np.float32(frame.y)
        self.u: Array = x * np.float32(frame.vy / det) - (y * np.float32(frame.vx / det))[:, None]
        self.v: Array = (y * np.float32(frame.ux / det))[:, None] - x * np.float32(frame.uy / det)
        self.pixel = grid.pixel / frame.scale

    def cover(self, distance: Array, feather: float = 1.0) -> Array:
        """(h, w) share of each pixel that a shape covers, with an edge of `feather` pixels; 0.5 at distance 0."""
        share = distance * np.float32(-1.0 / (self.pixel * feather))
        share += np.float32(0.5)
        np.maximum(share, 0.0, out=share)
        return np.minimum(share, 1.0, out=share)

    def near(self, points: Sequence[tuple[float, float]], margin: float) -> tuple[slice, slice]:
        """The rows and columns of this patch within `margin` of the bounding box of local points, and a few more."""
        places = [self.frame.at(u, v) for u, v in points]
        margin = margin * self.scale
        x, y = [place[0] for place in places], [place[1] for place in places]
        return between(self.y, min(y) - margin, max(y) + margin), between(self.x, min(x) - margin, max(x) + margin)

    def noise(self, numbers: Array, frequency: float) -> Array:
        """(h, w) smooth noise in 0..1 with `frequency` cells per local unit; `numbers` as for `texture.noise`."""
        return noise(self.x, self.y, numbers, frequency / self.scale)
