"""Hair with strands: behind the neck, as a bun, and in front of the face."""

from __future__ import annotations

import math

import numpy as np

from structseg.datamodules.drawing.geometry import Array, Outline, bump, ellipse, fade, smooth_max
from structseg.datamodules.drawing.texture import Strands, noise
from structseg.datamodules.synthetic_faces.canvas import FaceCanvas, FacePatch
from structseg.datamodules.synthetic_faces.head import DEPTH, Rig


class HairPainter:
    """Paints the hair of a head in two steps: `behind` the neck, then `before` the face.

    Args:
        rig: the head.
        rng: source of randomness of strands and jagged edges.
    """

    def __init__(self, rig: Rig, rng: np.random.Generator) -> None:
        self._rig = rig
        self._hair = hair = rig.face.hair
        self._strands = Strands(rng.random(32, dtype=np.float32), rng.random(128, dtype=np.float32))
        self._numbers = rng.random((32, 32), dtype=np.float32)
        self._middle = -0.10 * rig.turn
        self._half = rig.width + hair.sides + 0.02 * abs(rig.turn)
        lower = {"curly": hair.end + 0.1, "bald": 0.5}.get(hair.kind, 0.75)
        self._cap = Outline(self._half, rig.face.head.crown + hair.top, lower, (2.25, 2.25), (2.0, 2.6))

    def behind(self, canvas: FaceCanvas) -> None:
        """Paints the hair behind neck, ears and shoulders."""
        hair = self._hair
        if hair.bun_size:
            self._paint_bun(canvas)
        if hair.kind in ("bald", "buzz", "updo", "short"):
            return
        patch = canvas.area(self._rig.head, -1.7, -0.6, 1.7, hair.end + 0.15)
        distance = np.maximum(self._fall(patch), -0.4 - patch.v)
        self._paint(canvas, patch, distance, 0.62)

    def before(self, canvas: FaceCanvas) -> None:
        """Paints the hair on the head and beside the face, with its shadow on the skin."""
        hair, rig = self._hair, self._rig
        if hair.kind == "bald":
            return
        falls = hair.kind in ("long", "bob", "curly")
        patch = canvas.area(rig.head, -1.7, -1.6, 1.7, hair.end + 0.15 if falls else 0.4)
        outer = self._cap.distance(patch.u - np.float32(self._middle), patch.v)
        if falls:
            outer = np.minimum(outer, np.maximum(self._fall(patch), -patch.v))
        if hair.kind == "curly":
            rows, columns = patch.box
            curls = noise(canvas.x[columns], canvas.y[rows], self._numbers, 9.0)
            outer = outer + 0.16 * (curls - 0.5)
        elif hair.kind == "short":
            outer = outer + np.float32(2.0 * hair.jag) * (self._strands(patch.u * 0.35 - patch.v * 0.1) - 0.5)
        window = self._window(patch)
        distance = np.maximum(outer, -window)
        distance = smooth_max(distance, self._below(patch, falls), 0.05)
        soft = {"buzz": 0.05}.get(hair.kind, 0.16)
        shadow = np.clip(1.0 - distance * np.float32(1 / soft), 0.0, 1.0)
        depth = 0.10 if hair.kind == "buzz" else 0.34
        patch.skin_relight(1.0 - np.float32(depth) * shadow * shadow * fade(rig.skull(patch), 0.04, -0.02))
        self._paint(canvas, patch, distance, 1.0)

    def _below(self, patch: FacePatch, falls: bool) -> Array:
        """Distance to the lower end of the hair in front of the face: a sideburn, or a lock tucked behind the ear."""
        hair = self._hair
        inwards = np.float32(self._half) - np.abs(patch.u - np.float32(self._middle))
        below = patch.v - np.float32(hair.end)
        if not falls:
            return (below + 1.3 * np.minimum(inwards, 0.2)) * np.float32(0.6)
        if not any(hair.tucked):
            return below
        swept = (patch.v - 0.12 + 1.3 * np.minimum(inwards, 0.3)) * np.float32(0.6)
        if all(hair.tucked):
            return swept
        return np.where((patch.u > self._middle) == hair.tucked[1], swept, below)

    def _fall(self, patch: FacePatch) -> Array:
        """Distance to hanging hair: a wavy curtain that widens downwards."""
        hair = self._hair
        v = patch.v
        wave = np.float32(hair.wave) * np.sin(v * np.float32(2 * math.pi / hair.wave_length) + np.float32(hair.phase))
        wide = np.float32(self._half) + np.float32(hair.width) * fade(v, 0.1, 1.3) - 0.10 * fade(v, 0.25, -0.4)
        if hair.kind == "bob":
            wide = wide - 0.16 * fade(v, hair.end - 0.25, hair.end + 0.1)
        side = patch.u - np.float32(self._middle) - wave
        ends = patch.v - np.float32(hair.end) + 0.12 * self._strands(patch.u * np.float32(0.17)) + 0.10 * side * side
        return smooth_max((np.abs(side) - wide) * 0.95, ends, 0.12)

    def _window(self, patch: FacePatch) -> Array:
        """Distance to the opening around the face: the hairline above, an edge of hair on each side."""
        hair, rig = self._hair, self._rig
        u, v = patch.u, patch.v
        part, _ = rig.place(hair.part, 0.0, DEPTH["hairline"])
        off = u - np.float32(part)
        rise = off * off * np.where(off < 0, np.float32(hair.fall[0]), np.float32(hair.fall[1]))
        top, drop = rig.place(0.0, hair.hairline, DEPTH["hairline"])[1], hair.jag
        jag = np.float32(2 * drop) * (self._strands(off * 0.23 + v * 0.05) - 0.5)
        line = np.float32(top) + rise + jag
        edges = []
        for side in (0, 1):
            sign = 2.0 * side - 1.0
            edge, _ = rig.place(sign * hair.inner, 0.0, 0.12)
            bow = np.float32(sign * hair.drop[side]) * fade(v, -0.1, 0.9)
            edges.append((u - np.float32(edge) - bow) * np.float32(sign))
        wave = np.float32(0.5 * hair.wave) * np.sin(v * np.float32(2 * math.pi / hair.wave_length))
        sides = np.maximum(edges[0], edges[1]) + wave
        return smooth_max((line - v) * 0.8, sides, 0.30 if hair.kind in ("short", "buzz", "updo") else 0.16)

    def _paint(self, canvas: FaceCanvas, patch: FacePatch, distance: Array, light: float) -> None:
        hair = self._hair
        rows, columns = patch.box
        u, v = patch.u, patch.v
        high = np.minimum(v, 0.0) * np.float32(1.0 / 1.25)
        spread = 1.0 / np.sqrt(np.maximum(1.0 - high * high, 0.12))
        part, _ = self._rig.place(hair.part, 0.0, 0.2)
        t = (u - np.float32(part)) * spread
        wave = np.float32(hair.wave * 1.2) * np.sin(
            v * np.float32(2 * math.pi / hair.wave_length) + np.float32(hair.phase)
        )
        if hair.kind in ("curly", "buzz"):
            grain = noise(canvas.x[columns], canvas.y[rows], self._numbers, 22.0 if hair.kind == "curly" else 48.0)
            threads = 0.25 + 0.5 * grain + 0.25 * self._strands(t * 0.3)
        else:
            threads = self._strands((t - wave) * np.float32(0.30) + 0.02 * v)
        factor = np.float32(light) * (1.0 + np.float32(hair.contrast) * (threads - 0.5) * 1.5)
        factor *= 1.0 - 0.30 * fade(distance, -0.10, 0.0)
        ring = bump((v + 0.72 - 0.35 * t * t) * 4.0, t * 0.75)
        colour = hair.colour[:, None, None] * (factor * (0.45 + 0.6 * patch.shade))
        if hair.gloss > 0.15 and light > 0.9:
            colour += np.float32(0.32 * hair.gloss) * ring * threads * (0.3 + hair.colour[:, None, None])
        if hair.kind == "buzz":
            alpha = patch.cover(distance + 0.01) * np.float32(0.62) * fade(distance, 0.01, -0.09)
            patch.image += alpha * (colour - patch.image)
            patch.mark(distance < 0, "hair")
            return
        patch.paint(distance, colour, "hair", lit=False)

    def _paint_bun(self, canvas: FaceCanvas) -> None:
        hair, rig = self._hair, self._rig
        size = hair.bun_size
        frame = rig.head.child(self._middle + hair.bun - 0.3 * rig.turn, -1.05 - 0.5 * size)
        patch = canvas.area(frame, -0.6, -0.6, 0.6, 0.6)
        distance = ellipse(patch.u, patch.v, size, size * 0.82)
        spiral = self._strands(np.sqrt(np.square(patch.u) + np.square(patch.v)) * 0.5 + patch.u * 0.12)
        factor = (0.62 + 0.5 * spiral) * (1.0 - 0.45 * fade(distance, -0.3, 0.0) + 0.1)
        patch.paint(distance, hair.colour[:, None, None] * factor, "hair", lit=False)
