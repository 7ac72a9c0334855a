"""Dataset-level segmentation scores from one confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

# Pixels counted at once, which limits the memory of an update to some tens of MB.
_CHUNK = 1 << 22
_PER_CLASS = ("iou", "f1", "precision", "recall")


class SegmentationMetrics(Metric):
    """IoU, F1, precision and recall of each class, their means and pixel accuracy, over all pixels seen.

    One confusion matrix of the whole data set is kept and summed over processes, so that the scores do not depend on
    batches or processes. With TP, FP and FN of a class over all pixels that are not ignored:

        IoU = TP / (TP + FP + FN)         F1 = 2 TP / (2 TP + FP + FN)
        precision = TP / (TP + FP)        recall = TP / (TP + FN)

    - A class in neither truth nor predictions is absent: nan in all four, left out of the means, and counted in
      `absent_classes`.
    - A class in the truth that is never predicted has 0 in all four, also in precision.
    - A class that is predicted but not in the truth has 0 in all four, also in recall.
    - Means are over the classes that are not absent, with the background. `pixel_accuracy` is over pixels.
    - A group is one region of several classes (the mouth and its lips): confusion within it is no error.
      `group_f1/overall` pools TP, FP and FN of all groups, as is common for HELEN's parts.
    - Before any counted pixel all values are nan and all classes absent.

    Args:
        classes: names of the K classes by index.
        ignore_index: target value of the pixels to leave out.
        groups: class indices of each named group.

    Attributes:
        confusion: (K, K) int64, rows truth, columns prediction: this process's counts since the last reset. Inside
            `with metric.sync_context():` those of all processes.

    Raises:
        ValueError: names repeat, or a group holds no class or one that does not exist.

    >>> metric = SegmentationMetrics(["background", "face"])
    >>> metric.update(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 1]]]))
    >>> scores = metric.compute()
    >>> round(float(scores["iou/face"]), 2), round(float(scores["pixel_accuracy"]), 4)
    (0.5, 0.6667)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    confusion: Tensor

    def __init__(
        self, classes: Sequence[str], ignore_index: int = 255, groups: Mapping[str, tuple[int, ...]] | None = None
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.ignore_index = ignore_index
        self.groups = {name: tuple(members) for name, members in (groups or {}).items()}
        size = len(self.classes)
        if not size or len(set(self.classes)) != size:
            raise ValueError(f"classes are {', '.join(self.classes) or 'empty'}; give one name each, none twice")
        for name, members in self.groups.items():
            if (
                name == "overall"
                or not members
                or len(set(members)) != len(members)
                or not set(members) <= set(range(size))
            ):
                raise ValueError(
                    f"group {name} holds classes {members}; give a name other than overall and distinct indices "
                    f"0..{size - 1}"
                )
        self.add_state("confusion", torch.zeros(size, size, dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def metric_keys(self) -> tuple[str, ...]:
        """The names of all values that `compute` returns, known before any data is seen."""
        means = ("pixel_accuracy", "miou", "mean_f1", "mean_precision", "mean_recall", "absent_classes")
        classes = tuple(f"{score}/{name}" for score in _PER_CLASS for name in self.classes)
        groups = tuple(f"group_{score}/{name}" for score in ("iou", "f1") for name in self.groups)
        return means + classes + groups + (("group_f1/overall",) if groups else ())

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Counts a batch.

        Args:
            preds: (N, H, W) integer class indices, or (N, K, H, W) logits or probabilities, whose arg-max is taken.
            target: (N, H, W) integer class indices, `ignore_index` for pixels to leave out.

        Raises:
            ValueError: shapes do not match, or a value is no class; then nothing is counted.
            TypeError: the target is not of integers, or indices and scores are mixed up.
        """
        size = len(self.classes)
        self._check_form(preds, target)
        if preds.ndim == 4:
            preds = preds.argmax(dim=1)
        # Two more bins than the matrix has, for ignored pixels and for values that are no class, so that the check
        # needs no further pass over the pixels.
        counts = torch.zeros(size * size + 2, dtype=torch.int64, device=target.device)
        for truth, guess in zip(target.flatten().split(_CHUNK), preds.flatten().split(_CHUNK), strict=True):
            cells = truth.long() * size + guess
            cells.masked_fill_((truth < 0) | (truth >= size) | (guess < 0) | (guess >= size), size * size + 1)
            cells.masked_fill_(truth == self.ignore_index, size * size)
            counts += torch.bincount(cells, minlength=size * size + 2)
        if counts[-1]:
            raise ValueError(self._foreign(preds, target))
        self.confusion += counts[:-2].view(size, size)

    def compute(self) -> dict[str, Tensor]:
        """All scores as float32 scalars on the CPU, under the names of `metric_keys`."""
        matrix = self.confusion.cpu().double()
        hits, truth, guess = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        absent = truth + guess == 0
        scores = {
            "iou": _ratio(hits, truth + guess - hits, absent),
            "f1": _ratio(2 * hits, truth + guess, absent),
            "precision": _ratio(hits, guess, absent),
            "recall": _ratio(hits, truth, absent),
        }
        values = {
            "pixel_accuracy": hits.sum() / matrix.sum(),
            "miou": scores["iou"].nanmean(),
            **{f"mean_{score}": scores[score].nanmean() for score in _PER_CLASS[1:]},
            "absent_classes": absent.sum(),
        }
        for score, by_class in scores.items():
            values.update({f"{score}/{name}": value for name, value in zip(self.classes, by_class, strict=True)})
        if self.groups:
            values.update(self._group_scores(matrix))
        return {key: value.float() for key, value in values.items()}

    def _group_scores(self, matrix: Tensor) -> dict[str, Tensor]:
        members = [list(indices) for indices in self.groups.values()]
        hits = torch.stack([matrix[indices][:, indices].sum() for indices in members])
        both = torch.stack([matrix[indices].sum() + matrix[:, indices].sum() for indices in members])
        iou, f1 = _ratio(hits, both - hits, both == 0), _ratio(2 * hits, both, both == 0)
        values = {f"group_iou/{name}": value for name, value in zip(self.groups, iou, strict=True)}
        values |= {f"group_f1/{name}": value for name, value in zip(self.groups, f1, strict=True)}
        return values | {"group_f1/overall": 2 * hits.sum() / both.sum()}

    def _check_form(self, preds: Tensor, target: Tensor) -> None:
        if target.is_floating_point() or preds.is_floating_point() is not (preds.ndim == 4):
            raise TypeError(
                f"preds are {preds.dtype} with {preds.ndim} axes, target {target.dtype}; expected integers (N, H, W) "
                f"or scores (N, K, H, W) as preds, and integers as target"
            )
        size = len(self.classes)
        expected = target.shape if preds.ndim != 4 else (target.shape[0], size, *target.shape[1:])
        if target.ndim != 3 or preds.shape != expected:
            raise ValueError(
                f"preds are {tuple(preds.shape)} and target {tuple(target.shape)}; expected (N, H, W) or "
                f"(N, {size}, H, W) and (N, H, W) with the same N, H, W"
            )

    def _foreign(self, preds: Tensor, target: Tensor) -> str:
        size = len(self.classes)
        counted = target != self.ignore_index
        wrong = {
            name: labels[counted & ((labels < 0) | (labels >= size))].unique().tolist()
            for name, labels in (("target", target), ("preds", preds))
        }
        what = "target" if wrong["target"] else "preds"
        return (
            f"{what} holds {', '.join(map(str, wrong[what][:5]))}, but there are {size} classes (0..{size - 1}, "
            f"ignored: {self.ignore_index}); map the labels to {self.classes[0]}, …, {self.classes[-1]} first"
        )


def _ratio(part: Tensor, whole: Tensor, absent: Tensor) -> Tensor:
    """`part / whole`, 0 for 0 / 0, nan where absent."""
    return torch.where(absent, torch.nan, part / whole.clamp(min=1))
