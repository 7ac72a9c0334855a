"""Cross-entropy as torch has it, with a mean over the pixels of all processes."""

from __future__ import annotations

from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from structseg.losses.ranks import ranks_of, total_over_ranks


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss`, whose mean is over the labelled pixels of all processes while it trains.

    torch's own divides by what each process has labelled, so that several processes learn another thing than one with
    the whole batch. In a single process, and in evaluation, it is torch's to the last bit.
    """

    @classmethod
    def like(cls, loss: nn.CrossEntropyLoss) -> Self:
        """With the settings of another."""
        return cls(
            loss.weight,
            ignore_index=loss.ignore_index,
            reduction=loss.reduction,
            label_smoothing=loss.label_smoothing,
        )

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Logits (N, C, ...) and target (N, ...) of indices, or (N, C, ...) of probabilities, to a scalar."""
        ranks = ranks_of(self.training)
        if ranks == 1 or self.reduction != "mean" or target.is_floating_point():  # probabilities: a mean over all
            return super().forward(input, target)
        counted = target != self.ignore_index
        each = counted if self.weight is None else self.weight[target.where(counted, 0)] * counted
        total = F.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return total / (total_over_ranks(each.sum()) / ranks)
