"""Sums over the regions of images, and back: each pixel gets its region's value. No loop over regions.

`ids` is int64 (N, 1, H, W), 0..bins - 1. On a CPU it is the reading of the ids that takes the time, so two quantities
are summed, and spread, as real and imaginary part of one.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_PARTS = 4  # of a batch, one after the other on a CPU: bounds the memory
_BAND = 4096  # pixels that float32 sums without loss


def images_at_once(values: Tensor) -> int:
    """How many images are worked on at once."""
    return len(values) if values.is_cuda else -(-len(values) // _PARTS)


def region_sum(values: Tensor, ids: Tensor, bins: int) -> Tensor:
    """(N, C, H, W) summed over each region: (N, C, bins).

    Bands of pixels are summed apart and then together: a long sum in float32 loses digits, and on a GPU fewer threads
    wait for each other. Where regions are too many for that, the sums are of double precision.
    """
    n, c, h, w = values.shape
    bands = _bands(h * w, bins)
    index = ids.view(n, 1, bands, -1).expand(-1, c, -1, -1)
    kept = values.dtype
    if h * w > _BAND * bands:
        values = values.to(torch.complex128 if values.is_complex() else torch.float64)
    table = values.new_zeros(n, c, bands, bins)
    return table.scatter_add_(3, index, values.reshape(n, c, bands, -1)).sum(2).to(kept)


@lru_cache
def _bands(pixels: int, bins: int) -> int:
    """As many as divide the pixels and make tables that are small beside the image."""
    most = max(pixels // (64 * bins), 1)
    return max(d for d in range(1, most + 1) if pixels % d == 0)


def sum_two(first: Tensor, second: Tensor, ids: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """`region_sum` of both."""
    if first.is_cuda or torch.is_grad_enabled():
        return region_sum(first, ids, bins), region_sum(second, ids, bins)
    parts = zip(*(tensor.split(images_at_once(first)) for tensor in (first, second, ids)), strict=True)
    table = torch.cat([region_sum(torch.complex(real, imaginary), index, bins) for real, imaginary, index in parts])
    return table.real, table.imag


def spread(table: Tensor, ids: Tensor) -> Tensor:
    """(N, C, bins) to (N, C, H, W): each pixel gets its region's value."""
    n, c, _ = table.shape
    return table.gather(2, ids.view(n, 1, -1).expand(-1, c, -1)).view(n, c, *ids.shape[2:])


def spread_two(first: Tensor, second: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """`spread` of both."""
    if first.is_cuda:
        return spread(first, ids), spread(second, ids)
    both = spread(torch.complex(first, second), ids)
    return both.real, both.imag
