"""ConfoundedScenes as a datamodule: weak supervision where the strength of confounding is a number."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from structseg.datamodules.augmentation import Augmentation
from structseg.datamodules.base import Split
from structseg.datamodules.confounded_scenes.cooccurrence import base_probability
from structseg.datamodules.confounded_scenes.dataset import ConfoundedScenes
from structseg.datamodules.confounded_scenes.layouts import PaintedLayouts, choose_layouts
from structseg.datamodules.confounded_scenes.scene import Picture
from structseg.datamodules.label_spaces import SCENES, VOC
from structseg.datamodules.weak.crops import Views
from structseg.datamodules.weak.datamodule import ContextOf, Read, WeaklySupervisedDataModule
from structseg.datamodules.wrappers.blobs import BlobKind

_SPLITS: tuple[Split, ...] = ("train", "val", "test")


class ConfoundedScenesDataModule(WeaklySupervisedDataModule):
    """Scenes drawn from a seed, with exact masks: training and validation confounded, test balanced (co_occurrence 0).

    `datamodules.confounded_scenes.cooccurrence` defines the number. Tags are the classes that the true mask shows.

    Args:
        train: number of training images.
        val: number of validation images; 0 holds none out.
        test: number of test images.
        co_occurrence: how far classes keep company with their partners and their habitual grounds in training, 0
            (independent) to 1 (always). With layouts the company of classes is that of the layouts, and this is the
            strength of the ground with the class that has most pixels.
        label_space: `scenes`, or `scenes[fish,shell]` for some of its classes; with layouts `voc` or `voc[...]`.
        size: (H, W) in pixels that images are drawn at.
        layouts: folder of VOC-style masks, whose shapes and places are painted with a texture a class; None draws
            shapes of our own.
        layout_lists: split to file with one name a line, from which its layouts are chosen by seed; a split without
            one takes what `train` leaves over, and None shares out the folder.
        batch_size: images a training batch, on each device.
        num_workers: processes that draw; 0 draws in the main process.
        augmentation: how colours of training batches are varied; geometry is for `views`.
        mean: mean of each channel, on images in 0..1.
        std: deviation of each channel, on images in 0..1.
        score_at: `size` or `native`; the same here but for the size of batches, as scenes are drawn at `size`.
        seed: of the scenes, of the choice of layouts, and of whose context another image gets.
        predict_dir: an image, a folder of images, a video file, or `camera:N`, for `predict`.
        predict_out: the folder that predictions, or artefacts of a round, are written to.
        blobs: regions that a loss asks to agree: labels, components or superpixels; None makes none.
        masks: of training: None gives none, `truth` the scenes' own, else a folder of artefacts.
        cams: folder of activation maps, that come along in predictions over a split.
        queries: folder of the last round's class probabilities, which become `context`.
        context_of: `own`, `another` image's (the placebo), `another_of_class` or `displaced`: see the base class.
        predict_split: predict over a split of the data; instead of `predict_dir`.
        views: how training views are cut.
        others: classes that the label space lacks: `background`, or their images are left out (`leave_out`).

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
        masks: str | None = None,
        cams: str | None = None,
        queries: str | None = None,
        context_of: ContextOf = "own",
        predict_split: Split | None = None,
        views: Views = Views(),  # noqa: B008  # likewise
        others: Literal["background", "leave_out"] = "background",
    ) -> None:
        super().__init__(
            label_space, size, batch_size, num_workers, augmentation, mean, std, score_at, seed, predict_dir,
            predict_out, blobs, masks, cams, queries, context_of, predict_split, views, others,
        )  # fmt: skip
        base_probability(co_occurrence)
        self.data_space = SCENES if layouts is None else VOC
        problems = []
        if min(train, test) < 1 or val < 0:
            problems.append(f"train={train}, val={val}, test={test} (at least 1, 0, 1 images)")
        if self.label_space.name.partition("[")[0] != self.data_space.name:
            where = "without layouts" if layouts is None else "with layouts"
            problems.append(f"label_space={label_space} {where} (give {self.data_space.name} or some of its classes)")
        if layout_lists is not None and layouts is None:
            problems.append("layout_lists without layouts (give the folder of masks)")
        wrong = sorted(set(layout_lists or {}) - set(_SPLITS))
        problems += [f"layout_lists.{split} (train, val or test)" for split in wrong]
        if problems:
            raise ValueError("data: " + ", ".join(problems))
        self.co_occurrence = co_occurrence
        self.counts: dict[Split, int] = dict(zip(_SPLITS, (train, val, test), strict=True))
        self.layouts = None if layouts is None else Path(layouts)
        self.layout_lists = {split: Path(file) for split, file in (layout_lists or {}).items()}
        self._scenes = ConfoundedScenes(seed, self.size)
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
        return self._scenes.render(_SPLITS.index(split), index, strength)

    @cached_property
    def _places(self) -> dict[str, tuple[Split, int]]:
        return {name: (split, index) for split in _SPLITS for index, name in enumerate(self._chosen[split])}

    def read(self, name: str) -> Read:
        """The image, its true mask and its tags."""
        picture = self.render(name)
        mask = self._to_space[picture.mask]
        return Image.fromarray(picture.image), mask, self.tag_vector(self._classes(picture.mask), name)

    def tags_of(self, name: str) -> frozenset[str]:
        """The classes in an image's true mask, those that the label space lacks included."""
        if name not in self._tags:
            self._tags[name] = self._classes(self._truth(name))
        return self._tags[name]

    def truth_of(self, name: str) -> NDArray[np.uint8]:
        """(H, W) the true mask of an image in the label space."""
        return self._to_space[self._truth(name)]

    def _truth(self, name: str) -> NDArray[np.uint8]:
        return self.render(name).mask if self._painted is None else self._painted.layout(name)

    def _classes(self, mask: NDArray[np.uint8]) -> frozenset[str]:
        space = self.data_space or SCENES
        counts = np.bincount(mask.ravel(), minlength=256)[1 : len(space)]
        return frozenset(space.classes[index + 1] for index in np.flatnonzero(counts))
