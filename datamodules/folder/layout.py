"""Finding the images and masks of an unknown folder by the names of folders and files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from structseg.datamodules.folder.pairs import images_below
from structseg.messages import counted

_MASKS = {
    "mask", "masks", "label", "labels", "annotation", "annotations", "gt", "groundtruth", "truth", "seg", "segs",
    "segmentation", "segmentations", "segmentationclass", "target", "targets", "annot", "lbl",
}  # fmt: skip
_IMAGES = {"image", "images", "img", "imgs", "photo", "photos", "jpegimages", "rgb", "input", "inputs", "frames"}
_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def find_layout(home: Path) -> dict[str, Any]:
    """The keys `train`, `val`, `test`, or `images` and `masks`, of a `dataset.yaml` for a folder.

    Masks are recognised by the names of folders (`masks`, `labels`, ...), or of files beside their images
    (`a_mask.png`). Without masks: `images`, and `tags` if there is a `tags.csv`, or a folder for each class.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no images, or neither masks nor tags.
    """
    roots: dict[tuple[str | None, bool], Counter[str]] = {}
    files = [path.relative_to(home) for path in images_below(home)]
    if not files:
        raise ValueError(f"{home} holds no images; give the folder that holds images and masks")
    for file in files:
        split, is_mask, root = _kind(file.parent.parts)
        roots.setdefault((split, is_mask), Counter())[root] += 1
    found = {key: counter.most_common(1)[0][0] for key, counter in roots.items()}
    splits = [split for split in ("train", "val", "test") if (split, False) in found]
    if "train" in splits and any((split, True) in found for split in splits):
        parts = {
            split: {"images": found[split, False], "masks": _masks_of(files, split, found)}
            for split in splits
            if (split, True) in found
        }
        return {**parts["train"]} if list(parts) == ["train"] else parts
    images = found.get((None, False), ".")
    if (None, True) in found:
        masks = found[None, True]
        _refuse_class_folders(home, images, masks, files)
        return {"images": images, "masks": _masks_of(files, None, found)}
    stems = [file.stem for file in files]
    ending = _common_affix(stems, set(stems))
    if ending is not None:
        suffix = Counter(f.suffix for f in files if _affix(f.stem, ending) is not None).most_common(1)[0][0]
        where = "" if images == "." else f"{images}/"
        return {"images": images, "masks": f"{where}{{parent}}/{ending[0]}{{stem}}{ending[1]}{suffix}"}
    if (home / "tags.csv").is_file():
        return {"images": images, "tags": "tags.csv"}
    folders: dict[str, set[str]] = {}
    for file in files:
        inner = file.relative_to(images) if file.is_relative_to(images) else file
        if len(inner.parts) > 1:
            folders.setdefault(inner.parts[0], set()).add(inner.stem)
    for (one, own), (other, others) in combinations(folders.items(), 2):
        if 2 * len(own & others) > len(own):
            raise ValueError(
                f"{home / one} and {home / other} hold files of the same names; rename the folder of images to "
                "'images' and that of masks to 'masks'"
            )
    if len(folders) > 1:
        return {"images": images, "tags": "folders"}
    raise ValueError(
        f"{home} holds {counted(len(files), 'image')} but no masks{_arrays(home)}: no folder such as masks or labels, "
        "no files such as a_mask.png beside a.jpg, and neither tags.csv nor a folder for each class; name them so"
    )


def _arrays(home: Path) -> str:
    """What is said of files of arrays, which are taken for masks."""
    array = next((path for end in ("npy", "npz", "mat") for path in home.rglob(f"*.{end}")), None)
    return (
        "" if array is None else f" that can be read ({array.name} is an array; save masks as PNG, indices or colours)"
    )


def _refuse_class_folders(home: Path, images: str, masks: str, files: Sequence[Path]) -> None:
    """Raises a ValueError if there is a mask of one image in several folders of the masks, one for each class."""
    stems = {f.stem for f in files if f.is_relative_to(images) and not f.is_relative_to(masks)}
    folders: dict[str, set[str]] = {}
    for file in (f.relative_to(masks) for f in files if f.is_relative_to(masks)):
        if len(file.parts) > 1:
            folders.setdefault(file.parts[0], set()).add(file.stem)
    named = [name for name in folders if not (home / images / name).is_dir() and folders[name] & stems]
    if len(named) > 1:
        raise ValueError(
            f"{home / masks} holds the folders {', '.join(named[:5])}{', ...' * (len(named) > 5)}, as if each were a "
            "class; one mask for each image, with all classes in it, is needed: merge them"
        )


def _kind(parts: Sequence[str]) -> tuple[str | None, bool, str]:
    """The split that a folder's path names, whether it holds masks, and the part of the path that says so."""
    split, is_mask, last = None, False, 0
    for number, part in enumerate(parts, 1):
        words = set(re.split(r"[^a-z]+", part.lower()))
        named = next((_SPLITS[word] for word in words if word in _SPLITS), None)
        mask = bool(words & _MASKS)
        if named or mask or words & _IMAGES:
            split, is_mask, last = split or named, is_mask or mask, number
    return split, is_mask, "/".join(parts[:last]) or "."


def _masks_of(files: Sequence[Path], split: str | None, found: dict[tuple[str | None, bool], str]) -> str:
    """The folder of the masks, or their template if their names differ from the images'."""
    images, masks = found.get((split, False), "."), found[split, True]
    inside = [file for file in files if file.is_relative_to(masks)]
    stems = {f.stem for f in files if f.is_relative_to(images) and not f.is_relative_to(masks)}
    if any(file.stem in stems for file in inside):
        return masks
    ending = _common_affix([file.stem for file in inside], stems)
    if ending is None:
        return masks
    suffix = Counter(file.suffix for file in inside).most_common(1)[0][0]
    deep = any(len(file.relative_to(masks).parts) > 1 for file in inside)
    return f"{masks}/{'{parent}/' if deep else ''}{ending[0]}{{stem}}{ending[1]}{suffix}"


def _common_affix(names: Sequence[str], stems: set[str]) -> tuple[str, str] | None:
    """The prefix and suffix of an image's stem in most mask names; None without any."""
    counts: Counter[tuple[str, str]] = Counter()
    for name in names[:: max(1, len(names) // 200)]:  # a sample is enough
        for word in _MASKS:
            for affix in (("", f"_{word}"), ("", f"-{word}"), ("", f".{word}"), (f"{word}_", ""), (f"{word}-", "")):
                for form in (affix, (affix[0].upper(), affix[1].upper()), (affix[0].title(), affix[1].title())):
                    if _affix(name, form) in stems:
                        counts[form] += 1
    if not counts:
        return None
    return counts.most_common(1)[0][0]


def _affix(name: str, affix: tuple[str, str]) -> str | None:
    """The stem between a prefix and a suffix; None for a name without them."""
    before, after = affix
    inside = name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after)
    return name[len(before) : len(name) - len(after)] if inside else None
