"""The errors of masks by cause: another object, background, missed, or swapped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from structseg.lightning_modules.metrics.segmentation import SegmentationMetrics

FAULTS = ("fp_object", "fp_background", "miss", "swap")


class FaultMetrics(SegmentationMetrics):
    """`SegmentationMetrics`, and the errors of each foreground class in the categories of the CONTA paper.

    With M the confusion matrix, rows truth, and class 0 the background, shares in 0..1 of all pixels of the data set:

        fp_object/C     = sum of M[t, C] over other objects t / pixels predicted C     another object taken for C
        fp_background/C = M[0, C] / pixels predicted C                                 background taken for C
        miss/C          = M[C, 0] / pixels of C                                        C taken for background
        swap/C          = sum of M[C, p] over other objects p / pixels of C            C taken for another object
        on/A/B          = M[B, A] / pixels predicted A          share of A's prediction that lies on B, for each pair
        goes_to/A/B     = M[A, B] / pixels of A                 share of A that is predicted as B, for each pair

    nan where there are no such pixels; `mean_fp_object`, `mean_fp_background`, `mean_miss` and `mean_swap` are plain
    means over the classes that have a value.

    Args:
        classes: names of the K classes by index, background first.
        ignore_index: target value of the pixels to leave out.
        groups: class indices of each named group.
        pairs: names (A, B) of two classes whose confusion is scored separately.

    Raises:
        ValueError: a pair of unknown names, of one class twice, or given twice.

    >>> import torch
    >>> metric = FaultMetrics(["background", "horse", "person"], pairs=[("horse", "person")])
    >>> metric.update(torch.tensor([[[1, 1, 1, 0]]]), torch.tensor([[[1, 1, 2, 2]]]))
    >>> scores = metric.compute()
    >>> round(float(scores["on/horse/person"]), 4), round(float(scores["miss/horse"]), 4)
    (0.3333, 0.0)
    """

    def __init__(
        self,
        classes: Sequence[str],
        ignore_index: int = 255,
        groups: Mapping[str, tuple[int, ...]] | None = None,
        pairs: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(classes, ignore_index, groups)
        self.pairs = checked_pairs(pairs, self.classes)

    @property
    def metric_keys(self) -> tuple[str, ...]:
        """The names of all values that `compute` returns."""
        by_class = tuple(f"{fault}/{name}" for fault in FAULTS for name in self.classes[1:])
        by_pair = tuple(f"{what}/{first}/{second}" for first, second in self.pairs for what in ("on", "goes_to"))
        return (*super().metric_keys, *(f"mean_{fault}" for fault in FAULTS), *by_class, *by_pair)

    def compute(self) -> dict[str, Tensor]:
        """All values as float32 scalars on the CPU."""
        return {**super().compute(), **fault_scores(self.confusion.cpu(), self.classes, self.pairs)}


def checked_pairs(pairs: Iterable[Sequence[str]], classes: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Checks pairs of class names whose confusion is scored.

    Raises:
        ValueError: a pair of unknown names, of one class twice, or given twice.
    """
    found = [tuple(pair) for pair in pairs]
    for pair in found:
        if len(pair) != 2 or len(set(pair)) < 2 or not set(pair) <= set(classes) or found.count(pair) > 1:
            raise ValueError(
                f"pair {' / '.join(pair)} is not two of {', '.join(classes)}, or is given twice; set pairs"
            )
    return tuple((first, second) for first, second in found)


def fault_scores(confusion: Tensor, classes: Sequence[str], pairs: Sequence[tuple[str, str]] = ()) -> dict[str, Tensor]:
    """The errors in a confusion matrix (K, K), rows truth, under the names of `FaultMetrics`; float32 scalars."""
    matrix = confusion.double()
    hits, truth, guess = matrix.diagonal()[1:], matrix.sum(1), matrix.sum(0)
    objects = matrix[1:, 1:]
    # 0 / 0 is nan, as it should be.
    faults = {
        "fp_object": (objects.sum(0) - hits) / guess[1:],
        "fp_background": matrix[0, 1:] / guess[1:],
        "miss": matrix[1:, 0] / truth[1:],
        "swap": (objects.sum(1) - hits) / truth[1:],
    }
    values = {f"mean_{fault}": shares.nanmean() for fault, shares in faults.items()}
    for fault, shares in faults.items():
        values |= {f"{fault}/{name}": share for name, share in zip(classes[1:], shares, strict=True)}
    for first, second in pairs:
        a, b = classes.index(first), classes.index(second)
        values[f"on/{first}/{second}"] = matrix[b, a] / guess[a]
        values[f"goes_to/{first}/{second}"] = matrix[a, b] / truth[a]
    return {key: value.float() for key, value in values.items()}
