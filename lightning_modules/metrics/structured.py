"""Segmentation scores together with those of structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from structseg.lightning_modules.metrics.segmentation import SegmentationMetrics
from structseg.lightning_modules.metrics.structure import BoundaryF1, ComponentError


class StructuredMetrics(SegmentationMetrics):
    """`SegmentationMetrics` with the values of `ComponentError` and `BoundaryF1`.

    Args:
        classes: names of the K classes by index.
        ignore_index: target value of the pixels to leave out.
        groups: class indices of each named group.
    """

    def __init__(
        self, classes: Sequence[str], ignore_index: int = 255, groups: Mapping[str, tuple[int, ...]] | None = None
    ) -> None:
        super().__init__(classes, ignore_index, groups)
        self.components = ComponentError(ignore_index)
        self.boundaries = BoundaryF1(classes, ignore_index)

    @property
    def metric_keys(self) -> tuple[str, ...]:
        """The names of all values that `compute` returns."""
        return (*super().metric_keys, *self.components.metric_keys, *self.boundaries.metric_keys)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Counts a batch: (N, H, W) class indices, or (N, K, H, W) scores, and the (N, H, W) target."""
        super().update(preds, target)
        labels = preds.argmax(1) if preds.ndim == 4 else preds
        self.components.update(labels, target)
        self.boundaries.update(labels, target)

    def compute(self) -> dict[str, Tensor]:
        """All values as float32 scalars on the CPU; each metric is summed over processes."""
        return {**super().compute(), **self.components.compute(), **self.boundaries.compute()}

    def reset(self) -> None:
        """Resets all counts."""
        super().reset()
        self.components.reset()
        self.boundaries.reset()
