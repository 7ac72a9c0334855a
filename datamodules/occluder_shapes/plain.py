"""Occluders of any size and place: shapes of one colour, and patches of textured material."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from structseg.datamodules.drawing.dice import Dice
from structseg.datamodules.drawing.geometry import Array, box, capsule, ellipse, fade
from structseg.datamodules.drawing.grid import Patch
from structseg.datamodules.drawing.things import Thing, coloured, mixed
from structseg.datamodules.occluder_shapes.face import FacePlace

Texture = Callable[[Patch], Array]


def shape(face: FacePlace, dice: Dice, share: float) -> Thing:
    """A geometric shape of one colour, a little lighter at one end; its area is `share` of the face's."""
    distance, reach = _outline(dice)
    colour, slope = dice.colour(0.05, 1.0, 0.9), dice.near(0.0, 0.1)

    def paint(patch: Patch, parts: list[Array]) -> tuple[Array, float]:
        rim = 1.0 - 0.15 * fade(parts[0], -0.08, 0.0)
        return coloured(colour, rim * (1.0 + np.float32(slope) * patch.v)), 1.0

    return _place(face, dice, share, distance, reach, paint)


def patch_of_stuff(face: FacePlace, dice: Dice, share: float) -> Thing:
    """A piece of striped, checked, speckled, woven or wooden material; its area is `share` of the face's."""
    distance, reach = _outline(dice)
    kind = dice.choose(("stripes", "checks", "speckles", "cloth", "wood"))
    colours = texture(kind, dice, 1.0)

    def paint(patch: Patch, parts: list[Array]) -> tuple[Array, float]:
        return colours(patch) * (1.0 - 0.2 * fade(parts[0], -0.08, 0.0)), 1.0

    return _place(face, dice, share, distance, reach, paint)


def _place(
    face: FacePlace,
    dice: Dice,
    share: float,
    distance: Callable[[Array, Array], Array],
    reach: float,
    paint: Callable[[Patch, list[Array]], tuple[Array, Array | float]],
) -> Thing:
    """Places a shape of area 1 at random on the face, turned and scaled to `share` of the face's area."""
    u = dice.between(face.left, face.right)
    v = dice.between(-0.7, face.chin)
    frame = face.frame.turned(u, v, dice.between(-math.pi, math.pi), math.sqrt(share * face.area))
    return Thing(frame, (-reach, -reach, reach, reach), lambda p: [distance(p.u, p.v)], paint)


def _outline(dice: Dice) -> tuple[Callable[[Array, Array], Array], float]:
    """The distance to a shape of area about 1, and its largest radius."""
    kind = dice.choose(("box", "ellipse", "polygon", "bar", "blob"))
    if kind == "box":
        a = 0.5 * dice.between(1.0, 1.5)
        b = 0.25 / a
        radius = dice.choose((0.0, 0.3, 0.9)) * b
        return lambda u, v: box(u, v, a, b, radius), math.hypot(a, b)
    if kind == "ellipse":
        a = dice.between(1.0, 1.5) * math.sqrt(1 / math.pi)
        b = 1 / (math.pi * a)
        return lambda u, v: ellipse(u, v, a, b), a
    if kind == "polygon":
        sides = dice.choose((3, 5, 6))
        # A regular polygon of area 1 has an inner radius of 1 / sqrt(n tan(pi / n)).
        inner = 1.0 / math.sqrt(sides * math.tan(math.pi / sides))
        normals = [(math.cos(2 * math.pi * k / sides), math.sin(2 * math.pi * k / sides)) for k in range(sides)]

        def polygon(u: Array, v: Array) -> Array:
            edges = [u * np.float32(cos) + v * np.float32(sin) for cos, sin in normals]
            return np.maximum.reduce(edges) - np.float32(inner)

        return polygon, inner / math.cos(math.pi / sides)
    if kind == "bar":
        half = dice.between(0.6, 1.2)
        # 4 * half * radius + pi * radius^2 = 1
        radius = (math.sqrt(4 * half * half + math.pi) - 2 * half) / math.pi
        return lambda u, v: capsule(u, v, (-half, 0.0), (half, 0.0), radius, radius), half + radius
    waves = [(order, dice.between(0.02, 0.3) / order, dice.between(0.0, 2 * math.pi)) for order in (2, 3, 5)]

    def blob(u: Array, v: Array) -> Array:
        angle = np.arctan2(v, u)
        radius, slope = np.full_like(angle, 0.55), np.zeros_like(angle)
        for order, height, phase in waves:
            radius += np.float32(0.55 * height) * np.cos(order * angle + np.float32(phase))
            slope -= np.float32(0.55 * height * order) * np.sin(order * angle + np.float32(phase))
        # The distance along the ray times the cosine between ray and normal: exact to first order.
        return (np.hypot(u, v) - radius) / np.sqrt(1.0 + np.square(slope / radius))

    return blob, 0.55 * (1.0 + sum(height for _, height, _ in waves))


def texture(kind: str, dice: Dice, scale: float) -> Texture:
    """A function from a patch to colours (3, h, w) of stripes, checks, speckles, cloth or wood, enlarged by `scale`."""
    first, second = dice.colour(0.1, 1.0, 0.8), dice.colour(0.05, 1.0, 0.8)
    numbers = dice.field(32, 32)
    frequency = dice.between(14.0, 40.0) / scale
    angle = dice.between(0.0, math.pi)
    along, across = np.float32(math.cos(angle)), np.float32(math.sin(angle))

    def wave(t: Array, sharpness: float) -> Array:
        """A wave in 0..1, with harder edges for a higher sharpness."""
        return np.clip(0.5 + np.float32(sharpness) * np.sin(t), 0.0, 1.0)

    def stripes(patch: Patch) -> Array:
        t = (patch.u * along + patch.v * across) * np.float32(frequency)
        return mixed(first, second, wave(t, 3.0)) * (0.92 + 0.16 * patch.noise(numbers, 20.0 / scale))

    def checks(patch: Patch) -> Array:
        p, q = patch.u * along + patch.v * across, patch.v * along - patch.u * across
        tone = 0.5 * (wave(p * np.float32(frequency * 0.7), 4.0) + wave(q * np.float32(frequency * 0.7), 4.0))
        return mixed(first, second, tone) * (0.92 + 0.16 * patch.noise(numbers, 20.0 / scale))

    def speckles(patch: Patch) -> Array:
        octaves = (0.5, 0.25), (0.3, 0.53), (0.2, 1.1)
        spots = sum(weight * patch.noise(numbers, frequency * pitch) for weight, pitch in octaves)
        return mixed(first, second, np.clip(2.4 * spots - 0.7, 0.0, 1.0))

    def cloth(patch: Patch) -> Array:
        p, q = patch.u * along + patch.v * across, patch.v * along - patch.u * across
        threads = np.sin(p * np.float32(frequency * 3.0)) * np.sin(q * np.float32(frequency * 3.0))
        bend = patch.noise(numbers, 3.0 / scale)
        folds = np.sin(p * np.float32(6.0 / scale) + bend * 5.0)
        return coloured(first, 0.82 + 0.06 * threads + 0.16 * folds + 0.06 * patch.noise(numbers.T, 30.0 / scale))

    def wood(patch: Patch) -> Array:
        p, q = patch.u * along + patch.v * across, patch.v * along - patch.u * across
        warp = patch.noise(numbers, 2.5 / scale)
        rings = np.sin(q * np.float32(18.0 / scale) + 0.8 * np.sin(p * np.float32(2.0 / scale)) + warp * 7.0)
        fibres = patch.noise(numbers.T, 45.0 / scale)
        light, dark = np.array([0.78, 0.58, 0.38], np.float32), np.array([0.42, 0.25, 0.13], np.float32)
        tone = 0.6 + 0.4 * first.mean()
        return mixed(light * tone, dark * tone, np.clip(0.45 + 0.35 * rings + 0.3 * (fibres - 0.5), 0.0, 1.0))

    return {"stripes": stripes, "checks": checks, "speckles": speckles, "cloth": cloth, "wood": wood}[kind]
