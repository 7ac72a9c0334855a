"""Random choices from numbers that a generator draws in blocks, which makes each choice fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from structseg.datamodules.drawing.geometry import Array

T = TypeVar("T")


class Dice:
    """Random choices by uniform numbers.

    Args:
        rng: the only source of randomness; 512 numbers are drawn at a time.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._values: list[float] = []

    def uniform(self) -> float:
        """A number in 0..1."""
        if not self._values:
            self._values = self._rng.random(512).tolist()
        return self._values.pop()

    def between(self, low: float, high: float) -> float:
        """A number in low..high."""
        return low + (high - low) * self.uniform()

    def near(self, mean: float, spread: float) -> float:
        """A number around `mean`, at most 3 * `spread` away; `spread` is nearly the standard deviation."""
        return mean + spread * 2.0 * (self.uniform() + self.uniform() + self.uniform() - 1.5)

    def chance(self, probability: float) -> bool:
        """True with that probability."""
        return self.uniform() < probability

    def sign(self) -> float:
        """-1 or 1."""
        return 1.0 if self.uniform() < 0.5 else -1.0

    def choose(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[int(self.uniform() * len(options))]

    def weighted(self, **weights: float) -> str:
        """One of the names, by weight."""
        rest = self.uniform() * sum(weights.values())
        for name, weight in weights.items():
            rest -= weight
            if rest < 0:
                return name
        return name

    def colour(self, low: float = 0.0, high: float = 1.0, saturation: float = 0.5) -> Array:
        """(3,) a colour: brightness in low..high, each channel darker by a share of up to `saturation`."""
        value = self.between(low, high)
        return np.array([value * (1.0 - saturation * self.uniform()) for _ in range(3)], np.float32)

    def mix(self, first: Sequence[float], second: Sequence[float]) -> Array:
        """(3,) a colour on the line between two."""
        t = self.uniform()
        return np.array([a + (b - a) * t for a, b in zip(first, second, strict=True)], np.float32)

    def field(self, *shape: int) -> Array:
        """Independent numbers in 0..1 of that shape."""
        return self._rng.random(shape, dtype=np.float32)
