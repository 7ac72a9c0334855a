"""CelebAMask-HQ: face photographs with 19-class part masks, in the published layout or a compact one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.utilities import rank_zero_info
from torch.utils.data import Dataset

from structseg.datamodules.batch import Sample, Split
from structseg.datamodules.celebamask_hq import files
from structseg.datamodules.faces import FaceDataModule
from structseg.datamodules.files.decoded import DecodedDataset
from structseg.datamodules.files.listing import FileSample
from structseg.datamodules.images import fit_mask, read_image
from structseg.datamodules.label_spaces import CELEBAMASK_HQ, LabelSpace
from structseg.datamodules.wrappers.full_size import Originals
from structseg.datamodules.wrappers.occluders import OccludedDataset


class CelebAMaskHQDataModule(FaceDataModule):
    """CelebAMask-HQ, or the compact copy of 1,000 of its images, in any space that its 19 classes map to.

    Left is the pictured person's. Some images were mirrored with their masks, so that l_eye, l_brow and l_ear are on
    the wrong side: labels of images that a list names are corrected.

    Source: Lee, Liu, Wu, Luo, "MaskGAN", CVPR 2020. The licence is for non-commercial research and education.

    Args:
        root: the folder of the data set, or its parent. Published: `CelebA-HQ-img` and `CelebAMask-HQ-mask-anno`, part
            masks merged as by the data set's own g_mask.py. Compact: `images` and `masks`, one index mask per image; to
            be recognised it needs the masks' palette, one of the two JSON files below, or a file `celebamask_hq.txt`.
        split: `seed` splits the images 6:2:2 at random by `seed`; `official` is CelebA's partition (published layout);
            else the path, from `root`, of a JSON file of train, val and test names. Default: `split_622.json` if the
            data have one, else `seed`.
        train_limit: number of training images to use, the first ones in the order of the random split, of the split
            file, or by number (`official`); None: all.
        left_right: path, from `root`, of a JSON file whose list `reversed` names the images with swapped labels;
            default: `left_right_reversed.json` if the data have one.
        mend_left_right: correct swapped labels; false leaves them as they are.
        label_space: celebamask_hq, parts, stn, helen, fasseg or occlusion.
        **kwargs: settings of `FaceDataModule` and `SegmentationDataModule`.

    Raises:
        ValueError: settings that do not go together, all named, or a label space that the classes do not map to.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        train_limit: int | None = None,
        left_right: str | None = None,
        mend_left_right: bool = True,
        label_space: str = CELEBAMASK_HQ.name,
        **kwargs: Any,
    ) -> None:
        super().__init__(label_space, **kwargs)
        CELEBAMASK_HQ.lookup(self.label_space)  # raises where there is no map
        problems = []
        if train_limit is not None and train_limit < 1:
            problems.append(f"train_limit={train_limit} (1 or more)")
        if left_right is not None and not mend_left_right:
            problems.append(f"left_right={left_right} with mend_left_right=false (give one of them)")
        self.check_settings(problems)
        self.root = Path(root).expanduser()
        self.split = split
        self.train_limit = train_limit
        self.left_right = left_right
        self.mend_left_right = mend_left_right

    @property
    def has_validation(self) -> bool:
        """Whether the split has validation images."""
        return bool(self.splits["val"])

    @cached_property
    def home(self) -> Path:
        """The folder of images and masks; raises as `find_home`."""
        return files.find_home(self.root)

    @cached_property
    def all_pairs(self) -> dict[str, files.Pair]:
        """Every image of the data with its label, by name; raises as `find_pairs`."""
        return files.find_pairs(self.home)

    @cached_property
    def split_file(self) -> Path | None:
        """The file that names the images of each split; None if the split is computed."""
        if self.split in ("seed", "official"):
            return None
        if self.split is not None:
            return self.root / self.split
        return self.home / files.SPLIT_FILE if (self.home / files.SPLIT_FILE).is_file() else None

    @cached_property
    def splits(self) -> files.Splits:
        """The names of each split; `train_limit` is not applied.

        Raises:
            FileNotFoundError: a file or an image is missing.
            ValueError: a file of names is damaged, or there are fewer training images than `train_limit`.
        """
        if self.split_file is not None:
            splits = files.split_from_file(self.split_file, self.all_pairs)
        elif self.split == "official":
            splits = files.official_split(self.home, self.root, self.all_pairs)
        else:
            splits = files.seeded_split(tuple(self.all_pairs), self.seed)
        if self.train_limit is not None and self.train_limit > len(splits["train"]):
            raise ValueError(f"train_limit is {self.train_limit}; the split has {len(splits['train'])} training images")
        return splits

    @cached_property
    def left_right_file(self) -> Path | None:
        """The list of labels with left and right swapped; None without one, or if they are not to be corrected."""
        if not self.mend_left_right:
            return None
        if self.left_right is not None:
            return self.root / self.left_right
        return self.home / files.LEFT_RIGHT_FILE if (self.home / files.LEFT_RIGHT_FILE).is_file() else None

    @cached_property
    def reversed_names(self) -> frozenset[str]:
        """The names of the images whose left and right labels are swapped on reading; logs their number once."""
        if self.left_right_file is None:
            return frozenset()
        names = files.reversed_from_file(self.left_right_file)
        if not names.intersection(self.all_pairs) and names:
            raise ValueError(
                f"{self.left_right_file} lists none of the images in {self.home}; give the list of these images, or "
                "set --data.mend_left_right false"
            )
        counts = ", ".join(f"{len(names.intersection(self.splits[split]))} {split}" for split in files.SPLITS)
        rank_zero_info(f"CelebAMask-HQ: left and right labels corrected in {counts} images ({self.left_right_file})")
        return names

    def pairs(self, split: Split) -> tuple[files.Pair, ...]:
        """The images and labels of a split, in its order; raises as `splits`."""
        names = self.splits[split]
        return tuple(self.all_pairs[name] for name in (names[: self.train_limit] if split == "train" else names))

    def make_dataset(self, split: Split) -> Dataset[Sample]:
        """The samples of a split; masks of validation and test at their own size with `score_at=native`."""
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
        return OccludedDataset(faces, self.occluders, self.seed, files.SPLITS.index(split), vary=split == "train")

    def file_samples(self, split: Split, faults: list[str]) -> list[FileSample]:
        """For `structseg check`; raises as `find_home` and `splits` if there is nothing to list."""
        if "all_pairs" not in self.__dict__:  # the first split
            self.all_pairs = files.find_pairs(self.home, faults)
            if self.split_file is not None:
                self.splits = files.split_from_file(self.split_file, self.all_pairs, faults)
        samples = []
        for pair in self.pairs(split):
            masks = pair.mask_files if pair.parts or pair.mask.is_file() else ()  # a missing one is among the faults
            samples.append(
                FileSample(
                    pair.name,
                    pair.image,
                    CELEBAMASK_HQ,
                    masks,
                    partial(files.read_label, pair) if masks else None,
                    mask_size_may_differ=True,
                    left_right_swapped=pair.name in self.reversed_names,
                    index_masks=not pair.parts,
                )
            )
        return samples


class CelebAMaskHQDataset(DecodedDataset):
    """Images and labels of CelebAMask-HQ, decoded once.

    Args:
        pairs: as `find_pairs` returns them.
        size: (H, W) that images are resized to, bilinear with antialiasing, and masks with the nearest filter.
        label_space: of the masks; CELEBAMASK_HQ or one that it maps to.
        reversed_names: images whose left and right labels are swapped on reading, before any map.
        native_mask: keep masks at the size of their files.
        memory_bytes: memory for resized samples.
        originals: also give each photograph at its full size, as `original`, with a mask of that size.

    Raises:
        ValueError: no map to the label space; when read: a file is damaged, not a mask, or of another aspect ratio.
    """

    def __init__(
        self,
        pairs: Sequence[files.Pair],
        size: tuple[int, int],
        label_space: LabelSpace = CELEBAMASK_HQ,
        reversed_names: frozenset[str] = frozenset(),
        native_mask: bool = False,
        memory_bytes: int = 512 << 20,
        originals: Originals | None = None,
    ) -> None:
        super().__init__([pair.name for pair in pairs], size, native_mask, originals, memory_bytes)
        self.pairs = tuple(pairs)
        self.reversed_names = reversed_names
        to_space = CELEBAMASK_HQ.lookup(label_space)
        self._lookup = to_space.numpy().astype(np.uint8)
        self._lookup_reversed = to_space[CELEBAMASK_HQ.flip_lookup()].numpy().astype(np.uint8)

    def photograph(self, index: int) -> Image.Image:
        """The image of a sample at its full size, RGB; raises as `read_image`."""
        return read_image(self.pairs[index].image)

    def label(self, index: int) -> NDArray[np.uint8]:
        """The mask of a sample at its full size, (h, w) in the label space; raises as `read_label` and `fit_mask`."""
        pair = self.pairs[index]
        lookup = self._lookup_reversed if pair.name in self.reversed_names else self._lookup
        return lookup[fit_mask(files.read_label(pair), pair.image, str(pair.mask_files[0]), scaled=True)]
