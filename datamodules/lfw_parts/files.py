"""The files of LFW Part Labels: split lists, the files of each image, and the pictured person."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from structseg.datamodules.files.listing import files_by_name, read_split_lists, refuse_missing, stored_path
from structseg.datamodules.images import read_image

IMAGES = "lfw_funneled"
LABELS = "parts_lfw_funneled_gt_images"
SUPERPIXELS = "parts_lfw_funneled_superpixels_mat"
# Grey 4x4 thumbnails, 8 bits per cell, of one funneled image in each list. In the deep-funneled edition they differ by
# 31 to 41 levels on average; JPEG compression of any quality changes them by 1 at most, shrinking by 2.
THUMBNAILS = {
    "Bashar_Assad_0001": "885461a6daa296f5c3b8a4e85e89958d",
    "Gonzalo_Sanchez_de_Lozada_0003": "1d4f662648a5c061435aab8a31297a60",
    "Morgan_Freeman_0002": "521e1b2371594b6a9761557b35272f71",
}
_FAR = 8.0

LISTS = {"train": "parts_train.txt", "val": "parts_validation.txt", "test": "parts_test.txt"}


@dataclass(frozen=True)
class Face:
    """The files of one image.

    Attributes:
        name: `Aaron_Peirsol_0003`.
        image: the photograph.
        label: the painted label.
        superpixels: the published superpixels, if the data have them.
    """

    name: str
    image: Path
    label: Path
    superpixels: Path | None = None


def person_of(name: str) -> str:
    """The pictured person: `Aaron_Peirsol_0003` and `Aaron_Peirsol/Aaron_Peirsol_0003` -> `Aaron_Peirsol`."""
    return re.sub(r"_\d+$", "", name.rsplit("/", 1)[-1])


def read_lists(root: Path, faults: list[str] | None = None) -> dict[str, tuple[str, ...]]:
    """The names in the three split lists, by split and in order; `faults` collects errors of lines.

    Raises:
        FileNotFoundError: no such folder, or a list is missing.
        ValueError: a line that is not `NAME N`, or an image listed twice.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; give the folder that holds {IMAGES} as --data.root")
    missing = [name for name in LISTS.values() if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{root} has no {', '.join(missing)}; copy the split lists of LFW Part Labels there")

    def name_of(line: str) -> str | None:
        match = re.fullmatch(r"(\S{1,200})\s+(\d{1,9})", line)
        return f"{match[1]}_{int(match[2]):04d}" if match else None

    return read_split_lists(root, LISTS, name_of, "NAME and number", faults)


def find_faces(root: Path, names: Sequence[str], faults: list[str] | None = None) -> tuple[Face, ...]:
    """The files of the named images, in that order.

    With `faults` errors of single files are collected there, and missing files are returned by their expected paths.

    Raises:
        FileNotFoundError: images or labels are missing.
        ValueError: the images are not the funneled ones, or a label has two files.
    """
    folder = image_folder(root)
    labels = files_by_name(root / LABELS, (".png", ".ppm"), faults)
    images = {name: _photograph(folder, name) for name in names}
    if faults is None:
        refuse_missing(root / IMAGES, "photographs", [name for name in names if not images[name].is_file()], len(names))
        refuse_missing(root / LABELS, "labels", [name for name in names if name not in labels], len(names))
    for name in THUMBNAILS.keys() & images.keys():
        try:
            _refuse_realigned(images[name], bytes.fromhex(THUMBNAILS[name]))
        except (FileNotFoundError, ValueError) as error:
            if faults is None:
                raise
            if "alignment" in str(error):  # other errors are reported when the image is read
                faults.append(str(error))
    faces = []
    for name in names:
        labels.setdefault(name, root / LABELS / f"{name}.ppm")
        dat = stored_path(root / SUPERPIXELS, person_of(name), f"{name}.dat")
        faces.append(Face(name, images[name], labels[name], dat if dat.is_file() else None))
    return tuple(faces)


def _photograph(folder: Path, name: str) -> Path:
    """The photograph of a name, with a suffix in any letter case and letters composed or not."""
    path = stored_path(folder, person_of(name), f"{name}.jpg")
    return path if path.is_file() else files_by_name(path.parent, (".jpeg", ".jpg"), []).get(name, path)


def image_folder(root: Path) -> Path:
    """The folder of the funneled photographs.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: the folder holds the deep-funneled edition.
    """
    folder = root / IMAGES
    if folder.is_dir() and "deep" not in folder.resolve().name.lower():
        return folder
    deep = sorted(path.name for path in root.iterdir() if "deep" in path.name.lower() and path.is_dir())
    if deep or folder.is_dir():
        raise ValueError(
            f"{root} holds the deep-funneled images ({deep[0] if deep else folder.resolve().name}), which are aligned "
            f"otherwise than the labels; put LFW's funneled images (lfw-funneled.tgz) in {IMAGES}"
        )
    raise FileNotFoundError(f"{root} has no folder {IMAGES}; unpack LFW's funneled images (lfw-funneled.tgz) there")


def _refuse_realigned(image: Path, expected: bytes) -> None:
    """Raises a ValueError for images that are not the funneled ones, whatever their folder is called."""
    found = read_image(image).convert("L").resize((4, 4), Image.Resampling.BOX)
    far = np.abs(np.asarray(found, dtype=np.float64).ravel() - np.frombuffer(expected, dtype=np.uint8)).mean()
    if far > _FAR:
        raise ValueError(
            f"{image} is not the funneled image that the labels were drawn on, but another alignment, such as "
            f"deep-funneled; put LFW's funneled images (lfw-funneled.tgz) in {IMAGES}"
        )
