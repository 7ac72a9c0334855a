"""HELEN with part labels: 2,330 photographs of faces of any size, eleven soft masks each."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from structseg.datamodules.augmentation import Augmentation
from structseg.datamodules.base import SegmentationDataModule, Split
from structseg.datamodules.batch import Sample, image_tensor, mask_tensor
from structseg.datamodules.files.listing import FileSample
from structseg.datamodules.helen.files import LISTS, Face, check_sizes, find_faces, find_home, read_label, read_lists
from structseg.datamodules.images import image_size, read_image, resize_image, resize_mask
from structseg.datamodules.label_spaces import HELEN, STN
from structseg.datamodules.wrappers.blobs import BlobKind
from structseg.datamodules.wrappers.full_size import Originals, originals_problems, sample_with_original


class HelenDataModule(SegmentationDataModule):
    """HELEN with part labels as published: 2,000 images to train, 230 to validate, 100 to test.

    Each photograph comes squeezed to `size` and, as `original`, at its own size, as is its mask; a batch's masks are
    padded to the largest. A pixel is of the class whose soft mask is highest there.

    The README of the data does not say whose left is meant. CelebAMask-HQ's left is the pictured person's own: before
    training on one and measuring on the other, look at a mask, and exchange the files _lbl02 and _lbl03, _lbl04 and
    _lbl05, if left_eye lies on the left of an upright face.

    Source: Smith, Zhang, Brandt, Lin, Yang, "Exemplar-Based Face Parsing", CVPR 2013; images: Le, Brandt, Lin, Bourdev,
    Huang, "Interactive Facial Feature Localization", ECCV 2012.

    Args:
        root: SmithCVPR2013_dataset_resized, with `images`, `labels`, exemplars.txt, tuning.txt and testing.txt, or its
            parent.
        train_limit: train on the first so many images of exemplars.txt only.
        label_space: stn, in which skin and hair are background, or helen, parts or fasseg.
        size: (H, W) in pixels that images are squeezed to.
        batch_size: images a training batch, on each device.
        num_workers: processes that decode; each keeps the masks it has decoded.
        augmentation: how training batches are varied.
        mean: mean of each channel, on images in 0..1, that the module subtracts.
        std: deviation of each channel, on images in 0..1, that the module divides by.
        score_at: `native` scores on masks as they are, one image a batch; `size` on masks of the originals' size, or,
            where there are none, resized to `size`.
        seed: of which parts are hidden.
        predict_dir: an image, a folder of images, a video file, or `camera:N`, for `predict`.
        predict_out: the folder that predictions are written to.
        blobs: regions that a loss asks to agree: labels, components or superpixels; only without originals.
        originals: how large the originals are, and what is hidden in them; null gives samples of `size` alone.
        versions: how often each training image occurs in an epoch, augmented anew; 5 in the STN-iCNN paper.

    Raises:
        ValueError: settings that do not go together; all are named. A label space that the classes do not map to.
    """

    def __init__(
        self,
        root: str | Path,
        train_limit: int | None = None,
        label_space: str = STN.name,
        size: tuple[int, int] = (128, 128),
        batch_size: int = 16,
        num_workers: int = 0,
        augmentation: Augmentation = Augmentation(),  # noqa: B008  # frozen by use: nothing writes to it
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        score_at: Literal["size", "native"] = "size",
        seed: int = 0,
        predict_dir: str | None = None,
        predict_out: str = "predictions",
        blobs: BlobKind | None = None,
        originals: Originals | None = Originals(),  # noqa: B008  # frozen by use
        versions: int = 1,
    ) -> None:
        super().__init__(
            label_space, size, batch_size, num_workers, augmentation, mean, std, score_at, seed, predict_dir,
            predict_out, blobs,
        )  # fmt: skip
        problems = originals_problems(originals, self.label_space, blobs)
        if train_limit is not None and train_limit < 1:
            problems.append(f"train_limit={train_limit} (1 or more)")
        if versions < 1:
            problems.append(f"versions={versions} (1 or more)")
        if problems:
            raise ValueError("data: " + ", ".join(problems))
        self.root = Path(root).expanduser()
        self.train_limit = train_limit
        self.originals = originals
        self.versions = versions
        self._classes = HELEN.lookup(self.label_space)

    @cached_property
    def home(self) -> Path:
        """The folder of images, labels and lists; raises as `find_home`."""
        return find_home(self.root)

    @cached_property
    def lists(self) -> dict[str, tuple[str, ...]]:
        """The names of each split, training images beyond `train_limit` included.

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
        """The samples of a split; masks of validation and test at their own size where `score_at` says so."""
        faces = self.faces(split)
        for face in faces:  # what does not fit is found before an hour of training, not after
            check_sizes(face)
        native = split != "train" and self.score_at == "native"
        return HelenDataset(faces, self.size, self._classes, self.originals, native_mask=native)

    def file_samples(self, split: Split, faults: list[str]) -> list[FileSample]:
        """For `structseg check`; raises as `find_home` and `read_lists`."""
        names = self.lists[split]
        samples = []
        for face in find_faces(self.home, names[: self.train_limit] if split == "train" else names, faults):
            masks = tuple(path for path in face.masks if path.is_file())
            whole = len(masks) == len(HELEN)  # missing ones have been said
            samples.append(FileSample(face.name, face.image, HELEN, masks, partial(_label_of, face) if whole else None))
        return samples


def _label_of(face: Face) -> NDArray[np.uint8]:
    """As `read_label`, by the size in the photograph's header."""
    return read_label(face, image_size(face.image))


class HelenDataset(Dataset[Sample]):
    """Faces with their labels. Eleven files a label are slow to read, so labels are kept, compressed.

    Args:
        faces: as `find_faces` gives them.
        size: (H, W) that photographs are squeezed to, bilinear with antialiasing.
        classes: (256,) int64: what the indices of HELEN become.
        originals: how large the originals are; None gives none.
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
        self.faces = tuple(faces)
        self.size = size
        self.classes = classes.numpy().astype(np.uint8)
        self.originals = originals
        self.native_mask = native_mask
        self.memory_left = memory_bytes
        self._memory: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> Sample:
        """`image` (3, H, W) in 0..1 and `name`, with `original` (3, h, w) and `mask` (h, w), or `mask` (H, W) alone."""
        face = self.faces[index]
        photograph = read_image(face.image)
        mask = self._label(index, photograph.size)
        if self.originals is not None:
            original, mask = self.originals.shrink(photograph, mask, self.native_mask)
            return sample_with_original(original, mask, self.size, face.name)
        return {
            "image": image_tensor(resize_image(photograph, self.size)),
            "mask": mask_tensor(mask if self.native_mask else resize_mask(mask, self.size)),
            "name": face.name,
        }

    def _label(self, index: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """The label of an image of (width, height), (h, w) in the label space."""
        if index in self._memory:
            return np.frombuffer(zlib.decompress(self._memory[index]), dtype=np.uint8).reshape(size[::-1])
        label = self.classes[read_label(self.faces[index], size)]
        packed = zlib.compress(label.tobytes(), 1)
        if len(packed) <= self.memory_left:
            self.memory_left -= len(packed)
            self._memory[index] = packed
        return label
