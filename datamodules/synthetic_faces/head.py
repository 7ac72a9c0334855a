"""The head: the places of its parts under a pose, its light, and its skin, ears, neck and beard."""

from __future__ import annotations

import math

import numpy as np

from structseg.datamodules.drawing.geometry import Array, Frame, Outline, bump, ellipse, fade, smooth_max
from structseg.datamodules.drawing.texture import noise
from structseg.datamodules.synthetic_faces.canvas import FaceCanvas, FacePatch
from structseg.datamodules.synthetic_faces.parameters import Beard, Body, Face, Light

# Depth of the parts in front of the head's axis, in head units, by which the yaw moves them sideways.
DEPTH = {"eye": 0.58, "brow": 0.62, "nose": 0.66, "tip": 0.90, "mouth": 0.64, "hairline": 0.42, "ear": -0.08}


class Rig:
    """The frames of a face: the head's own, the upright body's, and those of the parts on the turned head.

    In the head's frame v = -1 is the crown, 0 the middle, 1 the chin; u is not foreshortened by the yaw.
    """

    def __init__(self, face: Face) -> None:
        self.face = face
        pose = face.pose
        cos, sin = math.cos(pose.roll) * pose.scale, math.sin(pose.roll) * pose.scale
        self.head = Frame(pose.x, pose.y, cos, sin, -sin, cos)
        self.yaw, self.turn, self.nod = pose.yaw, math.sin(pose.yaw), math.sin(pose.pitch)
        x, y = self.head.at(-0.10 * self.turn, 0.55)
        self.body = Frame(x, y - 0.55 * pose.scale, pose.scale, 0.0, 0.0, pose.scale)
        self.width = face.head.width * (1.0 + 0.03 * abs(self.turn))
        self.chin = math.cos(pose.pitch) + 0.45 * self.nod
        self.outline = Outline(self.width, face.head.crown, self.chin, (2.3, 2.3), face.head.jaw)

    def place(self, u: float, v: float, depth: float) -> tuple[float, float]:
        """The place in the head's frame of a point of the upright, frontal head."""
        pose = self.face.pose
        forth = depth * math.cos(pose.yaw) - u * self.turn
        return u * math.cos(pose.yaw) + depth * self.turn, v * math.cos(pose.pitch) + forth * self.nod

    def part(self, u: float, v: float, depth: float, tilt: float = 0.0, mirror: float = 1.0) -> Frame:
        """The frame of a part that is flat on the head at (u, v): foreshortened, tilted, mirrored if `mirror` is -1."""
        pu, pv = self.place(u, v, depth)
        aside = math.asin(max(-1.0, min(1.0, u * 1.1))) + self.yaw
        across = max(math.cos(aside), 0.15)
        flat = self.head.child(pu, pv, across, -math.sin(aside) * self.nod, 0.0, math.cos(self.face.pose.pitch))
        return flat.turned(0.0, 0.0, tilt * mirror, mirror=mirror)

    def lean(self, v: Array) -> Array:
        """The sideways shift of the head's outline at height v: the chin follows the yaw, the crown does not."""
        low = np.maximum(v, 0.0)
        return np.float32(self.turn) * (0.05 + 0.15 * v + 0.20 * low * low * low)

    def skull(self, patch: FacePatch) -> Array:
        """Distance to the outline of the bare head; `patch` is in the head's frame."""
        return self.outline.distance(patch.u - self.lean(patch.v), patch.v)


def cast_light(canvas: FaceCanvas, rig: Rig, light: Light) -> None:
    """Fills the canvas's light on the head: an ellipsoid under a key light and ambient light."""
    patch = canvas.whole(rig.head)
    x, y, z = light.direction
    p = (patch.u - np.float32(0.15 * rig.turn)) * np.float32(0.98)
    q = patch.v * np.float32(0.72)
    length = p * p
    length += q * q
    depth = np.sqrt(np.maximum(1.0 - length, 0.04))
    norm = 1.0 / np.sqrt(np.maximum(length + 0.04, 1.0))
    p *= np.float32(x)
    q *= np.float32(y)
    p += q
    p += depth * np.float32(z)
    p *= norm
    np.maximum(p, 0.0, out=p)
    p *= np.float32((1.06 - light.ambient) / max(z, 0.6))
    p += np.float32(light.ambient)
    canvas.shade[...] = np.minimum(p, 1.25)


def paint_neck(canvas: FaceCanvas, rig: Rig) -> None:
    """Neck and chest, darker under the chin."""
    body, tone = rig.face.body, rig.face.head.tone
    patch = canvas.area(rig.body, -2.2, 0.2, 2.2, 2.6)
    u, v = patch.u - np.float32(body.shift), patch.v
    flare = np.maximum(v - np.float32(body.collar - 0.22), 0.0)
    column = np.abs(u) - (np.float32(body.neck) + 0.04 * np.square(v - 0.9) + 1.1 * flare * flare)
    distance = np.minimum(column, (shoulder_line(u, body) + 0.03 - v) * 0.9)
    distance = np.maximum(distance, 0.25 - v)
    side = np.abs(u) * np.float32(1.0 / body.neck)
    chin = patch.v - np.float32(rig.chin)
    shadow = 1.0 - 0.42 * fade(chin, 0.30, -0.05) * bump(side * 0.6, chin * 0.2)
    cords = bump((side - 0.45) * 5.0, np.clip(chin - 0.25, -1, 1) * 1.6)
    factor = (1.0 - 0.12 * np.minimum(side, 1.3)) * shadow * (1.0 - 0.08 * cords)
    patch.paint(distance, patch.skin(tone * np.float32(0.96), factor), "neck", lit=False)


def shoulder_line(u: Array, body: Body) -> Array:
    """Height v of the shoulders' upper edge at u."""
    side = np.maximum(np.abs(u) - np.float32(body.neck), 0.0)
    drop = np.maximum(side - np.float32(body.shoulder - 0.45), 0.0)
    return np.float32(body.collar) + np.float32(body.slope) * side + 2.0 * drop * drop


def paint_skin(canvas: FaceCanvas, rig: Rig, numbers: Array) -> None:
    """The bare head, darker towards its outline."""
    head = rig.face.head
    patch = canvas.area(rig.head, -1.1, -1.15, 1.1, 1.25)
    patch.face[...] = distance = rig.skull(patch)
    rows, columns = patch.box
    grain = noise(canvas.x[columns], canvas.y[rows], numbers, 9.0)
    edge = np.minimum(np.maximum(distance + 0.30, 0.0) * np.float32(1 / 0.30), 1.2)
    factor = 1.03 - 0.20 * edge * edge
    factor += np.float32(0.05) * (grain - 0.5)
    patch.paint(distance, patch.skin(head.tone, factor), "skin", lit=False)


def model_face(canvas: FaceCanvas, rig: Rig, numbers: Array) -> None:
    """Relief of the face, in colour only: sockets, cheeks, folds, chin, blush, freckles, wrinkles."""
    face, head, light = rig.face, rig.face.head, rig.face.light
    above = -light.direction[1]
    for side in (-1.0, 1.0):
        socket = rig.part(side * face.eyes.apart, face.eyes.y - 0.05, DEPTH["eye"], mirror=side)
        patch = canvas.area(socket, -0.26, -0.2, 0.26, 0.2)
        patch.skin_relight(1.0 - (0.10 + 0.16 * np.float32(above)) * bump(patch.u * 3.9, patch.v * 5.2))
        bag = rig.part(side * face.eyes.apart * 0.97, face.eyes.y + 0.13, DEPTH["eye"], mirror=side)
        patch = canvas.area(bag, -0.16, -0.07, 0.16, 0.07)
        bow = patch.v + 0.8 * patch.u * patch.u
        patch.skin_relight(1.0 - np.float32(0.05 + 0.16 * head.age) * bump(patch.u * 6.5, bow * 16.0))
        cheek = rig.part(side * 0.38, 0.30, 0.58, mirror=side)
        patch = canvas.area(cheek, -0.27, -0.2, 0.27, 0.2)
        spot = bump(patch.u * 3.8, patch.v * 5.0)
        patch.blend(np.float32(head.blush * 0.55) * spot, head.tone * np.array([1.02, 0.62, 0.58], np.float32))
        patch.skin_relight(1.0 + 0.05 * spot)
        fold = rig.part(side * 0.235, face.nose.y + 0.08, 0.66, tilt=-0.55, mirror=side)
        patch = canvas.area(fold, -0.06, -0.16, 0.06, 0.16)
        line = patch.u - 0.9 * patch.v * patch.v
        depth = 0.05 + 0.22 * head.age + 1.3 * max(face.mouth.smile, 0.0)
        patch.skin_relight(1.0 - np.float32(min(depth, 0.3)) * bump(line * 22.0, patch.v * 6.5))
    u, v = rig.place(0.0, face.mouth.y + 0.14 + 0.6 * face.mouth.open, 0.7)
    patch = canvas.area(rig.head.child(u, v), -0.2, -0.07, 0.2, 0.25)
    patch.skin_relight(
        1.0 - 0.16 * bump(patch.u * 5.5, patch.v * 16.0) + 0.07 * bump(patch.u * 6, (patch.v - 0.13) * 9)
    )
    u, v = rig.place(0.0, -0.42, 0.55)
    patch = canvas.area(rig.head.child(u, v), -0.5, -0.25, 0.5, 0.3)
    shine = 1.0 + 0.07 * bump((patch.u - np.float32(0.3 * light.direction[0])) * 2.2, patch.v * 4.0)
    if head.age > 0.55:
        crease = np.maximum(np.cos(patch.v * 62.0 + 3.0 * np.square(patch.u)) - 0.6, 0.0)
        shine -= np.float32((head.age - 0.4) * 0.45) * crease * bump(patch.u * 2.6, patch.v * 4.2)
    patch.skin_relight(shine)
    if head.freckles:
        patch = canvas.area(rig.part(0.0, 0.24, DEPTH["nose"]), -0.5, -0.16, 0.5, 0.16)
        rows, columns = patch.box
        spots = fade(noise(canvas.x[columns], canvas.y[rows], numbers, 34.0), 0.62, 0.78)
        patch.skin_relight(1.0 - np.float32(0.25 * head.freckles) * spots * bump(patch.u * 1.9, patch.v * 5.5))


def paint_ear(canvas: FaceCanvas, rig: Rig, side: float) -> None:
    """The ear on the picture's left (side -1) or right (1); the picture's right is the person's left."""
    head = rig.face.head
    size = head.ear_size
    u, v = rig.place(side * (head.width + head.ear_out), 0.12, DEPTH["ear"])
    open_up = 0.55 + 0.75 * max(-side * rig.turn, 0.0)
    frame = rig.head.child(u, v).turned(0.0, 0.0, head.ear_tilt * side, size, mirror=side)
    patch = canvas.area(frame, -0.2, -0.3, 0.2, 0.32)
    wide = 0.145 * open_up + 0.025
    p = patch.u - 0.05 * np.abs(patch.v - 0.2)
    distance = ellipse(p, patch.v, wide, 0.23)
    lobe = ellipse(patch.u + 0.03, patch.v - 0.16, wide * 0.62, 0.10)
    distance = np.minimum(distance, lobe)
    rim = np.abs(ellipse(p - 0.01, patch.v + 0.02, wide * 0.66, 0.165))
    bowl = bump((p + 0.012) / np.float32(wide * 0.62), (patch.v - 0.01) * 7.0)
    factor = 0.97 - 0.20 * np.maximum(1.0 - rim * 26.0, 0.0) - 0.30 * bowl
    colours = patch.skin(head.tone * np.array([1.0, 0.93, 0.91], np.float32), factor)
    patch.paint(distance, colours, "l_ear" if side > 0 else "r_ear", lit=False)


def paint_beard(canvas: FaceCanvas, rig: Rig, beard: Beard, numbers: Array) -> None:
    """Paints facial hair, which is labelled skin, as in CelebAMask-HQ."""
    face = rig.face
    patch = canvas.area(rig.head, -1.0, 0.0, 1.0, 1.3)
    u, v = patch.u - rig.lean(patch.v), patch.v
    mouth_u, mouth_v = rig.place(0.0, face.mouth.y, DEPTH["mouth"])
    p, q = patch.u - np.float32(mouth_u), v - np.float32(mouth_v)
    across = p / np.float32(math.cos(rig.yaw))
    lip = ellipse(across, q + np.float32(0.10), face.mouth.width * 1.15, beard.moustache)
    lip = lip - np.float32(0.2) * np.minimum(np.square(across), 0.08)
    jaw = rig.outline.distance(u, v) - np.float32(0.03 if beard.kind == "full" else 0.0)
    if beard.kind == "moustache":
        distance = lip
    elif beard.kind == "goatee":
        ring = ellipse(across, q - 0.10, face.mouth.width * 1.18, 0.29)
        distance = np.maximum(np.minimum(ring, lip), jaw)
    else:
        side = np.abs(u) / np.float32(rig.width)
        cheek = np.float32(beard.line + 0.10) - 0.45 * fade(side, 0.70, 0.98) - v + 0.10 * fade(side, 0.55, 0.1)
        distance = np.minimum(smooth_max(jaw, cheek, 0.08), lip)
    rows, columns = patch.box
    grain = noise(canvas.x[columns], canvas.y[rows], numbers, 30.0)
    soft = 0.10 if beard.kind == "stubble" else 0.05
    weight = np.clip(-distance / np.float32(soft) + 0.25, 0.0, 1.0) * (0.7 + 0.3 * grain) * np.float32(beard.density)
    if beard.kind == "full":
        patch.mark(distance < -0.25 * soft, "skin")
    patch.image += weight * (beard.colour[:, None, None] * (0.6 + 0.7 * grain) * patch.shade - patch.image)
