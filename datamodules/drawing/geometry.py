"""Frames and shapes: affine maps into the picture and signed distances (negative inside) in float32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# float32 throughout, which numpy's annotations cannot follow through Python numbers.
Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Frame:
    """An affine map from local (u, v) to the picture's (x, y): origin + u * (ux, uy) + v * (vx, vy).

    The picture's coordinates run from -1 to 1 along its shorter side, 0 at the centre, y downwards.
    """

    x: float
    y: float
    ux: float
    uy: float
    vx: float
    vy: float

    @classmethod
    def upright(cls, at: tuple[float, float], scale: float) -> Frame:
        """A frame at a point of the picture, along its axes."""
        return cls(at[0], at[1], scale, 0.0, 0.0, scale)

    @property
    def scale(self) -> float:
        """Picture units in one local unit, as the geometric mean over the directions."""
        return math.sqrt(max(abs(self.ux * self.vy - self.uy * self.vx), 1e-8))

    def at(self, u: float, v: float) -> tuple[float, float]:
        """The picture's (x, y) of a local point."""
        return self.x + u * self.ux + v * self.vx, self.y + u * self.uy + v * self.vy

    def child(self, u: float, v: float, uu: float = 1.0, uv: float = 0.0, vu: float = 0.0, vv: float = 1.0) -> Frame:
        """A frame placed at (u, v) of this one, whose axes are (uu, uv) and (vu, vv) in it."""
        x, y = self.at(u, v)
        return Frame(
            x,
            y,
            uu * self.ux + uv * self.vx,
            uu * self.uy + uv * self.vy,
            vu * self.ux + vv * self.vx,
            vu * self.uy + vv * self.vy,
        )

    def turned(self, u: float, v: float, angle: float, scale: float = 1.0, mirror: float = 1.0) -> Frame:
        """A frame at (u, v), turned clockwise by `angle` (radians), scaled; mirror -1 flips its u axis."""
        cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
        return self.child(u, v, mirror * cos, mirror * sin, -sin, cos)


def ellipse(u: Array, v: Array, a: float, b: float) -> Array:
    """Approximate distance to an axis-aligned ellipse with half axes a and b."""
    p, q = u / a, v / b
    k = np.sqrt(p * p + q * q)
    p /= a
    q /= b
    return k * (k - 1.0) / np.sqrt(p * p + q * q + 1e-6)


def box(u: Array, v: Array, a: float, b: float, radius: float = 0.0) -> Array:
    """Distance to a box with half sides a and b and rounded corners."""
    p, q = np.abs(u) - (a - radius), np.abs(v) - (b - radius)
    outside = np.sqrt(np.maximum(p, 0) ** 2 + np.maximum(q, 0) ** 2)
    return outside + np.minimum(np.maximum(p, q), 0) - radius


def capsule(u: Array, v: Array, start: tuple[float, float], end: tuple[float, float], r0: float, r1: float) -> Array:
    """Distance to a stroke from start to end whose radius goes from r0 to r1."""
    along, du, dv = _along(u, v, start, end)
    return np.sqrt(du * du + dv * dv) - (r0 + (r1 - r0) * along)


def _along(u: Array, v: Array, start: tuple[float, float], end: tuple[float, float]) -> tuple[Array, Array, Array]:
    eu, ev = end[0] - start[0], end[1] - start[1]
    du, dv = u - start[0], v - start[1]
    along = np.clip((du * eu + dv * ev) / (eu * eu + ev * ev + 1e-9), 0.0, 1.0)
    return along, du - along * eu, dv - along * ev


def smooth_min(a: Array, b: Array, radius: float) -> Array:
    """Union of two shapes, the seam rounded over `radius`."""
    # Quilez's polynomial blend: differs from the minimum by a quarter of the radius where both are equal.
    near = np.maximum(np.float32(radius) - np.abs(a - b), 0.0)
    near *= near
    near *= np.float32(-0.25 / radius)
    near += np.minimum(a, b)
    return near


def smooth_max(a: Array, b: Array, radius: float) -> Array:
    """Intersection of two shapes, the corner rounded over `radius`."""
    near = np.maximum(np.float32(radius) - np.abs(a - b), 0.0)
    near *= near
    near *= np.float32(0.25 / radius)
    near += np.maximum(a, b)
    return near


def bump(p: Array, q: Array) -> Array:
    """A soft spot: 1 at the origin, 0 from radius 1 on, smooth between."""
    soft = 1.0 - p * p
    soft -= q * q
    np.maximum(soft, 0.0, out=soft)
    soft *= soft
    return soft


def ridge(p: Array) -> Array:
    """A soft stripe: 1 at 0, 0 from 1 on, smooth between."""
    soft = np.maximum(1.0 - p * p, 0.0)
    soft *= soft
    return soft


def fade(t: Array, low: float, high: float) -> Array:
    """Smooth step from 0 at `low` to 1 at `high` (low > high runs downwards)."""
    s = (t - np.float32(low)) * np.float32(1.0 / (high - low))
    np.maximum(s, 0.0, out=s)
    np.minimum(s, 1.0, out=s)
    slope = s * -2.0
    slope += 3.0
    slope *= s
    slope *= s
    return slope


class Outline:
    """A left-right symmetric closed curve round the origin, kept as radius over direction.

    Args:
        width: half width at v = 0.
        top: extent upwards (v = -top).
        bottom: extent downwards (v = bottom).
        top_powers: superellipse exponents (of u, of v) of the upper half; 2, 2 is an ellipse.
        bottom_powers: those of the lower half.
    """

    def __init__(
        self,
        width: float,
        top: float,
        bottom: float,
        top_powers: tuple[float, float] = (2.0, 2.0),
        bottom_powers: tuple[float, float] = (2.0, 2.0),
    ) -> None:
        lower_u, lower_v = _arc(width, bottom, bottom_powers)
        upper_u, upper_v = _arc(width, top, top_powers)
        u = np.concatenate((upper_u, lower_u[-2::-1]))
        v = np.concatenate((-upper_v, lower_v[-2::-1]))
        direction = v / (u + np.abs(v))
        self._radius = np.interp(_NODES, direction, np.hypot(u, v)).astype(np.float32)
        slope = (self._radius[2:] - self._radius[:-2]) / (_ANGLES[2:] - _ANGLES[:-2]) / self._radius[1:-1]
        self._cosine = np.ones_like(self._radius)
        self._cosine[1:-1] = 1.0 / np.sqrt(1.0 + slope * slope)

    def distance(self, u: Array, v: Array) -> Array:
        """Distance to the curve, first-order exact near it."""
        side = np.abs(u)
        place = np.abs(v)
        place += side
        place += np.float32(1e-6)
        np.divide(v, place, out=place)
        place += 1.0
        place *= np.float32(_ENTRIES / 2)
        place += np.float32(0.5)
        index = place.astype(np.intp)
        side *= side
        side += v * v
        np.sqrt(side, out=side)
        side -= self._radius.take(index)
        side *= self._cosine.take(index)
        return side


def _arc(width: float, height: float, powers: tuple[float, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A quarter of a superellipse, from (0, height) to (width, 0)."""
    return width * _SINE ** (2.0 / powers[0]), height * _COSINE ** (2.0 / powers[1])


_QUARTER = np.linspace(0.0, math.pi / 2, 96)
_SINE, _COSINE = np.sin(_QUARTER), np.cos(_QUARTER).clip(0.0)
_ENTRIES = 1024
_NODES = np.linspace(-1.0, 1.0, _ENTRIES + 1)
_ANGLES = np.arctan2(_NODES, 1.0 - np.abs(_NODES)).astype(np.float32)
