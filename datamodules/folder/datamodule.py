"""The user's own images and masks, in folders that a `dataset.yaml` describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from structseg.datamodules.base import SegmentationDataModule
from structseg.datamodules.batch import Split
from structseg.datamodules.checks import refuse
from structseg.datamodules.files.decoded import DecodedDataset
from structseg.datamodules.files.listing import FileSample
from structseg.datamodules.files.text import read_tags
from structseg.datamodules.folder.dataset_file import DatasetFile, read_dataset_file
from structseg.datamodules.folder.masks import JPEGMasks, MaskReader, read_pair_mask
from structseg.datamodules.folder.pairs import Pair, check_pairs
from structseg.datamodules.images import mask_turn, read_image
from structseg.datamodules.label_spaces import LabelSpace, label_space
from structseg.datamodules.weak.datamodule import Read, WeaklySupervisedDataModule, classes_in

_DEFAULTS = {"size": (256, 256), "batch_size": 8, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


class Folder:
    """The files that a `dataset.yaml` describes, and their labels.

    Args:
        root: the `dataset.yaml`, or its folder.
        space: label space that the file's classes are mapped to; None: the file's own.
        jpeg: how lossy masks are read, see `MaskReader`; None: as the file says.
    """

    def __init__(self, root: str | Path, space: str | None, jpeg: JPEGMasks | None) -> None:
        self.file: DatasetFile = read_dataset_file(Path(root).expanduser())
        self.space: LabelSpace = self.file.space if space is None else label_space(space)
        self.reader: MaskReader = self.file.reader(jpeg)
        self.lookup = self.file.space.lookup(self.space).numpy().astype(np.uint8)
        self.plain = self.space.classes == self.file.space.classes

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Size, batch size and normalisation: as given, else from the file, else the defaults."""
        return {
            key: self.file.setting(key, default) if given[key] is None else given[key]
            for key, default in _DEFAULTS.items()
        }

    @cached_property
    def splits(self) -> Mapping[Split, Sequence[Pair]]:
        """The pairs of each split, checked by names and headers.

        Raises:
            FileNotFoundError: a folder or list is missing.
            ValueError: the folder has faults; the first are named.
        """
        faults: list[str] = []
        splits = self.file.splits(faults)
        fit_both_ways, self.exif = check_pairs([pair for pairs in splits.values() for pair in pairs], faults)
        refuse(faults, str(self.file.path), "structseg check lists all")
        if fit_both_ways:
            rank_zero_warn(
                f"{len(fit_both_ways)} photographs, first {fit_both_ways[0]}, are turned by EXIF and their masks fit "
                "both ways; they are taken as drawn on the upright photograph"
            )
        return splits

    def label(self, pair: Pair) -> NDArray[np.uint8]:
        """The mask of a pair in the label space, (H, W) of the upright photograph; raises as `read_pair_mask`."""
        assert pair.mask is not None
        classes = read_pair_mask(pair, self.reader) if pair.name in self.exif else self.reader(pair.mask)
        return classes if self.plain else self.lookup.take(classes)

    def file_samples(self, split: Split, faults: list[str]) -> list[FileSample]:
        """For `structseg check`; raises if there is nothing to list."""
        if "_listed" not in self.__dict__:  # the faults of all splits are reported with the first one
            self._listed = self.file.splits(faults)
        read = partial(read_pair_mask, read=self.reader)
        return [
            FileSample(pair.name, pair.image, self.file.space, masks, partial(read, pair) if masks else None)
            for pair in self._listed[split]
            for masks in [() if pair.mask is None else (pair.mask,)]
        ]


class _DescribedFolder(SegmentationDataModule):
    """The settings that both DataModules of a `dataset.yaml` share.

    Args:
        root: the `dataset.yaml`, or its folder.
        label_space: label space that the classes are mapped to by name; default: the file's own classes.
        size: (H, W) in pixels of images and crops; default: the file's, else 256x256.
        batch_size: training images per batch on each device; default: the file's, else 8.
        mean: mean of each channel, on images in 0..1; default: the file's, else 0.5.
        std: standard deviation of each channel; default: the file's, else 0.5.
        jpeg_masks: whether masks in lossy formats are refused, or read by the nearest class value; default: as the file
            says, else refused.
        **kwargs: settings of the base.
    """

    def __init__(
        self,
        root: str | Path,
        label_space: str | None = None,
        size: tuple[int, int] | None = None,
        batch_size: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        jpeg_masks: JPEGMasks | None = None,
        **kwargs: Any,
    ) -> None:
        self.folder = Folder(root, label_space, jpeg_masks)
        if "crops" in kwargs and self.folder.space.flip_pairs:  # tags and pseudo-masks do not know left from right
            kwargs["crops"] = replace(kwargs["crops"], flip=0.0)
        given = {"size": size, "batch_size": batch_size, "mean": mean, "std": std}
        super().__init__(self.folder.space.describe(), **self.folder.settings(given), **kwargs)
        self.root = self.folder.file.home

    def check_files(self, splits: Sequence[Split]) -> None:  # noqa: ARG002  # of all splits at once
        """Raises as `Folder.splits`."""
        _ = self.folder.splits

    def file_samples(self, split: Split, faults: list[str]) -> list[FileSample]:
        """For `structseg check`; raises as `Folder.file_samples`."""
        return self.folder.file_samples(split, faults)


class FolderDataModule(_DescribedFolder):
    """Own images, masks and classes, as described by a `dataset.yaml`, which `structseg init FOLDER` writes.

    Test images that lie in several folders are also scored by folder. For the settings see `SegmentationDataModule`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is wrong, or settings do not go together.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.folder.file.has_masks:
            raise ValueError(
                f"{self.folder.file.path} names no masks, which this method learns from; add masks: FOLDER, or train "
                "from tags alone: structseg pipeline own/conta"
            )

    @property
    def has_validation(self) -> bool:
        """Whether the file has a validation split."""
        return bool(self.folder.splits["val"])

    def setup(self, stage: str) -> None:
        """Groups the test images by folder, to be scored separately."""
        if stage == "test":
            self.test_subsets = by_folder(self.names("test"))

    def names(self, split: Split) -> tuple[str, ...]:
        """The names of a split's images; raises as `Folder.splits`."""
        return tuple(pair.name for pair in self.folder.splits[split])

    def make_dataset(self, split: Split) -> FolderDataset:
        """The samples of a split; masks of validation and test at their own size with `score_at=native`."""
        native = split != "train" and self.score_at == "native"
        return FolderDataset(self.folder, self.folder.splits[split], self.size, native)


def by_folder(names: Sequence[str]) -> Mapping[str, frozenset[str]]:
    """The names in each folder; empty if all are in one."""
    parts: dict[str, set[str]] = {}
    for name in names:
        part = name.rpartition("/")[0].replace(".", "_")
        parts.setdefault(f"{part}_" if hasattr(nn.ModuleDict, part) else part, set()).add(name)  # valid as its keys
    return {part: frozenset(members) for part, members in parts.items() if part} if len(parts) > 1 else {}


class FolderDataset(DecodedDataset):
    """Pairs of image and mask, decoded once.

    Args:
        folder: reads the masks.
        pairs: as `Folder.splits` returns them.
        size: (H, W) that photographs are resized to, bilinear with antialiasing, and masks with the nearest filter.
        native_mask: keep masks at the size of their files.
    """

    def __init__(self, folder: Folder, pairs: Sequence[Pair], size: tuple[int, int], native_mask: bool) -> None:
        super().__init__([pair.name for pair in pairs], size, native_mask)
        self.folder, self.pairs = folder, tuple(pairs)

    def photograph(self, index: int) -> Image.Image:
        """The upright photograph of a sample, RGB; raises as `read_image`."""
        return read_image(self.pairs[index].image)

    def label(self, index: int) -> NDArray[np.uint8]:
        """The mask of a sample, (h, w) of the photograph; raises as `Folder.label`."""
        return self.folder.label(self.pairs[index])

    def check(self, index: int, photograph: Image.Image, label: NDArray[np.uint8]) -> None:
        """Raises a ValueError if the sizes differ, which happens when files change after the check."""
        pair = self.pairs[index]
        mask_turn(pair.image, (label.shape[1], label.shape[0]), str(pair.mask), stored=(photograph.size, 1))


class WeakFolderDataModule(_DescribedFolder, WeaklySupervisedDataModule):
    """Own images with tags, as described by a `dataset.yaml`: for CONTA, which learns masks from tags.

    The file's `tags` say where the tags are: a CSV file with the header `name,classes`, `masks` (the classes of the
    masks), or `folders` (the folder that an image lies in is its class); default: `masks` where there are any. Crops
    are not mirrored where the classes have flip pairs. For the settings see `WeaklySupervisedDataModule`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is wrong, or settings do not go together.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        file = self.folder.file
        self.tags = str(file.tree.get("tags") or "masks")
        if self.tags == "masks" and not file.has_masks:
            raise ValueError(f"{file.path} has neither tags nor masks; add tags: tags.csv, or tags: folders")
        self.data_space, self.tags_from_masks = file.space, self.tags == "masks"
        self._tags: dict[str, frozenset[str] | None] = {}

    @cached_property
    def pairs(self) -> Mapping[Split, Mapping[str, Pair]]:
        """The pairs of each split by their names in the files of a round, `/` as `__`; raises as `Folder.splits`."""
        flat = {split: {p.name.replace("/", "__"): p for p in pairs} for split, pairs in self.folder.splits.items()}
        names = [name for part in flat.values() for name in part]
        if len(set(names)) < sum(map(len, self.folder.splits.values())):
            raise ValueError(f"{self.folder.file.path}: two images have one name where `/` is written `__`; rename one")
        unmasked = [name for split in ("val", "test") for name, p in flat[split].items() if p.mask is None]
        if unmasked:
            self._notice(
                f"{len(unmasked)} images to validate or test have no masks, first {unmasked[0]}; they only have tags"
            )
        return flat

    @property
    def has_validation(self) -> bool:
        """Whether there are validation images, all with masks."""
        held = self.pairs["val"].values()
        return bool(held) and all(pair.mask is not None for pair in held)

    def entries(self, split: Split) -> tuple[str, ...]:
        """The names of a split's images."""
        return tuple(self.pairs[split])

    def _pair(self, name: str) -> Pair:
        return next(pairs[name] for pairs in self.pairs.values() if name in pairs)

    @cached_property
    def _tag_file(self) -> Mapping[str, frozenset[str]]:
        found = read_tags(self.root / self.tags)
        return {**found, **{name.rpartition(".")[0]: tags for name, tags in found.items() if "." in name}}

    def tags_of(self, name: str) -> frozenset[str] | None:
        """The classes of an image; None if unknown."""
        if name not in self._tags:
            pair, classes = self._pair(name), self.folder.file.space.classes
            if self.tags == "folders":
                own = Path(pair.name).parent.name
                self._tags[name] = frozenset() if own == classes[0] else frozenset({own})
            elif self.tags != "masks":
                file = self._tag_file
                self._tags[name] = next((file[key] for key in (pair.name, pair.image.stem) if key in file), None)
            elif pair.mask is None:
                self._tags[name] = None
            else:
                self._tags[name] = classes_in(read_pair_mask(pair, self.folder.reader), self.folder.file.space)
        return self._tags[name]

    def truth_of(self, name: str) -> NDArray[np.uint8] | None:
        """The mask of an image in the label space; None without one."""
        pair = self._pair(name)
        return None if pair.mask is None else self.folder.label(pair)

    def read_unmasked(self, name: str) -> Read:
        """The photograph with its tags; raises as `read_image` and `tag_vector`."""
        tags = self.tags_of(name)
        return read_image(self._pair(name).image), None, None if tags is None else self.tag_vector(tags, name)
