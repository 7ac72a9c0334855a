"""The files of CelebAMask-HQ: its two layouts, pairs of image and label, splits, and reading of labels."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from structseg.datamodules.batch import SPLITS
from structseg.datamodules.checks import raise_or_collect
from structseg.datamodules.files.listing import files_by_name
from structseg.datamodules.files.text import read_json, read_text
from structseg.datamodules.images import open_image, open_mask, read_mask
from structseg.datamodules.label_spaces import CELEBAMASK_HQ

FULL_FOLDERS = ("CelebA-HQ-img", "CelebAMask-HQ-mask-anno")
COMPACT_FOLDERS = ("images", "masks")
SUBFOLDERS = ("CelebAMask-HQ", "celebamask_hq_mini")  # searched if a parent folder is given
MAPPING_FILE = "CelebA-HQ-to-CelebA-mapping.txt"
PARTITION_FILE = "list_eval_partition.txt"
SPLIT_FILE = "split_622.json"
SIGN = "celebamask_hq.txt"  # marks a compact copy without either list; it may be empty
LEFT_RIGHT_FILE = "left_right_reversed.json"

# Each has its own mask file; where two overlap the later class counts, as in the data set's own g_mask.py.
PART_CLASSES = CELEBAMASK_HQ.classes[1:]
IMAGES_A_FOLDER = 2000
_SUFFIXES = (".jpeg", ".jpg", ".png")
# CelebA's partition is by number: the last images of train and val, counted from 1. Test ends at 202599.
_LAST_TRAIN, _LAST_VAL = 162770, 182637

Splits = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Pair:
    """An image and its label.

    Attributes:
        name: the file stem of the image: `12` in the published layout, 32 digits in the compact one.
        image: the photograph.
        mask: the index mask; with `parts`, the common beginning of the part masks' paths, `.../0/00012`.
        parts: classes with a part mask, in the order of merging; empty for an index mask.
    """

    name: str
    image: Path
    mask: Path
    parts: tuple[str, ...] = ()

    @property
    def mask_files(self) -> tuple[Path, ...]:
        """The index mask, or the part masks in the order of merging."""
        return tuple(self.mask.with_name(f"{self.mask.name}_{part}.png") for part in self.parts) or (self.mask,)


def find_home(root: Path) -> Path:
    """The folder of images and masks in either layout: `root` or one in it.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; give the folder that holds CelebAMask-HQ as --data.root")
    folders = (root, *(root / name for name in SUBFOLDERS))
    for home in folders:
        if is_full(home) or all((home / name).is_dir() for name in COMPACT_FOLDERS):
            return home
    there = [str((home / name).relative_to(root)) for home in folders for name in FULL_FOLDERS + COMPACT_FOLDERS
             if (home / name).is_dir()]  # fmt: skip
    raise FileNotFoundError(
        f"{root} holds no CelebAMask-HQ; expected {' and '.join(FULL_FOLDERS)} (published), or "
        f"{' and '.join(COMPACT_FOLDERS)} (compact), there or in {SUBFOLDERS[0]}; found {', '.join(there) or 'none'}"
    )


def is_full(home: Path) -> bool:
    """Whether a folder has the published layout."""
    return all((home / name).is_dir() for name in FULL_FOLDERS)


def find_pairs(home: Path, faults: list[str] | None = None) -> dict[str, Pair]:
    """All images with their labels, by name, in order of number (published layout) or name.

    With `faults` errors of single files are collected there, and an image without mask is returned without parts, or
    with the expected path of its mask.

    Raises:
        FileNotFoundError: images without mask or masks without image; the message has their number and the first.
        ValueError: there are no images, two of one name, or a file whose name is not of the layout.
    """
    full = is_full(home)
    image_folder, mask_folder = (home / name for name in (FULL_FOLDERS if full else COMPACT_FOLDERS))
    images = files_by_name(image_folder, _SUFFIXES, faults)
    for name, path in list(images.items()) if full else ():
        if not re.fullmatch(r"0|[1-9]\d{0,4}", name):
            text = f"{path} is not named by its number; the published images are 0.jpg to 29999.jpg"
            raise_or_collect(ValueError(text), faults)
            del images[name]
    if not images:
        raise ValueError(f"{image_folder} has no images; expected JPEG files")
    parts = _find_parts(mask_folder, faults) if full else {}
    index_masks = {} if full else files_by_name(mask_folder, (".png",), faults)
    masks = set(parts if full else index_masks)
    names = sorted(images, key=int) if full else sorted(images)
    unmasked = [name for name in names if name not in masks]
    _refuse(unmasked, f"of the images in {image_folder}", f"mask in {mask_folder}", faults)
    _refuse(sorted(masks - set(names)), f"of the masks in {mask_folder}", f"image in {image_folder}", faults)
    if not full:
        index_masks = {name: index_masks.get(name, mask_folder / f"{name}.png") for name in names}
        _require_sign(home, index_masks[names[0]])
        return {name: Pair(name, images[name], mask) for name, mask in index_masks.items()}
    return {name: Pair(name, images[name], _part_prefix(mask_folder, int(name)), parts.get(name, ())) for name in names}


def _require_sign(home: Path, mask: Path) -> None:
    """Raises a ValueError if neither a file of the compact copy nor a mask's palette identifies the data set."""
    if any((home / name).is_file() for name in (SIGN, SPLIT_FILE, LEFT_RIGHT_FILE)) or not mask.is_file():
        return
    try:
        image = open_image(mask)
    except (OSError, ValueError):
        return  # reported when it is read
    flat = (image.getpalette("RGB") if image.mode == "P" else None) or []
    used = {tuple(flat[3 * i : 3 * i + 3]) for i, count in enumerate(image.histogram()) if count} if flat else {()}
    if not used <= set(CELEBAMASK_HQ.palette):
        raise ValueError(
            f"{home} holds images and masks, but nothing says that they are of CelebAMask-HQ: no {SPLIT_FILE}, and "
            f"{mask} has other colours; structseg init {home} reads own classes; if they are, put a "
            f"file {SIGN} there"
        )


def read_label(pair: Pair) -> NDArray[np.uint8]:
    """The label of an image as stored, (H, W) in the classes of CELEBAMASK_HQ.

    Raises:
        FileNotFoundError: a file was removed.
        ValueError: a file is damaged or not a mask, has an unknown class, or part masks differ in size; it is named.
    """
    if not pair.parts:
        return read_mask(pair.mask, len(CELEBAMASK_HQ), CELEBAMASK_HQ.name, CELEBAMASK_HQ.palette)
    merged: NDArray[np.uint8] | None = None
    for part, path in zip(pair.parts, pair.mask_files, strict=True):
        covered = np.asarray(open_mask(path).convert("L")) != 0
        if merged is None:
            merged = np.zeros(covered.shape, dtype=np.uint8)
        if covered.shape != merged.shape:
            raise ValueError(
                f"{path} is {covered.shape[1]}x{covered.shape[0]} but the parts before it {merged.shape[1]}x"
                f"{merged.shape[0]}; the part masks of an image are of one size: copy them again"
            )
        merged[covered] = CELEBAMASK_HQ.classes.index(part)
    assert merged is not None
    return merged


def seeded_split(names: Sequence[str], seed: int) -> Splits:
    """A random split 6:2:2 of the names, which depends on all of them."""
    order = list(names)
    np.random.default_rng(seed).shuffle(order)
    first, second = len(order) * 6 // 10, len(order) * 8 // 10
    return {"train": tuple(order[:first]), "val": tuple(order[first:second]), "test": tuple(order[second:])}


def split_from_file(path: Path, names: Iterable[str], faults: list[str] | None = None) -> Splits:
    """The split in a JSON file, `{"train": [...], "val": [...], "test": [...]}`, in its order.

    With `faults` a line is added for each name that is listed twice or unknown, instead of an error.

    Raises:
        FileNotFoundError: no such file, or it names unknown images.
        ValueError: it is not JSON of that form, or lists an image twice.
    """
    split = {key: tuple(ids) for key, ids in _read_lists(path, SPLITS).items()}
    listed = Counter(name for ids in split.values() for name in ids)
    twice = sorted(name for name, count in listed.items() if count > 1)
    if faults is not None:
        there = set(names)
        faults += [f"{path} lists {name} more than once; list each image once" for name in twice]
        faults += [f"{path} lists {name}, which is not there; add it" for name in sorted(set(listed) - there)]
        return {key: tuple(name for name in dict.fromkeys(ids) if name in there) for key, ids in split.items()}
    if twice:
        where = ", ".join(key for key in SPLITS if twice[0] in split[key])
        raise ValueError(f"{path} lists {_some(twice)} more than once ({twice[0]}: {where}); list each image once")
    missing = sorted(set(listed) - set(names))
    if missing:
        raise FileNotFoundError(
            f"{path} lists {len(missing)} of {len(listed)} images that are not there ({_some(missing)}); "
            "add them, or give the split file of these images"
        )
    return split


def official_split(home: Path, root: Path, names: Iterable[str]) -> Splits:
    """CelebA's own partition, by the number that each image has there; all 30,000 give 24,183 / 2,993 / 2,824.

    It is read from CelebA's `list_eval_partition.txt` in `home` or `root`, if there is one, else computed: images up to
    162770 train, up to 182637 validate, the rest test.

    Raises:
        FileNotFoundError: no mapping file.
        ValueError: a line of a file is damaged, or an image is missing in it.
    """
    mapping = home / MAPPING_FILE
    if not mapping.is_file():
        raise FileNotFoundError(
            f"{home} has no {MAPPING_FILE}, which split=official needs (it comes with the published layout); "
            "set --data.split seed or a split file"
        )
    rows = _read_table(mapping, r"(\d{1,9})\s+\d{1,9}\s+(\d{1,9}\.jpg)", "0 119613 119614.jpg", header=True)
    original = {row[0]: row[1] for row in rows}
    partition_file = official_file(home, root)
    partition: Mapping[str, str] | None = None
    if partition_file is not None:
        rows = _read_table(partition_file, r"(\d{1,9}\.jpg)\s+([012])", "000001.jpg 0")
        partition = {row[0]: row[1] for row in rows}
    split: dict[str, list[str]] = {key: [] for key in SPLITS}
    for name in names:
        if name not in original:
            raise ValueError(f"{mapping} has no line for image {name}; copy it again or set --data.split seed")
        file = original[name]
        if partition is None:
            number = int(file.removesuffix(".jpg"))
            key = SPLITS[(number > _LAST_TRAIN) + (number > _LAST_VAL)]
        elif file in partition:
            key = SPLITS[int(partition[file])]
        else:
            raise ValueError(f"{partition_file} has no line for {file} (image {name}); copy it again or remove it")
        split[key].append(name)
    return {key: tuple(ids) for key, ids in split.items()}


def official_file(home: Path, root: Path) -> Path | None:
    """CelebA's partition file, if it is beside the images."""
    return next((folder / PARTITION_FILE for folder in (home, root) if (folder / PARTITION_FILE).is_file()), None)


def reversed_from_file(path: Path) -> frozenset[str]:
    """The images whose labels have left and right swapped, from a JSON file `{"reversed": [...]}`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not JSON of that form.
    """
    return frozenset(_read_lists(path, ("reversed",))["reversed"])


def _find_parts(folder: Path, faults: list[str] | None = None) -> dict[str, tuple[str, ...]]:
    """The parts of each image that have a mask, in the order of merging."""
    found: dict[str, set[str]] = {}
    for number in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name.isdecimal()):
        for entry in os.scandir(folder / number):
            if not entry.name.endswith(".png") or entry.name.startswith("."):
                continue
            match = re.fullmatch(r"(\d{5})_(\w+)\.png", entry.name)
            if match is None or match[2] not in PART_CLASSES:
                text = f"{entry.path} is no part mask, as 00012_skin.png; the parts are {', '.join(PART_CLASSES)}"
                raise_or_collect(ValueError(text), faults)
                continue
            if int(match[1]) // IMAGES_A_FOLDER != int(number):
                text = f"{entry.path} belongs in folder {int(match[1]) // IMAGES_A_FOLDER}; move it there"
                raise_or_collect(ValueError(text), faults)
                continue
            found.setdefault(str(int(match[1])), set()).add(match[2])
    return {name: tuple(part for part in PART_CLASSES if part in parts) for name, parts in found.items()}


def _part_prefix(folder: Path, number: int) -> Path:
    return folder / str(number // IMAGES_A_FOLDER) / f"{number:05}"


def _refuse(missing: list[str], what: str, lacking: str, faults: list[str] | None) -> None:
    if faults is not None:
        faults += [f"{name} {what} has no {lacking}; add it or remove the other" for name in missing]
    elif missing:
        raise FileNotFoundError(
            f"{len(missing)} {what} have no {lacking} ({_some(missing)}); add what is missing or remove the rest"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(name[:60] for name in names[:3]) + (", ..." if len(names) > 3 else "")


def _read_lists(path: Path, keys: Sequence[str]) -> dict[str, list[str]]:
    """The lists of image names below these keys."""
    form = "{" + ", ".join(f'"{key}": [...]' for key in keys) + "}"
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; expected JSON, {form}")
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{str(error).removesuffix('; copy it again')}; expected {form}") from None
    lacking = [key for key in keys if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if lacking:
        raise ValueError(f"{path} has no list {', '.join(lacking)}; expected {form}")
    return {key: [unicodedata.normalize("NFC", str(name)) for name in content[key]] for key in keys}


def _read_table(path: Path, form: str, example: str, *, header: bool = False) -> list[tuple[str, ...]]:
    """The groups of the regular expression `form` in each line of a text file."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or (header and number == 1):
            continue
        match = re.fullmatch(form, line.strip())
        if match is None:
            raise ValueError(
                f"{path} line {number} reads {line.strip()[:40]!r}; expected lines like {example!r}: copy it again"
            )
        rows.append(match.groups())
    return rows
