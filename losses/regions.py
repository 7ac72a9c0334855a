"""The regions of a batch: which pixel belongs to which, what label each has, and sums over them without a loop.

On a CPU reading the region ids takes the most time. Two quantities are therefore summed, and read back, in one pass, as
the real and the imaginary part of one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from structseg.losses.consensus_checks import check_probabilities, check_range

_CHUNKS = 4  # parts of a batch, one after the other on a CPU: bounds the memory
_BAND = 4096  # number of pixels that float32 sums without loss of digits


class Regions(NamedTuple):
    """The regions of a batch.

    Attributes:
        ids: int64 (N, 1, H, W), region of each pixel, 0..bins - 1; the last id is that of the ignored pixels.
        pixels: (N, 1, bins) float, number of pixels of each region, 0 for the last.
        label: (N, 1, bins) int64, or the (N, C, bins) sums of soft targets.
        classes: the hard target, (N, 1, H, W), 0 where ignored; None for a soft target.
        conflict: whether a region has two labels, a scalar.
        class_weight: (C,), weights of the classes in the label term, or None.
    """

    ids: Tensor
    pixels: Tensor
    label: Tensor
    classes: Tensor | None
    conflict: Tensor
    class_weight: Tensor | None = None

    @property
    def bins(self) -> int:
        """Number of regions in an image, plus one for the ignored pixels."""
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
        blobs: int64 (N, 1, H, W), or None: the regions are the labels.
        ignore_index: target value of the pixels that belong to no region.
        shared: whether an id in two images is one region.
        validate: check the values too.
        names: names of the images, for messages.

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
        low, high, *id_range = torch.stack(ends).tolist()
        if not soft and (low < 0 or high >= c or 0 <= ignore_index < c):
            ignored = target == ignore_index
            if validate:
                check_range("target", target.masked_fill(ignored, 0), c, names)
        if blobs is not None:
            last = id_range[1]
            if id_range[0] < 0 or last >= h * w // 16:
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
    else:  # count the pixels of each pair of region and label
        of_label = region_sum(one, torch.add(classes, ids, alpha=c), c * bins).view(n, 1, bins, c)
        pixels, (most, label) = of_label.sum(3), of_label.max(3)
        conflict = (most != pixels).any() if validate else conflict
    if ignored is not None:
        pixels[..., -1] = 0
    return Regions(ids, pixels, label, classes, conflict)


def _compact(blobs: Tensor, ignored: Tensor | None, shared: bool, names: Sequence[str] | None) -> tuple[Tensor, int]:
    """Large ids renumbered from 0, in each image or, if `shared`, over all images alike; and the highest id."""
    ids = blobs
    if ignored is not None:
        ids = blobs.masked_fill(ignored, torch.iinfo(torch.int64).max)
        ids = torch.where(ignored, ids.flatten(1).amin(1).view(-1, 1, 1, 1) % torch.iinfo(torch.int64).max, blobs)
    check_range("blobs", ids, None, names)
    for renumber in (False, True):
        if renumber:
            ids = ids.unique(return_inverse=True)[1]
        if not shared:
            ids = ids - ids.flatten(1).amin(1).view(-1, 1, 1, 1)
        last = int(ids.max())
        if last < ids[0].numel():
            break
    return ids, last


def images_at_once(values: Tensor) -> int:
    """Number of images in a chunk of the batch `values`."""
    return len(values) if values.is_cuda else -(-len(values) // _CHUNKS)


def region_sum(values: Tensor, ids: Tensor, bins: int) -> Tensor:
    """Sums of values (N, C, H, W) over each region of `ids` int64 (N, 1, H, W): (N, C, bins).

    Bands of pixels are summed separately and then together: a long sum in float32 loses digits, and on a GPU fewer
    threads wait for each other. With too many regions for that, the sums are in double precision.
    """
    n, c, h, w = values.shape
    bands = _bands(h * w, bins)
    index = ids.view(n, 1, bands, -1).expand(-1, c, -1, -1)
    dtype = values.dtype
    if h * w > _BAND * bands:
        values = values.to(torch.complex128 if values.is_complex() else torch.float64)
    table = values.new_zeros(n, c, bands, bins)
    return table.scatter_add_(3, index, values.reshape(n, c, bands, -1)).sum(2).to(dtype)


@lru_cache
def _bands(pixels: int, bins: int) -> int:
    """The most bands that divide the pixels evenly and whose tables stay small beside the image."""
    most = max(pixels // (64 * bins), 1)
    return max(d for d in range(1, most + 1) if pixels % d == 0)


def sum_two(first: Tensor, second: Tensor, ids: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """`region_sum` of two tensors in one pass."""
    if first.is_cuda or torch.is_grad_enabled():
        return region_sum(first, ids, bins), region_sum(second, ids, bins)
    parts = zip(*(tensor.split(images_at_once(first)) for tensor in (first, second, ids)), strict=True)
    table = torch.cat([region_sum(torch.complex(real, imaginary), index, bins) for real, imaginary, index in parts])
    return table.real, table.imag


def spread(table: Tensor, ids: Tensor) -> Tensor:
    """A table (N, C, bins) as a map (N, C, H, W): each pixel gets its region's value."""
    n, c, _ = table.shape
    return table.gather(2, ids.view(n, 1, -1).expand(-1, c, -1)).view(n, c, *ids.shape[2:])


def spread_two(first: Tensor, second: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """`spread` of two tables in one pass."""
    if first.is_cuda:
        return spread(first, ids), spread(second, ids)
    both = spread(torch.complex(first, second), ids)
    return both.real, both.imag
