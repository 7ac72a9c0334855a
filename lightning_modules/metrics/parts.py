"""Scores of face parts, as reported for STN-iCNN."""

from __future__ import annotations

from torch import Tensor

from structseg.lightning_modules.metrics.segmentation import SegmentationMetrics


class PartMetrics(SegmentationMetrics):
    """`SegmentationMetrics` and `published_overall_f1`, the score that the published training code prints.

    It is the F1 of the foreground as one region: confusing an eye with a brow costs nothing. The usual score of HELEN,
    where it does, is `group_f1/overall`. nan if neither truth nor predictions have foreground.

    >>> import torch
    >>> metric = PartMetrics(["background", "brow", "eye"])
    >>> metric.update(torch.tensor([[[0, 1, 1, 2]]]), torch.tensor([[[0, 0, 2, 2]]]))
    >>> round(float(metric.compute()["published_overall_f1"]), 4)
    0.8
    """

    @property
    def metric_keys(self) -> tuple[str, ...]:
        """The names of all values that `compute` returns."""
        return (*super().metric_keys, "published_overall_f1")

    def compute(self) -> dict[str, Tensor]:
        """All values as float32 scalars on the CPU."""
        matrix = self.confusion.cpu().double()
        hits = matrix[1:, 1:].sum()
        both = matrix[1:].sum() + matrix[:, 1:].sum()
        return {**super().compute(), "published_overall_f1": (2 * hits / both).float()}
