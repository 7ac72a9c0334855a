"""LFW Part Labels: 2,927 photographs of people, each pixel background, face or hair."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from structseg.datamodules.base import SegmentationDataModule
from structseg.datamodules.batch import Sample, Split, image_tensor, mask_tensor
from structseg.datamodules.files.decoded import DecodedDataset
from structseg.datamodules.files.listing import FileSample
from structseg.datamodules.images import (
    check_image,
    fit_mask,
    open_mask,
    read_image,
    resize_image,
    resize_mask,
    to_rgb,
)
from structseg.datamodules.label_spaces import PARTS
from structseg.datamodules.lfw_parts.files import Face, find_faces, person_of, read_lists
from structseg.datamodules.wrappers.unlabelled import UnlabelledDataset

_SHIFTS = np.array([1, 1 << 8, 1 << 16], dtype=np.uint32)
_COLOURS = [red + (green << 8) + (blue << 16) for red, green, blue in PARTS.palette]
_NO_COLOUR = 1 << 24
_IN_ORDER = [value for colour in PARTS.palette for value in colour]


class LFWPartsDataModule(SegmentationDataModule):
    """LFW Part Labels as published: 1500 funneled photographs to train, 500 to validate, 927 to test.

    The published splits share persons: test scores are given for all photographs and, as `new_people`, for those of
    persons without training images.

    Source: Kae, Sohn, Lee, Learned-Miller, CVPR 2013; Huang, Jain, Learned-Miller, ICCV 2007 (funneling).

    Args:
        root: folder that holds lfw_funneled, parts_lfw_funneled_gt_images (PPM or PNG in the published colours) and
            the lists parts_train.txt, parts_validation.txt, parts_test.txt; the published superpixels, if wanted, in
            parts_lfw_funneled_superpixels_mat.
        label_space: parts, or any space that it maps to.
        size: (H, W) in pixels that images are resized to; they are 250x250.
        batch_size: training images per batch on each device.
        train_on: `train`, or `train+val` to train on both lists, without validation.
        **kwargs: settings of `SegmentationDataModule`.

    Raises:
        ValueError: settings that do not go together; all are named.
    """

    def __init__(
        self,
        root: str | Path,
        label_space: str = "parts",
        size: tuple[int, int] = (128, 128),
        batch_size: int = 16,
        train_on: Literal["train", "train+val"] = "train",
        **kwargs: Any,
    ) -> None:
        super().__init__(label_space, size, batch_size, seed=0, **kwargs)
        if train_on not in ("train", "train+val"):
            raise ValueError(f"data: train_on={train_on} (train or train+val)")
        self.root = Path(root).expanduser()
        self.train_on = train_on
        self._classes = PARTS.lookup(self.label_space)
        self._lists: dict[str, tuple[str, ...]] = {}

    def setup(self, stage: str) -> None:
        """Finds the test images of new persons, to be scored separately."""
        if stage == "test":
            test = self.names("test")
            seen = {person_of(name) for name in self.names("train")}
            new = frozenset(name for name in test if person_of(name) not in seen)
            if self.unlabelled is not None:  # the teacher was trained on those, the student on these
                if not self.unlabelled.is_dir():
                    rank_zero_info(f"LFW test: no folder {self.unlabelled}, so it is unknown who is new")
                    return
                seen = {person_of(name) for name in self.make_unlabelled().names}
                new = frozenset(name for name in new if person_of(name) not in seen)
            self.test_subsets = {"new_people": new} if new else {}
            rank_zero_info(f"LFW test: {len(test)} photographs; `new_people` has {len(new)}, of persons not trained on")

    @property
    def tests_superpixels(self) -> bool:  # type: ignore[override]  # computed from all files
        """Whether the blobs of test batches are the published superpixels, on which the literature reports accuracy."""
        return self.blobs == "superpixels" and all(face.superpixels is not None for face in self.faces("test"))

    @property
    def has_validation(self) -> bool:
        """Whether the validation images are not trained on."""
        return self.train_on == "train"

    def names(self, split: Split) -> tuple[str, ...]:
        """The labelled images of a split, in the order of the lists; raises as `read_lists`."""
        if not self._lists:
            self._lists = read_lists(self.root)
        if split == "train" and self.train_on == "train+val":
            return self._lists["train"] + self._lists["val"]
        return () if split == "val" and not self.has_validation else self._lists[split]

    def faces(self, split: Split) -> tuple[Face, ...]:
        """The files of a split; raises as `find_faces`."""
        return find_faces(self.root, self.names(split))

    def make_unlabelled(self) -> UnlabelledDataset:
        """The images of the folder `unlabelled` without those of the three lists."""
        assert self.unlabelled is not None
        self.names("train")
        return UnlabelledDataset(self.unlabelled, self.size, stems={n for part in self._lists.values() for n in part})

    def make_dataset(self, split: Split) -> LFWPartsDataset:
        """The samples of a split; masks of validation and test at their own size with `score_at=native`."""
        if split == "val" and not self.has_validation:
            raise ValueError("LFW: train+val leaves no validation images; set --data.train_on train")
        faces = self.faces(split)
        for face in faces:  # finds damaged files before training instead of in the middle of it
            check_image(face.image)
            read_label(face.label)
        return LFWPartsDataset(
            faces,
            self.size,
            self._classes,
            native_mask=split != "train" and self.score_at == "native",
            superpixels=self.blobs == "superpixels",
        )

    def file_samples(self, split: Split, faults: list[str]) -> list[FileSample]:
        """For `structseg check`; raises as `read_lists` and `image_folder` if a folder or list is missing."""
        if not self._lists:
            self._lists = read_lists(self.root, faults)
        return [
            FileSample(face.name, face.image, PARTS, (face.label,), partial(read_label, face.label))
            for face in find_faces(self.root, self.names(split), faults)
        ]


class LFWPartsDataset(DecodedDataset):
    """Faces with their labels, decoded once.

    Args:
        faces: as `find_faces` gives them.
        size: (H, W) that photographs are resized to, bilinear with antialiasing, and masks with the nearest filter.
        classes: (256,) int64: the class of the label space for each index of `parts`.
        native_mask: keep masks at the size of their files.
        superpixels: also give the numbers of the published superpixels, if the data have them.
        memory_bytes: memory for resized samples.
    """

    def __init__(
        self,
        faces: Sequence[Face],
        size: tuple[int, int],
        classes: Tensor,
        native_mask: bool = False,
        superpixels: bool = False,
        memory_bytes: int = 512 << 20,
    ) -> None:
        super().__init__([face.name for face in faces], size, native_mask, memory_bytes=memory_bytes)
        self.faces = tuple(faces)
        self.classes = classes.numpy().astype(np.uint8)
        self.superpixels = superpixels

    def __getitem__(self, index: int) -> Sample:
        """`image` (3, H, W) in 0..1, `name`; `mask` and `superpixels` (H, W), or (h, w) of the file."""
        image, mask, numbers = self.decoded(index)
        sample: Sample = {
            "image": image_tensor(image), "mask": mask_tensor(mask), "name": self.faces[index].name,
        }  # fmt: skip
        if numbers is not None:
            sample["superpixels"] = torch.from_numpy(numbers.astype(np.int64))
        return sample

    def decode(self, index: int) -> tuple[Image.Image, NDArray[np.uint8], NDArray[np.int32] | None]:
        """The photograph, the mask, and the superpixels or None, as samples have them."""
        face = self.faces[index]
        image = resize_image(read_image(face.image), self.size)
        native = self.classes[fit_mask(read_label(face.label), face.image, str(face.label))]
        mask = native if self.native_mask else resize_mask(native, self.size, self.mask_filter)
        superpixels = None
        if face.superpixels is not None and self.superpixels:
            numbers = fit_mask(read_superpixels(face.superpixels), face.image, str(face.superpixels))
            superpixels = resize_mask(numbers, mask.shape)
        return image, mask, superpixels


def read_label(path: Path) -> NDArray[np.uint8]:
    """The class map of a label file in the published colours, (H, W) in the indices of the space `parts`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or holds another colour; the message names it.
    """
    image = open_mask(path)
    colours: NDArray[np.uint32]
    if image.mode == "P" and not image.has_transparency_data:  # only its few colours need be looked up
        palette = image.getpalette("RGB") or []
        pixels = np.asarray(image)
        if palette[: len(_IN_ORDER)] == _IN_ORDER and pixels.max() < len(PARTS):
            return pixels  # as in the compact copy
        colours = np.full(256, _NO_COLOUR, dtype=np.uint32)
        colours[: len(palette) // 3] = np.array(palette, dtype=np.uint32).reshape(-1, 3) @ _SHIFTS
        classes = _classes_of(colours).take(pixels)
    else:
        image = to_rgb(image)
        pixels = None
        packed = np.frombuffer(image.tobytes("raw", "RGBX"), dtype="<u4").astype(np.uint32, copy=False)
        colours = packed.reshape(image.size[::-1]) & np.uint32(0xFFFFFF)
        classes = _classes_of(colours)
    if classes.max() == 255:
        row, column = np.argwhere(classes == 255)[0].tolist()
        found = int(colours[row, column] if pixels is None else colours[pixels[row, column]])
        raise ValueError(
            f"{path} has colour {(found & 255, found >> 8 & 255, found >> 16 & 255)} at row {row}, column {column}; "
            f"labels are blue background, green face, red hair: copy it again, as PPM or PNG"
        )
    return classes


def _classes_of(colours: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """The class of each colour, as red + 256 green + 65536 blue; 255 for any other colour."""
    classes = np.full(colours.shape, 255, dtype=np.uint8)
    for index, colour in enumerate(_COLOURS):
        classes -= (colours == colour) * np.uint8(255 - index)  # in a quarter of the time of boolean indexing
    return classes


def read_superpixels(path: Path) -> NDArray[np.int32]:
    """The superpixel numbers of a published text file, (H, W), one line per row.

    Raises:
        ValueError: it is not a matrix of whole numbers; the message names it.
    """
    try:
        return np.loadtxt(path, dtype=np.int32, ndmin=2)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no matrix of superpixel numbers ({reason}); copy it again") from None
