"""Weights of classes: a pixel counts as much as the weight of its class, in every loss that compares it with labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

ClassWeights = list[float] | dict[str, float] | Literal["balanced"] | None


class ClassWeighted(nn.Module):
    """A loss whose classes may have weights; a child takes them as `weight` and calls `set_weight`.

    Attributes:
        class_weights: as they were given: one for each class; by class name, where those that are not named have 1; or
            `balanced`. None: every pixel counts the same.
        weight: (K,) float, with the state of the loss; None where there are none, or names have no order yet. Of
            `balanced` all 0 until the pixels are counted.
    """

    class_weights: ClassWeights
    weight: Tensor | None

    def set_weight(self, weight: ClassWeights) -> None:
        """Takes the setting.

        Raises:
            ValueError: a weight that is negative or not finite, none above 0, or another word than `balanced`.
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
        """Gives the weights the order of the classes.

        Raises:
            ValueError: not one weight for each class, or names that no class has.
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
    def uncounted(self) -> bool:
        """Whether the weights are `balanced` and wait for `balance`."""
        return self.class_weights == "balanced" and (self.weight is None or not bool(self.weight.any()))

    def balance(self, pixels: Tensor) -> None:
        """Sets `balanced` weights: all pixels / (classes that occur * pixels of the class), 1 for one without pixels.

        Args:
            pixels: (K,) how many of each class there are.

        Raises:
            ValueError: there are none at all.
        """
        if not bool(pixels.any()):
            raise ValueError("weight=balanced, but no pixel of the training masks has a class; give weights")
        balanced = pixels.sum() / ((pixels > 0).sum() * pixels.clamp(min=1).double())
        found = balanced.where(pixels > 0, 1).float()
        self.weight = found if self.weight is None else found.to(self.weight)

    def weight_of_classes(self) -> Tensor | None:
        """`weight`, for the loss.

        Raises:
            RuntimeError: it is not known yet.
        """
        if self.weight is None and self.class_weights is not None:
            raise RuntimeError(f"weight={self.class_weights} has no order yet; call set_classes(names of the classes)")
        if self.class_weights == "balanced" and not self._counted:
            raise RuntimeError("weight=balanced, and nothing was counted; fit first, or call balance(pixels)")
        return self.weight

    _known = False

    @property
    def _counted(self) -> bool:
        self._known = self._known or not self.uncounted  # asked once: it waits for the device
        return self._known


def count_pixels(target: Tensor, ignore_index: int, weight: Tensor | None, classes: int) -> Tensor:
    """What each pixel of a target counts: 0 where it is ignored, else 1, or the weight of its class; of target's shape.

    Raises:
        ValueError: not one weight for each of the classes.
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
