"""The scores of face parts as STN-iCNN reports them."""

from __future__ import annotations

from torch import Tensor

from structseg.lightning_modules.metrics.segmentation import SegmentationMetrics


class PartMetrics(SegmentationMetrics):
    """`SegmentationMetrics` and `published_overall_f1`, the figure that the published training code prints.

    That is the F1 of one region, all classes but the first, against the first, the background: to take an eye for a
    brow costs nothing. HELEN's usual figure, in which it does, is `group_f1/overall`. nan where neither truth nor
    predictions hold foreground.

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
