"""Backgrounds behind the head."""

from __future__ import annotations

import numpy as np

from structseg.datamodules.drawing.dice import Dice
from structseg.datamodules.drawing.geometry import Array, Frame, ellipse, fade
from structseg.datamodules.drawing.texture import noise
from structseg.datamodules.synthetic_faces.canvas import FaceCanvas

_PICTURE = Frame.upright((0.0, 0.0), 1.0)


def paint_background(canvas: FaceCanvas, kind: str, dice: Dice) -> None:
    """Fill the canvas: gradient, blobs, bokeh, stripes, shelves, wall or outdoors."""
    first, second = dice.colour(0.08, 0.95, 0.5)[:, None, None], dice.colour(0.08, 0.95, 0.5)[:, None, None]
    ramp: Array
    x, y = canvas.x, canvas.y[:, None]
    slope, offset = dice.between(-0.5, 0.5), dice.between(-0.4, 0.4)
    ramp = np.clip(0.5 + np.float32(slope) * x + np.float32((0.7 - abs(slope)) * dice.sign()) * y + offset, 0.0, 1.0)
    if kind in ("blobs", "outdoors"):
        ramp = noise(canvas.x, canvas.y, dice.field(16, 16), dice.between(1.2, 3.5))
        if kind == "outdoors":
            _paint_outdoors(canvas, dice, ramp)
            return
    elif kind == "stripes":
        period, way = dice.between(6.0, 25.0), dice.sign()
        ramp = fade(np.sin(np.float32(period) * (x + way * y * dice.choose((0.0, 0.0, 1.0)))), -0.3, 0.3)
    canvas.image[...] = first + ramp * (second - first)
    if kind == "bokeh":
        for _ in range(12):
            radius = dice.between(0.08, 0.28)
            spot = _PICTURE.child(dice.between(-1.2, 1.2), dice.between(-1.2, 0.8))
            patch = canvas.area(spot, -radius, -radius, radius, radius)
            patch.paint(
                ellipse(patch.u, patch.v, radius, radius) + 0.03,
                dice.colour(0.5, 1.0, 0.6),
                lit=False,
                opacity=dice.between(0.15, 0.5),
            )
    elif kind in ("shelves", "wall"):
        _paint_rectangles(canvas, kind, dice)
    if kind != "gradient":
        grain = noise(canvas.x, canvas.y, dice.field(32, 32), dice.between(8.0, 16.0))
        canvas.image *= 0.88 + 0.24 * grain


def _paint_outdoors(canvas: FaceCanvas, dice: Dice, ramp: np.ndarray) -> None:
    """Sky over leaves with a ragged border."""
    sky = dice.mix((0.55, 0.72, 0.92), (0.88, 0.90, 0.93))[:, None, None]
    leaves = dice.mix((0.16, 0.30, 0.12), (0.42, 0.45, 0.20))[:, None, None]
    leaf = dice.between(4.0, 8.0)
    foliage = 0.6 * noise(canvas.x, canvas.y, dice.field(32, 32), leaf)
    foliage += 0.4 * noise(canvas.x, canvas.y, dice.field(32, 32), 2.3 * leaf)
    border = canvas.y[:, None] - np.float32(dice.between(-0.8, 0.4)) + 0.8 * (ramp - 0.5)
    canvas.image[...] = sky + fade(border, -0.05, 0.1) * (leaves * (0.45 + 1.1 * foliage) - sky)


def _paint_rectangles(canvas: FaceCanvas, kind: str, dice: Dice) -> None:
    """Books on shelves, or a picture frame or window on a wall."""
    if kind == "wall":
        width, height = dice.between(0.3, 0.9), dice.between(0.4, 1.0)
        left, top = dice.between(-1.3, 0.9), dice.between(-1.1, -0.3)
        rim = 0.06
        _fill(canvas, left - rim, top - rim, left + width + rim, top + height + rim, dice.colour(0.1, 0.9, 0.5))
        _fill(canvas, left, top, left + width, top + height, dice.colour(0.3, 1.0, 0.5))
        return
    step = dice.between(0.35, 0.6)
    wood = dice.mix((0.25, 0.16, 0.10), (0.62, 0.45, 0.28))
    for row in range(4):
        base = -1.0 + step * (row + 1)
        x = -1.1
        while x < 1.1:
            width = dice.between(0.05, 0.17)
            _fill(
                canvas, x, base - step * dice.between(0.55, 0.85), x + width - 0.012, base, dice.colour(0.1, 0.8, 0.7)
            )
            x += width
        _fill(canvas, -1.5, base, 1.5, base + 0.06, wood)


def _fill(canvas: FaceCanvas, left: float, top: float, right: float, bottom: float, colour: np.ndarray) -> None:
    rows, across = _span(canvas.y, top, bottom, canvas.pixel)
    columns, down = _span(canvas.x, left, right, canvas.pixel)
    view = canvas.image[:, rows, columns]
    view += across[:, None] * down * (colour[:, None, None] - view)


def _span(line: np.ndarray, low: float, high: float, pixel: float) -> tuple[slice, np.ndarray]:
    """The pixels of a line that low..high touches, and the share of each that it covers."""
    first = np.float32(line[0])
    start = min(max(int((low - first) / pixel) - 1, 0), len(line))
    stop = min(max(int((high - first) / pixel) + 3, start), len(line))
    distance = np.abs(line[start:stop] - np.float32((low + high) / 2)) - np.float32((high - low) / 2)
    return slice(start, stop), np.minimum(np.maximum(0.5 - distance * np.float32(1 / pixel), 0.0), 1.0)
