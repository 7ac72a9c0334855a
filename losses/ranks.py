"""Means over the pixels of all processes: several processes train like one process that has the whole batch.

DistributedDataParallel averages the gradients over the R processes. With S_r the sum and n_r the count of process r,
each process therefore returns S_r / (n / R), n = sum of n_r; the average is then (sum of S_r) / n, the mean over the
whole batch. All processes must call the loss together, which they do in training and not in evaluation.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size(counts_over_ranks: bool) -> int:
    """The number of processes to count over; 1 without `counts_over_ranks` or without a process group."""
    if counts_over_ranks and dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return 1


@torch.no_grad()
def total_over_ranks(counts: Tensor, largest: bool = False) -> Tensor:
    """A new tensor with the sum (with `largest`: the maximum) of each entry over the processes."""
    total = counts.detach().clone()
    dist.all_reduce(total, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)
    return total


def divisor(count: Tensor, counts_over_ranks: bool) -> Tensor:
    """The number n / R that turns this process's sum into its part of the mean; elementwise.

    Args:
        count: how many terms this process sums, or the sum of their weights. A total of 0 counts as 1.
        counts_over_ranks: count over all processes.
    """
    ranks = world_size(counts_over_ranks)
    if ranks > 1:
        count = total_over_ranks(count)
    return count.where(count > 0, 1) / ranks if ranks > 1 else count.where(count > 0, 1)


def sum_over_ranks(values: Tensor, counts_over_ranks: bool) -> Tensor:
    """The sum of each entry over the processes, whose gradient is right after DDP's average.

    For losses that are not sums over pixels, such as a ratio of sums, which every process then computes in full.
    """
    ranks = world_size(counts_over_ranks)
    if ranks == 1:
        return values
    return total_over_ranks(values) + ranks * (values - values.detach())
