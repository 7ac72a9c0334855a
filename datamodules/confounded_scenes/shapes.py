"""The outline of each class and of its distinctive part, as distances (negative inside) in the object's frame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from structseg.datamodules.drawing.geometry import Array, box, capsule, ellipse

Shape = Callable[[Array, Array], tuple[Array, Array]]
"""Distances to the outline and to the distinctive part from u, v (h, w), within about -1..1, v downwards."""


def outline(kind: int, u: Array, v: Array) -> tuple[Array, Array]:
    """Distances (h, w) to the outline of class `kind` (1, 2, ...) and to its distinctive part."""
    return _SHAPES[kind - 1](u, v)


def _lobes(u: Array, v: Array, count: int, middle: float, swing: float) -> Array:
    """Distance to a curve whose radius is middle + swing * cos(count * angle from the top)."""
    radius = np.sqrt(u * u + v * v) + np.float32(1e-6)
    cosine = v / -radius
    before, now = np.ones_like(cosine), cosine
    for _ in range(count - 1):  # Chebyshev polynomials: the same on every platform, unlike the cosine of an array
        before, now = now, 2.0 * cosine * now - before
    return (radius - (middle + swing * now)) * 0.7


def _disc(u: Array, v: Array, radius: float) -> Array:
    return np.sqrt(u * u + v * v) - radius


def _star(u: Array, v: Array) -> tuple[Array, Array]:
    return _lobes(u, v, 5, 0.7, 0.3), _disc(u, v, 0.5)


def _moon(u: Array, v: Array) -> tuple[Array, Array]:
    return np.maximum(_disc(u, v, 1.0), -_disc(u - 0.6, v, 0.75)), v - 0.05


def _fish(u: Array, v: Array) -> tuple[Array, Array]:
    tail = np.maximum(np.abs(v) + u * 0.8 + 0.25, -1.0 - u) * 0.78
    return np.minimum(ellipse(u - 0.2, v, 0.8, 0.52), tail), 0.2 - u


def _shell(u: Array, v: Array) -> tuple[Array, Array]:
    fan = np.maximum(_disc(u, v - 0.85, 1.75), (np.abs(u) - 0.85 * (0.95 - v)) * 0.76)
    return fan, -0.05 - v


def _flower(u: Array, v: Array) -> tuple[Array, Array]:
    return _lobes(u, v, 7, 0.82, 0.18), _disc(u, v, 0.52)


def _beetle(u: Array, v: Array) -> tuple[Array, Array]:
    legs = np.minimum(np.abs(np.abs(v - 0.1) - 0.42), np.abs(v - 0.1)) - 0.07
    return np.minimum(ellipse(u, v, 0.6, 0.95), np.maximum(legs, np.abs(u) - 0.95)), v + 0.1


def _house(u: Array, v: Array) -> tuple[Array, Array]:
    walls = np.maximum(np.abs(u) - 0.7, v - 0.9)
    return np.maximum(walls, (np.abs(u) - v - 0.95) * 0.7), v - 0.05


def _cone(u: Array, v: Array) -> tuple[Array, Array]:
    stem = capsule(u, v, (0.0, -0.85), (0.0, 0.75), 0.12, 0.55)
    return np.minimum(np.maximum(stem, v - 0.8), box(u, v - 0.82, 0.9, 0.14)), np.abs(v) - 0.4


_SHAPES: tuple[Shape, ...] = (_star, _moon, _fish, _shell, _flower, _beetle, _house, _cone)
