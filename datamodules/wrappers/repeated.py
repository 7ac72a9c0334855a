"""Training sets in which each image occurs several times an epoch, augmented anew each time."""

from __future__ import annotations

from torch.utils.data import Dataset

from structseg.datamodules.batch import Sample
from structseg.datamodules.samplers import set_epoch


class RepeatedDataset(Dataset[Sample]):
    """The samples of another data set, each `repeats` times under its own name.

    An epoch then draws that many augmentations of each image, as where a data set is multiplied in advance.

    Args:
        data: any samples.
        repeats: how often each occurs, 1 or more.
    """

    def __init__(self, data: Dataset[Sample], repeats: int) -> None:
        self.data, self.repeats = data, repeats

    def __len__(self) -> int:
        return self.repeats * len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sample:
        """The sample that `index` repeats; the repeats of one sample lie a data set's length apart."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self.data[index % len(self.data)]  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Passed on to a data set whose samples vary."""
        set_epoch(self.data, epoch)
