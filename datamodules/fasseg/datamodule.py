"""FASSEG: faces with six-class labels, frontal (V1, V2) and in 13 poses (V3)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import platformdirs
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.utilities import rank_zero_info

from structseg.datamodules.base import SegmentationDataModule
from structseg.datamodules.batch import Split
from structseg.datamodules.checks import raise_problems
from structseg.datamodules.fasseg.download import download_fasseg
from structseg.datamodules.fasseg.files import Pair, Part, Version, find_pairs, is_clean, pose_of, select, split_folds
from structseg.datamodules.fasseg.labels import PROTOCOL, decode_fasseg, decode_published, resize_published
from structseg.datamodules.files.decoded import DecodedDataset
from structseg.datamodules.files.download import file_sha256
from structseg.datamodules.files.listing import FileSample
from structseg.datamodules.images import check_image, fit_mask, read_image
from structseg.datamodules.label_spaces import FASSEG

LabelDecoding = Literal["fasseg-labels-1", "published"]


class FASSEGDataModule(SegmentationDataModule):
    """FASSEG as published: V1 and V2 with 20 photographs to train and 50 to test, V3 with 182 and 92.

    Test scores of V1 and V2 are given for all photographs and, as `clean`, for the 38 that are neither training
    photographs nor of a sitting with one; those of V3 also for each pose, as `yaw-90` to `yaw+90`.

    Source: Khan, Mauro, Leonardi, ICIP 2015 (V1, V2); Khan, Mauro, Migliorati, Leonardi, ICME 2017 (V3).

    Args:
        root: folder that holds V1, V2, V3 (or frontal01, frontal02, multipose01), or the version's own folder.
        version: V1 and V2 have the same photographs, V2 has precise labels; their noses are drawn differently.
        split: `published` tests on the published test part; `subjects` (V3) tests on persons of the training part.
        fold: the fold of the training photographs (V3: persons) that validates; None: no validation. With `subjects` it
            is the test person, and the next fold validates.
        folds: number of random folds, by `seed`; default 5, and 7 for V3's 7 persons.
        label_decoding: of the training labels; `published` repeats the published code's loss of 4 % of the pixels.
            Validation and test labels are always decoded by protocol fasseg-labels-1.
        download: download the published repository (180 MB) into `root` if the version is missing.
        batch_size: training images per batch on each device.
        mean: mean of each channel, on images in 0..1; default: the published code's, of all 70 photographs at 256x256.
        std: standard deviation of each channel; default: the published code's.
        **kwargs: settings of `SegmentationDataModule`.

    Raises:
        ValueError: settings that do not go together; all are named.
    """

    def __init__(
        self,
        root: str | Path,
        version: Version = "V2",
        split: Literal["published", "subjects"] = "published",
        fold: int | None = None,
        folds: int | None = None,
        label_decoding: LabelDecoding = "fasseg-labels-1",
        download: bool = False,
        batch_size: int = 4,
        mean: tuple[float, float, float] = (0.4283, 0.335, 0.275),
        std: tuple[float, float, float] = (0.240, 0.219, 0.216),
        **kwargs: Any,
    ) -> None:
        super().__init__(FASSEG.name, batch_size=batch_size, mean=mean, std=std, blobs=None, **kwargs)
        self.folds = (7 if version == "V3" else 5) if folds is None else folds
        problems = []
        if split == "subjects" and version != "V3":
            problems.append(f"split=subjects (only V3 names its subjects, not {version}; use published)")
        if split == "subjects" and fold is None:
            problems.append(f"split=subjects without fold (0 to {self.folds - 1}: it chooses the test person)")
        if split == "subjects" and self.folds < 3:
            problems.append(f"folds={self.folds} (3 or more: one tests, one validates)")
        if folds is not None and fold is None:
            problems.append(f"folds={folds} without fold (0 to {self.folds - 1}: it chooses what is held out)")
        if fold is not None and not 0 <= fold < self.folds:
            problems.append(f"fold={fold} (0 to {self.folds - 1})")
        raise_problems("data", problems)
        self.root = Path(root).expanduser()
        self.version: Version = version
        self.split = split
        self.fold = fold
        self.label_decoding: LabelDecoding = label_decoding
        self.download = download
        self._parts: dict[Part, tuple[Pair, ...]] = {}

    def prepare_data(self) -> None:
        """Downloads the data if they are missing and `download` is set."""
        if self.download and not (self.trainer and self.trainer.predicting):
            download_fasseg(self.root, self.version)

    def setup(self, stage: str) -> None:
        """Finds the parts of the test set that are scored separately."""
        if stage == "test":
            names = [pair.name for pair in self.pairs("test")]
            self.test_subsets = scored_subsets(names)
            clean = len(self.test_subsets.get("clean", names))
            if clean < len(names):
                rank_zero_info(
                    f"FASSEG {self.version} test: {len(names)} photographs; `clean` has {clean}, without the "
                    f"{len(names) - clean} that are also training photographs or of a sitting with one"
                )

    @property
    def has_validation(self) -> bool:
        """Whether a fold validates."""
        return self.fold is not None

    def pairs(self, split: Split, faults: list[str] | None = None) -> tuple[Pair, ...]:
        """The photographs and labels of a split, in a fixed order; `faults` and errors as in `find_pairs`."""
        if split == "test" and self.split == "published":
            return self._part("test", faults)
        training = self._part("train", faults)
        if self.fold is None:
            return training if split == "train" else ()
        parts = split_folds((pair.subject for pair in training), self.folds, self.seed)
        held: dict[Split, list[str]] = {"val": parts[self.fold]}
        if self.split == "subjects":
            held = {"test": parts[self.fold], "val": parts[(self.fold + 1) % self.folds]}
        if split in held:
            return select(training, held[split])
        return select(training, [subject for part in held.values() for subject in part], inside=False)

    def make_dataset(self, split: Split) -> FASSEGDataset:
        """The samples of a split; masks of validation and test at their own size with `score_at=native`."""
        train = split == "train"
        pairs = self.pairs(split)
        if not pairs and split == "val":
            raise ValueError("FASSEG: there are no validation images without a fold; set --data.fold")
        for pair in pairs:  # finds damaged files before training instead of in the middle of it
            check_image(pair.image)
            read_label(pair.label)
        return FASSEGDataset(
            pairs,
            self.size,
            label_decoding=self.label_decoding if train else PROTOCOL,
            native_mask=not train and self.score_at == "native",
        )

    def file_samples(self, split: Split, faults: list[str]) -> list[FileSample]:
        """For `structseg check`; raises as `find_pairs` if a folder is missing."""
        return [
            FileSample(pair.name, pair.image, FASSEG, (pair.label,), partial(read_label, pair.label))
            for pair in self.pairs(split, faults)
        ]

    def _part(self, part: Part, faults: list[str] | None = None) -> tuple[Pair, ...]:
        if part not in self._parts:
            try:
                found = find_pairs(self.root, self.version, part, faults)
            except FileNotFoundError as error:
                if self.version != "V3" or part != "test":
                    raise
                raise FileNotFoundError(f"{error}; --data.split subjects tests without the test part") from None
            if found.unlabelled or found.mismatched:
                rank_zero_info(f"FASSEG {self.version} {part}: {found}")
            self._parts[part] = found.pairs
        return self._parts[part]


def scored_subsets(names: Sequence[str]) -> Mapping[str, frozenset[str]]:
    """The parts of a test set to score separately, none empty: `clean` of the frontal versions, each pose of V3."""
    parts: dict[str, set[str]] = {}
    for name in names:
        if name.startswith("V3/"):
            parts.setdefault(f"yaw{pose_of(name)}", set()).add(name)
        elif is_clean(name):
            parts.setdefault("clean", set()).add(name)
    return {part: frozenset(members) for part, members in parts.items()}


class FASSEGDataset(DecodedDataset):
    """Pairs of photograph and label, decoded once.

    Args:
        pairs: as `find_pairs` returns them.
        size: (H, W) that photographs are resized to, bilinear with antialiasing, and masks with the nearest filter.
        label_decoding: `fasseg-labels-1` decodes at native size and resizes the classes; `published` resizes the
            colours with a bicubic filter and takes exact matches only, the rest as background.
        native_mask: keep masks at the size of their files.
        memory_bytes: memory for resized samples.

    Raises:
        ValueError: `native_mask` with the published decoding, which exists at `size` only; when read: a file is damaged
            or not a label.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        size: tuple[int, int],
        label_decoding: LabelDecoding = "fasseg-labels-1",
        native_mask: bool = False,
        memory_bytes: int = 512 << 20,
    ) -> None:
        if native_mask and label_decoding == "published":
            raise ValueError("the published decoding works on resized labels; native masks need fasseg-labels-1")
        super().__init__([pair.name for pair in pairs], size, native_mask, memory_bytes=memory_bytes)
        self.pairs = tuple(pairs)
        self.label_decoding = label_decoding

    def photograph(self, index: int) -> Image.Image:
        """The photograph of a sample; raises as `read_image`."""
        return read_image(self.pairs[index].image)

    def label(self, index: int) -> NDArray[np.uint8]:
        """The classes of a sample, 0..5, at full size, or (H, W) by the published decoding; raises as `read_label`."""
        image, path = self.pairs[index].image, self.pairs[index].label
        if self.label_decoding == "published":
            colours = fit_mask(np.asarray(read_image(path)), image, str(path))
            return decode_published(resize_published(colours, self.size))
        return fit_mask(read_label(path), image, str(path))


def read_label(path: Path) -> NDArray[np.uint8]:
    """The class map of a label file by protocol fasseg-labels-1, (H, W), cached.

    The cache is `fasseg-labels-1/SHA256.png` in the folder that `STRUCTSEG_CACHE` names, else the user's cache folder.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or not a label; the message names it.
    """
    folder = Path(os.environ.get("STRUCTSEG_CACHE") or platformdirs.user_cache_dir("structseg")) / PROTOCOL
    if not path.is_file():
        raise FileNotFoundError(f"no label at {path}; check the path")
    cached = folder / f"{file_sha256(path)}.png"
    classes = _read_cached(cached)
    if classes is None:
        label = np.asarray(read_image(path))
        try:
            classes = decode_fasseg(label)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        _write_cached(cached, classes)
    return classes


def _read_cached(path: Path) -> NDArray[np.uint8] | None:
    """The cached map; None if it is missing or damaged."""
    try:
        with Image.open(path) as image:
            classes = np.array(image)
    except (OSError, SyntaxError, ValueError):
        return None
    return classes if classes.dtype == np.uint8 and classes.ndim == 2 and classes.max() < len(FASSEG) else None


def _write_cached(path: Path, classes: NDArray[np.uint8]) -> None:
    """Puts the map into the cache in one step; does nothing if the cache cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as stage:
            whole = Path(stage) / path.name
            Image.fromarray(classes).save(whole)
            whole.replace(path)
    except OSError:
        return
