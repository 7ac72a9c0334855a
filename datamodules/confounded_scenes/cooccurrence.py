"""Co-occurrence of classes and grounds, by one number from independent (0) to always together (1).

Classes 1 and 2, 3 and 4, ... of the label space are partners and share a usual ground. With strength s:

- a class is in 30 % of the images (`FREQUENCY`) for every s;
- given that a class is in the image, its partner is with probability b + s (1 - b), and any other class with
  probability b, where b is `base_probability(s)`: 0.278 at s = 0, 0.120 at s = 1;
- partners that are both in the image touch with probability s, and are placed independently otherwise;
- the ground of an object is its usual one with probability g + s (1 - g), and each other one with (1 - s) g, where g is
  1 / the number of grounds; objects that touch share a ground.

At s = 0 everything is independent, except that no image is empty. b depends on s because with a fixed b more
confounding would also mean more objects per image, and more examples of a class could be mistaken for its effect.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from structseg.datamodules.drawing.dice import Dice
from structseg.datamodules.label_spaces import SCENES

GROUNDS = ("night", "water", "meadow", "pavement", "sand", "cloth")
FREQUENCY = 0.3
_PAIRS = (len(SCENES) - 1) // 2


def partner(kind: int) -> int:
    """The partner of a class, both counted from 1."""
    return kind + 1 if kind % 2 else kind - 1


def usual_ground(kind: int) -> int:
    """The index in `GROUNDS` of a class's usual ground; further classes use the grounds again in turn."""
    return (kind - 1) // 2 % len(GROUNDS)


@cache
def base_probability(strength: float) -> float:
    """The probability b of a class given one that is not its partner, such that every class has its `FREQUENCY`.

    Raises:
        ValueError: a strength outside 0..1.
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"co_occurrence={strength}; expected 0 (independent) to 1 (always together)")
    low, high = 0.0, FREQUENCY
    for _ in range(60):  # the frequency grows with b
        base = 0.5 * (low + high)
        empty = ((1.0 - base) ** 2 + strength * base * (1.0 - base)) ** _PAIRS
        low, high = (base, high) if base / (1.0 - empty) < FREQUENCY else (low, base)
    return low


def draw_classes(dice: Dice, strength: float, only: Collection[int] | None = None) -> list[int]:
    """Draws the classes of an image, ascending, at least one; with `only`, of these.

    Partners are drawn together with probability `strength` and independently otherwise, so that their correlation is
    the strength; pairs are independent. An image that is empty or has classes not in `only` is drawn again.
    """
    base = base_probability(strength)
    while True:
        kinds = []
        for pair in range(_PAIRS):
            first = dice.chance(base)
            second = first if dice.chance(strength) else dice.chance(base)
            kinds += [kind for kind, here in ((2 * pair + 1, first), (2 * pair + 2, second)) if here]
        if kinds and (only is None or all(kind in only for kind in kinds)):
            return kinds


def draw_ground(dice: Dice, kind: int, strength: float) -> int:
    """Draws the ground, an index of `GROUNDS`, of an object of a class."""
    return usual_ground(kind) if dice.chance(strength) else int(dice.uniform() * len(GROUNDS))
