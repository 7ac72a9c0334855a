"""A scene: its objects and their places, and its picture with exact labels."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from structseg.datamodules.confounded_scenes.cooccurrence import draw_classes, draw_ground, partner
from structseg.datamodules.confounded_scenes.shapes import outline
from structseg.datamodules.confounded_scenes.textures import Coat, ground
from structseg.datamodules.drawing.dice import Dice
from structseg.datamodules.drawing.geometry import Array, Frame
from structseg.datamodules.drawing.grid import Grid, Patch, between
from structseg.datamodules.drawing.texture import noise

_LARGEST = (1.2, 1.0, 0.85, 0.75, 0.65)  # the size of things by how many there are


@dataclass(frozen=True)
class Thing:
    """An object: class, place in picture coordinates (-1..1 along the shorter side), radius and ground."""

    kind: int
    x: float
    y: float
    radius: float
    ground: int
    touching: bool


@dataclass(frozen=True)
class Picture:
    """image: (H, W, 3) uint8. mask: (H, W) uint8, the class of the topmost object, 0 for the background."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]


def compose(
    dice: Dice, strength: float, width: float, height: float, only: Collection[int] | None = None
) -> list[Thing]:
    """Draws the objects of a scene, from the back to the front.

    Args:
        dice: the source of randomness.
        strength: of the co-occurrence, 0..1.
        width: half the picture's width, in its coordinates.
        height: half the picture's height.
        only: the classes to draw; None: all.
    """
    kinds = draw_classes(dice, strength, only)
    things: list[Thing] = []
    order = sorted(kinds, key=lambda _: dice.uniform())
    while order:
        kind = order.pop()
        ground_kind = draw_ground(dice, kind, strength)
        radius = _radius(dice, len(kinds))
        company = partner(kind)
        together = company in order and dice.chance(strength)
        x, y = _free_place(dice, things, radius, width, height)
        things.append(Thing(kind, x, y, radius, ground_kind, together))
        if together:
            order.remove(company)
            radius = min(max(_radius(dice, len(kinds)), 0.7 * radius), 1.4 * radius)
            x, y = _place_beside(dice, things, radius, width, height)
            things.append(Thing(company, x, y, radius, ground_kind, together))
    return sorted(things, key=lambda _: dice.uniform())


def _radius(dice: Dice, count: int) -> float:
    return dice.between(0.33, 0.55) * _LARGEST[min(count, len(_LARGEST)) - 1]


def _clearance(x: float, y: float, radius: float, things: list[Thing]) -> float:
    """The least distance to an object, relative to the sum of both radii."""
    return min((math.hypot(x - t.x, y - t.y) / (radius + t.radius) for t in things), default=9.0)


def _free_place(dice: Dice, things: list[Thing], radius: float, width: float, height: float) -> tuple[float, float]:
    """Draws up to 24 places and takes the first that is nearly free of other objects, or else the freest."""
    best, found = -1.0, (0.0, 0.0)
    for _ in range(24):
        x, y = dice.between(-1, 1) * (width - 0.75 * radius), dice.between(-1, 1) * (height - 0.75 * radius)
        clearance = _clearance(x, y, radius, things)
        if clearance > best:
            best, found = clearance, (x, y)
        if best > 0.9:
            break
    return found


def _place_beside(dice: Dice, things: list[Thing], radius: float, width: float, height: float) -> tuple[float, float]:
    """Draws a place that slightly overlaps the last object, preferably inside the picture and off the others."""
    last, best, found = things[-1], -9.0, (0.0, 0.0)
    for _ in range(12):
        distance, angle = dice.between(0.62, 0.78) * (radius + last.radius), dice.between(0.0, 2 * math.pi)
        x, y = last.x + distance * math.cos(angle), last.y + distance * math.sin(angle)
        outside = max(abs(x) + 0.75 * radius - width, abs(y) + 0.75 * radius - height, 0.0)
        merit = min(_clearance(x, y, radius, things[:-1]), 0.9) - 4.0 * outside / radius
        if merit > best:
            best, found = merit, (x, y)
    return found


class SceneCanvas(Grid):
    """The picture being painted: (3, H, W) colours and (H, W) classes."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__(size)
        self.image: Array = np.zeros((3, *size), np.float32)
        self.mask: NDArray[np.uint8] = np.zeros(size, np.uint8)

    def box(self, x: float, y: float, reach: float) -> tuple[slice, slice]:
        """(rows, columns) of the pixels within `reach` of a point along either axis."""
        return between(self.y, y - reach, y + reach), between(self.x, x - reach, x + reach)

    def paint_grounds(self, things: list[Thing], dice: Dice) -> None:
        """Paints each pixel with the ground of the nearest object, in wavy cells."""
        kinds = sorted({thing.ground for thing in things})
        looks = [np.random.default_rng(int(dice.uniform() * 2**32)) for _ in kinds]
        if len(kinds) == 1:
            self.image[...] = ground(kinds[0], self.x, self.y, Dice(looks[0]))
            return
        warp = 0.8 * (noise(self.x, self.y, dice.field(8, 8), 2.0) - 0.5)
        x, y = self.x + warp, self.y[:, None] + warp
        nearest = np.full(self.mask.shape, np.inf, np.float32)
        cells = np.zeros(self.mask.shape, np.uint8)
        for thing in things:
            u, v = x - np.float32(thing.x), y - np.float32(thing.y)
            distance = u * u + v * v - np.float32(thing.radius**2)
            closer = distance < nearest
            nearest[closer], cells[closer] = distance[closer], thing.ground
        for kind, look in zip(kinds, looks, strict=True):
            cell = cells == kind
            rows, columns = np.flatnonzero(cell.any(1)), np.flatnonzero(cell.any(0))
            if rows.size:
                box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
                np.copyto(
                    self.image[:, box[0], box[1]],
                    ground(kind, self.x[box[1]], self.y[box[0]], Dice(look)),
                    where=cell[box],
                )

    def paint_thing(self, thing: Thing, dice: Dice) -> None:
        """Paints an object on top, turned, mirrored and stretched at random."""
        stretch = dice.between(0.88, 1.14)
        upright = Frame.upright((thing.x, thing.y), thing.radius)
        frame = upright.turned(0.0, 0.0, dice.near(0.0, 0.3), mirror=dice.sign()).child(
            0.0, 0.0, uu=stretch, vv=1.0 / stretch
        )
        rows, columns = self.box(thing.x, thing.y, 1.6 * thing.radius)
        patch = Patch(self, frame, rows, columns)
        u, v = patch.u, patch.v
        coat = Coat(thing.kind, dice)
        sharp = np.float32(thing.radius / self.pixel)
        distance, distinctive = outline(thing.kind, u, v)
        share = np.clip(0.5 - distinctive * sharp, 0.0, 1.0)
        cells = np.float32(3.2)
        colours = coat.colours(u * cells, v * cells, share)
        # A little rounder than flat: brighter towards the upper left, darker along the rim.
        colours *= (1.0 - 0.12 * (u + v)) * np.clip(1.0 - 2.0 * (distance + 0.15), 0.75, 1.0)
        cover = np.clip(0.5 - distance * sharp, 0.0, 1.0)
        view = self.image[:, rows, columns]
        view += cover * (colours - view)
        self.mask[rows, columns][distance < 0] = thing.kind

    def finish(self, dice: Dice) -> Picture:
        """Adds light and grain, and returns the picture with 8 bits."""
        light = 0.8 + 0.4 * noise(self.x, self.y, dice.field(8, 8), dice.between(0.8, 1.6))
        light *= np.float32(dice.between(0.85, 1.1))
        grain = np.float32(dice.between(0.04, 0.12)) * (dice.field(*self.mask.shape) - np.float32(0.5))
        pixels = (self.image * light + grain) * np.float32(255.0)
        image = np.clip(pixels + np.float32(0.5), 0.0, 255.0).astype(np.uint8)
        return Picture(np.ascontiguousarray(image.transpose(1, 2, 0)), self.mask)
