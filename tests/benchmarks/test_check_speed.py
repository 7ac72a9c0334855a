"""What `structseg check` takes beside a peer that decodes the same files, in as many processes, and looks at nothing."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from structseg.audit.check import GROUP, SPLITS, check
from structseg.datamodules.celebamask_hq.datamodule import CelebAMaskHQDataModule
from structseg.datamodules.files.listing import FileSample, Listed
from structseg.datamodules.lfw_parts.datamodule import LFWPartsDataModule

_ROUNDS = 3
_KINDS: dict[str, Callable[[Path], Listed]] = {
    "lfw_parts": LFWPartsDataModule,
    "celebamask_hq_mini": CelebAMaskHQDataModule,
}


class _Decoded(Dataset[None]):
    """Photographs and masks opened and converted."""

    def __init__(self, samples: Sequence[FileSample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> None:
        with Image.open(self.samples[index].image) as image:
            image.convert("RGB")
        for path in self.samples[index].masks:
            with Image.open(path) as mask:
                np.asarray(mask)


def _listed(datamodule: Listed) -> list[FileSample]:
    return [sample for split in SPLITS for sample in datamodule.file_samples(split, [])]


def _plain(make: Callable[[], Listed], workers: int) -> None:
    samples = _listed(make())
    for _ in DataLoader(_Decoded(samples), batch_size=GROUP, num_workers=workers, collate_fn=len):
        pass


def _cpu_seconds(work: Callable[[], object]) -> float:
    """Of this process and the workers that it had, so that others on the machine count little."""
    before = os.times()
    work()
    return sum(os.times()[:4]) - sum(before[:4])


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("folder", list(_KINDS))
def test_check_beside_plain_decoding(folder: str, shared_data: Path, benchmark: Any, capsys: Any) -> None:
    """Both list the files, read them and are done; in turn, each in its best of some rounds."""
    workers = len(os.sched_getaffinity(0))
    make = partial(_KINDS[folder], shared_data / folder)
    count = len(_listed(make()))
    ours, peer = [], []
    for _ in range(_ROUNDS):
        ours.append(_cpu_seconds(lambda: check(make(), workers)))
        peer.append(_cpu_seconds(lambda: _plain(make, workers)))
    benchmark.pedantic(check, args=(make(), workers), rounds=1)
    speeds = [round(count / min(seconds)) for seconds in (ours, peer)]
    report = {"images a CPU second": speeds[0], "plain": speeds[1], "share": round(speeds[0] / speeds[1], 2)}
    benchmark.extra_info.update(report)
    with capsys.disabled():
        print(f"\n  check of {folder}, {workers} processes: {', '.join(f'{k} {v}' for k, v in report.items())}")
