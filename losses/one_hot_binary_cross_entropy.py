"""Binary cross-entropy of each class against the one-hot labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from structseg.losses.class_weights import ClassWeighted, ClassWeights, pixel_weights
from structseg.losses.ranks import divisor


def one_hot_binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    ignore_index: int = 255,
    counts_over_ranks: bool = False,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean over classes and labelled pixels of -(t log p + (1 - t) log(1 - p)).

    p is the sigmoid of the class's logit; t is 1 for the pixel's class and 0 for the others (Yin, Yiu, Hu, Tang,
    STN-iCNN, equation 16, where N is the number of classes and the minus sign is meant for both terms).

    Args:
        logits: (N, C, H, W), any float type; the arithmetic is float32 or better.
        target: (N, H, W) int64, 0..C-1 or `ignore_index`.
        ignore_index: target value of the ignored pixels.
        counts_over_ranks: divide by the counts of all processes, for DDP; they must then call it together.
        weight: (C,), class weights of the pixels; the mean is then weighted. None: all 1.

    Returns:
        A scalar, 0 or more; 0 with zero gradient if every pixel is ignored.

    Raises:
        ValueError: shapes that do not match.

    Example:
        With logits of 0, p = 1/2 for every class: ln 2 for any labels.

        >>> one_hot_binary_cross_entropy(torch.zeros(1, 3, 1, 2), torch.tensor([[[0, 2]]]))
        tensor(0.6931)
    """
    if logits.ndim != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)} do not fit; (N, C, H, W) and (N, H, W) do"
        )
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    labelled = (target != ignore_index)[:, None]
    truth = torch.zeros_like(logits).scatter_(1, target[:, None].where(labelled, 0), 1)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    # Not by a product: the logits of an ignored pixel may be infinite.
    entropy = entropy.where(labelled, 0)
    counted = pixel_weights(target, ignore_index, weight, logits.shape[1])
    if weight is not None:
        entropy = entropy * counted[:, None]
    return entropy.sum() / divisor(counted.sum() * logits.shape[1], counts_over_ranks)


class OneHotBCELoss(ClassWeighted):
    """`one_hot_binary_cross_entropy` as a module; in training mode the mean is over all processes.

    Args:
        ignore_index: target value of the ignored pixels.
        weight: class weights: a list, a dict by class name, or `balanced` (`ClassWeighted`).
    """

    def __init__(self, ignore_index: int = 255, weight: ClassWeights = None) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.set_weight(weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (N, C, H, W) and target (N, H, W)."""
        weight = self.weight_of_classes()
        return one_hot_binary_cross_entropy(logits, target, self.ignore_index, self.training, weight)
