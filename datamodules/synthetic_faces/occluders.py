"""Occluders of drawn faces: hands, cups, phones, masks, microphones, blocks; labelled background and marked."""

from __future__ import annotations

import math

import numpy as np

from structseg.datamodules.drawing.geometry import (
    Array,
    box,
    bump,
    capsule,
    ellipse,
    fade,
    ridge,
    smooth_max,
    smooth_min,
)
from structseg.datamodules.drawing.texture import noise
from structseg.datamodules.synthetic_faces.canvas import FaceCanvas, FacePatch
from structseg.datamodules.synthetic_faces.head import DEPTH, Rig
from structseg.datamodules.synthetic_faces.parameters import Occluder


def paint_occluder(canvas: FaceCanvas, rig: Rig, thing: Occluder, numbers: Array) -> None:
    """Paints the occluder on top of everything painted so far."""
    if thing.kind == "mask":
        _paint_mask(canvas, rig, thing)
    elif thing.kind == "hand":
        _paint_hand(canvas, rig, thing)
    else:
        _paint_object(canvas, rig, thing, numbers)


def _put(patch: FacePatch, distance: Array, colour: Array) -> None:
    patch.paint(distance, colour, "background", lit=False, occludes=True)


def _shadow(patch: FacePatch, distance: Array) -> None:
    patch.relight(1.0 - 0.30 * np.square(np.clip(1.0 - distance * 9.0, 0.0, 1.0)))


def _paint_hand(canvas: FaceCanvas, rig: Rig, hand: Occluder) -> None:
    """A hand from below: forearm, palm, four fingers and a thumb towards the face."""
    lean = -hand.side * (0.35 + 0.4 * max(0.0, 0.9 - hand.y)) + hand.angle
    frame = rig.body.turned(hand.x, hand.y, lean, 0.95 * hand.size, mirror=hand.side)
    patch = canvas.area(frame, -0.8, -0.85, 0.8, 2.8)
    u, v = patch.u, patch.v
    fingers = []
    for number in range(4):
        place = number - 1.5
        length = (0.44, 0.52, 0.50, 0.38)[number]
        root = (place * 0.115, -0.10 + 0.02 * abs(place))
        angle = place * hand.spread
        tip = (root[0] + length * math.sin(angle), root[1] - length * math.cos(angle))
        fingers.append((capsule(u, v, root, tip, 0.066, 0.052), root, tip))
    palm = smooth_min(ellipse(u, v - 0.10, 0.26, 0.30), capsule(u, v, (0.0, 0.25), (0.10, 2.8), 0.19, 0.30), 0.10)
    thumb = capsule(u, v, (-0.16, 0.12), (-0.36, -0.14), 0.075, 0.056)
    everything = np.minimum(palm, thumb)
    for finger, _, _ in fingers:
        everything = np.minimum(everything, finger)
    _shadow(patch, everything)
    tone = hand.colour[:, None, None]
    glow = 0.88 + 0.12 * patch.shade
    for shape in (thumb, palm):
        _put(patch, shape, tone * (glow * (1.03 - 0.28 * fade(shape, -0.07, 0.0))))
    nail = np.minimum(hand.colour * np.array([1.06, 0.95, 0.95], np.float32), 1.0)
    for finger, root, tip in fingers:
        knuckle = capsule(u, v, (root[0] - 0.05, -0.34), (root[0] + 0.05, -0.34), 0.006, 0.006)
        light = glow * (1.05 - 0.36 * fade(finger, -0.045, 0.0)) * (1.0 - 0.12 * fade(knuckle, 0.012, 0.0))
        _put(patch, finger, tone * light)
        end = (root[0] + 0.93 * (tip[0] - root[0]), root[1] + 0.93 * (tip[1] - root[1]))
        patch.paint(ellipse(u - np.float32(end[0]), v - np.float32(end[1]), 0.030, 0.042), nail, lit=False, opacity=0.8)


def _paint_mask(canvas: FaceCanvas, rig: Rig, mask: Occluder) -> None:
    """A medical mask or scarf over nose, mouth and chin."""
    face = rig.face
    patch = canvas.area(rig.head, -1.1, 0.0, 1.1, 1.3)
    nose_u, nose_v = rig.place(0.0, face.nose.y - 0.17, DEPTH["tip"])
    u, v = patch.u - np.float32(nose_u), patch.v
    edge = np.float32(nose_v) + 0.32 * np.abs(u) - 0.18 * np.square(u) - v
    distance = smooth_max(rig.outline.distance(patch.u - rig.lean(v), v) - 0.035, edge, 0.05)
    folds = 1.0 - 0.10 * np.maximum(np.cos((v - np.float32(nose_v)) * 26.0), 0.0)
    light = (0.35 + 0.65 * patch.shade) * folds * (1.0 - 0.22 * fade(distance, -0.12, 0.0))
    light = light + 0.10 * bump(u * 3.2, (v - np.float32(nose_v + 0.2)) * 4.0)
    colour = mask.colour * np.float32(0.5) + np.float32(0.45)
    _shadow(patch, distance)
    _put(patch, distance, colour[:, None, None] * light)


def _paint_object(canvas: FaceCanvas, rig: Rig, thing: Occluder, numbers: Array) -> None:
    frame = rig.body.turned(thing.x, thing.y, thing.angle, thing.size, mirror=thing.side)
    patch = canvas.area(frame, -0.75, -0.75, 0.75, 2.2)
    u, v = patch.u, patch.v
    first, second = thing.colour[:, None, None], thing.second[:, None, None]
    if thing.kind == "cup":
        wall = np.maximum(np.abs(u) - 0.26 + 0.05 * v, np.abs(v) - 0.32)
        handle = np.abs(ellipse(u - 0.27, v, 0.15, 0.18)) - 0.035
        body = np.minimum(smooth_max(wall, np.abs(v) - 0.31, 0.03), np.maximum(handle, 0.22 - u))
        light = 1.0 - 0.25 * np.square(u * 3.0 - 0.25)
        colour = np.where(np.abs(v - 0.05) < 0.08, second, first) * light
    elif thing.kind == "phone":
        body = box(u, v, 0.24, 0.46, 0.05)
        lens = np.minimum(ellipse(u + 0.12, v + 0.33, 0.055, 0.055), ellipse(u + 0.12, v + 0.20, 0.055, 0.055))
        colour = first * (0.75 - 0.25 * u) * (1.0 - 0.8 * patch.cover(lens)) + 0.06 * patch.cover(np.abs(body) - 0.012)
    elif thing.kind == "microphone":
        head, stick = ellipse(u, v, 0.17, 0.19), capsule(u, v, (0.0, 0.1), (0.08, 2.2), 0.08, 0.07)
        body = np.minimum(head, stick)
        mesh = 0.16 + 0.10 * np.sin(u * 90.0) * np.sin(v * 90.0) + 0.25 * bump((u + 0.05) * 7.0, (v + 0.06) * 7.0)
        colour = np.where(head < 0, mesh, np.float32(0.12) + 0.2 * ridge(u * 14.0)) * (0.7 + 0.3 * first)
    else:
        rows, columns = patch.box
        grain = noise(canvas.x[columns], canvas.y[rows], numbers, 11.0)
        body = box(u, v, 0.20 + 0.9 * thing.spread, 0.42 - thing.spread, 0.02 + thing.spread)
        colour = (first + grain * (second - first)) * (0.9 - 0.2 * v)
    _shadow(patch, body)
    _put(patch, body, np.clip(colour, 0.0, 1.0) * np.ones_like(u))
