"""Divisors over all processes of a training, so that several with a part of a batch each learn as one with all of it.

DistributedDataParallel averages the gradients of the processes. A loss sum / count has the gradient of the whole batch
if each process divides its own sum by the mean count of the processes: sum_r / (count / ranks), averaged, is that.
All processes must then call the loss together, which they do in training and not in evaluation.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def ranks_of(counts_over_ranks: bool) -> int:
    """The number of processes whose batches are one: 1 where it is not asked for, or not several."""
    if counts_over_ranks and dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return 1


@torch.no_grad()
def total_over_ranks(counts: Tensor, largest: bool = False) -> Tensor:
    """The sum, or the largest, of each entry over the processes; `counts` stays as it is."""
    total = counts.detach().clone()
    dist.all_reduce(total, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)
    return total


def divisor(count: Tensor, counts_over_ranks: bool) -> Tensor:
    """What a sum is divided by for a mean over `count` things, or of each entry; 1 where there is none.

    Things may have weights: then it is their sum. Over several processes the mean of theirs.
    """
    ranks = ranks_of(counts_over_ranks)
    if ranks > 1:
        count = total_over_ranks(count)
    return count.where(count > 0, 1) / ranks if ranks > 1 else count.where(count > 0, 1)


def sum_over_ranks(values: Tensor, counts_over_ranks: bool) -> Tensor:
    """The sum of each entry over the processes, with the gradient that the average of the processes needs.

    For what is no sum over pixels, such as a ratio of sums, and which all processes then compute alike.
    """
    ranks = ranks_of(counts_over_ranks)
    if ranks == 1:
        return values
    return total_over_ranks(values) + ranks * (values - values.detach())
