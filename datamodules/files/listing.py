"""What a data set consists of on disk, faulty or not: for tools that look at every file instead of stopping at one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from structseg.datamodules.base import Split
from structseg.datamodules.label_spaces import LabelSpace


class FileSample(NamedTuple):
    """A sample by its files; nothing has been opened.

    Attributes:
        name: of the sample, as in a batch.
        image: the photograph.
        space: what the files' labels mean, before any map to the space that is trained.
        masks: the files of its label; none where they are missing, which has been said, or not needed.
        read_mask: gives the label at the size of its files, (h, w) uint8; raises as training does.
        tags: gives the classes that the image is said to hold, to be held against the mask; None = nothing to hold.
        coarse: whether the mask may be of another size than the photograph, of the same aspect.
        exchanged: whether a list says that left and right are exchanged in the files, which reading puts right.
    """

    name: str
    image: Path
    space: LabelSpace
    masks: tuple[Path, ...] = ()
    read_mask: Callable[[], NDArray[np.uint8]] | None = None
    tags: Callable[[], frozenset[str] | None] | None = None
    coarse: bool = False
    exchanged: bool = False


@runtime_checkable
class Listed(Protocol):
    """A datamodule whose samples are files."""

    def file_samples(self, split: Split, faults: list[str]) -> Sequence[FileSample]:
        """The samples of a split; what is missing or does not belong is added to `faults`, a line each.

        Raises:
            FileNotFoundError: there is nothing to list.
            ValueError: likewise.
        """
