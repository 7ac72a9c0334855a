"""Average precision of predicted image tags."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.utilities import dim_zero_cat


class TagScores(Metric):
    """Average precision of each class over all images, and its mean.

    - `ap/CLASS`: sum over the ranks of (gain in recall) * precision; nan for a class without images.
    - `map`: the mean over the classes with images; nan if no class has any.
    - `absent_classes`: the number of classes without images.

    Args:
        classes: names of the foreground classes.

    >>> metric = TagScores(("cat", "dog"))
    >>> metric.update(torch.tensor([[0.9, 0.5], [0.7, 0.5], [0.8, 0.5]]), torch.tensor([[1, 0], [1, 0], [0, 0]]))
    >>> {key: round(float(value), 4) for key, value in metric.compute().items()}
    {'map': 0.8333, 'absent_classes': 1.0, 'ap/cat': 0.8333, 'ap/dog': nan}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    scores: list[Tensor]
    tags: list[Tensor]

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("tags", [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Resets the scores, to empty ones of the right shape, for a process without images."""
        super().reset()
        self.scores.append(torch.zeros(0, len(self.classes), device=self.device))
        self.tags.append(torch.zeros(0, len(self.classes), dtype=torch.bool, device=self.device))

    @property
    def metric_keys(self) -> tuple[str, ...]:
        """The names of all values that `compute` returns, known before any data is seen."""
        return ("map", "absent_classes", *(f"ap/{name}" for name in self.classes))

    def update(self, scores: Tensor, tags: Tensor) -> None:
        """Adds a batch.

        Args:
            scores: (N, n), probabilities in 0..1.
            tags: (N, n) of 0 and 1.

        Raises:
            ValueError: shapes that do not match.
        """
        if scores.shape != tags.shape or scores.ndim != 2 or scores.shape[1] != len(self.classes):
            raise ValueError(
                f"scores {tuple(scores.shape)} and tags {tuple(tags.shape)}, expected (N, {len(self.classes)}) twice"
            )
        self.scores.append(scores.detach().float())
        self.tags.append(tags.detach() > 0.5)

    def compute(self) -> dict[str, Tensor]:
        """The values of `metric_keys`, as scalars."""
        values = torch.full((len(self.classes),), torch.nan, device=self.device)
        scores, tags = dim_zero_cat(self.scores), dim_zero_cat(self.tags)
        for index in tags.any(0).nonzero()[:, 0].tolist():
            values[index] = binary_average_precision(scores[:, index], tags[:, index].int())
        by_class = {f"ap/{name}": value for name, value in zip(self.classes, values, strict=True)}
        return {"map": values.nanmean(), "absent_classes": values.isnan().sum().float(), **by_class}
