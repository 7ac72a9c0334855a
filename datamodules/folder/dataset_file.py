"""`dataset.yaml`: the folders of images and masks, the meaning of the masks' values, and the split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from structseg.datamodules.batch import SPLITS, Split
from structseg.datamodules.files.listing import read_split_lists
from structseg.datamodules.folder.masks import IGNORE, JPEGMasks, MaskReader, Value
from structseg.datamodules.folder.pairs import Pair, find_pairs, grouped_split
from structseg.datamodules.label_spaces import (
    DATASET_FILE,
    LabelSpace,
    as_list,
    class_entries,
    mask_value,
    read_space,
)
from structseg.messages import nearest
from structseg.yaml_files import load_yaml

_KEYS = (
    *SPLITS, "images", "masks", "split", "classes", "ignore", "ignore_classes", "flip_pairs", "groups", "tags", "name",
    "size", "batch_size", "mean", "std", "jpeg_masks",
)  # fmt: skip
_SPLIT_KEYS = ("seed", "val", "test", "group")
_NUMBERS = {"size": (2, int, 1), "mean": (3, float, 0), "std": (3, float, 0)}  # length, type, minimum


@dataclass(frozen=True)
class DatasetFile:
    """The checked content of a `dataset.yaml`.

    Attributes:
        path: the file.
        tree: its keys and values.
        space: label space of its classes.
        values: class index, or 255, of each mask value.
    """

    path: Path
    tree: Mapping[str, Any]
    space: LabelSpace
    values: Mapping[Value, int]

    @property
    def home(self) -> Path:
        """The folder that paths start from."""
        return self.path.parent

    @property
    def has_masks(self) -> bool:
        """Whether any split has masks."""
        return "masks" in self.tree or any(self.tree.get(split, {}).get("masks") for split in SPLITS)

    def setting(self, key: str, default: Any) -> Any:
        """`size`, `batch_size`, `mean` or `std`, or the default."""
        value = self.tree.get(key, default)
        return tuple(value) if isinstance(value, list) else value

    def reader(self, jpeg: JPEGMasks | None) -> MaskReader:
        """The reader of the masks; None: lossy ones as the file says, by default refused."""
        how = jpeg or self.tree.get("jpeg_masks", "refuse")
        return MaskReader(self.values, self.space.classes, self.space.palette, how)

    def splits(self, faults: list[str]) -> dict[Split, tuple[Pair, ...]]:
        """The pairs of each split, by name; `faults` and errors as in `find_pairs`."""
        if "images" not in self.tree:
            found: dict[Split, tuple[Pair, ...]] = dict.fromkeys(SPLITS, ())
            owner: dict[Path, str] = {}
            for split in SPLITS:
                if part := self.tree.get(split):
                    found[split] = find_pairs(self.home / part["images"], part.get("masks"), self.home, faults)
                for pair in found[split]:
                    where = owner.setdefault(pair.image.resolve(), split)
                    if where != split:
                        faults.append(f"{pair.image} is in {where} and {split}; keep it in one of them")
            return found
        pairs = find_pairs(self.home / self.tree["images"], self.tree.get("masks"), self.home, faults)
        how = self.tree.get("split") or {}
        if _are_lists(how):
            return self._listed(pairs, how, faults)
        return grouped_split(pairs, how.get("seed", 0), how.get("val", 0), how.get("test", 0), how.get("group"))

    def _listed(
        self, pairs: Sequence[Pair], lists: Mapping[str, str], faults: list[str]
    ) -> dict[Split, tuple[Pair, ...]]:
        by_name = {pair.name: pair for pair in pairs}
        by_name |= {pair.image.relative_to(self.home / self.tree["images"]).as_posix(): pair for pair in pairs}
        missing = [file for file in lists.values() if not (self.home / file).is_file()]
        if missing:
            raise FileNotFoundError(f"no list {self.home / missing[0]}; check split in {self.path}")

        def name_of(line: str) -> str | None:
            short = line.split("/", 1)[-1] if line not in by_name else line  # a path from `home`
            return by_name[short].name if short in by_name else None

        names = read_split_lists(self.home, lists, name_of, "image of the folder with a mask", faults)
        return {split: tuple(by_name[name] for name in names.get(split, ())) for split in SPLITS}


def read_dataset_file(root: Path) -> DatasetFile:
    """A `dataset.yaml`, or the one in a folder.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is wrong; the message has key and value.
    """
    path = root / DATASET_FILE if root.is_dir() else root
    if not path.is_file():
        hint = f"structseg init {root} writes it" if root.is_dir() else "give the folder of the data as --data.root"
        raise FileNotFoundError(f"no file {path}; {hint}")
    tree = load_yaml(path)[0]
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds {str(tree)[:40]!r}, not keys and values; structseg init writes such a file")
    unknown = next((key for key in tree if key not in _KEYS), None)
    if unknown is not None:
        raise ValueError(f"{path}: unknown key {unknown!r}{nearest(str(unknown), _KEYS)}; known are {', '.join(_KEYS)}")
    for fault in _faults(tree):
        raise ValueError(f"{path}: {fault}")
    space = read_space(tree, str(path))
    return DatasetFile(path, tree, space, _values(tree, space, str(path)))


def _values(tree: Mapping[str, Any], space: LabelSpace, where: str) -> dict[Value, int]:
    entries = class_entries(tree, where)
    values: dict[Value, int] = {}
    owners: dict[Value, str] = {}
    named = [entry.name for entry in entries if entry.ignored]
    ignored = [value for value in as_list(tree.get("ignore")) if value not in named]
    for value in ignored:
        if isinstance(value, str):
            raise ValueError(
                f"{where}: ignore names {value!r}, which is no class{nearest(value, space.classes)}; mend it"
            )
    given = [
        (entry.name, entry.values, IGNORE if entry.ignored else space.classes.index(entry.name)) for entry in entries
    ]
    given.append(("ignore", tuple(mask_value(value, f"{where}: ignore") for value in ignored), IGNORE))
    for name, own, index in given:
        for value in own:
            if value in owners:
                raise ValueError(f"{where}: value {value} is both {owners[value]} and {name}; give it to one of them")
            owners[value], values[value] = name, index
    return values


def _faults(tree: Mapping[str, Any]) -> Any:
    parts = [split for split in SPLITS if split in tree]
    if ("images" in tree) == bool(parts):
        yield "give either train (val, test), each with images and masks, or images, masks and split"
    for split in parts:
        part = tree[split]
        if not isinstance(part, dict) or not isinstance(part.get("images"), str) or set(part) - {"images", "masks"}:
            yield f"{split} is {part!r}; give {{images: FOLDER, masks: FOLDER}}"
    if parts and "train" not in parts:
        yield f"{parts[0]} without train; add train: {{images: FOLDER, masks: FOLDER}}"
    for key, kind in (("images", str), ("masks", str), ("tags", str), ("name", str), ("split", dict)):
        if key in tree and not isinstance(tree[key], kind):
            yield f"{key} is {tree[key]!r}; expected {'text' if kind is str else 'keys and values'}"
    for part in (tree, *(tree[split] for split in parts)):
        masks = part.get("masks", "")
        if not isinstance(masks, str) or ("{" in masks and "{stem}" not in masks):
            yield f"masks is {masks!r}; give a folder, or a template with {{stem}} (and {{parent}})"
    yield from _split_faults(tree.get("split") or {})
    if tree.get("jpeg_masks", "refuse") not in ("refuse", "nearest"):
        yield f"jpeg_masks is {tree['jpeg_masks']!r}; give refuse or nearest"
    size = tree.get("batch_size", 1)
    if not isinstance(size, int) or size < 1:
        yield f"batch_size is {size!r}; give a whole number from 1"
    for key, (count, number, least) in _NUMBERS.items():
        value = tree.get(key, [1] * count)
        fits = isinstance(value, list) and len(value) == count and all(isinstance(v, int | float) for v in value)
        if not fits or min(value) < least or (number is int and not all(isinstance(v, int) for v in value)):
            yield f"{key} is {value!r}; give {count} {'whole ' if number is int else ''}numbers from {least}"


def _split_faults(split: Any) -> Any:
    if not isinstance(split, dict) or _are_lists(split):
        return
    unknown = next((key for key in split if key not in _SPLIT_KEYS), None)
    if unknown is not None:
        yield f"split has {unknown!r}{nearest(str(unknown), _SPLIT_KEYS)}; give seed, val, test, group, or lists"
    seed, shares = split.get("seed", 0), [split.get("val", 0), split.get("test", 0)]
    if not isinstance(seed, int) or seed < 0:
        yield f"split.seed is {seed!r}; give a whole number from 0"
    if not all(isinstance(s, int | float) and 0 <= s < 1 for s in shares) or sum(shares) >= 1:
        yield f"split has val {shares[0]!r} and test {shares[1]!r}; give shares of 0 to 1, less than 1 together"
    try:
        re.compile(split.get("group") or "")
    except (re.error, TypeError) as error:
        yield f"split.group is {split.get('group')!r}, no regular expression ({error}); mend it"


def _are_lists(split: Mapping[str, Any]) -> bool:
    return (
        bool(split)
        and set(split) <= set(SPLITS)
        and all(isinstance(v, str) for v in split.values())
        and "train" in split
    )
