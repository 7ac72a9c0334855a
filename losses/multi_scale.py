"""Cross-entropy of one labelling seen at several sizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from structseg.losses.class_weights import ClassWeighted, ClassWeights, count_pixels
from structseg.losses.ranks import divisor


def multi_scale_cross_entropy(
    logits: Tensor | list[Tensor],
    target: Tensor,
    ignore_index: int = 255,
    counts_over_ranks: bool = False,
    weight: Tensor | None = None,
) -> Tensor:
    """The sum over all logits of their cross-entropy on the labels at their size.

    Labels are resized by nearest neighbour, the pixel under the centre of the new one, each axis for itself. Each
    cross-entropy is the mean over the pixels that count; 0 where none does.

    Source: DeepLab-v2's multi-scale training as in deeplab-pytorch, whose label resize is right for squares only.

    Args:
        logits: (N, K, h, w), or several of them, each of its own size.
        target: (N, H, W) int64, `ignore_index` where nothing counts.
        ignore_index: 0..255 or negative.
        counts_over_ranks: divide by the counts of all processes, for DDP; they must then call it together.
        weight: (K,) of each class: of its pixels, in weighted means. None: all 1.

    Returns:
        A scalar, float32 at least.

    Raises:
        ValueError: logits or a target without these axes, or of different N.
    """
    each = [logits] if isinstance(logits, Tensor) else logits
    shapes = [tuple(one.shape) for one in each]
    if target.ndim != 3 or not shapes or any(len(shape) != 4 or shape[0] != len(target) for shape in shapes):
        raise ValueError(f"logits {shapes} and target {tuple(target.shape)}; expected (N, K, h, w) and (N, H, W)")
    total = torch.zeros((), device=target.device)
    targets = [resized_labels(target, (one.shape[-2], one.shape[-1])) for one in each]
    classes = each[0].shape[1]
    counts = torch.stack([count_pixels(labels, ignore_index, weight, classes).sum() for labels in targets])
    for one, labels, number in zip(each, targets, divisor(counts, counts_over_ranks), strict=True):
        precise = one if one.dtype == torch.float64 else one.float()
        used = None if weight is None else weight.to(precise.dtype)
        summed = F.cross_entropy(precise, labels, used, ignore_index=ignore_index, reduction="sum")
        total = total + summed / number
    return total


def resized_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W) int64 labels at (N, *size): each pixel takes the label under its centre.

    As Pillow's NEAREST, but that a centre between two pixels always takes the second (Pillow: as it rounds).

    >>> resized_labels(torch.tensor([[[0, 1, 2, 3]]]), (1, 2))
    tensor([[[1, 3]]])
    """
    rows, columns = (
        torch.arange(1, 2 * new, 2, device=labels.device) * old // (2 * new)  # whole numbers: centres are exact
        for new, old in zip(size, labels.shape[-2:], strict=True)
    )
    return labels[:, rows[:, None], columns]


class MultiScaleCrossEntropy(ClassWeighted):
    """`multi_scale_cross_entropy` as a module; while it trains, the means are over all processes.

    Args:
        ignore_index: target value of the pixels to leave out.
        weight: of each class: a list, by class name, or `balanced` (`ClassWeighted`).
    """

    def __init__(self, ignore_index: int = 255, weight: ClassWeights = None) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.set_weight(weight)

    def forward(self, logits: Tensor | list[Tensor], target: Tensor) -> Tensor:
        """The loss of logits (N, K, h, w), or of a list of them, and a target (N, H, W)."""
        weight = self.weight_of_classes()
        return multi_scale_cross_entropy(logits, target, self.ignore_index, self.training, weight)
