"""ConfoundedScenes as a datamodule: weak supervision where the strength of confounding is a number."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from structseg.datamodules.batch import SPLITS, Split
from structseg.datamodules.checks import raise_problems
from structseg.datamodules.confounded_scenes.cooccurrence import base_probability
from structseg.datamodules.confounded_scenes.dataset import ConfoundedScenes
from structseg.datamodules.confounded_scenes.layouts import PaintedLayouts, choose_layouts
from structseg.datamodules.confounded_scenes.scene import Picture
from structseg.datamodules.label_spaces import SCENES, VOC
from structseg.datamodules.weak.datamodule import Read, WeaklySupervisedDataModule, classes_in


class ConfoundedScenesDataModule(WeaklySupervisedDataModule):
    """Scenes drawn from a seed, with exact masks: training and validation confounded, test balanced (co_occurrence 0).

    `datamodules.confounded_scenes.cooccurrence` defines co_occurrence. Tags are the classes in the true mask.

    Args:
        train: number of training images.
        val: number of validation images; 0: no validation.
        test: number of test images.
        co_occurrence: strength with which classes occur with their partners and on their usual grounds in training, 0
            (independent) to 1 (always). With layouts their classes are given, and only the ground of the class with
            most pixels depends on it.
        label_space: `scenes`, or `scenes[fish,shell]` for some of its classes; with layouts `voc` or `voc[...]`. With
            `unknown_classes: leave_out` scenes have these classes only.
        size: (H, W) in pixels that images are drawn at.
        layouts: folder of VOC-style masks whose regions are painted with a texture for each class; None: the shapes of
            `scenes`.
        layout_lists: for each split a file with one name per line, from which its layouts are chosen by seed; a split
            without one takes the rest of `train`'s. None: all splits draw from the folder.
        seed: of the scenes, of the choice of layouts, and of `context_of`.
        **kwargs: settings of `WeaklySupervisedDataModule`.

    Raises:
        ValueError: a number out of its range, or settings that do not go together; all are named.
    """

    tags_from_masks = True

    def __init__(
        self,
        train: int = 400,
        val: int = 0,
        test: int = 200,
        co_occurrence: float = 0.9,
        label_space: str = "scenes",
        size: tuple[int, int] = (96, 96),
        layouts: str | None = None,
        layout_lists: dict[Split, str] | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(label_space, size=size, seed=seed, **kwargs)
        base_probability(co_occurrence)
        self.data_space = self.drawn_space = SCENES if layouts is None else VOC
        problems = []
        if min(train, test) < 1 or val < 0:
            problems.append(f"train={train}, val={val}, test={test} (at least 1, 0, 1 images)")
        if self.label_space.name.partition("[")[0] != self.data_space.name:
            where = "without layouts" if layouts is None else "with layouts"
            problems.append(f"label_space={label_space} {where} (give {self.data_space.name} or some of its classes)")
        if layout_lists is not None and layouts is None:
            problems.append("layout_lists without layouts (give the folder of masks)")
        wrong = sorted(set(layout_lists or {}) - set(SPLITS))
        problems += [f"layout_lists.{split} (train, val or test)" for split in wrong]
        raise_problems("data", problems)
        self.co_occurrence = co_occurrence
        self.counts: dict[Split, int] = dict(zip(SPLITS, (train, val, test), strict=True))
        self.layouts = None if layouts is None else Path(layouts)
        self.layout_lists = {split: Path(file) for split, file in (layout_lists or {}).items()}
        known = {SCENES.classes.index(name) for name in self.label_space.classes[1:] if name in SCENES.classes}
        only = frozenset(known) if self.unknown_classes == "leave_out" else None
        self._scenes = ConfoundedScenes(seed, self.size, only)
        self._painted = None if self.layouts is None else PaintedLayouts(self.layouts, seed, self.size)
        self._to_space = self.data_space.lookup(self.label_space).numpy().astype(np.uint8)
        self._tags: dict[str, frozenset[str]] = {}

    @cached_property
    def _chosen(self) -> dict[Split, list[str]]:
        """The names of each split."""
        if self._painted is None or self.layouts is None:
            return {split: [f"scene_{split}_{i:06d}" for i in range(count)] for split, count in self.counts.items()}
        return choose_layouts(self.layouts, self.counts, self.layout_lists or None, self.seed)

    def entries(self, split: Split) -> list[str]:
        """The names of a split's images."""
        return self._chosen[split]

    def render(self, name: str) -> Picture:
        """The picture of that name, with its mask in the classes of `scenes` or `voc`.

        Raises:
            KeyError: no image of that name.
        """
        split, index = self._places[name]
        strength = 0.0 if split == "test" else self.co_occurrence
        if self._painted is not None:
            return self._painted.render(name, strength)
        return self._scenes.render(SPLITS.index(split), index, strength)

    @cached_property
    def _places(self) -> dict[str, tuple[Split, int]]:
        return {name: (split, index) for split in SPLITS for index, name in enumerate(self._chosen[split])}

    def read(self, name: str) -> Read:
        """The image, its true mask and its tags."""
        picture = self.render(name)
        mask = self._to_space[picture.mask]
        tags = self.tag_vector(classes_in(picture.mask, self.drawn_space), name)
        return Image.fromarray(picture.image), mask, tags

    def tags_of(self, name: str) -> frozenset[str]:
        """The classes in an image's true mask, also those that the label space lacks."""
        if name not in self._tags:
            self._tags[name] = classes_in(self._truth(name), self.drawn_space)
        return self._tags[name]

    def truth_of(self, name: str) -> NDArray[np.uint8]:
        """(H, W) the true mask of an image in the label space."""
        return self._to_space[self._truth(name)]

    def _truth(self, name: str) -> NDArray[np.uint8]:
        return self.render(name).mask if self._painted is None else self._painted.layout(name)
