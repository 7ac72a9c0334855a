"""Cross-entropy plus the soft Dice loss, a common choice for small classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from structseg.losses.class_weights import ClassWeighted, ClassWeights, pixel_weights
from structseg.losses.ranks import divisor, sum_over_ranks


def cross_entropy_dice(
    logits: Tensor,
    target: Tensor,
    dice_weight: float = 1.0,
    label_smoothing: float = 0.0,
    ignore_index: int = 255,
    counts_over_ranks: bool = False,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy over the labelled pixels + `dice_weight` times (1 - mean soft Dice over the batch's classes).

    Soft Dice of a class = 2 sum(p y) / (sum(p) + sum(y)), over all labelled pixels of the batch; the mean runs over
    the classes that occur in the target (Milletari, Navab, Ahmadi, 3DV 2016, equation for V-Net, with plain sums).

    Args:
        logits: (N, C, H, W), any float type; the arithmetic is float32 or better.
        target: (N, H, W) int64, 0..C-1 or `ignore_index`.
        dice_weight: weight of the Dice term, 0 = cross-entropy only.
        label_smoothing: of the cross-entropy, 0..1.
        ignore_index: target value of the pixels that count in neither term.
        counts_over_ranks: take the batches of all processes as one, for DDP; they must then call it together.
        weight: (C,), class weights, of pixels in the cross-entropy and of classes in the mean Dice. None: all 1.

    Returns:
        A scalar, 0 or more; 0 with zero gradient if every pixel is ignored.

    Raises:
        ValueError: shapes that do not match.

    Example:
        Undecided between two classes, one pixel of each: ln 2 + (1 - 2 * 0.5 / 2).

        >>> cross_entropy_dice(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]]))
        tensor(1.1931)
    """
    if logits.ndim != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)} do not fit; (N, C, H, W) and (N, H, W) do"
        )
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    weight = None if weight is None else weight.to(logits.dtype)
    labelled, counted = target != ignore_index, pixel_weights(target, ignore_index, weight, logits.shape[1])
    entropy = F.cross_entropy(
        logits, target, weight, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="sum"
    )
    loss = entropy / divisor(counted.sum(), counts_over_ranks)
    if dice_weight:
        probabilities = logits.softmax(1) * labelled[:, None]
        truth = F.one_hot(target.masked_fill(~labelled, 0), logits.shape[1]).movedim(-1, 1) * labelled[:, None]
        overlap, predicted = (probabilities * truth).sum((0, 2, 3)), probabilities.sum((0, 2, 3))
        sums = torch.stack([overlap, predicted, truth.sum((0, 2, 3)).to(overlap)])
        overlap, predicted, labels = sum_over_ranks(sums, counts_over_ranks)
        dice = 2 * overlap / (predicted + labels).clamp(min=torch.finfo(logits.dtype).tiny)
        class_weight = labels > 0 if weight is None else (labels > 0) * weight
        loss = loss + dice_weight * ((1 - dice) * class_weight).sum() / divisor(class_weight.sum(), False)
    return loss


class CrossEntropyDiceLoss(ClassWeighted):
    """`cross_entropy_dice` as a module; in training mode over the batches of all processes.

    Args:
        dice_weight: weight of the Dice term, 0 or more.
        label_smoothing: of the cross-entropy, 0..1.
        ignore_index: target value of the pixels that count in neither term.
        weight: class weights: a list, a dict by class name, or `balanced` (`ClassWeighted`).

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        dice_weight: float = 1.0,
        label_smoothing: float = 0.0,
        ignore_index: int = 255,
        weight: ClassWeights = None,
    ) -> None:
        super().__init__()
        self.set_weight(weight)
        if dice_weight < 0 or not 0 <= label_smoothing <= 1:
            raise ValueError(
                f"dice_weight={dice_weight}, label_smoothing={label_smoothing}; 0 or more and 0..1 are needed"
            )
        self.dice_weight, self.label_smoothing, self.ignore_index = dice_weight, label_smoothing, ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (N, C, H, W) and target (N, H, W)."""
        settings = (self.dice_weight, self.label_smoothing, self.ignore_index, self.training)
        return cross_entropy_dice(logits, target, *settings, self.weight_of_classes())
