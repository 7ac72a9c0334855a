"""CelebAMask-HQ: face photographs with 19-class part masks, in the published layout or a compact one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.utilities import rank_zero_info
from torch.utils.data import Dataset

from structseg.datamodules.augmentation import Augmentation
from structseg.datamodules.base import SegmentationDataModule, Split
from structseg.datamodules.batch import Sample, image_tensor, mask_tensor
from structseg.datamodules.celebamask_hq.files import (
    LEFT_RIGHT_FILE,
    SPLIT_FILE,
    SPLITS,
    Pair,
    Splits,
    find_home,
    find_pairs,
    official_split,
    read_label,
    reversed_from_file,
    seeded_split,
    split_from_file,
)
from structseg.datamodules.files.listing import FileSample
from structseg.datamodules.images import read_image, resize_image, resize_mask
from structseg.datamodules.label_spaces import CELEBAMASK_HQ, LabelSpace
from structseg.datamodules.wrappers.blobs import BlobKind
from structseg.datamodules.wrappers.full_size import Originals, originals_problems, sample_with_original
from structseg.datamodules.wrappers.occluders import OccludedDataset, Occluders, check_space


class CelebAMaskHQDataModule(SegmentationDataModule):
    """CelebAMask-HQ, or the compact copy of 1,000 of its images, in any space that its 19 classes map to.

    Labels in which left and right are exchanged are put right, where a list says which: images that were mirrored with
    their masks keep l_eye, l_brow and l_ear on the side where r_* belongs, since left is the pictured person's.

    Source: Lee, Liu, Wu, Luo, "MaskGAN", CVPR 2020. The licence is for non-commercial research and education.

    Args:
        root: the folder of the data set, or its parent. Published: `CelebA-HQ-img` and `CelebAMask-HQ-mask-anno`, part
            masks merged as by the data set's own g_mask.py. Compact: `images` and `masks`, one index mask an image.
        split: `seed` cuts the images 6:2:2 at random by `seed`; `official` takes CelebA's partition (published layout);
            else a JSON file of train, val and test names, by its path from `root`. Default: `split_622.json` where the
            data have one, else `seed`.
        train_limit: train on the first so many training images only; as `seed` shuffled them, as the split file lists
            them, or by number (`official`).
        left_right: JSON file whose list `reversed` names the images with exchanged labels, by its path from `root`;
            default: `left_right_reversed.json` where the data have one.
        mend_left_right: put exchanged labels right; false leaves them as they came.
        label_space: celebamask_hq, parts, stn, helen, fasseg or occlusion.
        size: (H, W) in pixels that images are resized to, aspect not kept.
        batch_size: images a training batch, on each device.
        num_workers: processes that decode; 0 decodes in the main process, once an image.
        augmentation: how training batches are varied.
        mean: mean of each channel, on images in 0..1, that the module subtracts.
        std: deviation of each channel, on images in 0..1, that the module divides by.
        score_at: `size` scores on masks resized to `size`; `native` on masks as they are, one image a batch. Published
            masks are 512x512, half of their images.
        seed: of the split.
        predict_dir: an image, a folder of images, a video file, or `camera:N`, for `predict`.
        predict_out: the folder that predictions are written to.
        blobs: regions that a loss asks to agree: labels, components or superpixels; None makes none.
        occluders: things pasted before the faces, others each epoch in training, the same always in validation and
            test; they need label_space occlusion. None pastes none.
        originals: let each photograph come along as `original`, with masks of its size; neither blobs nor occluders go
            with it. None gives images and masks at `size`.
        versions: how often each training image occurs in an epoch.

    Raises:
        ValueError: settings that do not go together; all are named. A label space that the classes do not map to.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        train_limit: int | None = None,
        left_right: str | None = None,
        mend_left_right: bool = True,
        label_space: str = CELEBAMASK_HQ.name,
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
        occluders: Occluders | None = None,
        originals: Originals | None = None,
        versions: int = 1,
    ) -> None:
        super().__init__(
            label_space, size, batch_size, num_workers, augmentation, mean, std, score_at, seed, predict_dir,
            predict_out, blobs,
        )  # fmt: skip
        CELEBAMASK_HQ.lookup(self.label_space)  # raises where there is no map
        check_space(occluders, self.label_space)
        problems = originals_problems(originals, self.label_space, blobs, occluders)
        if versions < 1:
            problems.append(f"versions={versions} (1 or more)")
        if train_limit is not None and train_limit < 1:
            problems.append(f"train_limit={train_limit} (1 or more)")
        if left_right is not None and not mend_left_right:
            problems.append(f"left_right={left_right} with mend_left_right=false (give one of them)")
        if problems:
            raise ValueError("data: " + ", ".join(problems))
        self.root = Path(root).expanduser()
        self.split = split
        self.train_limit = train_limit
        self.left_right = left_right
        self.mend_left_right = mend_left_right
        self.occluders = occluders
        self.originals = originals
        self.versions = versions

    @property
    def has_validation(self) -> bool:
        """Whether the split holds out any images."""
        return bool(self.splits["val"])

    @cached_property
    def home(self) -> Path:
        """The folder of images and masks; raises as `find_home`."""
        return find_home(self.root)

    @cached_property
    def all_pairs(self) -> dict[str, Pair]:
        """Every image of the data with its label, by name; raises as `find_pairs`."""
        return find_pairs(self.home)

    @cached_property
    def split_file(self) -> Path | None:
        """The file that names the images of each split; None where they are computed."""
        if self.split in ("seed", "official"):
            return None
        if self.split is not None:
            return self.root / self.split
        return self.home / SPLIT_FILE if (self.home / SPLIT_FILE).is_file() else None

    @cached_property
    def splits(self) -> Splits:
        """The names of each split, training images beyond `train_limit` included.

        Raises:
            FileNotFoundError: a file or an image is missing.
            ValueError: a file of names is damaged, or there are fewer training images than `train_limit`.
        """
        if self.split_file is not None:
            splits = split_from_file(self.split_file, self.all_pairs)
        elif self.split == "official":
            splits = official_split(self.home, self.root, self.all_pairs)
        else:
            splits = seeded_split(tuple(self.all_pairs), self.seed)
        if self.train_limit is not None and self.train_limit > len(splits["train"]):
            raise ValueError(f"train_limit is {self.train_limit}; the split has {len(splits['train'])} training images")
        return splits

    @cached_property
    def left_right_file(self) -> Path | None:
        """The list of labels with left and right exchanged; None where there is none, or they are left as they are."""
        if not self.mend_left_right:
            return None
        if self.left_right is not None:
            return self.root / self.left_right
        return self.home / LEFT_RIGHT_FILE if (self.home / LEFT_RIGHT_FILE).is_file() else None

    @cached_property
    def reversed_names(self) -> frozenset[str]:
        """The names of the images whose left and right labels are exchanged on reading; says once how many."""
        if self.left_right_file is None:
            return frozenset()
        names = reversed_from_file(self.left_right_file)
        if not names.intersection(self.all_pairs) and names:
            raise ValueError(
                f"{self.left_right_file} lists none of the images in {self.home}; give the list of these images, or "
                "set --data.mend_left_right false"
            )
        counts = ", ".join(f"{len(names.intersection(self.splits[split]))} {split}" for split in SPLITS)
        rank_zero_info(f"CelebAMask-HQ: left and right labels put right in {counts} images ({self.left_right_file})")
        return names

    def pairs(self, split: Split) -> tuple[Pair, ...]:
        """The images and labels of a split, in its order; raises as `splits`."""
        names = self.splits[split]
        return tuple(self.all_pairs[name] for name in (names[: self.train_limit] if split == "train" else names))

    def make_dataset(self, split: Split) -> Dataset[Sample]:
        """The samples of a split; masks of validation and test at their own size where `score_at` says so."""
        faces = CelebAMaskHQDataset(
            self.pairs(split),
            self.size,
            self.label_space if self.occluders is None else CELEBAMASK_HQ,
            self.reversed_names,
            native_mask=split != "train" and self.score_at == "native",
            originals=self.originals,
        )
        if self.occluders is None:
            return faces
        return OccludedDataset(faces, self.occluders, self.seed, SPLITS.index(split), vary=split == "train")

    def file_samples(self, split: Split, faults: list[str]) -> list[FileSample]:
        """For `structseg check`; raises as `find_home` and `splits` where there is nothing to list."""
        if "all_pairs" not in self.__dict__:  # the first split
            self.all_pairs = find_pairs(self.home, faults)
            if self.split_file is not None:
                self.splits = split_from_file(self.split_file, self.all_pairs, faults)
        samples = []
        for pair in self.pairs(split):
            masks = pair.mask_files if pair.parts or pair.mask.is_file() else ()  # a missing one has been said
            samples.append(
                FileSample(
                    pair.name,
                    pair.image,
                    CELEBAMASK_HQ,
                    masks,
                    partial(read_label, pair) if masks else None,
                    coarse=True,
                    exchanged=pair.name in self.reversed_names,
                )
            )
        return samples


class CelebAMaskHQDataset(Dataset[Sample]):
    """Images and labels of CelebAMask-HQ, decoded once.

    Args:
        pairs: as `find_pairs` gives them.
        size: (H, W) that images are resized to, bilinear with antialiasing, and masks with the nearest filter.
        label_space: of the masks; CELEBAMASK_HQ or one that it maps to.
        reversed_names: images whose left and right labels are exchanged on reading, before any map.
        native_mask: keep masks at the size of their files.
        memory_bytes: how much of the resized samples to keep in memory.
        originals: let each photograph come along as `original`, and masks of its size.

    Raises:
        ValueError: no map to the label space; when read: a file that is damaged, no mask, or of another aspect.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        size: tuple[int, int],
        label_space: LabelSpace = CELEBAMASK_HQ,
        reversed_names: frozenset[str] = frozenset(),
        native_mask: bool = False,
        memory_bytes: int = 512 << 20,
        originals: Originals | None = None,
    ) -> None:
        self.pairs = tuple(pairs)
        self.size = size
        self.reversed_names = reversed_names
        self.native_mask = native_mask
        self.originals = originals
        self.memory_left = memory_bytes
        to_space = CELEBAMASK_HQ.lookup(label_space)
        self._lookup = to_space.numpy().astype(np.uint8)
        self._lookup_reversed = to_space[CELEBAMASK_HQ.flip_lookup()].numpy().astype(np.uint8)
        self._memory: dict[int, tuple[Image.Image, NDArray[np.uint8]]] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """`image` (3, H, W) in 0..1, `mask` (H, W), or (h, w) of the file, in the label space, and `name`.

        With originals also `original` (3, h, w) in 0..1, of which `image` is made; `mask` (h, w), or of the file.
        """
        image, mask = self._memory.get(index) or self._read(index)
        name = self.pairs[index].name
        if self.originals is not None:
            return sample_with_original(image, mask, self.size, name)
        return {"image": image_tensor(image), "mask": mask_tensor(mask), "name": name}

    def photograph(self, index: int) -> Image.Image:
        """The image of a sample at its full size, RGB; raises as `read_image`."""
        return read_image(self.pairs[index].image)

    def label(self, index: int) -> NDArray[np.uint8]:
        """The mask of a sample at its full size, (h, w) in the label space; raises as `read_label`."""
        pair = self.pairs[index]
        lookup = self._lookup_reversed if pair.name in self.reversed_names else self._lookup
        return lookup[read_label(pair)]

    def _read(self, index: int) -> tuple[Image.Image, NDArray[np.uint8]]:
        photograph, label = self.photograph(index), self.label(index)
        self._check_aspect(index, photograph.size, label.shape)
        if self.originals is not None:
            image, mask = self.originals.shrink(photograph, label, self.native_mask)
        else:
            image = resize_image(photograph, self.size)
            mask = label if self.native_mask else resize_mask(label, self.size)
        needed = 3 * image.width * image.height + mask.size
        if needed <= self.memory_left:
            self.memory_left -= needed
            self._memory[index] = (image, mask)
        return image, mask

    def _check_aspect(self, index: int, image: tuple[int, int], mask: tuple[int, ...]) -> None:
        """(width, height) of the image against (h, w) of the mask: a pixel of the coarser's rounding is let pass."""
        width, height = image
        if abs(width * mask[0] - mask[1] * height) >= max(height, mask[0]):
            pair = self.pairs[index]
            raise ValueError(
                f"{pair.image} is {width}x{height} but its mask {pair.mask_files[0]} {mask[1]}x{mask[0]}, of another "
                "aspect; the mask must be of the same crop: mend or remove the pair"
            )
