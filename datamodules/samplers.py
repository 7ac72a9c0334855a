"""Samplers: the samples that each process draws, shuffled or weighted in training, each once in evaluation."""

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
    """Every `world`-th sample from `rank` on, in order; none is repeated to even out the processes.

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
        """The number of samples, but at least 1.

        Lightning skips the end of the evaluation for a loader of length 0, where the other processes would wait for
        this one to sum their counts.
        """
        return max(1, len(self.indices))


class EpochSampler(DistributedSampler[Sample]):
    """A DistributedSampler that passes the epoch on to its data set, whose samples may vary in the workers.

    Attributes:
        seen: (epoch, samples): how many samples of that epoch this process had seen before a fit was resumed.
    """

    seen: tuple[int, int] = (0, 0)

    def __iter__(self) -> Iterator[Any]:
        """The indices of this process in the epoch's order, without those already seen."""
        return itertools.islice(self._drawn(), self.seen[1] if self.epoch == self.seen[0] else 0, None)

    def _drawn(self) -> Iterator[Any]:
        return super().__iter__()

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch, while no worker reads."""
        super().set_epoch(epoch)
        set_epoch(self.dataset, epoch)


class WeightedSampler(EpochSampler):
    """Draws as many samples per epoch as there are, with replacement, in proportion to their weights.

    Args:
        data: the samples.
        world: number of processes.
        rank: of this process, from 0.
        weights: (N,), 0 or more, not all 0; for a data set that repeats its images, the weights of one repeat.
        seed: of the draws, which differ each epoch.
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
        given: `class`: weights with which each class, background too, is drawn equally often with an image that
            holds it; or a CSV file with the header `name,weight`.
        data: the samples, each with `mask` and `name`; all are read once.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no mask holds a class; a file lacks weights, holds a negative one, or only zeros.
    """
    if given != "class":
        table = read_number_table(Path(given).expanduser())
        names = getattr(data, "names", None) or [data[index]["name"] for index in range(len(data))]
        missing = [name for name in names if name not in table]
        if missing:
            raise ValueError(
                f"{given} lacks the weight of {len(missing)} of {len(names)} images, first {missing[0]}; add them"
            )
        weights = torch.tensor([table[name] for name in names], dtype=torch.float64)
        if not (weights >= 0).all() or not weights.any():
            raise ValueError(f"{given} holds a weight below 0, or only zeros; give weights of 0 or more")
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
    """Sets the epoch of a data set, if its samples vary with it."""
    if hasattr(data, "set_epoch"):
        data.set_epoch(epoch)


def run_seed() -> int:
    """The value of `--seed_everything`, which Lightning keeps in the environment, for DDP's processes too."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
