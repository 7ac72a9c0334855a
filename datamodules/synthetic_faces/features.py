"""The parts of the face: eyes, brows, nose, mouth."""

from __future__ import annotations

import math

import numpy as np

from structseg.datamodules.drawing.geometry import Array, Frame, bump, ellipse, fade, ridge, smooth_min
from structseg.datamodules.synthetic_faces.canvas import FaceCanvas
from structseg.datamodules.synthetic_faces.head import DEPTH, Rig

_WHITE = np.array([0.93, 0.91, 0.89], np.float32)
_DARK = np.array([0.07, 0.05, 0.05], np.float32)
_TEETH = np.array([0.95, 0.93, 0.88], np.float32)
_THROAT = np.array([0.22, 0.06, 0.07], np.float32)
_TONGUE = np.array([0.75, 0.36, 0.36], np.float32)


def paint_eye(canvas: FaceCanvas, rig: Rig, side: float) -> None:
    """The eye on the picture's left (side -1) or right (1): ball, iris, lids and lashes; u runs outwards."""
    eyes, tone = rig.face.eyes, rig.face.head.tone
    label = "l_eye" if side > 0 else "r_eye"
    frame = rig.part(side * eyes.apart, eyes.y, DEPTH["eye"], tilt=eyes.tilt, mirror=side)
    patch = canvas.area(frame, -0.26, -0.24, 0.26, 0.16)
    u, v = patch.u, patch.v
    t = u / np.float32(eyes.width)
    arch = np.maximum(1.0 - t * t, -0.6)
    openness = eyes.openness[0 if side < 0 else 1]
    height = eyes.height * openness
    lower = np.float32(0.62 * eyes.height) * arch * (1.0 - 0.25 * t)
    if eyes.shadow is not None:
        lid = bump(t * 0.72, (v + 0.07) * np.float32(8.5))
        patch.blend(0.5 * lid, eyes.shadow * (0.5 + 0.5 * tone))
    if openness < 0.2:
        dome = bump(t * 0.8, (v + 0.01) * 8.0)
        patch.skin_relight(1.0 + 0.06 * dome)
        line = 0.75 * lower - np.float32(0.015)
        thick = np.float32(0.012 + eyes.lashes) * (0.55 + 0.45 * np.minimum(arch + 0.35, 1.0))
        distance = np.maximum(np.maximum(np.abs(v - line) - thick, np.abs(u) - np.float32(eyes.width)), patch.face)
        patch.paint(distance, _DARK + 0.125 * tone, label, opacity=0.9)
        return
    upper = np.float32(-height) * arch * (1.0 + 0.35 * arch - 0.18 * t)
    opening = np.maximum(np.maximum(upper - v, v - lower), patch.face)
    crease = np.abs(v - upper + 0.042 * (0.4 + arch)) - 0.006
    crease = np.maximum(np.maximum(crease, -arch * 0.3 - 0.1), patch.face)
    patch.paint(crease, tone * np.float32(0.55), opacity=eyes.lid)
    white = _WHITE[:, None, None] * (0.72 + 0.28 * fade(v - upper, -0.01, 0.075))
    patch.paint(opening, white, label)
    iris_u = side * (eyes.gaze[0] + 0.02 * rig.turn)
    iris_v = eyes.gaze[1] - 0.15 * eyes.height
    p, q = u - np.float32(iris_u), v - np.float32(iris_v)
    ring = np.sqrt(p * p + q * q) - np.float32(eyes.iris_radius)
    clear = np.clip(0.75 + 0.6 * q / np.float32(eyes.iris_radius), 0.4, 1.4)
    colours = eyes.iris[:, None, None] * (clear * fade(ring, 0.004, -0.02))
    patch.paint(np.maximum(ring, opening), colours)
    patch.paint(np.maximum(ring + np.float32(0.56 * eyes.iris_radius), opening), _DARK * np.float32(0.5))
    glint = ellipse(u - np.float32(iris_u + side * 0.022), v - np.float32(iris_v - 0.026), 0.017, 0.017)
    patch.paint(np.maximum(glint, opening), np.ones(3, np.float32), lit=False, opacity=0.9)
    patch.paint(
        np.maximum(ellipse(p + np.float32(eyes.width * 0.93), v - 0.005, 0.022, 0.014), opening),
        tone * np.array([0.95, 0.66, 0.64], np.float32),
    )
    wing = 1.0 + 0.5 * np.clip(t, -1.0, 1.1)
    lash = np.maximum(np.abs(v - upper + 0.004) - np.float32(0.5 * eyes.lashes) * wing, np.abs(t) * 0.14 - 0.15)
    patch.paint(np.maximum(lash, patch.face), _DARK, label, opacity=0.92)
    rim = np.maximum(np.abs(v - lower) - 0.0045, np.abs(t) * 0.14 - 0.13)
    patch.paint(np.maximum(rim, patch.face), tone * np.array([0.6, 0.42, 0.40], np.float32), opacity=0.55)


def paint_brow(canvas: FaceCanvas, rig: Rig, side: float, numbers: Array) -> None:
    """The brow on the picture's left (side -1) or right (1); thick inside, thin outside."""
    brows, eyes = rig.face.brows, rig.face.eyes
    frame = rig.part(side * (eyes.apart + 0.015), eyes.y - brows.y, DEPTH["brow"], tilt=brows.tilt, mirror=side)
    patch = canvas.area(frame, -0.28, -0.16, 0.28, 0.14)
    t = patch.u / np.float32(brows.width)
    middle = np.float32(brows.arch) * (np.square(t - 0.25) - 0.5)
    outer = np.clip(0.5 + 0.5 * t, 0.0, 1.0)
    thick = np.float32(brows.thickness) * (1.0 - np.float32(brows.taper) * outer * outer)
    distance = np.maximum(np.abs(patch.v - middle) - thick, (np.abs(t) - 1.0) * np.float32(brows.width))
    # On a head turned far aside, the outline cuts the far eye and brow off.
    distance = np.maximum(distance, patch.face)
    phase = (patch.u * 2.2 + patch.v * (1.2 - 2.0 * outer)) * 40.0
    threads = 0.95 + 0.13 * np.sin(phase + 6.0 * numbers[0, 0]) * fade(distance, 0.0, -0.02)
    patch.paint(distance, brows.colour[:, None, None] * threads, "l_brow" if side > 0 else "r_brow", opacity=0.88)


def paint_nose(canvas: FaceCanvas, rig: Rig) -> None:
    """The nose as relief in the skin: bridge, tip and wings under the light, nostrils, the shadow below."""
    nose, light, tone = rig.face.nose, rig.face.light, rig.face.head.tone
    base_u, base_v = rig.place(0.0, nose.y, DEPTH["nose"] + 0.08)
    root_u, root_v = rig.place(0.0, nose.y - nose.length, DEPTH["nose"] - 0.06)
    tip_u, tip_v = rig.place(0.0, nose.y - 0.06, DEPTH["tip"])
    stretch = (base_v - root_v) / nose.length
    frame = rig.head.child(base_u, base_v, math.cos(rig.yaw), 0.0, (base_u - root_u) / nose.length, stretch)
    patch = canvas.area(frame, -0.36, -nose.length - 0.1, 0.36, 0.22)
    u, v = patch.u, patch.v
    s = np.clip(v / np.float32(nose.length) + 1.0, 0.0, 1.0)
    shift = np.float32((tip_u - base_u) / math.cos(rig.yaw))
    rise = np.float32((tip_v - base_v) / stretch)
    axis = shift * s * s
    half = np.float32(nose.bridge) * (1.0 - 0.25 * ridge((s - 0.35) * 2.2)) + 0.05 * s * s
    bridge = np.maximum(np.abs(u - axis * 0.8) - half, np.maximum(-np.float32(nose.length) - v, v + 0.05))
    tip = ellipse(u - shift * 0.8, v - rise * 0.5 + 0.03, nose.tip, nose.tip * 0.85)
    distance = smooth_min(bridge, tip, 0.05)
    wing_x = nose.width - 0.062
    for side in (-1.0, 1.0):
        wing = ellipse(u - np.float32(side * wing_x), v + 0.035, 0.065, 0.066)
        distance = smooth_min(distance, wing, 0.05)
    below = bump(u * 4.2, (v - 0.05) * 12.0) * fade(distance, -0.02, 0.01)
    patch.skin_relight(1.0 - np.float32(0.22 - 0.20 * light.direction[1]) * below)
    cover = patch.cover(distance)
    across = np.clip((u - axis) / np.float32(nose.width), -1.0, 1.0)
    lateral = np.float32(0.34 * light.direction[0]) * across * (0.5 + 0.5 * s)
    edge = fade(distance, -0.055, 0.0) * (0.03 + 0.20 * s * s)
    under = 0.22 * fade(v - rise * 0.4, -0.02, 0.05)
    height = ridge((u - axis) * 14.0) * (0.10 + 0.05 * s) * fade(s, 0.05, 0.3)
    shine = 0.14 * bump((u - shift - np.float32(0.04 * light.direction[0])) * 15.0, (v - rise + 0.03) * 15.0)
    patch.skin_relight(1.0 + cover * (lateral - edge - under + height + shine))
    patch.blend(cover * (0.10 * s), tone * np.array([0.95, 0.66, 0.62], np.float32) * patch.shade.mean())
    patch.mark(distance < 0, "nose")
    dark = tone * np.array([0.36, 0.22, 0.20], np.float32)
    for side in (-1.0, 1.0):
        hole_u = side * nose.width * 0.48 + 0.55 * float(shift)
        hole = ellipse(u - np.float32(hole_u), v + 0.012 - 0.25 * np.abs(u), 0.038, 0.019 * nose.nostrils + 0.004)
        patch.paint(np.maximum(hole, distance + 0.012), dark, opacity=0.85)
        crease = np.abs(ellipse(u - np.float32(side * wing_x), v + 0.035, 0.065, 0.066)) - 0.003
        patch.paint(np.maximum(crease, side * -u + np.float32(wing_x + 0.01)), dark * np.float32(1.3), opacity=0.35)


def mouth_frame(rig: Rig) -> Frame:
    """The mouth's frame: the corners' line is v = 0."""
    mouth = rig.face.mouth
    return rig.part(0.0, mouth.y, DEPTH["mouth"], tilt=mouth.skew)


def paint_mouth(canvas: FaceCanvas, rig: Rig) -> None:
    """Upper lip, inner mouth with teeth and tongue, lower lip."""
    mouth = rig.face.mouth
    patch = canvas.area(mouth_frame(rig), -0.36, -0.2, 0.36, 0.42)
    u, v = patch.u, patch.v
    t = u / np.float32(mouth.width)
    square = t * t
    arch = 1.0 - square
    full = arch * (1.15 - 0.15 * arch)
    corners = np.float32(-mouth.smile) * (square * 1.6 - 0.8)
    dip = ridge(t * 4.2)
    top = corners - arch * np.float32(mouth.upper + 0.22 * mouth.open) + np.float32(mouth.bow * mouth.upper) * dip
    upper_edge = corners - np.float32(0.30 * mouth.open) * arch + 0.010 * dip
    lower_edge = corners + np.float32(0.70 * mouth.open) * arch + 0.010 * dip
    lower_edge = np.maximum(lower_edge, upper_edge)
    bottom = lower_edge + np.float32(mouth.lower) * full
    top = np.minimum(top, upper_edge - np.float32(mouth.upper * 0.45) * arch)
    lips = np.maximum(top - v, v - bottom)
    patch.skin_relight(1.0 - 0.14 * bump(t * 0.85, (v - bottom - 0.035) * 16.0) * fade(lips, 0.0, 0.01))
    outside = np.maximum(np.abs(t) - 1.0, patch.face * 5.0)
    lower = np.maximum(np.maximum(lower_edge - v, v - bottom), outside * 0.2)
    fall = np.clip((v - lower_edge) / np.float32(mouth.lower), 0.0, 1.0)
    swell = 1.06 - 0.26 * fall * fall + np.float32(mouth.gloss + 0.07) * bump(t * 2.2, (fall - 0.38) * 3.2)
    creases = 1.0 + 0.03 * np.sin(u * 150.0)
    patch.paint(lower, mouth.colour[:, None, None] * (swell * creases), "l_lip")
    if mouth.open:
        gap = np.maximum(np.maximum(upper_edge - v, v - lower_edge), outside * 0.2)
        patch.paint(gap, _THROAT, "mouth")
        tongue = ellipse(u, v - np.float32(0.72 * mouth.open), mouth.width * 0.5, max(0.28 * mouth.open, 0.01))
        patch.paint(np.maximum(tongue, gap), _TONGUE, opacity=0.9)
        row = np.float32(-0.30 * mouth.open) * arch + corners + np.float32(mouth.teeth * mouth.open)
        row = np.minimum(row, corners + np.float32(0.09 - 0.3 * mouth.open)) + 0.004 * np.cos(u * 85.0)
        between = 1.0 - 0.10 * np.maximum(np.cos(u * 85.0) - 0.75, 0.0) * 4.0
        edge = (1.04 - 0.35 * square) * between
        patch.paint(np.maximum(gap + 0.004, v - row), _TEETH[:, None, None] * np.minimum(edge, 1.0))
        patch.relight(1.0 - 0.35 * patch.cover(gap) * fade(v - upper_edge, 0.03, 0.0))
    upper = np.maximum(np.maximum(top - v, v - upper_edge), outside * 0.2)
    patch.paint(upper, mouth.colour * np.float32(0.84), "u_lip")
    if not mouth.open:
        seam = np.maximum(np.abs(v - upper_edge) - 0.008 * (0.4 + 0.6 * arch), outside * 0.2)
        patch.paint(seam, mouth.colour * np.float32(0.38), opacity=0.85)
    for side in (-1.0, 1.0):
        corner = bump((t - side) * 7.0, (v - corners) * 24.0)
        patch.skin_relight(1.0 - 0.22 * corner)
