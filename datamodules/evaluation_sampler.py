"""Which samples of an evaluation a process takes: each sample once over all processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DistributedSampler

from datamodules.samples import Sample


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
        """How many; 1 where there is none: of a loader of length 0 Lightning leaves out the end of the evaluation too.

        The other processes would wait there for this one, to add up what all have counted.
        """
        return max(1, len(self.indices))
