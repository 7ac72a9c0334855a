"""The regions of a batch: which pixel belongs to which, and what label each has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from structseg.losses.consensus_checks import check_probabilities, check_range
from structseg.losses.region_sums import region_sum


class Regions(NamedTuple):
    """Which pixel belongs where, and what is known of each region.

    ids: int64 (N, 1, H, W), 0..bins - 1; the last one has the pixels that are ignored, and no others.
    pixels: (N, 1, bins) float, how many, 0 of the last.
    label: (N, 1, bins) int64, or the (N, C, bins) sums of soft targets.
    classes: the hard target, (N, 1, H, W), 0 where it is ignored; None where it is soft.
    conflict: whether a region has two labels, a scalar.
    class_weight: (C,) what a class counts in the label term, or None.
    """

    ids: Tensor
    pixels: Tensor
    label: Tensor
    classes: Tensor | None
    conflict: Tensor
    class_weight: Tensor | None = None

    @property
    def bins(self) -> int:
        """Number of regions an image, and one."""
        return self.pixels.shape[-1]


def find_regions(
    logits: Tensor,
    target: Tensor,
    blobs: Tensor | None,
    ignore_index: int,
    shared: bool,
    validate: bool,
    names: Sequence[str] | None = None,
) -> Regions:
    """The regions of a batch.

    Args:
        logits: (N, C, H, W).
        target: int64 (N, 1, H, W), or (N, C, H, W) probabilities.
        blobs: int64 (N, 1, H, W), or None for the labels.
        ignore_index: target value of the pixels that belong to no region.
        shared: whether the same id in two images is one region, so that ids keep their meaning over images.
        validate: look at the values.
        names: of the images, for messages.

    Raises:
        ValueError: values out of range.
    """
    n, c, h, w = logits.shape
    soft = target.is_floating_point()
    classes = target.argmax(1, keepdim=True) if soft else target
    ids, last = (classes, c - 1) if blobs is None else (blobs, h * w - 1)
    ignored: Tensor | None = None
    if soft:
        if validate:
            check_probabilities(target, names)
        ignored = (target == 0).all(1, keepdim=True)
    if not torch.compiler.is_compiling() and (validate or not logits.is_cuda):
        ends = (*classes.aminmax(), *(() if blobs is None else blobs.aminmax()))
        low, high, *found = torch.stack(ends).tolist()
        if not soft and (low < 0 or high >= c or 0 <= ignore_index < c):
            ignored = target == ignore_index
            if validate:
                check_range("target", target.masked_fill(ignored, 0), c, names)
        if blobs is not None:
            last = found[1]
            if found[0] < 0 or last >= h * w // 16:
                ids, last = _compact(blobs, ignored, shared, names)
    elif not soft:
        ignored = target == ignore_index
    bins = last + 2
    if ignored is not None:
        classes, ids = classes.masked_fill(ignored, 0), ids.masked_fill(ignored, bins - 1)
    one = logits.new_ones(()).expand(n, 1, h, w)
    conflict = torch.zeros((), dtype=torch.bool, device=logits.device)
    if soft:
        label, pixels = region_sum(target.to(logits.dtype), ids, bins), region_sum(one, ids, bins)
        pixels[..., -1] = 0
        return Regions(ids, pixels, label, None, conflict)
    if blobs is None:
        pixels = region_sum(one, ids, bins)
        label = torch.arange(bins, device=logits.device).clamp(max=c - 1).expand(n, 1, bins)
    else:  # the pixels of each pair of region and label: their sum, the largest, and whether there is a second
        of_label = region_sum(one, torch.add(classes, ids, alpha=c), c * bins).view(n, 1, bins, c)
        pixels, (most, label) = of_label.sum(3), of_label.max(3)
        conflict = (most != pixels).any() if validate else conflict
    if ignored is not None:
        pixels[..., -1] = 0
    return Regions(ids, pixels, label, classes, conflict)


def _compact(blobs: Tensor, ignored: Tensor | None, shared: bool, names: Sequence[str] | None) -> tuple[Tensor, int]:
    """Large ids numbered anew from 0, in each image, or the same in all where images share them; and the last."""
    ids = blobs
    if ignored is not None:
        ids = blobs.masked_fill(ignored, torch.iinfo(torch.int64).max)
        ids = torch.where(ignored, ids.flatten(1).amin(1).view(-1, 1, 1, 1) % torch.iinfo(torch.int64).max, blobs)
    check_range("blobs", ids, None, names)
    for number_anew in (False, True):
        if number_anew:
            ids = ids.unique(return_inverse=True)[1]
        if not shared:
            ids = ids - ids.flatten(1).amin(1).view(-1, 1, 1, 1)
        last = int(ids.max())
        if last < ids[0].numel():
            break
    return ids, last
