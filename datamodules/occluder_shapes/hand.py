"""Hands in front of the face: palm or back, fingers spread, closed, curled or pointing, a wrist, some with a sleeve."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from structseg.datamodules.drawing.dice import Dice
from structseg.datamodules.drawing.geometry import Array, box, bump, capsule, ellipse, fade, smooth_min
from structseg.datamodules.drawing.grid import Patch
from structseg.datamodules.drawing.things import Thing, coloured
from structseg.datamodules.occluder_shapes.face import FacePlace

# A hand is about as long as a face is high: wrist to finger tip, in units of `FacePlace`.
_LENGTH = 2.6
_KNUCKLES = ((-0.158, -0.235), (-0.055, -0.270), (0.050, -0.262), (0.148, -0.215))
_FINGERS = (0.375, 0.425, 0.390, 0.300)
_RADII = (0.052, 0.054, 0.051, 0.044)
_TONES = ((0.95, 0.79, 0.70), (0.80, 0.60, 0.47), (0.58, 0.40, 0.29), (0.33, 0.21, 0.15))

_RESPONSE = np.array([0.8, 1.0, 1.1], np.float32)[:, None, None]
_FAR = 0.15  # distance from a finger beyond which its exact value is not needed

Point = tuple[float, float]


@dataclass(frozen=True)
class Finger:
    """Root, joint and tip; radius at the joint, and at the root."""

    points: tuple[Point, Point, Point]
    radius: float
    base: float


def hand_tone(dice: Dice, skin: Array, same_skin: float) -> Array:
    """(3,) colour of a hand: the face's with probability `same_skin`, else any skin's."""
    if dice.chance(same_skin):
        return np.clip(skin * np.float32(dice.near(1.0, 0.05)), 0.05, 1.2)
    step = dice.uniform() * (len(_TONES) - 1.001)
    first, second = np.array(_TONES[int(step)], np.float32), np.array(_TONES[int(step) + 1], np.float32)
    return first + (second - first) * np.float32(step % 1.0)


def hand(face: FacePlace, dice: Dice, tone: Array) -> Thing:
    """A hand of skin colour `tone` (3,), from below or from a side, with its fingers on the face."""
    side = dice.sign()
    half = (face.right - face.left) / 2
    middle = (face.left + face.right) / 2
    target = dice.weighted(cheek=3.0, mouth=2.0, chin=2.0, eye=2.0, brow=1.0)
    u, v, lean = {
        "cheek": (0.95 * side * half, dice.between(0.5, 1.1), dice.between(0.1, 0.6)),
        "mouth": (0.4 * side * half, dice.between(1.1, 1.5), dice.between(0.3, 1.2)),
        "chin": (0.4 * side * half, face.chin + dice.between(0.1, 0.6), dice.between(0.0, 0.5)),
        "eye": (0.75 * side * half, dice.between(0.2, 0.7), dice.between(0.2, 0.9)),
        "brow": (0.6 * side * half, dice.between(-0.5, 0.0), dice.between(0.4, 1.3)),
    }[target]
    frame = face.frame.turned(middle + u, v, -side * lean, _LENGTH * dice.near(1.0, 0.06), mirror=dice.sign())
    pose = dice.weighted(open=3.0, closed=3.0, curled=2.0, pointing=1.0)
    fingers = _fingers(dice, pose)
    back = dice.chance(0.6)
    sleeve_at = dice.between(0.55, 0.9) if dice.chance(0.5) else None
    cloth = dice.colour(0.05, 0.95, 0.7)
    red = np.clip(tone * np.array([1.04, 0.86, 0.85], np.float32), 0.0, 1.2)
    nail = np.clip(tone * np.array([1.06, 0.93, 0.93], np.float32) + 0.05, 0.0, 1.2)
    if dice.chance(0.2):
        nail = dice.colour(0.3, 0.95, 0.9)
    numbers = dice.field(32, 32)

    def parts(patch: Patch) -> list[Array]:
        p, v = patch.u, patch.v
        u = p / (1.0 - 0.45 * np.clip(v, -0.3, 0.4))  # narrower at the wrist
        heel = box(u, v, 0.205, 0.27, 0.10)
        ball = ellipse(u + 0.12, v - 0.07, 0.115, 0.19)  # of the thumb
        arm = capsule(p, v, (0.0, 0.22), (0.02, 2.6), 0.125, 0.21)
        palm = smooth_min(smooth_min(heel, arm, 0.12), ball, 0.08)
        pieces = [palm]
        for finger in fingers:
            near = patch.near(finger.points, _FAR)
            distance = np.full(p.shape, _FAR, np.float32)
            low, high = (capsule(p[near], v[near], *ends, *radii) for ends, radii in _strokes(finger))
            distance[near] = smooth_min(low, high, 0.02)
            pieces.append(distance)
        if sleeve_at is not None:
            cuff = capsule(p, v, (0.0, 0.4), (0.02, 2.6), 0.20, 0.27)
            pieces.append(np.maximum(cuff, np.float32(sleeve_at) - v))
        return pieces

    def paint(patch: Patch, pieces: list[Array]) -> tuple[Array, float]:
        light = 1.14 - 0.24 * fade(pieces[0], -0.09, 0.0)
        blush, nails = np.zeros_like(light), np.zeros_like(light)
        near = patch.near(((-0.25, -0.35), (0.25, -0.35), (-0.25, 0.3), (0.25, 0.3)), 0.0)
        (_paint_back if back else _paint_palm)(patch.u[near], patch.v[near], light[near], blush[near])
        for finger, distance in zip(fingers, pieces[1:], strict=False):
            near = patch.near(finger.points, 0.09)
            _paint_finger(patch, near, finger, distance[near], light[near], blush[near], nails[near] if back else None)
        light *= 0.92 + 0.1 * patch.noise(numbers, 7.0) + 0.06 * patch.noise(numbers.T, 60.0)
        # Shade on skin is red, not grey.
        colours = np.maximum(tone[:, None, None] * (1.0 + (light - 1.0) * _RESPONSE), 0.0)
        colours += coloured(red - tone, np.clip(blush, 0.0, 1.0) * light)
        colours += (coloured(nail, light) - colours) * (0.85 * nails)
        if sleeve_at is not None:
            weave = 0.85 + 0.12 * np.sin(patch.u * 40.0) + 0.1 * patch.noise(numbers, 25.0)
            weave -= 0.3 * fade(pieces[-1], -0.1, 0.0)
            colours += (coloured(cloth, weave) - colours) * patch.cover(pieces[-1])
        return colours, 1.0

    return Thing(frame, (-0.75, -0.85, 0.75, 2.8), parts, paint)


def _paint_back(u: Array, v: Array, light: Array, blush: Array) -> None:
    """Adds knuckles and tendons to light and redness."""
    for knuckle in _KNUCKLES:
        dent = bump((u - np.float32(knuckle[0])) * 17.0, (v - np.float32(knuckle[1] + 0.02)) * 17.0)
        blush += 0.5 * dent
        light += 0.04 * dent
        tendon = capsule(u, v, (knuckle[0], knuckle[1] + 0.05), (knuckle[0] * 0.4, 0.12), 0.004, 0.004)
        light += 0.035 * fade(tendon, 0.022, 0.0)


def _paint_palm(u: Array, v: Array, light: Array, blush: Array) -> None:
    """Adds the lines of the palm and the ball of the thumb to light and redness."""
    round_thumb = np.abs(ellipse(u + 0.16, v - 0.12, 0.14, 0.23)) + 0.2 * np.maximum(-0.13 - u, 0.0)
    across = np.abs(v + 0.13 - 1.6 * np.square(u - 0.06)) + 0.2 * np.maximum(np.abs(u) - 0.12, 0.0)
    slanting = np.abs(v + 0.07 - 0.45 * (u + 0.1) - 0.8 * np.square(u)) + 0.2 * np.maximum(np.abs(u) - 0.1, 0.0)
    for line in (round_thumb, across, slanting):
        light -= 0.11 * fade(line, 0.012, 0.0)
    blush += 0.35 * bump((u + 0.12) * 5.0, (v - 0.08) * 4.0)


def _paint_finger(
    patch: Patch,
    near: tuple[slice, slice],
    finger: Finger,
    distance: Array,
    light: Array,
    blush: Array,
    nails: Array | None,
) -> None:
    """Paints a finger on top of light, redness and nails; its lower end blends into the palm."""
    root, joint, tip = finger.points
    u, v = patch.u[near], patch.v[near]
    s, t, length = _along(u, v, joint, tip)
    low, _, first = _along(u, v, root, joint)
    cover = patch.cover(distance) * fade(low, 0.15 * first, 0.75 * first)
    own = 1.17 - 0.32 * np.square(fade(distance, -0.05, 0.004))
    own -= 0.09 * bump(s * 55.0, t * 22.0) + 0.05 * bump((s - 0.02) * 70.0, t * 24.0)
    light += (own - light) * cover
    fresh = 0.45 * bump((s - np.float32(length)) * 9.0, t * 9.0) + 0.3 * bump(s * 14.0, t * 14.0)
    blush += (fresh - blush) * cover
    if nails is not None:
        nails *= 1.0 - cover
        if length > 0.07:  # a bent finger turns its nail away
            shape = ellipse(s - np.float32(length - 0.002), t, 0.036, 0.027)
            nails += (patch.cover(shape) - nails) * (shape < 2 * patch.pixel) * cover


def _along(u: Array, v: Array, start: Point, end: Point) -> tuple[Array, Array, float]:
    """Coordinates along and across a line, from its start, and its length."""
    length = max(math.dist(start, end), 1e-3)
    cos, sin = np.float32((end[0] - start[0]) / length), np.float32((end[1] - start[1]) / length)
    u, v = u - np.float32(start[0]), v - np.float32(start[1])
    return u * cos + v * sin, v * cos - u * sin, length


def _strokes(finger: Finger) -> tuple[tuple[tuple[Point, Point], tuple[float, float]], ...]:
    """The two strokes of a finger: their ends and radii."""
    root, joint, tip = finger.points
    return ((root, joint), (finger.base, finger.radius)), ((joint, tip), (finger.radius, 0.82 * finger.radius))


def _fingers(dice: Dice, pose: str) -> list[Finger]:
    """The thumb, then the four fingers from the index finger."""
    spread = {"open": dice.between(0.10, 0.2), "closed": dice.between(0.0, 0.03)}.get(pose, 0.03)
    lean, bend = dice.near(0.0, 0.06), dice.near(0.0, 0.06)
    # The thumb: its tip away from the fingers, or along the hand.
    out = dice.between(0.35, 0.9) if pose != "closed" else dice.between(0.1, 0.6)
    root = (-0.165, 0.06)
    joint = (root[0] - 0.19 * math.sin(out), root[1] - 0.19 * math.cos(out))
    turn = out - dice.between(0.1, 0.5)
    tip = (joint[0] - 0.155 * math.sin(turn), joint[1] - 0.155 * math.cos(turn))
    fingers = [Finger((root, joint, tip), 0.056, 0.075)]
    for number, (knuckle, length, radius) in enumerate(zip(_KNUCKLES, _FINGERS, _RADII, strict=True)):
        curl = dice.between(0.9, 1.0)
        if pose == "curled":
            curl = dice.between(0.42, 0.52)
        elif pose == "pointing" and number:
            curl = dice.between(0.32, 0.4)
        angle = lean + (number - 1.5) * spread + dice.near(0.0, 0.015)
        long = length * curl
        joint = (knuckle[0] + 0.52 * long * math.sin(angle), knuckle[1] - 0.52 * long * math.cos(angle))
        turn = angle + bend + dice.near(0.0, 0.02)
        tip = (joint[0] + 0.43 * long * math.sin(turn), joint[1] - 0.43 * long * math.cos(turn))
        inner = (knuckle[0] * 0.9, knuckle[1] + 0.08)
        fingers.append(Finger((inner, joint, tip), radius, 1.04 * radius))
    return fingers
