"""Which classes and grounds come together: one number from independent (0) to always together (1).

Classes 1 and 2, 3 and 4, ... of the label space are partners, and the two share a habitual ground. With strength s:

- a class is in 30 % of the images (`FREQUENCY`), whatever s;
- given that a class is in the image, its partner is with probability b + s (1 - b), and any other class with
  probability b, where b is `base_probability(s)`: 0.278 at s = 0, 0.120 at s = 1;
- partners that are both in the image touch with probability s, and lie anywhere otherwise;
- the ground that an object lies on is its habitual one with probability g + s (1 - g), and any other with
  (1 - s) g, where g is 1 / the number of grounds; objects that touch lie on one ground, others choose anew.

At s = 0 all of this is independent, but that no image is empty. b depends on s, because with a fixed b more confounding
would also mean more objects an image: a class would be seen more often, and that gain mistaken for one of confounding.
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
    """The partner (1, 2, ...) of a class: the one that it occurs with."""
    return kind + 1 if kind % 2 else kind - 1


def habitual_ground(kind: int) -> int:
    """The index in `GROUNDS` where a class is at home; classes beyond the grounds share them in turn."""
    return (kind - 1) // 2 % len(GROUNDS)


@cache
def base_probability(strength: float) -> float:
    """How likely a class is beside one that is not its partner: b, such that every class has its `FREQUENCY`.

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


def partner_probability(strength: float) -> float:
    """How likely a class's partner is in an image that the class is in: b + s (1 - b)."""
    base = base_probability(strength)
    return base + strength * (1.0 - base)


def ground_probability(strength: float) -> float:
    """How likely an object lies on its habitual ground: g + s (1 - g), g = 1 / number of grounds."""
    return 1.0 / len(GROUNDS) + strength * (1.0 - 1.0 / len(GROUNDS))


def draw_classes(dice: Dice, strength: float, only: Collection[int] | None = None) -> list[int]:
    """The classes of an image, ascending, at least one; with `only`, of these alone.

    The two of a pair share one coin with probability `strength` and toss their own otherwise, so that their
    correlation is the strength; pairs are independent. An empty image, and one with another class, is drawn again.
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
    """The ground, an index of `GROUNDS`, that an object of that class lies on."""
    return habitual_ground(kind) if dice.chance(strength) else int(dice.uniform() * len(GROUNDS))
