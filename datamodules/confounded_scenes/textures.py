"""The textures of objects and grounds: patterns, colours, and their variation within a class.

Arrays use only sums, products, comparisons, roots and floors, which numpy computes alike on every platform.
"""

from __future__ import annotations

import math

import numpy as np

from structseg.datamodules.confounded_scenes.cooccurrence import GROUNDS
from structseg.datamodules.drawing.dice import Dice
from structseg.datamodules.drawing.geometry import Array
from structseg.datamodules.drawing.texture import noise

PATTERNS = ("dots", "rings", "scales", "stripes", "checks", "zigzag", "bricks", "grid", "crosses", "diamonds")
_GOLDEN = 0.6180339887


def colour(hue: float, saturation: float, value: float) -> Array:
    """(3,) RGB in 0..1 of a hue (modulo 1), saturation and value in 0..1."""
    ramps = (abs((hue + shift) % 1.0 * 6.0 - 3.0) - 1.0 for shift in (0.0, 2 / 3, 1 / 3))
    return np.array([value * (1.0 - saturation * (1.0 - min(max(ramp, 0.0), 1.0))) for ramp in ramps], np.float32)


def _fraction(t: Array) -> Array:
    """Signed distance to the middle of the cell, -0.5..0.5."""
    return t - np.floor(t) - np.float32(0.5)


def _wave(t: Array) -> Array:
    """Triangle wave of period 1 in 0..1."""
    return np.abs(_fraction(t)) * 2.0


def _step(t: Array, width: float = 0.1) -> Array:
    """1 for t below 0, 0 above, with a ramp of that width."""
    return np.clip(0.5 - t * np.float32(1.0 / width), 0.0, 1.0)


def pattern(name: str, u: Array, v: Array) -> Array:
    """(h, w) values in 0..1 of one of `PATTERNS`, which repeats with period 1 (zigzag, scales and bricks: 1 or 2)."""
    if name == "stripes":
        return _step(_wave(u) - 0.5, 0.3)
    if name == "rings":
        return _step(_wave(np.sqrt(u * u + v * v)) - 0.5, 0.3)
    if name == "checks":
        return _step((_wave(u) - 0.5) * (_wave(v) - 0.5), 0.15)
    if name == "zigzag":
        return _step(_wave(v + 0.5 * _wave(u)) - 0.5, 0.3)
    if name in ("scales", "bricks"):
        p = _fraction(u + np.floor(v) * 0.5)
        q = _fraction(v)
        if name == "scales":
            q = q + 0.5
            return _step(np.abs(p * p + 0.6 * q * q - 0.2) - 0.09, 0.1)
        return _step(np.maximum(np.abs(p), np.abs(q) + 0.05) - 0.4)
    p, q = np.abs(_fraction(u)), np.abs(_fraction(v))
    if name == "dots":
        return _step(p * p + q * q - 0.09)
    if name == "diamonds":
        return _step(p + q - 0.38, 0.15)
    if name == "grid":
        return _step(np.minimum(p, q) - 0.14)
    return _step(np.maximum(np.minimum(p, q) - 0.13, np.maximum(p, q) - 0.4))  # crosses


class Coat:
    """The texture of one object: its class's full pattern on the distinctive part, a trace of it on the rest.

    Ten patterns and a hue for each class distinguish up to 20 classes; hue (by 54 degrees to either side), brightness,
    contrast, direction and scale vary between objects, so that no single one of them is enough.

    Args:
        kind: the class, 1 or more.
        dice: of the object's variation.
    """

    def __init__(self, kind: int, dice: Dice) -> None:
        self.pattern = PATTERNS[(kind - 1) % len(PATTERNS)]
        # Classes that share a pattern are half the circle apart.
        round_trip = (kind - 1) // len(PATTERNS)
        hue = kind * _GOLDEN + round_trip * 0.32 + dice.between(-0.15, 0.15)
        self.light = colour(hue, dice.between(0.35, 0.9), dice.between(0.75, 1.0))
        self.dark = colour(hue + dice.between(0.35, 0.65), dice.between(0.3, 0.9), dice.between(0.1, 0.4))
        self.plain = colour(hue + dice.between(-0.06, 0.06), dice.between(0.15, 0.5), dice.between(0.4, 0.85))
        self.trace = dice.between(0.1, 0.25)
        self.fineness = dice.between(0.8, 1.25)
        angle = dice.between(-0.5, 0.5)
        self._cos, self._sin = math.cos(angle), math.sin(angle)
        self._shift = (dice.uniform(), dice.uniform())

    def colours(self, u: Array, v: Array, distinctive: Array) -> Array:
        """(3, h, w) colours; u, v in cells of the pattern, `distinctive` (h, w) in 0..1: share of that part."""
        u, v = u * np.float32(self.fineness), v * np.float32(self.fineness)
        p = u * np.float32(self._cos) - v * np.float32(self._sin) + np.float32(self._shift[0])
        q = u * np.float32(self._sin) + v * np.float32(self._cos) + np.float32(self._shift[1])
        if self.pattern == "rings":  # about the object's own centre
            p, q = u, v
        value = pattern(self.pattern, p, q)
        plain = self.plain[:, None, None] * (np.float32(1.0 - self.trace) + np.float32(2 * self.trace) * value)
        full = self.dark[:, None, None] + value * (self.light - self.dark)[:, None, None]
        return plain + distinctive * (full - plain)


def ground(kind: int, x: Array, y: Array, dice: Dice) -> Array:
    """(3, h, w) colours of one of `GROUNDS`; x (w,) and y (h,) are the picture's coordinates."""
    name = GROUNDS[kind]
    fine = dice.between(0.85, 1.2)
    tilt = dice.between(-0.04, 0.04)
    coarse = noise(x, y, dice.field(16, 16), dice.between(1.5, 3.0))
    if name == "night":
        specks = noise(x, y, dice.field(32, 32), 11.0 * fine)
        first, second = colour(0.65 + tilt, 0.7, 0.1), colour(0.72 + tilt, 0.5, 0.35)
        return _mixed(first, second, coarse) + _step(0.86 - specks) * np.float32(0.55)
    if name == "water":
        bands = noise(0.25 * x, y, dice.field(32, 32), 13.0 * fine)
        return _mixed(colour(0.53 + tilt, 0.75, 0.35), colour(0.5 + tilt, 0.35, 0.85), 0.3 * coarse + 0.7 * bands)
    if name == "meadow":
        blades = noise(x, 0.3 * y, dice.field(32, 32), 18.0 * fine)
        return _mixed(colour(0.3 + tilt, 0.75, 0.2), colour(0.24 + tilt, 0.6, 0.7), 0.3 * coarse + 0.7 * blades)
    if name == "pavement":
        slabs_x, slabs_y = (_step(np.abs(_fraction(t * np.float32(3.0 * fine))) - 0.44) for t in (x, y))
        joints = slabs_x * slabs_y[:, None]
        return _mixed(colour(0.6 + tilt, 0.08, 0.3), colour(0.08 + tilt, 0.08, 0.7), joints * (0.6 + 0.4 * coarse))
    if name == "sand":
        grains = noise(x, y, dice.field(64, 64), 24.0 * fine)
        return _mixed(colour(0.1 + tilt, 0.55, 0.6), colour(0.13 + tilt, 0.35, 0.95), 0.5 * coarse + 0.5 * grains)
    weave = _wave((x + y[:, None]) * np.float32(5.0 * fine))
    return _mixed(colour(0.92 + tilt, 0.45, 0.3), colour(0.96 + tilt, 0.3, 0.65), 0.5 * coarse + 0.5 * weave)  # cloth


def _mixed(first: Array, second: Array, share: Array) -> Array:
    return first[:, None, None] + share * (second - first)[:, None, None]
