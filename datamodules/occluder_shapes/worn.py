"""Occluders that a face wears: glasses, hats, masks and scarves."""

from __future__ import annotations

import numpy as np

from structseg.datamodules.drawing.dice import Dice
from structseg.datamodules.drawing.geometry import Array, Outline, box, bump, capsule, ellipse, fade, smooth_max
from structseg.datamodules.drawing.grid import Patch
from structseg.datamodules.drawing.things import Thing, coloured
from structseg.datamodules.occluder_shapes.face import FacePlace
from structseg.datamodules.occluder_shapes.plain import texture


def glasses(face: FacePlace, dice: Dice, dark: bool) -> Thing:
    """Glasses at the eyes; their lenses, clear or dark, are part of them, as in CelebAMask-HQ."""
    (left, right) = face.eyes
    apart = max(right[0] - left[0], 0.3)
    a = dice.between(0.36, 0.44) * apart
    b = dice.between(0.27, 0.38) if dark else dice.between(0.24, 0.34)
    round_ = dice.between(0.25, 1.0) * min(a, b)
    rim = dice.between(0.02, 0.06)
    drop = dice.between(0.0, 0.06)
    colour = dice.colour(0.03, 0.35, 0.6) if dice.chance(0.7) else dice.colour(0.4, 0.9, 0.5)
    tint = dice.colour(0.03, 0.25, 0.5) if dark else np.array([0.85, 0.9, 0.95], np.float32)
    through = dice.between(0.8, 0.97) if dark else dice.between(0.04, 0.14)
    graded, glint = dice.between(0.0, 0.5), dice.between(0.0, 0.35)
    bridge = (left[0] + a, left[1] + drop - 0.07), (right[0] - a, right[1] + drop - 0.07)
    hinges = (left[0] - a, left[1] + drop - 0.1), (right[0] + a, right[1] + drop - 0.1)
    ears = (min(face.left - 0.05, hinges[0][0] - 0.1), -0.08), (max(face.right + 0.05, hinges[1][0] + 0.1), -0.08)

    def parts(patch: Patch) -> list[Array]:
        u, v = patch.u, patch.v
        lenses = [box(u - np.float32(x), v - np.float32(y + drop), a, b, round_) for x, y in (left, right)]
        bars = [capsule(u, v, *bridge, rim, rim)]
        bars += [capsule(u, v, hinge, ear, rim, rim * 0.8) for hinge, ear in zip(hinges, ears, strict=True)]
        lens = np.minimum(*lenses)
        return [lens, np.minimum.reduce([np.abs(lens) - np.float32(rim), *bars])]

    def paint(patch: Patch, pieces: list[Array]) -> tuple[Array, Array]:
        frame = pieces[1]
        u, v = patch.u, patch.v
        solid = patch.cover(frame)
        sheen = np.float32(glint) * fade(np.abs(np.sin((u + 0.7 * v) * 2.4 + np.float32(glint * 9))), 0.25, 0.0)
        glass = coloured(tint, 1.0 - np.float32(graded if dark else 0.0) * v) + sheen
        metal = coloured(colour, 1.0 - 1.2 * v + 0.3 * fade(frame, -0.02, -0.05))
        opacity = np.clip(through + (0.0 if dark else 0.6) * sheen, 0.0, 1.0)
        return glass + (metal - glass) * solid, opacity + (1.0 - opacity) * solid

    reach = max(abs(ears[0][0]), abs(ears[1][0])) + 0.1
    return Thing(face.frame, (-reach, -0.7, reach, 0.7), parts, paint)


def hat(face: FacePlace, dice: Dice) -> Thing:
    """A cap, a beanie or a brimmed hat on the top of the head, its edge above the eyes."""
    kind = dice.choose(("cap", "beanie", "brim"))
    middle, half = (face.brow[0] + face.brow[1]) / 2, (face.brow[1] - face.brow[0]) / 2 + dice.between(0.02, 0.1)
    line = -dice.between(0.6, 0.85) if kind == "cap" else -dice.between(0.45, 0.75)
    crown = max(line - face.top + dice.between(0.05, 0.25), 0.75)
    brim = dice.between(0.25, 0.5)
    toward = 0.5 * (face.nose[0] - (face.left + face.right) / 2)
    stuff = texture(dice.choose(("cloth", "cloth", "cloth", "stripes", "checks", "speckles")), dice, 1.5)
    second = dice.colour(0.05, 0.95, 0.7)
    dome = Outline(half, crown, crown, (2.6, 3.4 if kind == "brim" else 2.2))
    frame = face.frame.turned(middle, line, dice.near(0.0, 0.05))

    def parts(patch: Patch) -> list[Array]:
        u, v = patch.u, patch.v
        edge = v - np.float32(0.14) * (1.0 - np.square(u / np.float32(half)))
        shell = smooth_max(dome.distance(u, v), edge, 0.05)
        if kind == "beanie":
            return [shell, box(u, edge + 0.12, half + 0.04, 0.17, 0.08)]
        p = u - np.float32(toward)
        if kind == "cap":
            bill = ellipse(p, v - 0.06 + 0.14 * np.square(p), 0.88 * half, 0.16 + 0.4 * brim)
            return [shell, np.maximum(bill, -v - 0.02)]
        return [shell, ellipse(u, v - 0.05 + 0.1 * np.square(u), half + 1.6 * brim, 0.10 + 0.2 * brim)]

    def paint(patch: Patch, pieces: list[Array]) -> tuple[Array, float]:
        shell, other = pieces
        u, v = patch.u, patch.v
        form = 1.0 - 0.45 * np.square(fade(shell, -0.45, 0.0))
        if kind == "cap":
            form = form * (1.0 - 0.2 * fade(np.abs(np.abs(u - np.float32(toward)) - 0.45), 0.025, 0.0))
        elif kind == "beanie":
            form = form * (0.92 + 0.08 * np.cos(u * 30.0))
        colours = stuff(patch) * form
        if kind == "brim":
            band = patch.cover(np.maximum(np.maximum(shell, -v - 0.28), v + 0.02))
            colours += (coloured(second, form) - colours) * band
        if kind == "beanie":
            light = (0.85 + 0.12 * np.cos(u * 42.0)) * (1.0 - 0.3 * fade(other, -0.1, 0.0))
            cuff = coloured(second, light)
        else:
            under = 1.0 - 0.35 * fade(v, 0.10, -0.05) - 0.15 * fade(other, -0.1, 0.0)
            cuff = coloured(second, under) if kind == "cap" else stuff(patch) * under
        return colours + (cuff - colours) * patch.cover(other), 1.0

    reach = half + 1.6 * brim + 0.3
    return Thing(frame, (-reach, -crown - 0.1, reach, 0.7), parts, paint)


def mask(face: FacePlace, dice: Dice) -> Thing:
    """A face mask from the nose to the chin, with bands to the ears: a surgeon's with folds, or of cloth."""
    surgical = dice.chance(0.6)
    colour = dice.mix((0.55, 0.78, 0.88), (0.92, 0.95, 0.96)) if surgical else dice.colour(0.05, 0.95, 0.7)
    stuff = None if surgical else texture(dice.choose(("cloth", "stripes", "checks", "speckles")), dice, 1.6)
    middle, half = (face.left + face.right) / 2, (face.right - face.left) / 2
    level = (face.nose[1] + face.mouth[1]) / 2
    peak = face.nose[0]
    top = max(face.nose[1] - dice.between(0.25, 0.35), 0.12)
    chin = max(face.chin + dice.between(0.0, 0.1), face.mouth[1] + 0.35)
    outline = Outline(half * dice.between(0.86, 0.97), 1.6, chin - level, (3.0, 3.0), (2.4, 2.2))

    def brim(u: Array) -> Array:
        p = np.abs(u - np.float32(peak))
        return np.float32(top) + 0.38 * p * (1.0 - 0.25 * p)

    corners = []
    for side, edge in ((-1.0, face.left), (1.0, face.right)):
        at = middle + 0.88 * side * half
        corners.append(((at, float(brim(np.array([at]))[0]) + 0.05), (edge + 0.06 * side, 0.05)))

    def parts(patch: Patch) -> list[Array]:
        u, v = patch.u, patch.v
        sheet = smooth_max(outline.distance(u - np.float32(middle), v - np.float32(level)), brim(u) - v, 0.08)
        bands = np.minimum(*(capsule(u, v, *corner, 0.022, 0.022) for corner in corners))
        lower = [capsule(u, v, (c[0][0], level + 0.45 * (chin - level)), c[1], 0.022, 0.022) for c in corners]
        return [sheet, np.minimum(bands, np.minimum(*lower))]

    def paint(patch: Patch, pieces: list[Array]) -> tuple[Array, float]:
        sheet, bands = pieces
        u, v = patch.u, patch.v
        bulge = bump((u - np.float32(peak)) * 0.9, (v - np.float32(level - 0.1)) * 1.1)
        light = 0.82 + 0.24 * bulge - 0.22 * fade(sheet, -0.2, 0.0)
        if stuff is None:
            sag = v + 0.08 * np.square(u - np.float32(peak))
            light = light * (1.0 - 0.12 * fade(np.abs(np.sin((sag - np.float32(level)) * 8.5)), 0.25, 0.0))
            light = light * (1.0 - 0.08 * fade(np.abs(sheet + 0.05), 0.02, 0.0))
        colours = coloured(colour, light) if stuff is None else stuff(patch) * light
        cover = patch.cover(bands) * (1.0 - patch.cover(sheet))
        return colours + (0.8 - colours) * cover, 1.0

    return Thing(face.frame, (face.left - 0.3, -0.1, face.right + 0.3, chin + 0.2), parts, paint)


def scarf(face: FacePlace, dice: Dice) -> Thing:
    """A scarf over the chin and everything below, sometimes up to the nose."""
    stuff = texture(dice.choose(("cloth", "cloth", "stripes", "checks")), dice, 2.0)
    numbers = dice.field(32, 32)
    middle, half = (face.left + face.right) / 2, (face.right - face.left) / 2
    high = dice.between(face.mouth[1] - 0.35, face.chin - 0.15)
    tilt = dice.near(0.0, 0.08)
    width = half * dice.between(1.0, 1.2)

    def parts(patch: Patch) -> list[Array]:
        u, v = patch.u - np.float32(middle), patch.v
        sag = v + 0.2 * np.square(u) - np.float32(high) - np.float32(tilt) * u + 0.03 * np.sin(u * 5.0)
        return [box(u, sag - 0.42, width, 0.45, 0.36), box(u, sag - 1.35, 1.22 * width, 0.95, 0.45)]

    def paint(patch: Patch, pieces: list[Array]) -> tuple[Array, float]:
        u, v = patch.u - np.float32(middle), patch.v
        upper, lower = pieces
        sag = v + 0.35 * np.square(u) + 0.4 * patch.noise(numbers, 1.5)
        folds = 0.85 + 0.16 * np.sin(sag * 9.0)
        over = patch.cover(upper)
        folds -= over * 0.3 * fade(upper, -0.14, 0.0)
        folds -= (1.0 - over) * (0.3 * fade(upper, 0.15, 0.0) + 0.25 * fade(lower, -0.12, 0.0))
        return stuff(patch) * folds, 1.0

    return Thing(face.frame, (middle - 1.3 * width, high - 0.8, middle + 1.3 * width, high + 2.4), parts, paint)
