"""The files of PASCAL VOC 2012: the devkit's folder, its lists, masks and annotations."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Sequence
from pathlib import Path
from xml.etree import ElementTree

from structseg.datamodules.files.listing import files_by_name, stored_path
from structseg.datamodules.files.text import read_text

IMAGES, ANNOTATIONS, LISTS = "JPEGImages", "Annotations", "ImageSets/Segmentation"
# Official masks take precedence over those of SBD, which some copies add and which have no void rim.
MASKS = ("SegmentationClass", "SegmentationClassAug")
SUBFOLDERS = ("VOC2012", "VOCdevkit/VOC2012")
# The list of training images with SBD's, by the names that copies of it have.
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
    """The file of a list: `train`, `train_aug`, `trainval`, `val`, `test`, or a path, absolute or below `home`.

    Raises:
        FileNotFoundError: no such file; the message names the paths that were tried.
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
    """The names in a list with one image per line: its name, its file, or a path as in SBD's lists.

    A line may be a name with spaces if there is such a photograph; otherwise a second column, such as SBD's mask or the
    1 and -1 in the list of a class, is left out.

    Args:
        path: the list.
        photographs: the names of all photographs.

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
    """Checks that all names of a list have a photograph.

    Raises:
        FileNotFoundError: photographs are missing; the message has their number and the first.
    """
    missing = [name for name in names if name not in there]
    if missing:
        raise FileNotFoundError(
            f"{home / IMAGES} has no photograph for {len(missing)} of the {len(names)} names in {source}, first "
            f"{missing[0]}.jpg; complete the folder or give another list"
        )


def find_masks(home: Path) -> dict[str, Path]:
    """The true masks by name: official ones, and SBD's for images without."""
    official, augmented = (files_by_name(home / folder, (".png",)) for folder in MASKS)
    return augmented | official


def tags_from_annotation(home: Path, name: str) -> frozenset[str] | None:
    """The classes of all objects in an image's annotation; None without annotation.

    Difficult objects count, as in IRNet; the parts of a person (head, hand, foot) do not.

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
        # Only paths and owners' names, which are not read, have characters of another encoding.
        text = re.sub(r"^\ufeff?\s*<\?xml.*?\?>", "", content.decode(encoding, errors="replace"), flags=re.DOTALL)
        return frozenset(
            str(entry.findtext("name")).strip() for entry in ElementTree.fromstring(text).findall("object")
        )
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from None
