"""HELEN with part labels: 2,330 photographs of faces of any size, eleven soft masks each."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from structseg.datamodules.batch import Split
from structseg.datamodules.faces import FaceDataModule
from structseg.datamodules.files.decoded import DecodedDataset
from structseg.datamodules.files.listing import FileSample
from structseg.datamodules.helen.files import LISTS, Face, find_faces, find_home, fitted_label, read_label, read_lists
from structseg.datamodules.images import read_image
from structseg.datamodules.label_spaces import HELEN, STN
from structseg.datamodules.wrappers.full_size import Originals


class HelenDataModule(FaceDataModule):
    """HELEN with part labels as published: 2,000 images to train, 230 to validate, 100 to test.

    Each photograph is given at `size` and, as `original`, at its own size, as is its mask; the masks of a batch are
    padded to the largest. The class of a pixel is that of its highest soft mask.

    The README of the data does not say which side is left. CelebAMask-HQ's left is the pictured person's: before
    training on one and testing on the other, look at a mask, and swap the files _lbl02 and _lbl03, _lbl04 and _lbl05,
    if left_eye is on the left of the image.

    Source: Smith, Zhang, Brandt, Lin, Yang, "Exemplar-Based Face Parsing", CVPR 2013; images: Le, Brandt, Lin, Bourdev,
    Huang, "Interactive Facial Feature Localization", ECCV 2012.

    Args:
        root: SmithCVPR2013_dataset_resized, with `images`, `labels`, exemplars.txt, tuning.txt and testing.txt, or its
            parent.
        train_limit: number of images of exemplars.txt to train on, the first ones; None: all.
        label_space: stn, in which skin and hair are background, or helen, parts or fasseg.
        originals: size of the originals and number of hidden parts; null: samples of `size` only.
        **kwargs: settings of `FaceDataModule` and `SegmentationDataModule`.

    Raises:
        ValueError: settings that do not go together, all named, or a label space that HELEN does not map to.
    """

    def __init__(
        self,
        root: str | Path,
        train_limit: int | None = None,
        label_space: str = STN.name,
        originals: Originals | None = Originals(),  # noqa: B008  # frozen by use: nothing writes to it
        **kwargs: Any,
    ) -> None:
        super().__init__(label_space, originals=originals, occluders=None, **kwargs)
        wrong = train_limit is not None and train_limit < 1
        self.check_settings([f"train_limit={train_limit} (1 or more)"] if wrong else [])
        self.root = Path(root).expanduser()
        self.train_limit = train_limit
        self._classes = HELEN.lookup(self.label_space)

    @cached_property
    def home(self) -> Path:
        """The folder of images, labels and lists; raises as `find_home`."""
        return find_home(self.root)

    @cached_property
    def lists(self) -> dict[str, tuple[str, ...]]:
        """The names of each split; `train_limit` is not applied.

        Raises:
            ValueError: as `read_lists`, or there are fewer training images than `train_limit`.
        """
        lists = read_lists(self.home)
        if self.train_limit is not None and self.train_limit > len(lists["train"]):
            raise ValueError(f"train_limit is {self.train_limit}; {LISTS['train']} has {len(lists['train'])} images")
        return lists

    def faces(self, split: Split) -> tuple[Face, ...]:
        """The files of a split, in the order of its list; raises as `find_faces`."""
        names = self.lists[split]
        return find_faces(self.home, names[: self.train_limit] if split == "train" else names)

    def make_dataset(self, split: Split) -> HelenDataset:
        """The samples of a split; masks of validation and test at their own size with `score_at=native`."""
        faces = self.faces(split)
        native = split != "train" and self.score_at == "native"
        return HelenDataset(faces, self.size, self._classes, self.originals, native_mask=native)

    def file_samples(self, split: Split, faults: list[str]) -> list[FileSample]:
        """For `structseg check`; raises as `find_home` and `read_lists`."""
        names = self.lists[split]
        samples = []
        for face in find_faces(self.home, names[: self.train_limit] if split == "train" else names, faults):
            masks = tuple(path for path in face.masks if path.is_file())
            whole = len(masks) == len(HELEN)  # missing ones are among the faults
            samples.append(
                FileSample(face.name, face.image, HELEN, masks, partial(read_label, face) if whole else None)
            )
        return samples


class HelenDataset(DecodedDataset):
    """Faces with their labels. The eleven files of a label are slow to read, so labels are kept, compressed.

    Args:
        faces: as `find_faces` returns them.
        size: (H, W) that photographs are resized to, bilinear with antialiasing.
        classes: (256,) int64: the class of the label space for each index of HELEN.
        originals: how large the originals are; None: no originals.
        native_mask: keep masks at the size of their files.
        memory_bytes: how much of the compressed labels to keep in memory.
    """

    def __init__(
        self,
        faces: Sequence[Face],
        size: tuple[int, int],
        classes: Tensor,
        originals: Originals | None = None,
        native_mask: bool = False,
        memory_bytes: int = 512 << 20,
    ) -> None:
        super().__init__([face.name for face in faces], size, native_mask, originals, memory_bytes)
        self.faces = tuple(faces)
        self.classes = classes.numpy().astype(np.uint8)

    def decoded(self, index: int) -> tuple[Any, ...]:
        """As `decode`: only the label is kept in memory."""
        return self.decode(index)

    def photograph(self, index: int) -> Image.Image:
        """The photograph of a sample at its full size, RGB; raises as `read_image`."""
        return read_image(self.faces[index].image)

    def label(self, index: int) -> NDArray[np.uint8]:
        """The label of a sample, (h, w) in the label space; raises as `fitted_label`."""
        if index in self._memory:
            packed, shape = self._memory[index]
            return np.frombuffer(zlib.decompress(packed), dtype=np.uint8).reshape(shape)
        label = self.classes[fitted_label(self.faces[index])]
        packed = zlib.compress(label.tobytes(), 1)
        if len(packed) <= self.memory_left:
            self.memory_left -= len(packed)
            self._memory[index] = packed, label.shape
        return label
