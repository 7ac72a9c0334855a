"""Scores of structure: connected components, boundaries and superpixels.

All are computed on the CPU, image by image; their states are sums, so that they do not depend on batches or processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

TOLERANCE = 0.0075  # of the image's diagonal

# Sums of scores are integers, in billionths: equal for any precision, batch order and number of processes.
_UNIT = 10**9


def component_errors(prediction: Tensor, target: Tensor, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """The difference in the number of components, absolute and relative to the truth.

    A component is a connected region of equal value, 8-neighbourhood; those of class 0 are not counted. Ignored pixels
    are set to 0 in both maps. With t components of the truth and p of the prediction: |t - p|, and |t - p| / max(t, 1).

    Args:
        prediction: (N, H, W) integer class indices.
        target: (N, H, W) integer class indices, `ignore_index` for pixels to leave out.
        ignore_index: value of the target for pixels to leave out.

    Returns:
        (N,) int64 and (N,) float32, on the CPU.

    Raises:
        ValueError: shapes do not match.
        TypeError: a map is not of integers.
    """
    _check_maps(prediction=prediction, target=target)
    counted = target != ignore_index
    pairs = [_component_counts((labels * counted).cpu().numpy()) for labels in (target, prediction)]
    truth, found = (torch.tensor(counts, dtype=torch.int64) for counts in pairs)
    errors = (truth - found).abs()
    return errors, errors / truth.clamp(min=1)


def _component_counts(maps: NDArray[np.integer]) -> list[int]:
    """The number of components of each of (N, H, W) maps."""
    import cc3d

    counts = []
    for labels in maps.astype(np.int32):
        _, count = cc3d.connected_components(labels, connectivity=8, return_N=True)
        counts.append(int(count))
    return counts


def boundary_f1(
    prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255, tolerance: float = TOLERANCE
) -> Tensor:
    """F1 of each class's boundary in each image, after Csurka et al., BMVC 2013.

    The boundary of a class are its pixels with a pixel of another class above, below, left or right; the image's border
    and ignored pixels make no boundary, and ignored pixels are part of none. Precision is the share of
    the prediction's boundary pixels that lie at most `tolerance` diagonals from a boundary pixel of that class in the
    truth (between pixel centres, not rounded; Perazzi et al., CVPR 2016, round up); recall is the reverse.
    F1 = 2 P R / (P + R), and

    - nan if neither map has the class;
    - 0 if only one of them has the class, or a boundary of it;
    - 1 if both have it without a boundary, as it fills all counted pixels.

    Args:
        prediction: (N, H, W) integer class indices.
        target: (N, H, W) integer class indices, `ignore_index` for pixels to leave out.
        num_classes: K.
        ignore_index: value of the target for pixels to leave out.
        tolerance: in diagonals of the image.

    Returns:
        (N, K) float32, on the CPU.

    Raises:
        ValueError: shapes do not match.
        TypeError: a map is not of integers.
    """
    _check_maps(prediction=prediction, target=target)
    scores = np.full((len(target), num_classes), np.nan, np.float32)
    radius = tolerance * float(np.hypot(*target.shape[1:]))
    for row, guess, truth in zip(scores, prediction.cpu().numpy(), target.cpu().numpy(), strict=True):
        counted = truth != ignore_index
        edges = [_boundary(labels, counted) for labels in (guess, truth)]
        for label in range(num_classes):
            held = [(labels == label) & counted for labels in (guess, truth)]
            if held[0].any() or held[1].any():
                found, true = (np.argwhere(edge & here) for edge, here in zip(edges, held, strict=True))
                filled = not len(found) and not len(true) and held[0].any() and held[1].any()
                row[label] = 1.0 if filled else _match(found, true, radius)
    return torch.from_numpy(scores)


def _boundary(labels: NDArray[np.integer], counted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of (H, W) labels with a neighbour of another label, both counted."""
    edge = np.zeros(labels.shape, bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = (labels[one] != labels[other]) & counted[one] & counted[other]
        edge[one] |= differ
        edge[other] |= differ
    return edge


def _match(found: NDArray[np.intp], true: NDArray[np.intp], radius: float) -> float:
    """F1 of (P, 2) and (T, 2) points; a point is right if one of the other set is within the radius."""
    if not len(found) or not len(true):
        return 0.0
    from scipy.spatial import cKDTree

    shares = [
        np.isfinite(cKDTree(others).query(points, distance_upper_bound=radius + 1e-6)[0]).mean()
        for points, others in ((found, true), (true, found))
    ]
    return float(2 * shares[0] * shares[1] / sum(shares)) if any(shares) else 0.0


def superpixel_hits(prediction: Tensor, target: Tensor, superpixels: Tensor, ignore_index: int = 255) -> Tensor:
    """The number of superpixels with the right label, and of all superpixels, of each image.

    The label of a superpixel is the most frequent one of its pixels, the lowest of several; ignored pixels are not
    counted, and superpixels of only ignored pixels are left out.

    Args:
        prediction: (N, H, W) integer class indices.
        target: (N, H, W) integer class indices, `ignore_index` for pixels to leave out.
        superpixels: (N, H, W) integer ids, per image, in any order.
        ignore_index: value of the target for pixels to leave out.

    Returns:
        (N, 2) int64: right and all, on the CPU.

    Raises:
        ValueError: shapes do not match.
        TypeError: a map is not of integers.
    """
    _check_maps(prediction=prediction, target=target, superpixels=superpixels)
    rows = []
    for guess, truth, ids in zip(*(maps.cpu().numpy() for maps in (prediction, target, superpixels)), strict=True):
        counted = truth != ignore_index
        names, index = np.unique(ids[counted], return_inverse=True)
        labels = [_majority(index, labels[counted], len(names)) for labels in (guess, truth)]
        rows.append([int((labels[0] == labels[1]).sum()), len(names)])
    return torch.tensor(rows, dtype=torch.int64).view(-1, 2)


def _majority(index: NDArray[np.intp], labels: NDArray[np.integer], size: int) -> NDArray[np.intp]:
    """The most frequent label of each of `size` groups."""
    classes = int(labels.max(initial=0)) + 1
    counts = np.bincount(index * classes + labels, minlength=size * classes)
    majority: NDArray[np.intp] = counts.reshape(size, classes).argmax(1)
    return majority


def _check_maps(**maps: Tensor) -> None:
    shapes = {name: tuple(labels.shape) for name, labels in maps.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 3 for shape in shapes.values()):
        given = " and ".join(f"{name} is {shape}" for name, shape in shapes.items())
        raise ValueError(f"{given}; expected (N, H, W), the same for each")
    for name, labels in maps.items():
        if labels.is_floating_point():
            raise TypeError(f"{name} is {labels.dtype}; expected integers (take the arg-max of scores first)")


def _fixed(scores: Tensor) -> Tensor:
    """Scores in billionths, as integers; nan is 0."""
    return (scores.double().nan_to_num() * _UNIT).round().long()


def _mean(total: Tensor, count: Tensor) -> Tensor:
    return (total.cpu().double() / _UNIT / count.cpu()).float()


class ComponentError(Metric):
    """Mean over images of `component_errors` (Masi, Mathai, AbdAlmageed, CVPR 2020), and of the relative one.

    `component_error` and `component_error_relative`; nan before any image.

    Args:
        ignore_index: target value of the pixels to leave out.

    >>> metric = ComponentError()
    >>> metric.update(torch.tensor([[[1, 0, 1]]]), torch.tensor([[[1, 1, 1]]]))
    >>> {key: float(value) for key, value in metric.compute().items()}
    {'component_error': 1.0, 'component_error_relative': 1.0}
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    errors: Tensor
    relative: Tensor
    images: Tensor

    metric_keys = ("component_error", "component_error_relative")

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.add_state("errors", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("relative", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Counts a batch of (N, H, W) integer class indices; raises as `component_errors`."""
        errors, relative = component_errors(preds, target, self.ignore_index)
        self.errors += errors.sum()
        self.relative += _fixed(relative).sum()
        self.images += len(errors)

    def compute(self) -> dict[str, Tensor]:
        """Both means as float32 scalars on the CPU, under the names of `metric_keys`."""
        images = self.images.cpu()
        values = (self.errors.cpu() / images, _mean(self.relative, images))
        return dict(zip(self.metric_keys, values, strict=True))


class BoundaryF1(Metric):
    """Means of `boundary_f1`.

    `mean_boundary_f1`: the mean over images of each image's mean over its classes that are not nan.
    `boundary_f1/CLASS`: the mean over the images in which the class is not nan. nan without such images.

    Args:
        classes: names of the K classes by index.
        ignore_index: target value of the pixels to leave out.
        tolerance: in diagonals of the image.

    Raises:
        ValueError: no classes, or a tolerance below 0.

    >>> metric = BoundaryF1(["background", "face"], tolerance=0.0)
    >>> metric.update(torch.tensor([[[0, 0, 0, 1]]]), torch.tensor([[[0, 0, 1, 1]]]))
    >>> float(metric.compute()["mean_boundary_f1"])
    0.0
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    means: Tensor
    images: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, classes: Sequence[str], ignore_index: int = 255, tolerance: float = TOLERANCE) -> None:
        super().__init__()
        if not classes or not tolerance >= 0:
            raise ValueError(f"classes are {list(classes)}, tolerance is {tolerance}; give names, and 0 or more")
        self.classes, self.ignore_index, self.tolerance = tuple(classes), ignore_index, tolerance
        self.add_state("means", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(len(self.classes), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(self.classes), dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def metric_keys(self) -> tuple[str, ...]:
        """The names of all values that `compute` returns."""
        return ("mean_boundary_f1", *(f"boundary_f1/{name}" for name in self.classes))

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Counts a batch of (N, H, W) integer class indices; raises as `boundary_f1`."""
        scores = boundary_f1(preds, target, len(self.classes), self.ignore_index, self.tolerance)
        means, device = scores.nanmean(1), self.sums.device
        self.means += _fixed(means).sum().to(device)
        self.images += (~means.isnan()).sum()
        self.sums += _fixed(scores).sum(0).to(device)
        self.counts += (~scores.isnan()).sum(0).to(device)

    def compute(self) -> dict[str, Tensor]:
        """All means as float32 scalars on the CPU, under the names of `metric_keys`."""
        values = (_mean(self.means, self.images), *_mean(self.sums, self.counts))
        return dict(zip(self.metric_keys, values, strict=True))


class SuperpixelAccuracy(Metric):
    """Share of all superpixels of the data set that have the right label, as reported for LFW Part Labels.

    See `superpixel_hits`; nan before any superpixel.

    Args:
        ignore_index: target value of the pixels to leave out.

    >>> metric = SuperpixelAccuracy()
    >>> truth, ids = torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[7, 7, 7, 8]]])
    >>> metric.update(torch.tensor([[[1, 1, 0, 0]]]), truth, ids)
    >>> float(metric.compute()["superpixel_accuracy"])
    0.5
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    right: Tensor
    total: Tensor

    metric_keys = ("superpixel_accuracy",)

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.add_state("right", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, superpixels: Tensor) -> None:
        """Counts a batch of (N, H, W) integers each; raises as `superpixel_hits`."""
        right, total = superpixel_hits(preds, target, superpixels, self.ignore_index).sum(0).tolist()
        self.right += right
        self.total += total

    def compute(self) -> dict[str, Tensor]:
        """The share as a float32 scalar on the CPU."""
        return {"superpixel_accuracy": self.right.cpu() / self.total.cpu()}
