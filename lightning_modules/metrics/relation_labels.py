"""Coverage and precision of relation labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class RelationLabelScores(Metric):
    """Precision and coverage of labels with unlabelled pixels, pooled over all pixels seen.

    Pixels that the truth ignores are left out.

    - `precision`: share of the labelled pixels that have the true class; `foreground_precision`: the same for pixels
      labelled with a foreground class.
    - `coverage`: share of all pixels that are labelled; `foreground_coverage`: share of the true foreground that is
      labelled with any class. `foreground_recall`: share of the true foreground that has the true class.

    nan for a share of no pixels. One matrix is kept and summed over processes.

    Args:
        classes: names of the K classes by index, background first.
        ignore_index: value of unlabelled pixels, and of the truth's pixels to leave out.

    Attributes:
        confusion: (K, K + 1) int64, rows truth, columns label, the last for unlabelled pixels.

    Raises:
        ValueError: there is no foreground class.

    >>> metric = RelationLabelScores(["background", "cat"])
    >>> metric.update(torch.tensor([[0, 0, 255, 1]]), torch.tensor([[0, 1, 1, 1]]))
    >>> {key: round(float(value), 3) for key, value in metric.compute().items() if "foreground" not in key}
    {'precision': 0.667, 'coverage': 0.75}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    metric_keys = ("precision", "foreground_precision", "coverage", "foreground_coverage", "foreground_recall")

    confusion: Tensor

    def __init__(self, classes: Sequence[str], ignore_index: int = 255) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.ignore_index = ignore_index
        size = len(self.classes)
        if size < 2:
            raise ValueError(f"classes are {', '.join(self.classes) or 'empty'}; give background and one class or more")
        self.add_state("confusion", torch.zeros(size, size + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, labels: Tensor, truth: Tensor) -> None:
        """Counts an image or a batch.

        Args:
            labels: (..., H, W) integer class indices, `ignore_index` where unlabelled.
            truth: of the same shape, `ignore_index` for pixels to leave out.

        Raises:
            ValueError: shapes differ, or a value is no class.
            TypeError: one is not of integers.
        """
        size = len(self.classes)
        if labels.is_floating_point() or truth.is_floating_point():
            raise TypeError(f"labels are {labels.dtype}, truth {truth.dtype}; expected integer class indices")
        if labels.shape != truth.shape:
            raise ValueError(f"labels are {tuple(labels.shape)}, truth {tuple(truth.shape)}; resize one to the other")
        counted = truth != self.ignore_index
        rows, columns = truth[counted].long(), labels[counted].long()
        for name, values in (("truth", rows), ("labels", columns[columns != self.ignore_index])):
            if len(values) and (values.min() < 0 or values.max() >= size):
                wrong = [value for value in values.unique().tolist() if not 0 <= value < size]
                raise ValueError(f"{name} holds {wrong[0]}, but there are {size} classes; map the labels first")
        columns = columns.masked_fill(columns == self.ignore_index, size)
        cells = torch.bincount(rows * (size + 1) + columns, minlength=self.confusion.numel())
        self.confusion += cells.view_as(self.confusion)

    def compute(self) -> dict[str, Tensor]:
        """All scores as float32 scalars on the CPU, under the names of `metric_keys`."""
        matrix = self.confusion.cpu().double()
        labelled, right = matrix[:, :-1], matrix[:, :-1].diagonal()
        values = (
            right.sum() / labelled.sum(),
            right[1:].sum() / labelled[:, 1:].sum(),
            labelled.sum() / matrix.sum(),
            labelled[1:].sum() / matrix[1:].sum(),
            right[1:].sum() / matrix[1:].sum(),
        )
        return {key: value.float() for key, value in zip(self.metric_keys, values, strict=True)}
