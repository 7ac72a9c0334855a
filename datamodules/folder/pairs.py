"""Pairs of image and mask in folders: matched by name, split at random, checked by headers."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from structseg.datamodules.images import IMAGE_SUFFIXES, mask_turn, stored_size

if TYPE_CHECKING:
    from structseg.datamodules.batch import Split


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        name: the image's path below its folder, without the suffix: `cam1/000123`.
        image: the photograph.
        mask: the mask; None without one.
    """

    name: str
    image: Path
    mask: Path | None = None


def images_below(folder: Path) -> Iterator[Path]:
    """Every image file below a folder, linked folders too, in order; names that begin with a dot are skipped.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; check the path")
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        for name in sorted(files):
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield Path(place, name)


def find_pairs(
    images: Path, masks: str | None, home: Path, faults: list[str], leave_out: Sequence[Path] = ()
) -> tuple[Pair, ...]:
    """The images of a folder with their masks, in order of their names.

    Args:
        images: folder of the images, searched at any depth.
        masks: folder of the masks, each with its image's path below it and any suffix; or a template of a mask's path
            with {stem} and, if needed, {parent}. None: no masks.
        home: folder that `masks` is relative to.
        faults: gets a line for each image without mask, mask without image, and name or mask of two images.
        leave_out: folders inside `images` that hold something else.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: a folder holds no image.
    """
    template = masks if masks is not None and "{" in masks else None
    folder = None if masks is None or template is not None else home / masks
    masks_by_name: dict[str, Path] = {}
    if folder is not None:
        masks_by_name = _by_name(images_below(folder), folder, "masks", faults)
        leave_out = [*leave_out, folder]
    skipped = [str(part.resolve()) + os.sep for part in leave_out if part.resolve() != images.resolve()]
    found = [path for path in images_below(images) if not f"{path.resolve()}".startswith(tuple(skipped))]
    if template is not None:  # whose masks may be among the images
        templated = {path: _from_template(path, images, template, home) for path in found}
        all_masks = set(templated.values())
        found = [path for path in found if path not in all_masks]
    photographs = _by_name(found, images, "images", faults)
    if not photographs:
        raise ValueError(f"{images} holds no image ({', '.join(IMAGE_SUFFIXES)}); check the path")
    pairs, image_of = [], dict[Path, str]()
    for name, path in photographs.items():
        mask = masks_by_name.get(name) if template is None else templated[path]
        if masks is not None and (mask is None or not mask.is_file()):
            where = folder / f"{name}.png" if folder is not None else mask
            faults.append(f"{path} has no mask {where}; add it, or move the image out")
            continue
        if mask is not None and mask in image_of:
            faults.append(f"{mask} is the mask of both {image_of[mask]} and {name}; put {{parent}} into the template")
            continue
        if mask is not None:
            image_of[mask] = name
        pairs.append(Pair(name, path, mask))
    if folder is not None and folder.resolve() != images.resolve():
        unmatched = [path for name, path in masks_by_name.items() if name not in photographs]
        faults += [f"{path} is the mask of no image in {images}; add the image or remove it" for path in unmatched]
    return tuple(sorted(pairs, key=natural))


def natural(pair: Pair) -> list[int | str]:
    """Sort key: the name, with numbers by value, 2 before 10."""
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"([0-9]+)", pair.name))]


def _by_name(paths: Sequence[Path] | Iterator[Path], folder: Path, what: str, faults: list[str]) -> dict[str, Path]:
    """Files by their path below a folder, without suffix and with composed letters (NFC)."""
    found: dict[str, Path] = {}
    for path in paths:
        name = unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
        if name in found:
            faults.append(f"{found[name]} and {path.name} are two {what} of one name; keep one of them")
            continue
        found[name] = path
    return found


def _from_template(image: Path, folder: Path, template: str, home: Path) -> Path:
    parent = image.relative_to(folder).parent.as_posix()
    return home / template.replace("{stem}", image.stem).replace("{parent}", parent)


def grouped_split(
    pairs: Sequence[Pair], seed: int, val: float, test: float, group: str | None
) -> dict[Split, tuple[Pair, ...]]:
    """A random split that keeps groups whole and does not depend on the order of the pairs.

    Args:
        pairs: all pairs.
        seed: of the split.
        val: share of validation images, 0 to 1.
        test: share of test images.
        group: regular expression on the names, whose first group (or whole match) names an image's group. Images
            without a match, or all if None, are groups of one.

    Raises:
        ValueError: a split with a share above 0 gets no image.
    """
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        match = re.search(group, pair.name) if group else None
        key = pair.name if match is None else f"\0{match[1] if match.re.groups else match[0]}"
        groups.setdefault(key, []).append(pair)
    names = sorted(groups)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    held: dict[Split, list[Pair]] = {"train": [], "val": [], "test": []}
    shares: dict[Split, float] = {"test": test, "val": val}
    for key in order:
        members = groups[key]
        # The first split that comes nearer to its share with the group than without it.
        fits = (s for s, share in shares.items() if len(held[s]) + len(members) / 2 <= share * len(pairs))
        held[next(fits, "train")] += members
    empty = next((split for split, share in {**shares, "train": 1}.items() if share and not held[split]), None)
    if empty is not None:
        raise ValueError(
            f"split: val {val} and test {test} of {len(pairs)} images in {len(names)} groups leave no image for "
            f"{empty}; change the shares (0 holds nothing out) or the group"
        )
    return {split: tuple(sorted(members, key=natural)) for split, members in held.items()}


def check_pairs(pairs: Sequence[Pair], faults: list[str]) -> tuple[list[str], frozenset[str]]:
    """Compares the sizes of masks and photographs by their headers, and adds a line to `faults` for each that differs.

    Returns:
        The names of the photographs that EXIF turns and whose masks fit both ways, and of all pairs that EXIF turns.
    """
    fit_both_ways, exif = [], set[str]()
    for pair in pairs:
        try:
            size, orientation = stored_size(pair.image)
            mask, turned = (size, 1) if pair.mask is None else stored_size(pair.mask)
            turn = mask_turn(
                pair.image, mask[::-1] if turned >= 5 else mask, str(pair.mask), stored=(size, orientation)
            )
        except (OSError, ValueError) as error:
            faults.append(str(error))
            continue
        if (orientation, turned) != (1, 1):
            exif.add(pair.name)
        if turn == 0 and pair.mask is not None:
            fit_both_ways.append(pair.name)
    return fit_both_ways, frozenset(exif)
