"""Glasses, hats and earrings."""

from __future__ import annotations

import math

import numpy as np

from structseg.datamodules.drawing.geometry import Array, Frame, Outline, box, bump, capsule, ellipse, fade
from structseg.datamodules.drawing.texture import noise
from structseg.datamodules.synthetic_faces.canvas import FaceCanvas
from structseg.datamodules.synthetic_faces.head import DEPTH, Rig
from structseg.datamodules.synthetic_faces.parameters import Glasses, Hat


def paint_glasses(canvas: FaceCanvas, rig: Rig, glasses: Glasses) -> None:
    """Paints glasses; the class covers rims, bridge, temples and lenses, as in CelebAMask-HQ."""
    face = rig.face
    depth = DEPTH["eye"] + 0.10
    ends = []
    for side in (-1.0, 1.0):
        frame = rig.part(side * (face.eyes.apart + 0.01), glasses.y, depth, mirror=side)
        patch = canvas.area(frame, -0.36, -0.3, 0.36, 0.3)
        radius = min(glasses.width, glasses.height) * glasses.shape
        lens = box(patch.u, patch.v, glasses.width, glasses.height, radius)
        patch.skin_relight(1.0 - 0.10 * np.clip(1.0 - (lens - 0.01) * 14.0, 0.0, 1.0) * (lens > 0))
        tint = glasses.lens[:, None, None] * (1.0 - 0.5 * patch.v / np.float32(glasses.height))
        sheen = fade(np.abs(patch.u + 0.8 * patch.v - 0.05), 0.07, 0.03)
        if glasses.dark > 0.5:
            tint = tint + 0.18 * sheen
            patch.paint(lens, np.clip(tint, 0, 1), "eye_g", lit=False, opacity=glasses.dark)
        else:
            patch.paint(lens, tint, "eye_g", lit=False, opacity=glasses.dark * 0.6)
            patch.relight(1.0 + 0.12 * sheen * patch.cover(lens))
        rim = np.abs(lens) - np.float32(glasses.rim)
        patch.paint(rim, glasses.colour[:, None, None] * (1.0 - 1.5 * patch.v), "eye_g", lit=False)
        ends.append(frame)
    left, right = ends[0].at(-glasses.width, -0.02), ends[1].at(-glasses.width, -0.02)
    _stroke(canvas, rig, left, right, glasses.rim, glasses.colour)
    for side, frame in zip((-1.0, 1.0), ends, strict=True):
        hinge = frame.at(glasses.width, -0.05)
        ear = rig.head.at(*rig.place(side * (face.head.width + 0.01), 0.0, 0.0))
        if (ear[0] - hinge[0]) * side > 0:
            _stroke(canvas, rig, hinge, ear, glasses.rim * 0.9, glasses.colour)


def _stroke(
    canvas: FaceCanvas, rig: Rig, start: tuple[float, float], end: tuple[float, float], radius: float, colour: Array
) -> None:
    """A bar between two points of the picture; its radius is in head units."""
    scale = rig.head.scale
    frame = Frame.upright(start, scale)
    stop = ((end[0] - start[0]) / scale, (end[1] - start[1]) / scale)
    low_u, high_u = min(0.0, stop[0]) - 0.05, max(0.0, stop[0]) + 0.05
    low_v, high_v = min(0.0, stop[1]) - 0.05, max(0.0, stop[1]) + 0.05
    patch = canvas.area(frame, low_u, low_v, high_u, high_v)
    patch.paint(capsule(patch.u, patch.v, (0.0, 0.0), stop, radius, radius), colour, "eye_g", lit=False)


def paint_hat(canvas: FaceCanvas, rig: Rig, hat: Hat, numbers: Array) -> None:
    """A cap, a beanie or a brimmed hat, with its shadow on the forehead."""
    hair = rig.face.hair
    half = rig.width + hair.sides + 0.06
    crown = rig.face.head.crown + hair.top + hat.height
    line = rig.place(0.0, hat.line, DEPTH["hairline"])[1]
    middle = -0.08 * rig.turn
    patch = canvas.area(rig.head, -1.7, -1.75, 1.7, 0.1)
    u, v = patch.u - np.float32(middle), patch.v
    rows, columns = patch.box
    weave = noise(canvas.x[columns], canvas.y[rows], numbers, 26.0)
    tall = 3.4 if hat.kind == "brim" else 2.2
    # The dome stands on the hat's line, and is widest there.
    dome = Outline(half, crown + line, crown + line, (2.6, tall)).distance(u, v - np.float32(line))
    edge = v - np.float32(line) - np.float32(0.16) * (1.0 - np.square(u / np.float32(half)))
    shell = np.maximum(dome, edge)
    shade = np.clip(1.0 - edge * 5.0, 0.0, 1.0) * fade(rig.skull(patch), 0.03, -0.02)
    patch.skin_relight(1.0 - 0.35 * shade)
    factor = (0.62 + 0.5 * patch.shade * (0.85 + 0.3 * weave)) * (1.0 - 0.35 * fade(dome, -0.14, 0.0))
    if hat.kind == "beanie":
        factor = factor * (1.0 - 0.16 * np.maximum(np.cos(u * 34.0), 0.0))
    elif hat.kind == "cap":
        seams = np.minimum(np.abs(u - np.float32(0.5 * rig.turn)), np.abs(np.abs(u) - 0.42 * (1 - v * v * 0.25)))
        factor = factor * (1.0 - 0.25 * np.maximum(1.0 - seams * 45.0, 0.0))
    patch.paint(shell, hat.colour[:, None, None] * factor, "hat", lit=False)
    second = hat.second[:, None, None]
    if hat.kind == "beanie":
        band = np.maximum(np.abs(edge + 0.08) - 0.11, np.abs(u) - np.float32(half + 0.03))
        ribs = 0.75 + 0.25 * np.cos(u * 48.0) * (0.7 + 0.3 * weave)
        light = ribs * (0.6 + 0.45 * patch.shade) * (1.0 - 0.3 * fade(band, -0.05, 0.0))
        patch.paint(band, second * light, "hat", lit=False)
    elif hat.kind == "cap":
        brim_u = np.float32(0.55 * rig.turn + hat.turn * 0.5)
        bill = ellipse(u - brim_u, edge + 0.02 + 0.22 * np.square(u - brim_u), 0.60, 0.34 * hat.brim)
        bill = np.maximum(bill, -edge - 0.10 * hat.brim - 0.16)
        light = (0.55 + 0.5 * patch.shade) * (1.0 - 0.4 * fade(edge, 0.0, 0.12))
        patch.paint(bill, second * light, "hat", lit=False)
    else:
        band = np.maximum(shell, -edge - 0.24)
        patch.paint(band, second * (0.5 + 0.5 * patch.shade), "hat", lit=False)
        bend = v - np.float32(line) - 0.12 + 0.14 * np.square(u)
        rim = ellipse(u, bend, half + hat.brim * 0.8, 0.13 + 0.10 * hat.brim)
        light = (0.55 + 0.5 * patch.shade) * (1.0 - 0.35 * fade(edge, -0.06, 0.12)) * (0.9 + 0.2 * weave)
        patch.paint(rim, hat.colour[:, None, None] * light, "hat", lit=False)


def paint_earring(canvas: FaceCanvas, rig: Rig, side: float) -> None:
    """Paints a stud, hoop or drop below the lobe of a visible ear."""
    face = rig.face
    jewels, head = face.jewels, face.head
    u, v = rig.place(side * (head.width + head.ear_out - 0.015), 0.12 + 0.25 * head.ear_size, DEPTH["ear"])
    frame = Frame.upright(rig.head.at(u, v), rig.head.scale)
    patch = canvas.area(frame, -0.3, -0.1, 0.3, 0.75)
    size = jewels.size
    colour: Array
    if jewels.earring == "hoop":
        radius = 0.16 * size
        shape: Array = np.abs(ellipse(patch.u, patch.v - np.float32(radius), radius * 0.72, radius)) - 0.022
        colour = jewels.metal[:, None, None] * (0.8 + 0.5 * bump(patch.u * 6.0 + 0.4, (patch.v - 0.1) * 6.0))
    elif jewels.earring == "drop":
        chain = capsule(patch.u, patch.v, (0.0, 0.0), (0.0, 0.15 * size), 0.016, 0.016)
        patch.paint(chain, jewels.metal, "ear_r", lit=False)
        shape = ellipse(patch.u, patch.v - np.float32(0.24 * size), 0.055 * size, 0.11 * size)
        glint = bump((patch.u + 0.02) * 22.0, (patch.v - 0.2 * size) * 16.0)
        colour = jewels.stone[:, None, None] * (0.85 - 0.3 * patch.u * 8.0) + 0.5 * glint
    else:
        shape = ellipse(patch.u, patch.v, 0.042 * size, 0.042 * size)
        glint = bump((patch.u + 0.012) * 30.0, (patch.v + 0.012) * 30.0)
        colour = jewels.metal[:, None, None] * 0.85 + 0.4 * glint
    patch.paint(shape, np.clip(colour, 0.0, 1.0), "ear_r", lit=False)


def ear_shows(rig: Rig, side: float) -> bool:
    """Whether the ear on a side (-1: the picture's left) is visible, by pose and hair."""
    hair = rig.face.hair
    if hair.kind in ("long", "bob", "curly") and not hair.tucked[int(side > 0)]:
        return False
    return -side * rig.turn > -math.sin(0.28)
