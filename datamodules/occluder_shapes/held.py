"""Occluders that are held in front of the face: cups, microphones, phones."""

from __future__ import annotations

import numpy as np

from structseg.datamodules.drawing.dice import Dice
from structseg.datamodules.drawing.geometry import Array, box, bump, capsule, ellipse, fade, ridge, smooth_max
from structseg.datamodules.drawing.grid import Patch
from structseg.datamodules.drawing.things import Thing, coloured
from structseg.datamodules.occluder_shapes.face import FacePlace


def cup(face: FacePlace, dice: Dice) -> Thing:
    """A cup at the mouth, its rim at the lips."""
    first, second = dice.colour(0.2, 1.0, 0.8), dice.colour(0.1, 1.0, 0.8)
    u, v = face.mouth
    tilt = dice.near(0.0, 0.12)
    size = dice.between(0.85, 1.15)
    frame = face.frame.turned(u, v + 0.45 * size, tilt, size, mirror=dice.sign())
    band, taper = dice.between(0.05, 0.25), dice.between(0.0, 0.15)

    def parts(patch: Patch) -> list[Array]:
        u, v = patch.u, patch.v
        wall = smooth_max(np.abs(u) - 0.52 + np.float32(taper) * v, np.abs(v) - 0.6, 0.06)
        ring = np.abs(ellipse(u - 0.52, v, 0.27, 0.34)) - 0.055
        return [wall, np.maximum(ring, 0.45 - u)]

    def paint(patch: Patch, pieces: list[Array]) -> tuple[Array, float]:
        u, v = patch.u, patch.v
        light = 1.0 - 0.42 * np.square(u * 1.6 + 0.25) + 0.25 * ridge((u + 0.25) * 9.0)
        light = np.maximum(light, 0.45) * (1.0 - 0.1 * fade(np.abs(v + 0.57), 0.03, 0.0))
        stripe = patch.cover(np.abs(v - 0.05) - np.float32(band))
        colours = coloured(first, light) + coloured(second - first, stripe * light)
        handle = patch.cover(pieces[1]) * (1.0 - patch.cover(pieces[0]))
        return colours + (coloured(first, 0.95 - 0.5 * fade(pieces[1], -0.05, 0.0)) - colours) * handle, 1.0

    return Thing(frame, (-0.7, -0.75, 0.95, 0.75), parts, paint)


def microphone(face: FacePlace, dice: Dice) -> Thing:
    """A microphone from below, its head in front of the mouth or the chin."""
    side = dice.sign()
    frame = face.frame.turned(
        face.mouth[0] + dice.near(0.0, 0.1), face.mouth[1] + dice.between(0.15, 0.5), -side * dice.between(0.0, 0.8)
    )
    foam = dice.chance(0.4)
    colour = dice.colour(0.05, 0.9, 0.9) if foam else dice.colour(0.3, 0.6, 0.1)
    numbers = dice.field(32, 32)

    def parts(patch: Patch) -> list[Array]:
        u, v = patch.u, patch.v
        return [ellipse(u, v, 0.33, 0.36), capsule(u, v, (0.0, 0.25), (0.0, 3.2), 0.17, 0.12)]

    def paint(patch: Patch, pieces: list[Array]) -> tuple[Array, float]:
        u, v = patch.u, patch.v
        ball = 0.55 + 0.6 * bump((u + 0.1) * 2.4, (v + 0.1) * 2.4) - 0.25 * fade(pieces[0], -0.1, 0.0)
        if foam:
            ball = ball * (0.8 + 0.4 * patch.noise(numbers, 22.0))
        else:
            ball = ball * (1.0 + 0.35 * np.sin((u + v) * 48.0) * np.sin((u - v) * 48.0))
            ball = ball + 0.3 * fade(np.abs(v), 0.04, 0.02)
        stick = coloured(np.full(3, 0.12, np.float32), 1.0 + 2.0 * ridge((u + 0.05) * 12.0))
        return stick + (coloured(colour, ball) - stick) * patch.cover(pieces[0]), 1.0

    return Thing(frame, (-0.4, -0.45, 0.4, 3.4), parts, paint)


def phone(face: FacePlace, dice: Dice) -> Thing:
    """A phone in front of the face, or at its side as in a call."""
    side = dice.sign()
    if dice.chance(0.5):
        at = (0.9 * (face.right if side > 0 else face.left), dice.between(0.1, 0.5))
    else:
        at = (dice.between(-0.5, 0.5), dice.between(0.2, 1.2))
    frame = face.frame.turned(*at, -side * dice.between(0.0, 0.5), dice.between(0.9, 1.1), mirror=side)
    case = dice.colour(0.04, 0.9, 0.7)
    screen = dice.chance(0.3)
    shine = dice.between(0.0, 0.3)

    def parts(patch: Patch) -> list[Array]:
        return [box(patch.u, patch.v, 0.52, 1.07, 0.13)]

    def paint(patch: Patch, pieces: list[Array]) -> tuple[Array, float]:
        u, v = patch.u, patch.v
        light = 0.9 - 0.15 * v + np.float32(shine) * fade(np.abs(u + 0.6 * v + 0.2), 0.3, 0.1)
        light = light * (1.0 - 0.3 * fade(pieces[0], -0.05, 0.0))
        colours = coloured(case, light)
        if screen:
            glass = patch.cover(box(u, v, 0.47, 1.0, 0.09))
            return colours + (0.06 + 0.25 * (light - 0.8) - colours) * glass, 1.0
        island = patch.cover(box(u + 0.25, v + 0.75, 0.18, 0.22, 0.07))
        colours *= 1.0 - 0.25 * island
        for place in (-0.86, -0.64):
            lens = ellipse(u + 0.25, v - np.float32(place), 0.085, 0.085)
            colours += (
                0.05 + 0.25 * bump((u + 0.28) * 20.0, (v - np.float32(place - 0.03)) * 20.0) - colours
            ) * patch.cover(lens)
        return colours, 1.0

    return Thing(frame, (-0.6, -1.15, 0.6, 1.15), parts, paint)
