"""Clothes with necklines, collars and patterns, and the necklace."""

from __future__ import annotations

import math

import numpy as np

from structseg.datamodules.drawing.geometry import Array, fade
from structseg.datamodules.drawing.texture import noise
from structseg.datamodules.synthetic_faces.canvas import LABEL, FaceCanvas
from structseg.datamodules.synthetic_faces.head import Rig, shoulder_line
from structseg.datamodules.synthetic_faces.parameters import Body

_WHITE = np.array([0.93, 0.93, 0.94], np.float32)


def paint_clothes(canvas: FaceCanvas, rig: Rig, numbers: Array) -> None:
    """Paints the garment over the shoulders, its neckline, and, depending on it, collar, lapels and tie."""
    body = rig.face.body
    patch = canvas.area(rig.body, -3.0, 0.7, 3.0, 3.2)
    u, v = patch.u - np.float32(body.shift), patch.v
    side = np.abs(u)
    garment = (shoulder_line(u, body) - v) * 0.93
    start = np.float32(body.collar)
    if body.neckline == "vee":
        opening = (side - np.float32(body.neck + 0.05) * (1.0 - (v - start) / np.float32(body.depth))) * 0.8
    elif body.neckline in ("shirt", "suit"):
        reach = 0.45 if body.neckline == "shirt" else 0.2
        opening = (side - np.float32(body.neck - 0.02) * (1.0 - (v - start) / np.float32(reach))) * 0.75
    elif body.neckline == "bare":
        garment = garment + 0.45 + 0.12 * np.cos(u * 2.2)
        opening = np.full_like(v, 1.0)
    elif body.neckline == "turtleneck":
        roll = np.maximum(side - np.float32(body.neck + 0.035), np.float32(body.collar - 0.17) + 0.1 * side * side - v)
        garment = np.minimum(garment, roll)
        opening = np.full_like(v, 1.0)
    else:
        dip = np.float32(0.10 + 0.12 * body.depth)
        edge = np.square(side / np.float32(body.neck + 0.04))
        opening = (edge + np.square((v - start) / dip) * np.sign(v - start) - 1.0) * dip * 0.6
    distance = np.maximum(garment, -opening)
    rows, columns = patch.box
    folds = noise(canvas.x[columns], canvas.y[rows], numbers, 3.5)
    factor = 0.72 + 0.34 * folds - 0.18 * fade(opening, 0.07, 0.0) - 0.15 * fade(side, 0.6, 1.6)
    if body.neckline == "turtleneck":
        factor = factor - 0.10 * np.maximum(np.cos(u * 55.0), 0.0) * fade(v, body.collar + 0.12, body.collar)
    patch.paint(distance, _cloth(body, u, v) * factor, "cloth", lit=False)
    if body.neckline in ("shirt", "suit"):
        _paint_collar(canvas, rig)


def _cloth(body: Body, u: Array, v: Array) -> Array:
    """(3, h, w) or (3, 1, 1) the garment's own colours."""
    first, second = body.colour[:, None, None], body.second[:, None, None]
    turn = np.float32(2 * math.pi / body.period)
    if body.pattern == "stripes":
        weave = fade(np.sin(v * turn), -0.2, 0.2)
    elif body.pattern == "bars":
        weave = fade(np.sin(u * turn), 0.2, 0.5)
    elif body.pattern == "plaid":
        weave = 0.45 * fade(np.sin(v * turn), 0.0, 0.3) + 0.45 * fade(np.sin(u * turn), 0.0, 0.3)
    elif body.pattern == "dots":
        weave = fade(np.sin(u * turn) * np.sin(v * turn), 0.45, 0.6)
    elif body.pattern == "knit":
        weave = 0.25 + 0.25 * np.sin(v * 50.0 + 2.0 * np.sin(u * 36.0))
        second = first * 0.6
    else:
        return first
    return first + weave * (second - first)


def _paint_collar(canvas: FaceCanvas, rig: Rig) -> None:
    body = rig.face.body
    shirt = body.second * np.float32(0.4) + _WHITE * np.float32(0.6) if body.neckline == "suit" else body.colour
    patch = canvas.area(rig.body, -1.2, 0.7, 1.2, 3.2)
    u, v = patch.u - np.float32(body.shift), patch.v
    side = np.abs(u)
    start = np.float32(body.collar)
    if body.neckline == "suit":
        opened = side - np.float32(body.neck * 0.95) * (1.0 - (v - start - 0.12) / 1.3)
        chest = np.maximum(opened, (np.float32(body.neck - 0.02) * (1.0 - (v - start) / 0.2) - side) * 0.75)
        chest = np.maximum(chest, start + 0.02 - v)
        patch.paint(chest, shirt * np.float32(0.9), "cloth", lit=False)
        knot = side - np.float32(0.07) - 0.05 * np.clip(v - start - 0.25, -0.1, 0.6)
        tie = np.maximum(knot, start + 0.17 - v)
        weave = 0.8 + 0.3 * np.sin((u + v) * 45.0)
        patch.paint(tie, body.second[:, None, None] * weave * 0.8, "cloth", lit=False)
        lapel = np.maximum(np.abs(opened) - 0.012, start - v)
        patch.paint(lapel, body.colour * np.float32(0.45), lit=False, opacity=0.7)
    stand = np.float32(body.neck + 0.06)
    inner = np.float32(body.neck - 0.05) - 0.95 * (v - start + 0.10)
    flap = np.maximum(inner - side, side - stand - 0.02 - 0.25 * np.maximum(v - start, 0.0))
    flap = np.maximum(flap, np.maximum(start - 0.14 + 0.10 * side - v, v - start - 0.30 + 0.35 * side))
    light = 1.05 - 0.35 * fade(flap, -0.05, 0.0)
    patch.paint(flap, shirt[:, None, None] * light, "cloth", lit=False)


def paint_necklace(canvas: FaceCanvas, rig: Rig) -> None:
    """A chain with a stone, or pearls, hanging on the neck."""
    body, jewels = rig.face.body, rig.face.jewels
    patch = canvas.area(rig.body, -0.8, 0.9, 0.8, 2.2)
    u, v = patch.u - np.float32(body.shift), patch.v
    hang = np.float32(body.collar + 0.10)
    loop = v - hang + 0.55 * u * u
    thick = 0.016 if jewels.necklace == "chain" else 0.038
    ends = np.abs(u) - np.float32(body.neck + 0.03)
    on_skin = np.where(patch.label == LABEL["neck"], np.float32(-1.0), np.float32(1.0))
    chain = np.maximum(np.maximum(np.abs(loop) - np.float32(thick), ends), on_skin)
    if jewels.necklace == "pearls":
        bead = 0.72 + 0.30 * np.cos(u * np.float32(2 * math.pi / 0.085))
        colour = np.array([0.95, 0.92, 0.87], np.float32)[:, None, None] * bead
    else:
        colour = jewels.metal[:, None, None] * (0.75 + 0.35 * np.cos(u * 110.0))
    patch.paint(chain, colour, "neck_l", lit=False)
    if jewels.necklace == "chain":
        stone = np.maximum(np.abs(u) + np.abs(v - hang - 0.05) - 0.055, on_skin)
        patch.paint(stone, jewels.stone, "neck_l", lit=False)
