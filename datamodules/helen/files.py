"""The files of HELEN with part labels: split lists, the files of each image, and classes from soft masks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from structseg.datamodules.files.listing import files_by_name, read_split_lists, refuse_missing, stored_path
from structseg.datamodules.images import fit_mask, open_mask
from structseg.datamodules.label_spaces import HELEN

IMAGES = "images"
LABELS = "labels"
LISTS = {"train": "exemplars.txt", "val": "tuning.txt", "test": "testing.txt"}
SUBFOLDER = "SmithCVPR2013_dataset_resized"  # searched if the parent folder is given


@dataclass(frozen=True)
class Face:
    """The files of one image.

    Attributes:
        name: `100032540_1`.
        image: the photograph.
        masks: its soft masks, one for each class of HELEN: `100032540_1_lbl00.png` of the background to
            `100032540_1_lbl10.png` of hair.
    """

    name: str
    image: Path
    masks: tuple[Path, ...]


def find_home(root: Path) -> Path:
    """The folder that holds the images, the labels and the lists: `root`, or the published folder in it.

    Raises:
        FileNotFoundError: no such folder; the message names what is missing.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; give the folder that holds {SUBFOLDER} as --data.root")
    needed = (IMAGES, LABELS, *LISTS.values())
    there: dict[Path, list[str]] = {}
    for home in (root, root / SUBFOLDER):
        there[home] = [
            name for name in needed if ((home / name).is_dir() if name in (IMAGES, LABELS) else (home / name).is_file())
        ]
        if len(there[home]) == len(needed):
            return home
    found = [str((home / name).relative_to(root)) for home, names in there.items() for name in names]
    raise FileNotFoundError(
        f"{root} holds no HELEN with part labels; expected folders {IMAGES} and {LABELS} and files "
        f"{', '.join(LISTS.values())}, there or in {SUBFOLDER}; found {', '.join(found) or 'none'}"
    )


def read_lists(home: Path) -> dict[str, tuple[str, ...]]:
    """The names in the three split lists, by split and in order. A line is `1 , 100032540_1` or just the name.

    Raises:
        ValueError: a line of another form, an image listed twice, or a list without images.
    """

    def name_of(line: str) -> str | None:
        match = re.fullmatch(r"(?:\d+\s*,\s*)?(?!\d+$)([\w-]{1,200})(?:\.jpe?g)?", line, re.IGNORECASE)
        return match[1] if match else None

    lists = read_split_lists(home, LISTS, name_of, "number, comma and name, as '1 , 100032540_1', nor a name", None)
    for split, names in lists.items():
        if not names:
            raise ValueError(f"{home / LISTS[split]} lists no image; copy it again")
    return lists


def find_faces(home: Path, names: Sequence[str], faults: list[str] | None = None) -> tuple[Face, ...]:
    """The files of the named images, in that order.

    With `faults` a line is added for each missing soft mask instead of an error; missing images fail when read.

    Raises:
        FileNotFoundError: images or soft masks are missing; the message has their number and the first.
    """
    images = files_by_name(home / IMAGES, (".jpeg", ".jpg"), faults)
    faces, missing = [], []
    for name in names:
        folder = stored_path(home / LABELS, name)
        masks = files_by_name(folder, (".png",), faults)
        stems = [f"{name}_lbl{index:02}" for index in range(len(HELEN))]
        missing += [f"{name}/{stem}.png" for stem in stems if stem not in masks]
        paths = tuple(masks.get(stem, folder / f"{stem}.png") for stem in stems)
        faces.append(Face(name, images.get(name, home / IMAGES / f"{name}.jpg"), paths))
    if faults is None:
        refuse_missing(
            home / IMAGES, "listed images", [f.image.name for f in faces if f.name not in images], len(faces)
        )
        refuse_missing(home / LABELS, "listed masks", missing, len(faces) * len(HELEN))
    else:
        faults += [f"no soft mask {home / LABELS / path}; unpack the whole archive there" for path in missing]
    return tuple(faces)


def read_label(face: Face) -> NDArray[np.uint8]:
    """The class of the highest soft mask at each pixel, (h, w) uint8 in HELEN's classes; the first of equal ones.

    Raises:
        FileNotFoundError: a file was removed.
        ValueError: a soft mask is damaged, not of one 8-bit channel, or of another size than the first; it is named.
    """
    label = highest = None
    for index, path in enumerate(face.masks):
        soft = open_mask(path)
        if soft.mode not in ("L", "1"):
            raise ValueError(f"{path} has mode {soft.mode}; a soft mask needs one 8-bit channel: copy it again")
        probability = np.asarray(soft.convert("L"))
        if label is None or highest is None:
            label, highest = np.zeros_like(probability), np.zeros_like(probability)
        if probability.shape != label.shape:
            raise ValueError(
                f"{path} is {soft.width}x{soft.height} but those before it {label.shape[1]}x{label.shape[0]}; the soft "
                "masks of an image are of one size: copy them again"
            )
        label[probability > highest] = index
        np.maximum(highest, probability, out=highest)
    assert label is not None
    return label


def fitted_label(face: Face) -> NDArray[np.uint8]:
    """As `read_label`, turned to fit the upright photograph; raises also as `fit_mask`."""
    return fit_mask(read_label(face), face.image, str(face.masks[0]))
