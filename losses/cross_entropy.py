"""Cross-entropy as torch has it, with a mean over the pixels of all processes."""

from __future__ import annotations

from typing import Any, Literal, Self, cast

import torch.nn.functional as F
from torch import Tensor, nn

from structseg.losses.class_weights import ClassWeighted, ClassWeights, count_pixels
from structseg.losses.ranks import ranks_of, total_over_ranks


class CrossEntropyLoss(ClassWeighted, nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss`, whose mean is over the labelled pixels of all processes while it trains.

    torch's own divides by what each process has labelled, so that several processes learn another thing than one with
    the whole batch. In a single process, and in evaluation, it is torch's to the last bit.

    Args:
        weight: of each class: a list, by class name, or `balanced` (`ClassWeighted`).
        ignore_index: target value of the pixels that do not count.
        reduction: `mean`, `sum` or `none`.
        label_smoothing: 0..1.
    """

    def __init__(
        self,
        weight: ClassWeights = None,
        ignore_index: int = 255,
        reduction: Literal["mean", "sum", "none"] = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
        self.set_weight(weight)

    @classmethod
    def like(cls, loss: nn.CrossEntropyLoss) -> Self:
        """With the settings of another."""
        weight = None if loss.weight is None else loss.weight.tolist()
        return cls(weight, loss.ignore_index, cast(Any, loss.reduction), loss.label_smoothing)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Logits (N, C, ...) and target (N, ...) of indices, or (N, C, ...) of probabilities, to a scalar."""
        ranks, weight = ranks_of(self.training), self.weight_of_classes()
        if ranks == 1 or self.reduction != "mean" or target.is_floating_point():  # probabilities: a mean over all
            return super().forward(input, target)
        each = count_pixels(target, self.ignore_index, weight, input.shape[1])
        total = F.cross_entropy(
            input,
            target,
            weight,
            ignore_index=self.ignore_index,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return total / (total_over_ranks(each.sum()) / ranks)
