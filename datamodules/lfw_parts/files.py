"""LFW Part Labels on disk: the split lists, which files belong to an image, what is faulty, and who is pictured."""

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
# Grey 4x4 thumbnails, 8 bits a cell, of a funneled image in each list that the deep-funneled edition turned and scaled
# much: its thumbnails are 31 to 41 levels off on average. JPEG of any quality stays within 1, shrinking within 2.
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
        superpixels: the published superpixels, where they are there.
    """

    name: str
    image: Path
    label: Path
    superpixels: Path | None = None


def person_of(name: str) -> str:
    """Who is pictured: `Aaron_Peirsol_0003` and `Aaron_Peirsol/Aaron_Peirsol_0003` -> `Aaron_Peirsol`."""
    return re.sub(r"_\d+$", "", name.rsplit("/", 1)[-1])


def read_lists(root: Path, faults: list[str] | None = None) -> dict[str, tuple[str, ...]]:
    """The names in the three split lists, by split, in the order of the lists.

    Faults, where they are given, take the messages of lines that would be raised.

    Raises:
        FileNotFoundError: no such folder, or a list is missing.
        ValueError: a line that is no `NAME N`, or an image that is listed twice.
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

    Faults, where they are given, take the messages of what would be raised of single files; an image or label that is
    missing is given by the path that it should have.

    Raises:
        FileNotFoundError: images or labels are missing.
        ValueError: the images are not the funneled ones, or a label is there twice.
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
            if "alignment" in str(error):  # else it is found when it is read
                faults.append(str(error))
    faces = []
    for name in names:
        labels.setdefault(name, root / LABELS / f"{name}.ppm")
        dat = stored_path(root / SUPERPIXELS, person_of(name), f"{name}.dat")
        faces.append(Face(name, images[name], labels[name], dat if dat.is_file() else None))
    return tuple(faces)


def _photograph(folder: Path, name: str) -> Path:
    """The photograph of a name, whatever the case of its suffix and however its letters are composed."""
    path = stored_path(folder, person_of(name), f"{name}.jpg")
    return path if path.is_file() else files_by_name(path.parent, (".jpeg", ".jpg"), []).get(name, path)


def image_folder(root: Path) -> Path:
    """The folder of the funneled photographs.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: what is there is the deep-funneled edition.
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
    """Whatever the folder is called: labels fit the funneled pixels alone."""
    found = read_image(image).convert("L").resize((4, 4), Image.Resampling.BOX)
    far = np.abs(np.asarray(found, dtype=np.float64).ravel() - np.frombuffer(expected, dtype=np.uint8)).mean()
    if far > _FAR:
        raise ValueError(
            f"{image} is not the funneled image that the labels were drawn on, but another alignment, such as "
            f"deep-funneled; put LFW's funneled images (lfw-funneled.tgz) in {IMAGES}"
        )
