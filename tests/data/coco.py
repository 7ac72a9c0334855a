"""Makes a small MS COCO tree: photographs and instance annotations with polygons, run-length codes and a crowd."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from structseg.datamodules.label_spaces import COCO

SIZE = (20, 30)  # (h, w) of every image
# COCO's category ids have gaps; these are those of the classes used here.
CATEGORIES = {"person": 1, "dog": 18, "horse": 19, "cup": 47, "toothbrush": 90}


def box(top: int, left: int, bottom: int, right: int) -> list[float]:
    """A polygon that covers rows top..bottom-1 and columns left..right-1."""
    return [left, top, right, top, right, bottom, left, bottom]


def run_lengths(top: int, left: int, bottom: int, right: int) -> dict[str, Any]:
    """The same as an uncompressed run-length code: column by column, beginning with what is outside."""
    region = np.zeros(SIZE, dtype=np.uint8)
    region[top:bottom, left:right] = 1
    flat = region.ravel(order="F")
    ends = [*np.flatnonzero(np.diff(flat)) + 1, flat.size]
    counts = np.diff([0, *ends]).tolist()
    return {"size": list(SIZE), "counts": counts if flat[0] == 0 else [0, *counts]}


# (class, crowd, segmentation) of each image, in the order of the file.
TRAIN: dict[int, list[tuple[str, int, Any]]] = {
    9: [
        ("cup", 0, [box(6, 6, 9, 10)]),  # small, listed first, and yet on top
        ("person", 0, [box(2, 2, 18, 14)]),
        ("person", 1, run_lengths(4, 10, 16, 28)),
    ],
    25: [("dog", 0, [box(0, 0, 10, 10), box(10, 20, 20, 30)])],  # in two parts
    30: [],
}
VAL: dict[int, list[tuple[str, int, Any]]] = {
    42: [("horse", 0, [box(5, 5, 15, 25)]), ("person", 0, [box(0, 10, 12, 16)])],
    73: [],
}


def make_coco(root: Path, year: int = 2014) -> Path:
    """Writes `trainYEAR`, `valYEAR` and `annotations` below `root` and returns `root`."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split, images in (("train", TRAIN), ("val", VAL)):
        (root / f"{split}{year}").mkdir(exist_ok=True)
        annotations = []
        for number, objects in images.items():
            noise = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / f"{split}{year}" / file_name(split, number, year))
            annotations += [
                {
                    "id": 1000 * number + index,
                    "image_id": number,
                    "category_id": CATEGORIES[name],
                    "iscrowd": crowd,
                    "segmentation": outline,
                }
                for index, (name, crowd, outline) in enumerate(objects)
            ]
        content = {
            "images": [
                {"id": number, "file_name": file_name(split, number, year), "height": SIZE[0], "width": SIZE[1]}
                for number in images
            ],
            "categories": [{"id": number, "name": name} for name, number in CATEGORIES.items()],
            "annotations": annotations[::-1],
        }
        (root / "annotations" / f"instances_{split}{year}.json").write_text(json.dumps(content))
    assert set(CATEGORIES) <= set(COCO.classes)
    return root


def file_name(split: str, number: int, year: int = 2014) -> str:
    return f"COCO_{split}{year}_{number:012}.jpg" if year == 2014 else f"{number:012}.jpg"
