"""The confounder set of CONTA: the mean mask of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

_UNIT = 1 << 24  # a float32 in 0..1 times this is exact


class Confounders(NamedTuple):
    """The confounder set.

    Attributes:
        confounders: (K - 1, h, w) float32 in 0..1, on the CPU.
        images: (K - 1,) int64, the number of images of each mean.
    """

    confounders: Tensor
    images: Tensor


class ConfounderSet(Metric):
    """c_k of equation 1: the mean, over the images that hold class k, of the predicted mask of k.

    Source: CONTA (Zhang et al., NeurIPS 2020), equation 1. A class without images stays zero, with 0 images. Sums
    are of integers, so that the order and the number of processes do not change them.

    Args:
        classes: names of the K classes by index, background first.
        size: (h, w) of the masks.

    Raises:
        ValueError: there is no foreground class, or a side is below 1.

    >>> metric = ConfounderSet(["background", "cat", "dog"], size=(1, 2))
    >>> metric.update(torch.tensor([[[0.5, 0.0]], [[0.5, 1.0]], [[0.0, 0.0]]]), torch.tensor([1.0, 0.0]))
    >>> metric.compute().confounders.tolist(), metric.compute().images.tolist()
    ([[[0.5, 1.0]], [[0.0, 0.0]]], [1, 0])
    """

    is_differentiable = False
    full_state_update = False

    total: Tensor
    images: Tensor

    def __init__(self, classes: Sequence[str], size: tuple[int, int] = (32, 32)) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.size = (int(size[0]), int(size[1]))
        if len(self.classes) < 2 or min(self.size) < 1:
            raise ValueError(
                f"{len(self.classes)} classes of {self.size}; give background, one class or more, and (h, w)"
            )
        count = len(self.classes) - 1
        self.add_state("total", torch.zeros(count, *self.size, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros(count, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, tags: Tensor) -> None:
        """Counts an image.

        Args:
            probabilities: (K, h, w) class probabilities, background first.
            tags: (K - 1,) 1 if the image contains the foreground class, else 0.

        Raises:
            ValueError: shapes do not match, a probability is not in 0..1, or a tag is neither 0 nor 1.
        """
        wanted = (len(self.classes), *self.size)
        if tuple(probabilities.shape) != wanted or tuple(tags.shape) != (wanted[0] - 1,):
            raise ValueError(
                f"probabilities are {tuple(probabilities.shape)} and tags {tuple(tags.shape)}; expected {wanted} and "
                f"({wanted[0] - 1},)"
            )
        if not ((probabilities >= 0) & (probabilities <= 1 + 1e-4)).all():  # nan fails too
            raise ValueError("probabilities are not in 0..1; give the softmax of the segmenter's logits, free of nan")
        if not ((tags == 0) | (tags == 1)).all():
            raise ValueError(f"tags are {tags.tolist()}; give 1 for a class that the image contains, else 0")
        present = tags.to(self.images)
        parts = (probabilities[1:].float() * _UNIT).round().to(self.total)
        self.total += present[:, None, None] * parts
        self.images += present

    def compute(self) -> Confounders:
        """The confounders and their numbers of images, on the CPU."""
        images = self.images.cpu()
        mean = self.total.cpu().double() / _UNIT / images.clamp(min=1)[:, None, None]
        return Confounders(mean.clamp(max=1).float(), images)


def class_shares(mask: Tensor, classes: int, size: tuple[int, int]) -> Tensor:
    """The share of each class in each cell of a coarser grid: area averages of its mask.

    Args:
        mask: (H, W) labels 0..K-1; any other label, such as 255, is of no class.
        classes: K.
        size: (h, w) of the result.

    Returns:
        (K, h, w) float32 in 0..1.

    >>> class_shares(torch.tensor([[0, 1, 1, 255]]), 2, (1, 2)).tolist()
    [[[0.5, 0.0]], [[0.5, 0.5]]]
    """
    shares = torch.zeros(classes, *size, device=mask.device)
    for label in set(mask.unique().tolist()) & set(range(classes)):
        shares[label] = F.interpolate((mask == label).float()[None, None], size, mode="area")[0, 0]
    return shares
