"""Which samples of an evaluation a process takes: each sample once over all processes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from structseg.datamodules.batch import Sample
from structseg.datamodules.files.text import read_number_table


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
        return itertools.islice(self._drawn(), self.seen[1] if self.epoch == self.seen[0] else 0, None)

    def _drawn(self) -> Iterator[Any]:
        return super().__iter__()

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch, while no worker reads."""
        super().set_epoch(epoch)
        set_epoch(self.dataset, epoch)


class WeightedSampler(EpochSampler):
    """As many samples an epoch as there are, drawn with replacement in proportion to their weights.

    Args:
        data: the samples.
        world: number of processes.
        rank: of this process, from 0.
        weights: (N,) above or at 0, not all 0; of a data set that repeats its images the weights of one round.
        seed: of the draws; each epoch has its own.
    """

    def __init__(self, data: Any, world: int, rank: int, weights: Tensor, seed: int = 0) -> None:
        super().__init__(data, world, rank, shuffle=True, seed=seed)
        self.weights = weights.repeat(len(data) // len(weights))

    def _drawn(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        drawn = torch.multinomial(self.weights, self.total_size, replacement=True, generator=generator)
        return iter(drawn[self.rank :: self.num_replicas].tolist())


def read_weights(given: str, data: Any) -> Tensor:
    """(N,) float64: the weight of each sample, for `WeightedSampler`.

    Args:
        given: `class`: with these weights each class, background too, is drawn equally often with an image that holds
            it; or a CSV file with the header `name,weight`.
        data: the samples, each with `mask` and `name`; all are read once.

    Raises:
        FileNotFoundError: no such file.
        ValueError: samples without mask; a file without weights for some, or with one that is negative.
    """
    if given != "class":
        found = read_number_table(Path(given).expanduser())
        names = getattr(data, "names", None) or [data[index]["name"] for index in range(len(data))]
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(
                f"{given} lacks the weight of {len(missing)} of {len(names)} images, first {missing[0]}; add"
            )
        weights = torch.tensor([found[name] for name in names], dtype=torch.float64)
        if not (weights >= 0).all() or not weights.any():
            raise ValueError(f"{given} holds a weight below 0, or none above; give weights from 0")
        return weights
    held = torch.zeros(len(data), 256, dtype=torch.float64)
    for index in range(len(data)):
        held[index, data[index]["mask"].unique()] = 1
    held[:, 255] = 0
    weights = (held / held.sum(0).clamp(min=1)).sum(1)
    if not weights.any():
        raise ValueError("sample_weights=class: no training image holds a class; give masks")
    return weights


def set_epoch(data: Any, epoch: int) -> None:
    """Tells a data set the epoch, if its samples vary with it."""
    if hasattr(data, "set_epoch"):
        data.set_epoch(epoch)


def run_seed() -> int:
    """What `--seed_everything` was set to; Lightning keeps it in the environment, where children of DDP find it."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
