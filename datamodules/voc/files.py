"""PASCAL VOC 2012 on disk: where the devkit lies, its lists, and the tags of its images."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Sequence
from pathlib import Path
from xml.etree import ElementTree

from structseg.datamodules.files.listing import files_by_name, stored_path
from structseg.datamodules.files.text import read_text

IMAGES, ANNOTATIONS, LISTS = "JPEGImages", "Annotations", "ImageSets/Segmentation"
# The official masks come first; those of SBD, which some copies keep with them, have no void rim.
MASKS = ("SegmentationClass", "SegmentationClassAug")
SUBFOLDERS = ("VOC2012", "VOCdevkit/VOC2012")
# SBD's images with the training images, by the names that copies of the list have.
AUGMENTED = ("train_aug", "trainaug")
SUFFIXES = (".jpeg", ".jpg")
_LONGEST = 400  # letters of a name


def find_home(root: Path) -> Path:
    """The folder that holds `JPEGImages`: `root`, `root/VOC2012` or `root/VOCdevkit/VOC2012`.

    Raises:
        FileNotFoundError: no such folder.
    """
    for home in (root, *(root / name for name in SUBFOLDERS)):
        if (home / IMAGES).is_dir():
            return home
    raise FileNotFoundError(f"{root} holds no VOC 2012: no {IMAGES} there or in {' or '.join(SUBFOLDERS)}")


def list_file(home: Path, given: str) -> Path:
    """The file of a list: `train`, `train_aug`, `trainval`, `val`, `test`, or a path, as it is or below `home`.

    Raises:
        FileNotFoundError: no such file; the message says where it was searched for.
    """
    if given.endswith(".txt"):
        tried = [Path(given).expanduser(), home / given]
    else:
        tried = [home / LISTS / f"{name}.txt" for name in (AUGMENTED if given in AUGMENTED else (given,))]
    for path in tried:
        if path.is_file():
            return path
    more = "; it is not part of the devkit, give its path" if given in AUGMENTED else ""
    raise FileNotFoundError(f"no list {given}: looked for {' and '.join(str(path) for path in tried)}{more}")


def read_list(path: Path, photographs: Container[str] = ()) -> tuple[str, ...]:
    """The names in a list, one a line: a name, a file name or a path, as in SBD's lists.

    A line is a name as a whole where a photograph is called so, also with spaces in it; otherwise a second column, such
    as SBD's mask or the 1 and -1 of the lists of a class, is left out.

    Args:
        path: the list.
        photographs: the names that there are.

    Raises:
        ValueError: it is not text, or lists no image.
    """
    lines = [unicodedata.normalize("NFC", line.strip()) for line in read_text(path).splitlines() if line.strip()]
    names = tuple(_listed_name(line.replace("\\", "/"), photographs) for line in lines)
    long = next((name for name in names if len(name) > _LONGEST), None)
    if long is not None:
        raise ValueError(f"{path} holds a name of {len(long)} letters, {long[:40]}...; copy it again")
    if not names:
        raise ValueError(f"{path} lists no image; copy it again")
    return names


def _listed_name(line: str, photographs: Container[str]) -> str:
    columns = re.sub(r"\s+(-1|0|1|\S*/\S*)$", "", line), line.split()[0]
    names = [Path(part).stem if "/" in part or part.lower().endswith(SUFFIXES) else part for part in (line, *columns)]
    return next((name for name in names if name in photographs), names[1])


def check_images(home: Path, names: Sequence[str], source: Path, there: Container[str]) -> None:
    """Makes sure that each name has its photograph among those that are there.

    Raises:
        FileNotFoundError: some have none; how many, and the first.
    """
    missing = [name for name in names if name not in there]
    if missing:
        raise FileNotFoundError(
            f"{home / IMAGES} has no photograph for {len(missing)} of the {len(names)} names in {source}, first "
            f"{missing[0]}.jpg; complete the folder or give another list"
        )


def find_masks(home: Path) -> dict[str, Path]:
    """The true masks by name: the official ones, and SBD's where there is none."""
    official, augmented = (files_by_name(home / folder, (".png",)) for folder in MASKS)
    return augmented | official


def tags_from_annotation(home: Path, name: str) -> frozenset[str] | None:
    """The classes of all objects in an image's annotation, difficult ones too, as in IRNet; None without annotation.

    The parts of a person (head, hand, foot) are no objects.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    path = stored_path(home / ANNOTATIONS, f"{name}.xml")
    if not path.is_file():
        return None
    try:
        content = path.read_bytes()
        declared = re.match(rb"\s*<\?xml[^>]*encoding=[\"']([\w.-]+)[\"'][^>]*\?>", content)
        encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        if declared is not None and encoding == "utf-8-sig":
            encoding = declared[1].decode()
        # Of what is not in its encoding (paths and owners' names), nothing is read.
        text = re.sub(r"^\ufeff?\s*<\?xml.*?\?>", "", content.decode(encoding, errors="replace"), flags=re.DOTALL)
        objects = ElementTree.fromstring(text).findall("object")
        return frozenset(str(found.findtext("name")).strip() for found in objects)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from None
