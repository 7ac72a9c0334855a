"""Drawn scenes by split and number: the same seed gives the same pixels in every process."""

from __future__ import annotations

import numpy as np

from structseg.datamodules.confounded_scenes.cooccurrence import base_probability
from structseg.datamodules.confounded_scenes.scene import Picture, SceneCanvas, Thing, compose
from structseg.datamodules.drawing.dice import Dice

_SMALLEST, _LARGEST = 32, 1024


class ConfoundedScenes:
    """Scenes of the label space `scenes`.

    Args:
        seed: of the scenes, 0 or more.
        size: (H, W) in pixels, each 32..1024.
        only: the classes of the scenes; None: all.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(self, seed: int = 0, size: tuple[int, int] = (96, 96), only: frozenset[int] | None = None) -> None:
        if seed < 0 or not all(_SMALLEST <= side <= _LARGEST for side in size):
            raise ValueError(
                f"seed={seed}, size={tuple(size)}; expected seed 0 or more, (H, W) each {_SMALLEST}..{_LARGEST}"
            )
        self.seed, self.size, self.only = seed, size, only

    def things(self, split: int, index: int, strength: float) -> list[Thing]:
        """The objects of a scene, from the back to the front."""
        base_probability(strength)
        side = min(self.size)
        return compose(self._dice(split, index, 0), strength, self.size[1] / side, self.size[0] / side, self.only)

    def render(self, split: int, index: int, strength: float) -> Picture:
        """A scene's picture and mask; `strength` is the co-occurrence of classes and grounds, 0..1."""
        things = self.things(split, index, strength)
        dice = self._dice(split, index, 1)
        canvas = SceneCanvas(self.size)
        canvas.paint_grounds(things, dice)
        for thing in things:
            canvas.paint_thing(thing, dice)
        return canvas.finish(dice)

    def _dice(self, split: int, index: int, stream: int) -> Dice:
        return Dice(np.random.default_rng([self.seed, split, index, stream]))
