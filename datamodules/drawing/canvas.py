"""The picture being painted: colours, labels and light, and patches of it in a frame's coordinates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from structseg.datamodules.drawing.geometry import Array, Frame
from structseg.datamodules.label_spaces import CELEBAMASK_HQ

LABEL = {name: index for index, name in enumerate(CELEBAMASK_HQ.classes)}

# How strongly light and shade act on red, green and blue of skin: shadows on skin turn red, not grey.
_SKIN_RESPONSE = np.array([0.8, 1.0, 1.1], np.float32)[:, None, None]


class Patch:
    """A rectangle of the canvas with the local coordinates of a frame.

    Attributes:
        u, v: (h, w) local coordinates of the pixel centres.
        pixel: size of a pixel in local units.
        image: (3, h, w) view of the colours, 0..1.
        shade: (h, w) view of the light on a head, about 1.
        face: (h, w) view of the distance to the bare head's outline in head units, large before the head is painted.
    """

    __slots__ = ("box", "face", "image", "label", "occluder", "pixel", "shade", "u", "v")

    def __init__(self, canvas: Canvas, frame: Frame, rows: slice, cols: slice) -> None:
        self.box = (rows, cols)
        x, y = canvas.x[cols] - np.float32(frame.x), canvas.y[rows] - np.float32(frame.y)
        det = frame.ux * frame.vy - frame.uy * frame.vx
        det = det if abs(det) > 1e-9 else 1e-9
        self.u: Array = x * np.float32(frame.vy / det) - (y * np.float32(frame.vx / det))[:, None]
        self.v: Array = (y * np.float32(frame.ux / det))[:, None] - x * np.float32(frame.uy / det)
        self.pixel = canvas.pixel / frame.scale
        self.image: Array = canvas.image[:, rows, cols]
        self.shade: Array = canvas.shade[rows, cols]
        self.face: Array = canvas.face[rows, cols]
        self.label = canvas.label[rows, cols]
        self.occluder = canvas.occluder[rows, cols]

    def cover(self, distance: Array) -> Array:
        """(h, w) share of each pixel that lies inside a shape."""
        share = distance * np.float32(-1.0 / self.pixel)
        share += np.float32(0.5)
        np.maximum(share, 0.0, out=share)
        return np.minimum(share, 1.0, out=share)

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
        """Put a shape on top: colour (3,) or (3, h, w), under the head's light if `lit`.

        `label` names the class of its pixels (None: they keep theirs); `occludes` marks them as a thing before the
        face.
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
        """Multiply the colours by (h, w) the way that skin answers to light."""
        response = (factor - 1.0) * _SKIN_RESPONSE
        response += 1.0
        self.image *= response


class Canvas:
    """The picture as (3, H, W) colours, (H, W) labels in CelebAMask-HQ's space, (H, W) occluder mask."""

    def __init__(self, size: tuple[int, int]) -> None:
        height, width = size
        half = min(height, width) / 2
        self.pixel = 1.0 / half
        self.x = ((np.arange(width) + 0.5 - width / 2) / half).astype(np.float32)
        self.y = ((np.arange(height) + 0.5 - height / 2) / half).astype(np.float32)
        self.image: Array = np.empty((3, height, width), np.float32)
        self.shade: Array = np.ones((height, width), np.float32)
        self.face: Array = np.full((height, width), 9.0, np.float32)
        self.label: NDArray[np.uint8] = np.zeros((height, width), np.uint8)
        self.occluder: NDArray[np.bool_] = np.zeros((height, width), np.bool_)

    def patch(self, frame: Frame, left: float, top: float, right: float, bottom: float) -> Patch:
        """The pixels that a rectangle of the frame may touch; none where it lies outside."""
        corners = [frame.at(u, v) for u in (left, right) for v in (top, bottom)]
        xs, ys = [c[0] for c in corners], [c[1] for c in corners]
        return Patch(self, frame, self._range(ys, len(self.y)), self._range(xs, len(self.x)))

    def whole(self, frame: Frame) -> Patch:
        """Every pixel, in the frame's coordinates."""
        return Patch(self, frame, slice(0, len(self.y)), slice(0, len(self.x)))

    def _range(self, values: list[float], count: int) -> slice:
        low = int(min(values) / self.pixel + count / 2) - 1
        high = int(max(values) / self.pixel + count / 2) + 2
        low = min(max(low, 0), count)
        return slice(low, min(max(high, low), count))
