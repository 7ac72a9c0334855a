"""Class weights of the losses: each pixel counts with the weight of its class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

ClassWeights = list[float] | dict[str, float] | Literal["balanced"] | None


class ClassWeighted(nn.Module):
    """Base class of losses with class weights; a subclass takes an argument `weight` and passes it to `set_weight`.

    Attributes:
        class_weights: the setting: a list of one weight for each class; a dict by class name, 1 for classes that it
            does not name; `balanced`; or None, all pixels equal.
        weight: (K,) float, part of the state dict. None without weights, and for a dict before `set_classes`; all 0
            for `balanced` before `balance`.
    """

    class_weights: ClassWeights
    weight: Tensor | None

    def set_weight(self, weight: ClassWeights) -> None:
        """Checks and stores the setting.

        Raises:
            ValueError: a weight that is negative or not finite, no weight above 0, or a string other than `balanced`.
        """
        if isinstance(weight, str) and weight != "balanced":
            raise ValueError(f"weight={weight!r}; give a list, a weight by class name, or balanced")
        values = [] if weight is None or isinstance(weight, str) else list(getattr(weight, "values", lambda: weight)())
        if any(not 0 <= value < math.inf for value in values) or (values and not any(values)):
            raise ValueError(f"weight={weight}; weights are 0 or more and finite, and one of them is above 0")
        self.class_weights = weight
        ready = values and not isinstance(weight, dict)
        self.register_buffer("weight", torch.tensor(values, dtype=torch.float32) if ready else None)

    def set_classes(self, classes: Sequence[str]) -> None:
        """Puts the weights into the order of the K classes.

        Raises:
            ValueError: another number of weights than classes, or a name that is not a class.
        """
        given, names = self.class_weights, ", ".join(classes)
        if isinstance(given, dict):
            if unknown := [name for name in given if name not in classes]:
                raise ValueError(f"weight names {', '.join(map(str, unknown))}; the classes are {names}")
            self.weight = torch.tensor([float(given.get(name, 1.0)) for name in classes])
        elif given == "balanced":
            self.weight = torch.zeros(len(classes))
        elif given is not None and len(given) != len(classes):
            raise ValueError(f"weight has {len(given)} values for {len(classes)} classes; give one for each of {names}")

    @property
    def needs_balance(self) -> bool:
        """Whether the weights are `balanced` and `balance` has not been called yet."""
        return self.class_weights == "balanced" and (self.weight is None or not bool(self.weight.any()))

    def balance(self, pixels: Tensor) -> None:
        """Sets `balanced` weights: all pixels / (classes that occur * pixels of the class), 1 for an absent class.

        Args:
            pixels: (K,) number of pixels of each class.

        Raises:
            ValueError: all numbers are 0.
        """
        if not bool(pixels.any()):
            raise ValueError("weight=balanced, but no pixel of the training masks has a class; give weights")
        balanced = pixels.sum() / ((pixels > 0).sum() * pixels.clamp(min=1).double())
        balanced = balanced.where(pixels > 0, 1).float()
        self.weight = balanced if self.weight is None else balanced.to(self.weight)

    def weight_of_classes(self) -> Tensor | None:
        """`weight`, checked to be ready for use.

        Raises:
            RuntimeError: `set_classes` or `balance` has yet to be called.
        """
        if self.weight is None and self.class_weights is not None:
            raise RuntimeError(f"weight={self.class_weights} has no order yet; call set_classes(names of the classes)")
        if self.class_weights == "balanced" and not self._balanced:
            if self.needs_balance:
                raise RuntimeError("weight=balanced, and no pixels were counted; fit first, or call balance(pixels)")
            self._balanced = True
        return self.weight

    _balanced = False  # checked in one step only: reading the weights waits for the device


def pixel_weights(target: Tensor, ignore_index: int, weight: Tensor | None, classes: int) -> Tensor:
    """The weight of each pixel of a target, in its shape: 0 where it is ignored, else that of its class (default 1).

    Raises:
        ValueError: another number of weights than classes.
    """
    counted = target != ignore_index
    if weight is None:
        return counted
    check_weight(weight, classes)
    return weight[target.where(counted, 0)] * counted


def check_weight(weight: Tensor, classes: int) -> None:
    """Raises a ValueError unless there is one weight for each class."""
    if weight.shape != (classes,):
        raise ValueError(f"weight {tuple(weight.shape)}, but the logits have {classes} classes; give one for each")
