"""PASCAL VOC 2012, with SBD's images, for weak supervision by tags from annotations, masks or a file."""

from __future__ import annotations

from collections import Counter
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from structseg.datamodules.batch import Split
from structseg.datamodules.files.listing import FileSample, files_by_name
from structseg.datamodules.files.text import read_tags
from structseg.datamodules.images import fit_mask, read_image, read_mask
from structseg.datamodules.label_spaces import VOC
from structseg.datamodules.voc import files
from structseg.datamodules.weak.datamodule import Read, WeaklySupervisedDataModule, classes_in


class VOCDataModule(WeaklySupervisedDataModule):
    """PASCAL VOC 2012 in the devkit's layout, with the masks of SBD if the copy has them. Void rims, 255, are ignored.

    Source: Everingham et al., IJCV 2010; SBD: Hariharan et al., ICCV 2011.

    Args:
        root: `VOCdevkit`, `VOCdevkit/VOC2012`, or a folder with the same content: `JPEGImages`,
            `SegmentationClass` (and `SegmentationClassAug`), `ImageSets/Segmentation`, `Annotations`.
        train_list: `train`, `trainval`, `train_aug` (10,582 names; in `ImageSets/Segmentation`), or the path of a list.
        val_list: the list of validation images; None: no validation, and no epoch is selected.
        test_list: the list of test images.
        tags: `annotations`: all objects of `Annotations/NAME.xml`; `masks`: the classes of the true masks; or the path
            of a CSV file with the header `name,classes`.
        label_space: voc, some of its classes as in `voc[cat,dog]`, or coco.
        **kwargs: settings of `WeaklySupervisedDataModule`.

    Raises:
        ValueError: settings that do not go together; all are named.
    """

    data_space = VOC

    def __init__(
        self,
        root: str | Path,
        train_list: str = "train",
        val_list: str | None = None,
        test_list: str = "val",
        tags: str = "annotations",
        label_space: str = VOC.name,
        **kwargs: Any,
    ) -> None:
        super().__init__(label_space, **kwargs)
        if tags not in ("annotations", "masks") and not tags.endswith(".csv"):
            raise ValueError(f"data: tags={tags}; give annotations, masks or the path of a CSV file (name,classes)")
        self.root = Path(root).expanduser()
        self.lists: dict[Split, str | None] = {"train": train_list, "val": val_list, "test": test_list}
        self.tags = tags
        self.tags_from_masks = tags == "masks"
        self._lookup = VOC.lookup(self.label_space).numpy().astype(np.uint8)
        self._entries: dict[Split, tuple[str, ...]] = {}
        self._tags: dict[str, frozenset[str] | None] = {}

    @property
    def has_validation(self) -> bool:
        """Whether a list of validation images is given."""
        return self.lists["val"] is not None

    @cached_property
    def home(self) -> Path:
        """The folder with `JPEGImages`; raises as `find_home`."""
        return files.find_home(self.root)

    @cached_property
    def photographs(self) -> dict[str, Path]:
        """Every photograph by name; raises as `files_by_name`."""
        return files_by_name(self.home / files.IMAGES, files.SUFFIXES)

    @cached_property
    def masks_by_name(self) -> dict[str, Path]:
        """Every true mask by name; as `find_masks`."""
        return files.find_masks(self.home)

    def entries(self, split: Split) -> tuple[str, ...]:
        """The names of a split's list.

        Raises:
            FileNotFoundError: the list, or photographs that it names, are missing.
        """
        given = self.lists[split]
        if given is None:
            return ()
        if split not in self._entries:
            path = files.list_file(self.home, given)
            names = files.read_list(path, self.photographs)
            files.check_images(self.home, names, path, self.photographs)
            self._entries[split] = names
        return self._entries[split]

    @cached_property
    def _tag_file(self) -> dict[str, frozenset[str]]:
        return read_tags(self._tag_path)

    @property
    def _tag_path(self) -> Path:
        path = Path(self.tags).expanduser()
        return path if path.is_file() else self.home / self.tags

    def tags_of(self, name: str) -> frozenset[str] | None:
        """All tags of an image, in VOC's names; None if unknown."""
        if name not in self._tags:
            self._tags[name] = self._find_tags(name)
        return self._tags[name]

    def _find_tags(self, name: str) -> frozenset[str] | None:
        if self.tags == "annotations":
            return files.tags_from_annotation(self.home, name)
        if self.tags != "masks":
            return self._tag_file.get(name)
        path = self.masks_by_name.get(name)
        return None if path is None else classes_in(read_mask(path, len(VOC), VOC.name, VOC.palette), VOC)

    def truth_of(self, name: str) -> NDArray[np.uint8] | None:
        """The mask of an image in the label space; raises as `read_mask`."""
        path = self.masks_by_name.get(name)
        if path is None:
            return None
        mask = read_mask(path, len(VOC), VOC.name, VOC.palette)
        return self._lookup[fit_mask(mask, self._photograph(name), str(path))]

    def _photograph(self, name: str) -> Path:
        return self.photographs.get(name, self.home / files.IMAGES / f"{name}.jpg")  # the reader reports it

    def read_unmasked(self, name: str) -> Read:
        """The photograph with its tags; raises as `read_image` and `tag_vector`."""
        tags = self.tags_of(name)
        image = read_image(self._photograph(name))
        return image, None, None if tags is None else self.tag_vector(tags, name)

    def file_samples(self, split: Split, faults: list[str]) -> list[FileSample]:
        """For `structseg check`: every image of the list, also those that training leaves out.

        A mask or tags may be missing if training does not need them.

        Raises:
            FileNotFoundError: no data, list or file of tags.
            ValueError: a damaged list or file of tags.
        """
        given = self.lists[split]
        if given is None:
            return []
        if self.tags.endswith(".csv"):
            _ = self._tag_file  # read here, once, instead of in each worker
        path = files.list_file(self.home, given)
        if "photographs" not in self.__dict__:  # the first split
            self.photographs = files_by_name(self.home / files.IMAGES, files.SUFFIXES, faults)
        names = files.read_list(path, self.photographs)
        faults += [f"{path} lists {name} {count} times" for name, count in Counter(names).items() if count > 1]
        samples = []
        for name in dict.fromkeys(names):
            mask = self.masks_by_name.get(name)
            if mask is None and self._needs_mask(split):
                faults.append(f"{name} of {path} has no mask in {self.home / files.MASKS[0]}")
            samples.append(
                FileSample(
                    name,
                    self._photograph(name),
                    VOC,
                    () if mask is None else (mask,),
                    None if mask is None else partial(read_mask, mask, len(VOC), VOC.name, VOC.palette),
                    None if self.tags_from_masks else partial(self._expected_tags, name, split == "train"),
                    index_masks=True,
                )
            )
        return samples

    def _needs_mask(self, split: Split) -> bool:
        """Whether the true masks of a split are needed; images to predict may lack them."""
        return self.masks == "truth" if split == "train" else self.predict_split != split

    def _expected_tags(self, name: str, needed: bool) -> frozenset[str] | None:
        tags = self.tags_of(name)
        if needed and not tags:
            raise ValueError(f"training image {name} has no tags; give its tags or take it off the list")
        unknown = sorted((tags or frozenset()) - set(VOC.classes))
        if unknown:
            raise ValueError(f"tag {unknown[0]!r} of {name} is no class of VOC; mend it")
        return tags
