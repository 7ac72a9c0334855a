"""Which samples of an evaluation a process takes: each sample once over all processes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DistributedSampler

from structseg.datamodules.batch import Sample


class EvaluationSampler(DistributedSampler[Sample]):
    """Every so many-th sample, in order; none is repeated to even out the processes, and one may have none at all.

    Args:
        data: the samples.
        world: number of processes.
        rank: of this process, from 0.
    """

    def __init__(self, data: Any, world: int, rank: int) -> None:
        super().__init__(data, world, rank, shuffle=False)
        self.indices = range(rank, len(data), world)

    def __iter__(self) -> Iterator[Any]:
        """This process's indices."""
        return iter(self.indices)

    def __len__(self) -> int:
        """How many; at least 1: of a loader of length 0 Lightning leaves out the end of the evaluation too.

        The other processes would wait there for this one, to sum what all have counted.
        """
        return max(1, len(self.indices))


class EpochSampler(DistributedSampler[Sample]):
    """A DistributedSampler that tells its data set the epoch, for samples that are varied in the workers.

    Attributes:
        seen: (epoch, samples): how many of this process's samples a resumed fit has seen of the epoch that it is in.
    """

    seen: tuple[int, int] = (0, 0)

    def __iter__(self) -> Iterator[Any]:
        """The indices of this process, in the epoch's order, without those that have been seen."""
        return itertools.islice(super().__iter__(), self.seen[1] if self.epoch == self.seen[0] else 0, None)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch, while no worker reads."""
        super().set_epoch(epoch)
        set_epoch(self.dataset, epoch)


def set_epoch(data: Any, epoch: int) -> None:
    """Tells a data set the epoch, if its samples vary with it."""
    if hasattr(data, "set_epoch"):
        data.set_epoch(epoch)


def run_seed() -> int:
    """What `--seed_everything` was set to; Lightning keeps it in the environment, where children of DDP find it."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
