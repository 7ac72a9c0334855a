"""Things that can be drawn on any grid of pixels over a picture, such as occluders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from structseg.datamodules.drawing.geometry import Array, Frame
from structseg.datamodules.drawing.grid import Grid, Patch


@dataclass(frozen=True, eq=False)
class Thing:
    """An occluder in the coordinates of its frame, which can be drawn at any size.

    Attributes:
        frame: its place in the picture.
        bounds: bounding box (left, top, right, bottom) in the frame.
        parts: returns the signed distances (h, w) to its parts, negative inside.
        paint: returns colours (3, h, w) in white light and the opacity, a number or (h, w), from patch and distances.
            Transparent parts, such as lenses, belong to the occluder.
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
