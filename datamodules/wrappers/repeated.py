"""Training sets in which each image occurs several times an epoch, varied anew each time."""

from __future__ import annotations

from torch.utils.data import Dataset

from structseg.datamodules.batch import Sample


class VersionsDataset(Dataset[Sample]):
    """The samples of another data set, each `versions` times; their names stay theirs.

    An epoch so long draws that many augmented versions of each image, as where a data set is multiplied in advance.

    Args:
        data: any samples.
        versions: how often each occurs, 1 or more.
    """

    def __init__(self, data: Dataset[Sample], versions: int) -> None:
        self.data, self.versions = data, versions

    def __len__(self) -> int:
        return self.versions * len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sample:
        """The sample that `index` is a version of; those of one sample lie a data set's length apart."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self.data[index % len(self.data)]  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Passed on to a data set whose samples vary."""
        tell = getattr(self.data, "set_epoch", None)
        if tell is not None:
            tell(epoch)
