"""Base of data sets of labelled photographs, which are decoded once and kept in memory as far as they fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from structseg.datamodules.batch import MaskFilter, Sample, image_tensor, mask_tensor
from structseg.datamodules.images import resize_image, resize_mask
from structseg.datamodules.wrappers.full_size import Originals, sample_with_original


class DecodedDataset(Dataset[Sample]):
    """Photographs with label maps; subclasses implement `photograph` and `label`.

    Args:
        names: of the samples.
        size: (H, W) that photographs are resized to, bilinear with antialiasing, and masks with the nearest filter.
        native_mask: keep masks at the size of their files.
        originals: also give each photograph at its full size, as `original`, with a mask of that size.
        memory_bytes: memory for decoded samples, in each process.

    Attributes:
        mask_filter: how masks are resized; set before the first sample is read.
    """

    mask_filter: MaskFilter = "nearest"

    def __init__(
        self,
        names: Sequence[str],
        size: tuple[int, int],
        native_mask: bool = False,
        originals: Originals | None = None,
        memory_bytes: int = 512 << 20,
    ) -> None:
        self.names, self.size, self.native_mask, self.originals = tuple(names), size, native_mask, originals
        self.memory_left = memory_bytes
        self._memory: dict[int, tuple[Any, ...]] = {}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """`image` (3, H, W) in 0..1, `mask` (H, W) or of the file's size, and `name`.

        With originals also `original` (3, h, w) in 0..1, from which `image` is resized; `mask` is then (h, w) or of the
        file's size.
        """
        image, mask = self.decoded(index)
        if self.originals is not None:
            return sample_with_original(image, mask, self.size, self.names[index])
        return {"image": image_tensor(image), "mask": mask_tensor(mask), "name": self.names[index]}

    def photograph(self, index: int) -> Image.Image:
        """The photograph of a sample at its full size, RGB."""
        raise NotImplementedError

    def label(self, index: int) -> NDArray[np.uint8]:
        """The label map of a sample at its full size, (h, w) in the label space."""
        raise NotImplementedError

    def check(self, index: int, photograph: Image.Image, label: NDArray[np.uint8]) -> None:
        """Raises a ValueError if the two do not belong together; for subclasses."""

    def decode(self, index: int) -> tuple[Any, ...]:
        """The photograph and the mask as samples have them: what is kept in memory."""
        photograph, label = self.photograph(index), self.label(index)
        self.check(index, photograph, label)
        if self.originals is not None:
            return self.originals.shrink(photograph, label, self.native_mask, self.mask_filter)
        mask = label if self.native_mask else resize_mask(label, self.size, self.mask_filter)
        return resize_image(photograph, self.size), mask

    def decoded(self, index: int) -> tuple[Any, ...]:
        """As `decode`, from memory if they are kept."""
        if index in self._memory:
            return self._memory[index]
        parts = self.decode(index)
        needed = sum(3 * part.width * part.height if isinstance(part, Image.Image) else part.nbytes
                     for part in parts if part is not None)  # fmt: skip
        if needed <= self.memory_left:
            self.memory_left -= needed
            self._memory[index] = parts
        return parts
