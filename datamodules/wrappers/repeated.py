"""Training sets in which each image occurs several times per epoch, augmented anew each time."""

from __future__ import annotations

from torch.utils.data import Dataset

from structseg.datamodules.batch import Sample
from structseg.datamodules.samplers import set_epoch


class RepeatedDataset(Dataset[Sample]):
    """The samples of another data set, each `repeats` times and with the same name.

    Args:
        data: any samples.
        repeats: number of times that each occurs, 1 or more.
    """

    def __init__(self, data: Dataset[Sample], repeats: int) -> None:
        self.data, self.repeats = data, repeats

    def __len__(self) -> int:
        return self.repeats * len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sample:
        """The sample that `index` repeats; the whole data set is repeated, not sample after sample."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self.data[index % len(self.data)]  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Passes the epoch on to the data set."""
        set_epoch(self.data, epoch)
