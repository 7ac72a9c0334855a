"""torch's cross-entropy, with a mean over the pixels of all processes."""

from __future__ import annotations

from typing import Any, Literal, Self, cast

import torch.nn.functional as F
from torch import Tensor, nn

from structseg.losses.class_weights import ClassWeighted, ClassWeights, pixel_weights
from structseg.losses.ranks import total_over_ranks, world_size


class CrossEntropyLoss(ClassWeighted, nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss` whose mean, in training mode, is over the labelled pixels of all processes.

    torch divides by the labelled pixels of each process, which trains differently from one process with the whole
    batch. In a single process, and in evaluation, the value is torch's to the last bit.

    Args:
        weight: class weights: a list, a dict by class name, or `balanced` (`ClassWeighted`).
        ignore_index: target value of the ignored pixels.
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
        """A loss with the settings of another one."""
        weight = None if loss.weight is None else loss.weight.tolist()
        return cls(weight, loss.ignore_index, cast(Any, loss.reduction), loss.label_smoothing)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (N, C, ...) and target (N, ...) of indices, or (N, C, ...) of probabilities."""
        ranks, weight = world_size(self.training), self.weight_of_classes()
        if ranks == 1 or self.reduction != "mean" or target.is_floating_point():  # probabilities: no pixel is ignored
            return super().forward(input, target)
        counts = pixel_weights(target, self.ignore_index, weight, input.shape[1])
        settings: dict[str, Any] = {"ignore_index": self.ignore_index, "label_smoothing": self.label_smoothing}
        total = F.cross_entropy(input, target, weight, reduction="sum", **settings)
        return total / (total_over_ranks(counts.sum()) / ranks)
