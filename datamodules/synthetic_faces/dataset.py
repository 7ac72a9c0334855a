"""Synthetic faces as a torch data set, in any label space that CelebAMask-HQ's maps to."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.label_spaces import CELEBAMASK_HQ, LabelSpace
from datamodules.samples import Sample
from datamodules.synthetic_faces.render import check_size, render_face


class SyntheticFacesDataset(Dataset[Sample]):
    """`count` faces, rendered when asked for: the same seed gives the same pixels in every process and worker.

    A sample is `image` (3, H, W) float32 in 0..1, `mask` (H, W) int64, `name` str.

    Args:
        count: how many faces, at least 1.
        seed: of the data set, at least 0.
        size: (H, W) in pixels, each 32..1024.
        label_space: any space that CELEBAMASK_HQ maps to; one with a class `occluder` also gets the hands and things
            before the face, which the others call background.
        split: number of the split; two splits share no sample.
        occluder: index that hands and things before the face get in the mask; default: that of the class `occluder`,
            and of the background where there is none.

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
    ) -> None:
        if count < 1 or seed < 0 or split < 0:
            raise ValueError(f"count {count}, seed {seed}, split {split}; expected count >= 1, seed and split >= 0")
        check_size(size)
        self.count, self.seed, self.size, self.split = count, seed, size, split
        self.label_space = label_space
        self._table = CELEBAMASK_HQ.lookup(label_space).numpy()
        if occluder is None and "occluder" in label_space.classes:
            occluder = label_space.classes.index("occluder")
        self._occluder = occluder

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not -self.count <= index < self.count:
            raise IndexError(f"sample {index} of {self.count}")
        index %= self.count
        face = render_face(self.seed, index, self.size, self.split)
        mask = self._table[face.label]
        if self._occluder is not None:
            mask[face.occluder] = self._occluder
        image = np.ascontiguousarray(face.image.transpose(2, 0, 1)).astype(np.float32)
        image *= np.float32(1.0 / 255.0)
        return {
            "image": torch.from_numpy(image),
            "mask": torch.from_numpy(mask),
            "name": f"face_{self.seed}_{self.split}_{index:06d}",
        }
