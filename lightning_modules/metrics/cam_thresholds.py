"""Scores of class activation maps as a segmentation, at every background threshold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

THRESHOLDS = tuple(step / 100 for step in range(1, 100))


class CAMThresholds(Metric):
    """Mean IoU of class activation maps at the thresholds 0.01, 0.02, ... 0.99, over all pixels seen.

    At a threshold t a pixel is background if the maximum of the maps is below t, else of the class of the maximum. One
    histogram [truth, class of the maximum, number of thresholds that the maximum reaches] suffices for all thresholds;
    it is summed over processes. IoU, means and absent classes are those of `SegmentationMetrics`.

    `compute` gives, as float32 on the CPU:

    - `miou`, `threshold`: the best mean IoU and the threshold that reaches it, the lowest of several.
    - `iou/CLASS`: at that threshold, with the background; nan for a class in neither truth nor prediction.
    - `curve`: (99,) mean IoU at each of `THRESHOLDS`.

    All are nan before any counted pixel.

    Args:
        classes: names of the K classes by index, background first.
        ignore_index: value of the truth's pixels to leave out.

    Attributes:
        counts: (K, K - 1, 100) int64, this process's histogram since the last reset.

    Raises:
        ValueError: there is no foreground class, or names repeat.

    >>> metric = CAMThresholds(["background", "cat"])
    >>> metric.update(torch.tensor([[[0.1, 0.6, 0.9]]]), torch.tensor([[0, 1, 1]]))
    >>> scores = metric.compute()
    >>> round(float(scores["miou"]), 2), round(float(scores["threshold"]), 2)
    (1.0, 0.11)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    counts: Tensor

    def __init__(self, classes: Sequence[str], ignore_index: int = 255) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.ignore_index = ignore_index
        size = len(self.classes)
        if size < 2 or len(set(self.classes)) != size:
            raise ValueError(f"classes are {', '.join(self.classes) or 'empty'}; give background and one class or more")
        bins = torch.zeros(size, size - 1, len(THRESHOLDS) + 1, dtype=torch.int64)
        self.add_state("counts", bins, dist_reduce_fx="sum")

    @property
    def metric_keys(self) -> tuple[str, ...]:
        """The names of all single numbers that `compute` returns."""
        return ("miou", "threshold", *(f"iou/{name}" for name in self.classes))

    def update(self, cams: Tensor, truth: Tensor) -> None:
        """Counts an image.

        Args:
            cams: (K - 1, h, w) float in 0..1, of the foreground classes; resized to the truth, bilinear.
            truth: (H, W) integer class indices, `ignore_index` for pixels to leave out.

        Raises:
            ValueError: shapes do not match, a map is not finite, or the truth holds a value that is no class.
            TypeError: the truth is not of integers.
        """
        size, bins = len(self.classes), len(THRESHOLDS) + 1
        if truth.is_floating_point():
            raise TypeError(f"truth is {truth.dtype}; expected integer class indices")
        if cams.ndim != 3 or truth.ndim != 2 or len(cams) != size - 1:
            raise ValueError(
                f"cams are {tuple(cams.shape)} and truth {tuple(truth.shape)}; expected ({size - 1}, h, w) and (H, W)"
            )
        if not cams.isfinite().all():
            raise ValueError("cams hold nan or infinity; see the classifier's loss, or its learning rate")
        counted = truth != self.ignore_index
        labels = truth[counted].long()
        if len(labels) and (labels.min() < 0 or labels.max() >= size):
            wrong = [value for value in labels.unique().tolist() if not 0 <= value < size]
            raise ValueError(f"truth holds {wrong[0]}, but there are {size} classes; map the labels first")
        # Most classes of an image have no map; a pixel below every threshold needs no class.
        present = cams.flatten(1).any(1).nonzero()[:, 0]
        present = present if len(present) else present.new_zeros(1)
        large = F.interpolate(cams[present].float()[None], truth.shape, mode="bilinear", align_corners=False)[0]
        value, best = large.max(0)
        best = present[best]
        reached = torch.bucketize(value[counted], _thresholds(value.device), right=True)
        cells = (labels * (size - 1) + best[counted]) * bins + reached
        self.counts += torch.bincount(cells, minlength=self.counts.numel()).view_as(self.counts)

    def compute(self) -> dict[str, Tensor]:
        """The values of `metric_keys`, `curve` (99,), and `confusion` (K, K) at the best threshold, all on the CPU."""
        counts = self.counts.cpu().double()
        # (K, K - 1, 99): pixels whose maximum reaches a threshold; the others are background.
        kept = counts.flip(2).cumsum(2).flip(2)[..., 1:]
        truth = counts.sum((1, 2))
        predicted = torch.cat([(truth.sum() - kept.sum((0, 1)))[None], kept.sum(0)])
        right = torch.cat([(truth[0] - kept[0].sum(0))[None], kept[1:].diagonal(dim1=0, dim2=1).T])
        union = truth[:, None] + predicted - right
        iou = torch.where(union == 0, torch.nan, right / union.clamp(min=1))
        curve = iou.nanmean(0)
        if not truth.sum():
            nan = torch.tensor(torch.nan)
            return {
                **dict.fromkeys(self.metric_keys, nan),
                "curve": curve.float(),
                "confusion": torch.zeros(len(truth), len(truth)),
            }
        best = int((curve == curve.max()).nonzero()[0])
        values = (curve[best], torch.tensor(THRESHOLDS[best]), *iou[:, best])
        scores = {key: value.float() for key, value in zip(self.metric_keys, values, strict=True)}
        objects = kept[..., best]
        confusion = torch.cat([(truth - objects.sum(1))[:, None], objects], 1)
        return {**scores, "curve": curve.float(), "confusion": confusion}


def _thresholds(device: torch.device) -> Tensor:
    return torch.tensor(THRESHOLDS, device=device)
