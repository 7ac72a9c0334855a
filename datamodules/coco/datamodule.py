"""MS COCO for weak supervision: 80 classes, masks and tags drawn from the instance annotations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from structseg.datamodules.batch import Split
from structseg.datamodules.coco.files import Picture, paint, read_instances
from structseg.datamodules.files.listing import FileSample
from structseg.datamodules.images import fit_mask, mask_turn, read_image
from structseg.datamodules.label_spaces import COCO
from structseg.datamodules.weak.datamodule import Read, WeaklySupervisedDataModule

_ANNOTATION = "in the annotations"


class COCODataModule(WeaklySupervisedDataModule):
    """MS COCO: training on `trainYEAR`, test on `valYEAR`; there is no validation, so no epoch is selected.

    Masks are painted from the instances, larger ones first, so that small ones stay on top. Regions of crowds, whose
    single objects are not marked, are ignored (255) unless an instance covers them, but their classes are tags.
    Training images without any instance are left out.

    Source: Lin et al., ECCV 2014; annotations `instances_*.json`, decoded by pycocotools.

    Args:
        root: folder of `train2014`, `val2014` and `annotations`.
        year: of the images, 2014 or 2017.
        label_space: coco, some of its classes as in `coco[cat,dog]`, or voc.
        **kwargs: settings of `WeaklySupervisedDataModule`.

    Raises:
        ValueError: settings that do not go together; all are named.
    """

    data_space = COCO
    tags_from_masks = True

    def __init__(
        self, root: str | Path, year: Literal[2014, 2017] = 2014, label_space: str = COCO.name, **kwargs: Any
    ) -> None:
        super().__init__(label_space, **kwargs)
        self.root = Path(root).expanduser()
        self.year = year
        self._lookup = COCO.lookup(self.label_space).numpy().astype(np.uint8)
        self._pictures: dict[str, dict[str, Picture]] = {}

    @property
    def has_validation(self) -> bool:
        """False: the published validation images are the test set."""
        return False

    def _folder(self, split: Split) -> str:
        return f"train{self.year}" if split == "train" else f"val{self.year}"

    def pictures(self, split: Split) -> dict[str, Picture]:
        """The annotated images of a split by name, in the order of their names; raises as `read_instances`."""
        folder = self._folder(split)
        if folder not in self._pictures:
            path = self.root / "annotations" / f"instances_{folder}.json"
            self._pictures[folder] = read_instances(path, folder)
        return self._pictures[folder]

    def entries(self, split: Split) -> Sequence[str]:
        """The names of a split; training images without instances are left out.

        Raises:
            FileNotFoundError: photographs are missing; the message has their number and the first.
        """
        if split == "val":
            return ()
        pictures = self.pictures(split)
        folder = self.root / self._folder(split)
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        missing = [
            picture.file
            for picture in pictures.values()
            if picture.file not in there and not ("/" in picture.file and (folder / picture.file).is_file())
        ]
        if missing:
            raise FileNotFoundError(
                f"{folder} has no photograph for {len(missing)} of {len(pictures)} annotated images, first "
                f"{missing[0]}; complete the folder or check --data.root"
            )
        return [name for name, picture in pictures.items() if split != "train" or picture.instances]

    def file_samples(self, split: Split, faults: list[str]) -> list[FileSample]:  # noqa: ARG002  # no list, no masks
        """For `structseg check`: every annotated image; those without single objects have no mask.

        Raises as `pictures`.
        """
        if split == "val":
            return []
        folder = self.root / self._folder(split)
        samples = []
        for name, picture in self.pictures(split).items():
            single = any(not instance.crowd for instance in picture.instances)
            paint_it = partial(_painted, picture) if single else None
            size = picture.size[::-1]
            samples.append(FileSample(name, folder / picture.file, COCO, (), paint_it, mask_size=size))
        return samples

    def _find(self, name: str) -> tuple[Path, Picture]:
        splits: tuple[Split, ...] = ("train", "test")
        loaded = sorted(splits, key=lambda split: self._folder(split) not in self._pictures)
        for split in loaded:  # annotations in memory first: reading them takes long
            picture = self.pictures(split).get(name)
            if picture is not None:
                return self.root / self._folder(split) / picture.file, picture
        raise ValueError(f"no image {name} in the annotations of COCO {self.year} in {self.root}")

    def tags_of(self, name: str) -> frozenset[str]:
        """All tags of an image, of crowds too, in COCO's names."""
        return frozenset(COCO.classes[instance.label] for instance in self._find(name)[1].instances)

    def truth_of(self, name: str) -> NDArray[np.uint8]:
        """The mask of an image in the label space; raises as `paint`."""
        path, picture = self._find(name)
        return self._lookup[fit_mask(_painted(picture), path, _ANNOTATION)]

    def read_unmasked(self, name: str) -> Read:
        """The photograph with its tags.

        Raises:
            ValueError: the photograph is damaged or not of the annotated size.
        """
        path, picture = self._find(name)
        image = read_image(path)
        mask_turn(path, picture.size[::-1], _ANNOTATION)
        return image, None, self.tag_vector(self.tags_of(name), name)


def _painted(picture: Picture) -> NDArray[np.uint8]:
    """As `paint`, with the image's name in errors."""
    try:
        return paint(picture)
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{Path(picture.file).stem}: {error}") from None
