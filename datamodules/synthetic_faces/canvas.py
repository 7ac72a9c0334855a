"""The face being painted: colours, labels and light, and rectangles of them in a frame's coordinates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from structseg.datamodules.drawing.geometry import Array, Frame
from structseg.datamodules.drawing.grid import Grid, Patch
from structseg.datamodules.label_spaces import CELEBAMASK_HQ

LABEL = {name: index for index, name in enumerate(CELEBAMASK_HQ.classes)}

# How strongly light and shade act on red, green and blue of skin: shadows on skin turn red, not grey.
_SKIN_RESPONSE = np.array([0.8, 1.0, 1.1], np.float32)[:, None, None]


class FacePatch(Patch):
    """A rectangle of a face's canvas, to be painted on.

    Attributes:
        image: (3, h, w) view of the colours, 0..1.
        shade: (h, w) view of the light on a head, about 1.
        face: (h, w) view of the distance to the bare head's outline in head units, large before the head is painted.
    """

    def __init__(self, canvas: FaceCanvas, frame: Frame, rows: slice, columns: slice) -> None:
        super().__init__(canvas, frame, rows, columns)
        self.image: Array = canvas.image[:, rows, columns]
        self.shade: Array = canvas.shade[rows, columns]
        self.face: Array = canvas.face[rows, columns]
        self.label = canvas.label[rows, columns]
        self.occluder = canvas.occluder[rows, columns]

    def paint(
        self,
        distance: Array,
        colour: Array,
        label: str | None = None,
        *,
        lit: bool = True,
        opacity: float = 1.0,
        occludes: bool = False,
    ) -> None:
        """Paints a shape on top: colour (3,) or (3, h, w), under the head's light if `lit`.

        `label` is the class of its pixels (None: unchanged); `occludes` marks them as an occluder.
        """
        alpha = self.cover(distance)
        if opacity != 1.0:
            alpha *= np.float32(opacity)
        if colour.ndim == 1:
            colour = colour[:, None, None]
        change = colour * self.shade if lit else colour
        change = change - self.image
        change *= alpha
        self.image += change
        if label is not None:
            self.mark(distance < 0, label, occludes=occludes)

    def mark(self, inside: NDArray[np.bool_], label: str, *, occludes: bool = False) -> None:
        """Give the pixels of a mask (h, w) a class; the colours stay."""
        np.copyto(self.label, LABEL[label], where=inside)
        np.copyto(self.occluder, occludes, where=inside)

    def blend(self, weight: Array, colour: Array) -> None:
        """Mix a colour (3,) in softly; weight (h, w) in 0..1. Labels stay."""
        change = colour[:, None, None] - self.image
        change *= weight
        self.image += change

    def relight(self, factor: Array) -> None:
        """Multiply the colours by (h, w); labels stay."""
        self.image *= factor

    def skin(self, tone: Array, factor: Array | None = None) -> Array:
        """(3, h, w) colours of skin under the head's light, times an optional further factor (h, w)."""
        light = self.shade if factor is None else self.shade * factor
        colours = (light - 1.0) * _SKIN_RESPONSE
        colours += 1.0
        colours *= tone[:, None, None]
        return colours

    def skin_relight(self, factor: Array) -> None:
        """Multiplies the colours by (h, w), in each channel as strongly as light acts on skin."""
        response = (factor - 1.0) * _SKIN_RESPONSE
        response += 1.0
        self.image *= response


class FaceCanvas(Grid):
    """The picture as (3, H, W) colours, (H, W) labels in CelebAMask-HQ's space, (H, W) occluder mask."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__(size)
        height, width = size
        self.image: Array = np.empty((3, height, width), np.float32)
        self.shade: Array = np.ones((height, width), np.float32)
        self.face: Array = np.full((height, width), 9.0, np.float32)
        self.label: NDArray[np.uint8] = np.zeros((height, width), np.uint8)
        self.occluder: NDArray[np.bool_] = np.zeros((height, width), np.bool_)

    def area(self, frame: Frame, left: float, top: float, right: float, bottom: float) -> FacePatch:
        """The pixels that a rectangle of the frame may touch; empty if it is outside."""
        corners = [frame.at(u, v) for u in (left, right) for v in (top, bottom)]
        xs, ys = [c[0] for c in corners], [c[1] for c in corners]
        return FacePatch(self, frame, self._range(ys, len(self.y)), self._range(xs, len(self.x)))

    def whole(self, frame: Frame) -> FacePatch:
        """Every pixel, in the frame's coordinates."""
        return FacePatch(self, frame, slice(0, len(self.y)), slice(0, len(self.x)))

    def _range(self, values: list[float], count: int) -> slice:
        low = int(min(values) / self.pixel + count / 2) - 1
        high = int(max(values) / self.pixel + count / 2) + 2
        low = min(max(low, 0), count)
        return slice(low, min(max(high, low), count))
