"""Cross-entropy of logits at several scales."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from structseg.losses.class_weights import ClassWeighted, ClassWeights, pixel_weights
from structseg.losses.ranks import divisor


def multi_scale_cross_entropy(
    logits: Tensor | list[Tensor],
    target: Tensor,
    ignore_index: int = 255,
    counts_over_ranks: bool = False,
    weight: Tensor | None = None,
) -> Tensor:
    """The sum, over the scales, of the mean cross-entropy against the labels resized to the logits (`resized_labels`).

    Source: DeepLab-v2's multi-scale training as in deeplab-pytorch, whose label resize is right for squares only.

    Args:
        logits: (N, K, h, w), or a list of such tensors of different sizes.
        target: (N, H, W) int64, 0..K-1 or `ignore_index`.
        ignore_index: target value of the ignored pixels; a scale without other pixels gives 0.
        counts_over_ranks: divide by the counts of all processes, for DDP; they must then call it together.
        weight: (K,), class weights; the means are then weighted. None: all 1.

    Returns:
        A scalar, float32 or float64.

    Raises:
        ValueError: logits or a target without these axes, or of different N.
    """
    scales = [logits] if isinstance(logits, Tensor) else logits
    shapes = [tuple(scale.shape) for scale in scales]
    if target.ndim != 3 or not shapes or any(len(shape) != 4 or shape[0] != len(target) for shape in shapes):
        raise ValueError(f"logits {shapes} and target {tuple(target.shape)}; expected (N, K, h, w) and (N, H, W)")
    total = torch.zeros((), device=target.device)
    targets = [resized_labels(target, (scale.shape[-2], scale.shape[-1])) for scale in scales]
    classes = scales[0].shape[1]
    counts = torch.stack([pixel_weights(labels, ignore_index, weight, classes).sum() for labels in targets])
    for scale, labels, count in zip(scales, targets, divisor(counts, counts_over_ranks), strict=True):
        scale = scale if scale.dtype == torch.float64 else scale.float()
        class_weight = None if weight is None else weight.to(scale.dtype)
        summed = F.cross_entropy(scale, labels, class_weight, ignore_index=ignore_index, reduction="sum")
        total = total + summed / count
    return total


def resized_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (N, H, W) int64 resized to (N, *size) by nearest neighbour: each pixel takes the label under its centre.

    Like Pillow's NEAREST, except that a centre between two pixels always takes the second (in Pillow rounding decides).

    >>> resized_labels(torch.tensor([[[0, 1, 2, 3]]]), (1, 2))
    tensor([[[1, 3]]])
    """
    rows, columns = (
        torch.arange(1, 2 * new, 2, device=labels.device) * old // (2 * new)  # exact in integers
        for new, old in zip(size, labels.shape[-2:], strict=True)
    )
    return labels[:, rows[:, None], columns]


class MultiScaleCrossEntropy(ClassWeighted):
    """`multi_scale_cross_entropy` as a module; in training mode the means are over all processes.

    Args:
        ignore_index: target value of the ignored pixels.
        weight: class weights: a list, a dict by class name, or `balanced` (`ClassWeighted`).
    """

    def __init__(self, ignore_index: int = 255, weight: ClassWeights = None) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.set_weight(weight)

    def forward(self, logits: Tensor | list[Tensor], target: Tensor) -> Tensor:
        """The loss of logits (N, K, h, w), or of a list of them, and a target (N, H, W)."""
        weight = self.weight_of_classes()
        return multi_scale_cross_entropy(logits, target, self.ignore_index, self.training, weight)
