"""Synthetic faces as a torch data set, in any label space that CelebAMask-HQ's maps to."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from structseg.datamodules.batch import Sample
from structseg.datamodules.files.decoded import DecodedDataset
from structseg.datamodules.label_spaces import CELEBAMASK_HQ, LabelSpace
from structseg.datamodules.synthetic_faces.render import check_size, render_face
from structseg.datamodules.wrappers.full_size import Originals


class SyntheticFacesDataset(DecodedDataset):
    """`count` faces, rendered on access: the same seed gives the same pixels in every process and worker.

    A sample is `image` (3, H, W) float32 in 0..1, `mask` (H, W) int64, `name` str; with originals also `original`
    (3, h, w) in 0..1, from which `image` is resized, and `mask` is (h, w).

    Args:
        count: number of faces, at least 1.
        seed: of the data set, at least 0.
        size: (H, W) in pixels, each 32..1024.
        label_space: any space that CELEBAMASK_HQ maps to.
        split: number of the split; splits have different samples.
        occluder: index of hands and other occluders in the mask; default: that of the class `occluder`, or of the
            background in a space without that class.
        original_size: (h, w), each 32..1024, that faces are drawn at and given as `original`; None: no originals.
        memory_bytes: memory for originals, which are slow to draw.

    Raises:
        ValueError: a number out of its range, or no map to the label space.
    """

    def __init__(
        self,
        count: int,
        seed: int = 0,
        size: tuple[int, int] = (128, 128),
        label_space: LabelSpace = CELEBAMASK_HQ,
        split: int = 0,
        occluder: int | None = None,
        original_size: tuple[int, int] | None = None,
        memory_bytes: int = 512 << 20,
    ) -> None:
        if count < 1 or seed < 0 or split < 0:
            raise ValueError(f"count {count}, seed {seed}, split {split}; expected count >= 1, seed and split >= 0")
        check_size(size if original_size is None else original_size)
        names = [f"face_{seed}_{split}_{index:06d}" for index in range(count)]
        super().__init__(names, size, originals=Originals() if original_size else None, memory_bytes=memory_bytes)
        self.original_size = original_size
        self.count, self.seed, self.split = count, seed, split
        self.label_space = label_space
        self._table = CELEBAMASK_HQ.lookup(label_space).numpy()
        if occluder is None and "occluder" in label_space.classes:
            occluder = label_space.classes.index("occluder")
        self._occluder = occluder

    def __getitem__(self, index: int) -> Sample:
        if not -self.count <= index < self.count:
            raise IndexError(f"sample {index} of {self.count}")
        index %= self.count
        if self.original_size is not None:
            return super().__getitem__(index)
        pixels, mask = self._draw(index, self.size)
        image = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
        image *= np.float32(1.0 / 255.0)
        return {"image": torch.from_numpy(image), "mask": torch.from_numpy(mask), "name": self.names[index]}

    def _draw(self, index: int, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """(H, W, 3) pixels and (H, W) classes of the label space."""
        face = render_face(self.seed, index, size, self.split)
        mask = self._table[face.label]
        if self._occluder is not None:
            mask[face.occluder] = self._occluder
        return face.image, mask

    def decode(self, index: int) -> tuple[Any, ...]:
        """The face at `original_size`, and its mask."""
        pixels, mask = self._draw(index, self.original_size or self.size)
        return Image.fromarray(pixels), mask.astype(np.uint8)
