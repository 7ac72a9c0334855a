"""Makes small VOC 2012 trees in the devkit's layout: painted photographs, palette masks with void rims, annotations."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from structseg.datamodules.label_spaces import VOC

# Objects of the made images: class, top, left, bottom, right in shares of the height and width; later ones on top.
Objects = tuple[tuple[str, float, float, float, float], ...]
SCENES: dict[str, Objects] = {
    "2007_000001": (("horse", 0.4, 0.1, 0.9, 0.6), ("person", 0.1, 0.3, 0.6, 0.5)),
    "2007_000002": (("dog", 0.5, 0.2, 0.9, 0.7),),
    "2007_000003": (("person", 0.1, 0.6, 0.9, 0.9), ("sofa", 0.6, 0.1, 0.9, 0.5)),
    "2007_000004": (("tvmonitor", 0.2, 0.2, 0.6, 0.6),),
    "2008_000001": (("dog", 0.1, 0.1, 0.6, 0.5), ("person", 0.2, 0.5, 0.9, 0.9)),
    "2008_000002": (("cat", 0.3, 0.3, 0.8, 0.8),),
    "2011_000001": (("horse", 0.3, 0.3, 0.8, 0.8),),  # of SBD: no void rim, in SegmentationClassAug
}
TRAIN = ("2007_000001", "2007_000002", "2007_000003", "2007_000004")
VAL = ("2008_000001", "2008_000002")
EXTRA = ("2011_000001",)
SIZES = ((40, 60), (50, 40))  # (h, w), in turn


def make_voc(root: Path, annotations: bool = True, augmented: bool = True) -> Path:
    """Writes `VOCdevkit/VOC2012` below `root` and returns `root`; `trainaug.txt` has SBD's lines of two paths."""
    home = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation", "Annotations"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    for index, (name, objects) in enumerate(SCENES.items()):
        extra = name in EXTRA
        mask = scene_mask(objects, SIZES[index % 2], rim=not extra)
        image = Image.fromarray(scene_photograph(mask, index))
        image.save(home / "JPEGImages" / f"{name}.jpg", quality=95, subsampling=0)
        write_palette_mask(home / ("SegmentationClassAug" if extra else "SegmentationClass") / f"{name}.png", mask)
        if annotations:
            write_annotation(home / "Annotations" / f"{name}.xml", [found[0] for found in objects])
    write_lists(home, {"train": TRAIN, "val": VAL, "trainval": (*TRAIN, *VAL)})
    if augmented:
        lines = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in (*TRAIN, *EXTRA)]
        write_lists(home, {"trainaug": lines})
    return root


def write_lists(home: Path, lists: Mapping[str, Iterable[str]]) -> None:
    for name, lines in lists.items():
        (home / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(lines) + "\n")


def write_annotation(path: Path, classes: Iterable[str]) -> None:
    """As the devkit's: every second object is difficult, and a person has the part `head`."""
    objects = "".join(
        f"<object><name>{name}</name><difficult>{index % 2}</difficult>"
        + ("<part><name>head</name></part>" if name == "person" else "")
        + "</object>"
        for index, name in enumerate(classes)
    )
    path.write_text(f"<annotation><filename>{path.stem}.jpg</filename>{objects}</annotation>")


def write_palette_mask(path: Path, mask: NDArray[np.uint8]) -> None:
    image = Image.fromarray(mask)
    image.putpalette([value for colour in (*VOC.palette, *[(0, 0, 0)] * 235) for value in colour])
    image.save(path)


def scene_mask(objects: Objects, size: tuple[int, int], rim: bool = True) -> NDArray[np.uint8]:
    """(h, w) VOC indices; a rim of 255 of one pixel lies around every object."""
    mask = np.zeros(size, dtype=np.uint8)
    for name, *corners in objects:
        top, left, bottom, right = (round(share * size[axis % 2]) for axis, share in enumerate(corners))
        if rim:
            mask[top:bottom, left:right] = 255
            top, left, bottom, right = top + 1, left + 1, bottom - 1, right - 1
        mask[top:bottom, left:right] = VOC.classes.index(name)
    return mask


def scene_photograph(mask: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint8]:
    """(h, w, 3): each class in its own colour, with noise, so that a network can learn it."""
    looks = np.full((256, 3), 110.0)
    looks[: len(VOC)] = VOC.palette
    noise = np.random.default_rng(seed).normal(0, 8, (*mask.shape, 3))
    return np.clip(looks[mask] + noise, 0, 255).astype(np.uint8)
