"""Data for weak supervision: cropped images with tags, and the files of earlier stages of a round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from structseg.datamodules.base import SegmentationDataModule
from structseg.datamodules.batch import Batch, Sample, Split
from structseg.datamodules.checks import raise_problems
from structseg.datamodules.label_spaces import LabelSpace
from structseg.datamodules.round_files import ABOUT, ArtefactManifest, check_folder
from structseg.datamodules.samplers import run_seed
from structseg.datamodules.weak.crops import CropSettings
from structseg.datamodules.weak.dataset import Donors, Read, Sources, WeakDataset

ContextOf = Literal["own", "another", "another_of_class", "displaced"]

MASK_KINDS = ("relation_labels", "pseudo_masks", "masks")
_GEOMETRY: dict[str, Any] = {
    "flip": 0.0, "rotate": 0.0, "translate": 0.0, "scale": (1.0, 1.0), "shear": 0.0, "random_subset": False,
}  # fmt: skip
_SHOWN = 5  # names that a warning gives


class WeaklySupervisedDataModule(SegmentationDataModule):
    """Base for images with tags, with true masks, masks of an earlier stage, or no masks.

    Subclasses implement `entries`, and either `read` or all of `read_unmasked`, `tags_of` and `truth_of`. Names are
    unique over all splits.

    Samples have `image`, `name`, `crop`, `tags` if known, `mask`, with `queries` also `context`, and in predictions
    over a split `cams`. Training samples are crops, drawn from (seed, epoch, index) in the workers; evaluation samples
    are whole images with their true masks. All samples of an evaluation split have the same keys: if only some images
    have a true mask, the others get one that is 255 everywhere; if only some have tags, no sample has, with a notice.

    Args:
        label_space: label space of masks and tags; `voc[cat,dog]`: the background and these classes.
        batch_size: training images per batch on each device.
        masks: training masks: None, `truth` for the true ones, or a folder of artefacts: relation_labels, pseudo_masks
            or masks.
        cams: folder of class activation maps, for predictions over a split.
        queries: folder of the last round's class probabilities, which become `context`. All training images must have
            them; for an evaluation split all or none.
        context_of: the context of each image: its `own`; that of `another` image of its split (the placebo); with
            `another_of_class`, for each of its classes that of another image with that class, the rest background;
            `displaced`: its own with each class shifted at random, cyclically. Fixed by `seed`.
        predict_split: the split to predict, with evaluation samples.
        crops: how training images are cropped.
        unknown_classes: classes that the label space lacks become `background`, in tags and masks, or images with them
            are left out (`leave_out`). Training images without any class of the label space are always left out.
        **kwargs: settings of `SegmentationDataModule`.

    Raises:
        ValueError: settings that do not go together; all are named.
    """

    data_space: LabelSpace | None = None  # of the names that `tags_of` returns; None: the label space
    tags_from_masks: bool = False  # whether tags are made from the masks, so that they cannot disagree

    def __init__(
        self,
        label_space: str = "voc",
        *,
        batch_size: int = 16,
        masks: str | None = None,
        cams: str | None = None,
        queries: str | None = None,
        context_of: ContextOf = "own",
        predict_split: Split | None = None,
        crops: CropSettings = CropSettings(),  # noqa: B008  # frozen by use: nothing writes to it
        unknown_classes: Literal["background", "leave_out"] = "background",
        **kwargs: Any,
    ) -> None:
        super().__init__(label_space, batch_size=batch_size, **kwargs)
        moves = [name for name, off in _GEOMETRY.items() if _plain(getattr(self.pipeline.settings, name)) != off]
        problems = [f"augmentation.{name} (geometry belongs in --data.crops, which tracks the crop)" for name in moves]
        if crops.flip and self.label_space.flip_pairs:
            problems.append(f"crops.flip with {self.label_space.name} (a flip would exchange classes; leave it at 0)")
        if self.unlabelled is not None or self.sample_weights is not None:
            problems.append("unlabelled or sample_weights with weak supervision (which has tags for every image)")
        if context_of != "own" and queries is None:
            problems.append(f"context_of={context_of} without queries (give --data.queries)")
        raise_problems("data", problems)
        self.masks, self.cams, self.queries = masks, cams, queries
        self.context_of = context_of
        self.predict_split: Split | None = predict_split
        self.crops = crops
        self.unknown_classes = unknown_classes
        self.notices: list[str] = []  # caveats about the data that have to be read with the results
        self._names: dict[Split, tuple[str, ...]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """The state for spawned workers: everything but the trainer and the data sets."""
        return {**self.__dict__, "trainer": None, "_datasets": {}}

    def entries(self, split: Split) -> Sequence[str]:  # noqa: ARG002  # for subclasses
        """The names of a split's images, in a fixed order."""
        return ()

    def read(self, name: str) -> Read:
        """An image, RGB, its true mask (h, w) in the label space, and its tags (K-1,) of 0 and 1.

        Mask and tags are None if unknown. Raises as `read_unmasked` and `truth_of`.
        """
        image, _, tags = self.read_unmasked(name)
        return image, self.truth_of(name), tags

    def read_unmasked(self, name: str) -> Read:
        """As `read`, but the mask may be None although there is one, which spares decoding it."""
        return self.read(name)

    def tags_of(self, name: str) -> frozenset[str] | None:
        """All classes of an image, in the data's names, also those that the label space lacks; None if unknown."""
        tags = self.read(name)[2]
        return None if tags is None else frozenset(self.label_space.classes[i + 1] for i in np.flatnonzero(tags))

    def truth_of(self, name: str) -> NDArray[np.uint8] | None:
        """The true mask of an image in the label space; None without one."""
        return self.read(name)[1]

    @cached_property
    def _table(self) -> dict[str, int]:
        """The index in the label space of each class of the data; 0 if it lacks the class."""
        space = self.data_space or self.label_space
        table = space.lookup(self.label_space)
        return {name: int(table[index]) for index, name in enumerate(space.classes) if index}

    def tag_vector(self, tags: frozenset[str], name: str) -> NDArray[np.float32]:
        """(K-1,) of 0 and 1 from tags in the data's names.

        Raises:
            ValueError: a tag is not a class of the data; the message names it and the image.
        """
        unknown = sorted(tags - self._table.keys())
        if unknown:
            raise ValueError(f"tag {unknown[0]!r} of {name} is no class; the data have {', '.join(self._table)}")
        vector = np.zeros(len(self.label_space), dtype=np.float32)
        vector[[self._table[tag] for tag in tags]] = 1
        return vector[1:]

    def train_tags(self) -> Tensor:
        """(N, K-1) float32 of 0 and 1: the tags of all training images."""
        names = self.names("train")
        vectors = [self.tag_vector(self.tags_of(name) or frozenset(), name) for name in names]
        return torch.from_numpy(np.stack(vectors)) if vectors else torch.zeros(0, len(self.label_space) - 1)

    def train_samples(self, most: int) -> list[Sample]:
        """At most `most` training samples of the first epoch, evenly spread over the set, in order."""
        data, count = self.dataset("train"), len(self.names("train"))
        return [data[index * count // min(most, count)] for index in range(min(most, count))]

    def names(self, split: Split) -> tuple[str, ...]:
        """The images of a split that are used, in order.

        Raises:
            ValueError: training images without tags, or a tag that is not a class.
        """
        if split not in self._names:
            self._names[split] = self._used(split)
        return self._names[split]

    def _used(self, split: Split) -> tuple[str, ...]:
        names = tuple(self.entries(split))
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"the {split} list holds {twice[0]} twice ({len(twice)} such names); keep one of each")
        lacking = {name for name, index in self._table.items() if index == 0}
        if split != "train" and not (lacking and self.unknown_classes == "leave_out"):
            return names
        tags = {name: self.tags_of(name) for name in names}
        without = [name for name in names if not tags[name]]
        if split == "train" and without:
            raise ValueError(
                f"{len(without)} of {len(names)} training images have no tags, first {without[0]}; give their tags or "
                "take them off the list"
            )
        if self.unknown_classes == "leave_out":
            names = tuple(name for name in names if not (tags[name] or frozenset()) & lacking)
        if split == "train":
            counts = np.zeros(len(self.label_space) - 1)
            kept = []
            for name in names:
                vector = self.tag_vector(tags[name] or frozenset(), name)
                counts += vector
                if vector.any():
                    kept.append(name)
            names = tuple(kept)
            empty = [name for name, count in zip(self.label_space.classes[1:], counts, strict=True) if not count]
            if empty and names:
                self._notice(f"no training image holds {', '.join(empty)}; their confounders stay zero")
        return names

    def tag_faults(self, split: Split) -> list[str]:
        """The images whose tags are not the classes of their true mask, where both are known."""

        def differs(name: str) -> bool:
            tags, mask = self.tags_of(name), self.truth_of(name)
            if tags is None or mask is None:
                return False
            seen = np.bincount(mask.ravel(), minlength=256)[1 : len(self.label_space)] > 0
            return bool((seen != (self.tag_vector(tags, name) > 0)).any())

        names = self.names(split)
        with ThreadPoolExecutor(4) as pool:  # decoding releases Python's lock
            return [name for name, fault in zip(names, pool.map(differs, names), strict=True) if fault]

    @rank_zero_only
    def _compare_tags(self) -> None:
        faults = self.tag_faults("train")
        if faults:
            shown = ", ".join(faults[:_SHOWN]) + (", ..." if len(faults) > _SHOWN else "")
            count = len(self.names("train"))
            self._notice(f"tags disagree with the true masks in {len(faults)} of {count} training images: {shown}")

    def _notice(self, text: str) -> None:
        if text not in self.notices:
            self.notices.append(text)
            rank_zero_warn(text)

    @property
    def has_validation(self) -> bool:
        """Whether there are validation images; without them a fit runs all epochs and its last state counts."""
        return len(self.entries("val")) > 0

    def make_dataset(self, split: Split) -> Dataset[Sample] | None:
        """The data set of a split, after checking folders of artefacts and comparing tags with masks.

        Raises:
            FileNotFoundError: artefacts of an earlier stage are missing; the message says what to run.
            ValueError: artefacts of another kind, round or classes; training images without tags.
        """
        names = self.names(split)
        if not names:
            return None
        if split == "train" and not self.tags_from_masks:
            self._compare_tags()
        masks: Path | Literal["truth"] | None = "truth"
        if split == "train":
            masks = self.masks if self.masks in (None, "truth") else self._checked_masks(names)  # type: ignore[assignment]
        sources = Sources(masks=masks, queries=self._checked_queries(split, names))
        return self._samples(names, split, sources, self.crops if split == "train" else None)

    def _samples(
        self, names: tuple[str, ...], split: Split, sources: Sources, crops: CropSettings | None
    ) -> WeakDataset:
        native = crops is None and self.score_at == "native"
        read = self.read if sources.masks == "truth" else self.read_unmasked
        if crops is None:
            blank = any(self.truth_of(name) is not None for name in names)
            sources = sources._replace(blank=blank, tags=self._all_have_tags(split, names))
        return WeakDataset(
            names, read, None if native else self.size, self.label_space, sources, crops, self.mean, run_seed(),
            None if sources.queries is None else self._donors(split, names),
            self.seed if self.context_of == "displaced" else None,
        )  # fmt: skip

    def _all_have_tags(self, split: Split, names: tuple[str, ...]) -> bool:
        without = [name for name in names if self.tags_of(name) is None]
        if 0 < len(without) < len(names):
            self._notice(
                f"{len(without)} of {len(names)} {split} images have no tags, first {without[0]}; all go without"
            )
        return not without

    def _donors(self, split: Split, names: tuple[str, ...]) -> Donors | None:
        """The images whose context each image, or each of its classes, gets: in cycles, so that none gets its own."""
        if self.context_of in ("own", "displaced"):
            return None
        random = np.random.default_rng(self.seed)
        if self.context_of == "another":
            if len(names) < 2:
                raise ValueError(f"context_of=another needs 2 {split} images or more; there is 1")
            return _cycle(names, random)
        tags = {name: self.tags_of(name) for name in names}
        without = [name for name in names if tags[name] is None]
        if without:
            raise ValueError(f"context_of=another_of_class needs the tags of all {split} images; {without[0]} has none")
        held = np.stack([self.tag_vector(tags[name] or frozenset(), name) for name in names]) > 0
        donors: dict[str, dict[int, str]] = {name: {} for name in names}
        for index, column in enumerate(held.T, start=1):
            holders = [name for name, holds in zip(names, column, strict=True) if holds]
            if len(holders) == 1:
                cls = self.label_space.classes[index]
                self._notice(f"only {holders[0]} of the {split} images has {cls}; it gets no context of that class")
                continue
            for name, donor in _cycle(holders, random).items():
                donors[name][index] = donor
        return donors

    @property
    def query_origin(self) -> str | None:
        """Identifies the prediction that made `queries` and its confounders; None if unknown.

        Raises:
            ValueError: a damaged `about.json`.
        """
        about = self._about_queries()
        return None if about is None else about.origin or None

    @property
    def query_notices(self) -> tuple[str, ...]:
        """The notices of the prediction that made the queries; empty if unknown.

        Raises:
            ValueError: a damaged `about.json`.
        """
        about = self._about_queries()
        return () if about is None else about.notices

    def _about_queries(self) -> ArtefactManifest | None:
        if self.queries is None or not (Path(self.queries) / ABOUT).is_file():
            return None
        return ArtefactManifest.read(Path(self.queries))

    def _checked(self, folder: Path, kinds: tuple[str, ...], names: tuple[str, ...], split: Split) -> ArtefactManifest:
        # Only training depends on the split of its files; evaluation may read them from a folder of another split.
        return check_folder(folder, kinds, names, self.label_space, "train" if split == "train" else None)

    def _checked_masks(self, names: tuple[str, ...]) -> Path:
        folder = Path(str(self.masks))
        kinds = (folder.name,) if folder.name in MASK_KINDS else MASK_KINDS
        self._checked(folder, kinds, names, "train")
        return folder

    def _checked_queries(self, split: Split, names: tuple[str, ...]) -> Path | None:
        if self.queries is None:
            return None
        folder = Path(self.queries)
        if split != "train" and not any((folder / f"{name}.npz").is_file() for name in names):
            self._checked(folder, ("queries",), (), split)
            return None  # the last round did not predict this split
        self._checked(folder, ("queries",), names, split)
        return folder

    def predict_dataloader(self) -> DataLoader[Sample]:
        """The images of `predict_split` in evaluation form, each once over all ranks.

        Raises:
            ValueError: no split is given, or it is empty; artefacts as in `make_dataset`.
        """
        if self.predict_split is None:
            raise ValueError("no split to predict; set --data.predict_split")
        split = self.predict_split
        self.check_files((split,))
        names = self.names(split)
        if not names:
            raise ValueError(f"{type(self).__name__} has no {split} images; choose another --data.predict_split")
        cams = None
        if self.cams is not None:
            cams = Path(self.cams)
            self._checked(cams, ("cams",), names, split)
        sources = Sources(masks="truth", queries=self._checked_queries(split, names), cams=cams)
        return self._load(self._samples(names, split, sources, None), train=False)

    def augment(self, batch: Batch, seed: list[int]) -> Batch:
        """The batch with augmented colours; a batch without masks gets none."""
        varied = super().augment(batch, seed)
        if "mask" not in batch:
            varied.pop("mask", None)
        return varied


def classes_in(mask: NDArray[np.uint8], space: LabelSpace) -> frozenset[str]:
    """The names of the classes in a mask, without background and ignored pixels."""
    counts = np.bincount(mask.ravel(), minlength=256)[: len(space)]
    return frozenset(space.classes[index] for index in np.flatnonzero(counts) if index)


def _cycle(names: Sequence[str], random: np.random.Generator) -> dict[str, str]:
    """Another name for each name: one random cycle through all of them."""
    order = random.permutation(len(names))
    return {names[a]: names[b] for a, b in zip(order, np.roll(order, 1), strict=True)}


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
