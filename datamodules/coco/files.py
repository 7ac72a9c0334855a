"""MS COCO's instance annotations: reading them, and painting masks from polygons and run-length codes."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from structseg.datamodules.files.text import read_json
from structseg.datamodules.label_spaces import COCO

_INDICES = {name: index for index, name in enumerate(COCO.classes) if index}
_LARGEST = 30_000  # pixels a side
_MEND = "copy the annotations again"


class Instance(NamedTuple):
    """An annotated object.

    Attributes:
        label: index in COCO's label space.
        crowd: whether it is a region with many objects.
        outline: polygons (x, y, x, y, ...) in pixels, a run-length code, or a list of codes, as in the annotations.
    """

    label: int
    crowd: bool
    outline: list[NDArray[np.float64]] | list[dict[str, Any]] | dict[str, Any]


class Picture(NamedTuple):
    """An annotated image: its file, size (h, w) in pixels, and instances."""

    file: str
    size: tuple[int, int]
    instances: list[Instance]


def read_instances(path: Path, folder: str = "") -> dict[str, Picture]:
    """The images of an annotation file with their instances, by the stems of their files.

    Ids may be numbers or text. Categories beyond COCO's are allowed if they have no annotations.

    Args:
        path: the annotation file.
        folder: folder of the images, with which file names may begin.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or has instances of other classes; the message says which.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; --data.root is the folder of annotations, train and val images")
    try:
        content = read_json(path)
        missing = [key for key in ("images", "annotations", "categories") if key not in content]
        if missing:
            raise _OtherContent(f"it has no {', '.join(missing)}; give COCO's instances_*.json")
        names = {str(category["id"]): str(category["name"]).strip().lower() for category in content["categories"]}
        instances: dict[str, list[Instance]] = {str(image["id"]): [] for image in content["images"]}
        if len(instances) < len(content["images"]):
            raise _OtherContent("two of its images have the same id; renumber them")
        for item in content["annotations"]:
            instance = _instance(item, names)
            if str(item["image_id"]) not in instances:
                raise _OtherContent(
                    f"annotation {item.get('id')} is of image {item['image_id']!r}, which is not among its images; add "
                    "the image or remove the annotation"
                )
            instances[str(item["image_id"])].append(instance)
        pictures = [_picture(image, instances[str(image["id"])], folder) for image in content["images"]]
    except _OtherContent as error:
        raise ValueError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = " ".join(repr(error).split())[:300]
        raise ValueError(f"{path} is not a file of COCO's instances ({reason}); copy it again") from None
    by_name: dict[str, Picture] = {}
    for picture in sorted(pictures, key=lambda item: item.file):
        name = unicodedata.normalize("NFC", Path(picture.file).stem)
        if name in by_name:
            raise ValueError(
                f"{path} has {by_name[name].file} and {picture.file}, both called {name}; images are identified by "
                "file name without folder: rename one"
            )
        by_name[name] = picture
    return by_name


class _OtherContent(ValueError):
    """A file is intact, but its content is not COCO's instances."""


def _instance(item: dict[str, Any], names: dict[str, str]) -> Instance:
    where = f"annotation {item.get('id')} of image {item.get('image_id')}"
    category = names.get(str(item["category_id"]), f"of category {item['category_id']}, which is not listed")
    if category not in _INDICES:
        raise _OtherContent(
            f"{where} is {category}, which is not one of COCO's 80 classes; remove its annotations, or write masks and "
            "use structseg init for classes of your own"
        )
    outline = item.get("segmentation")
    if outline is None or outline == "":
        raise _OtherContent(
            f"{where} has no segmentation, only a box or points; give the file with outlines (instances_*.json)"
        )
    if isinstance(outline, list) and not any(isinstance(part, dict) for part in outline):
        if outline and all(isinstance(number, int | float) for number in outline):
            outline = [outline]  # a single polygon, not in a list
        polygons = [np.array(polygon, dtype=np.float64) for polygon in outline]
        if any(polygon.ndim != 1 for polygon in polygons):
            raise ValueError(f"a polygon of image {item['image_id']} is not a list of numbers")
        # Two points are a line, which pycocotools would take for a box.
        outline = [polygon for polygon in polygons if len(polygon) >= 6]
    return Instance(_INDICES[category], bool(item.get("iscrowd", 0)), outline)


def _picture(image: dict[str, Any], instances: list[Instance], folder: str) -> Picture:
    missing = [key for key in ("file_name", "height", "width") if image.get(key) is None]
    if missing:
        raise _OtherContent(f"image {image['id']} has no {', '.join(missing)}; write them into the file")
    file = image["file_name"]
    given = (image["height"], image["width"])
    height, width = (int(n) if isinstance(n, float) and n.is_integer() else n for n in given)
    size = (height, width)
    if not isinstance(file, str) or not file or PurePath(file).is_absolute() or ".." in PurePath(file).parts:
        raise ValueError(f"file_name {str(file)[:60]!r}, which is no name of a file")
    file = file.removeprefix(f"{folder}/") if folder else file
    if not all(isinstance(side, int) and 1 <= side <= _LARGEST for side in size):
        raise ValueError(f"{file[:60]} of {str(size)[:60]} pixels")
    return Picture(file, size, instances)


def paint(picture: Picture) -> NDArray[np.uint8]:
    """The mask of an image, (h, w) in COCO's label space: crowds as 255, on top the instances, larger ones first.

    Raises:
        ValueError: a polygon or code does not fit the image, or pycocotools is missing.
    """
    painted = np.zeros(picture.size, dtype=np.uint8)
    regions = []
    for instance in picture.instances:
        if isinstance(instance.outline, list):
            if not instance.outline:
                continue
            codes = [part for part in instance.outline if isinstance(part, dict)]
            polygons = [part for part in instance.outline if not isinstance(part, dict)]
            parts = [_decoded(code, picture.size) for code in codes]
            if polygons:
                parts.append(_inside(polygons, picture.size))
            region = np.logical_or.reduce(parts)
        else:
            region = _decoded(instance.outline, picture.size)
        regions.append((not instance.crowd, -int(region.sum()), instance.label, region))
    for single, _, label, region in sorted(regions, key=lambda item: item[:2]):
        painted[region] = label if single else COCO.ignore_index
    return painted


def _inside(polygons: list[NDArray[np.float64]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """(h, w): the pixels inside polygons, by pycocotools."""
    try:
        from pycocotools import mask as coco_mask
    except ImportError:
        raise ValueError(
            "COCO's masks need pycocotools, which is not installed; pip install 'structseg[coco]'"
        ) from None
    side = max(size)
    for polygon in polygons:
        if polygon.ndim != 1 or len(polygon) % 2:
            raise ValueError(f"a polygon of shape {polygon.shape}, not of pairs x, y; {_MEND}")
        # For points that are far away or nan, pycocotools writes beyond its memory.
        if not (polygon.min() >= -side and polygon.max() <= 2 * side):
            raise ValueError(f"a polygon far outside of the {size[1]}x{size[0]} pixels; {_MEND}")
    code = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
    return np.asarray(coco_mask.decode(code), dtype=bool)


def _decoded(code: dict[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """(h, w): the region of a run-length code, whose runs go down the columns and begin outside the region."""
    # Not by pycocotools, which trusts the counts and writes beyond its memory if they are too many.
    if not isinstance(code, dict) or not isinstance(code.get("counts"), str | list):
        raise ValueError(f"a segmentation that is neither polygons nor a run-length code; {_MEND}")
    if code.get("size") != list(size):
        raise ValueError(f"a run-length code for {str(code.get('size'))[:40]}, not for {list(size)}; {_MEND}")
    counts = code["counts"]
    runs: Sequence[Any] = _unpacked(counts) if isinstance(counts, str) else counts
    if not all(isinstance(run, int) and run >= 0 for run in runs) or sum(runs) != size[0] * size[1]:
        raise ValueError(f"a run-length code that does not fill the {size[1]}x{size[0]} pixels; {_MEND}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(size[1], size[0]).T


def _unpacked(text: str) -> list[int]:
    """The runs of a code packed as text: 5 bits per letter, lowest first, as differences to the run before the last."""
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"a run-length code with the letter {letter!r}; {_MEND}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError(f"a run-length code that is cut off; {_MEND}")
    return runs
