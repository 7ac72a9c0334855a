"""Makes small trees of LFW Part Labels: painted faces in the published folders, names, lists and file formats."""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from structseg.datamodules.label_spaces import PARTS

LOOKS = np.array([(70, 110, 90), (210, 165, 140), (60, 40, 30)], dtype=np.float64)
_FILES = {"train": "parts_train.txt", "val": "parts_validation.txt", "test": "parts_test.txt"}


def make_lfw(
    root: Path,
    train: int = 4,
    val: int = 2,
    test: int = 3,
    size: tuple[int, int] = (50, 50),
    labels: Literal["ppm", "png", "palette"] = "ppm",
    superpixels: bool = False,
    extra: int = 0,
) -> Path:
    """Writes the published layout below `root` and returns `root`.

    Image 0 of train, val and test are of one person, `Ann_Lee`, with numbers 1, 2 and 3; the others of a person each,
    `Train_Person_A_0001` and so on. The lists write every second number bare.

    Args:
        root: becomes the folder that holds lfw_funneled, the labels and the lists.
        train: images to train.
        val: images to validate.
        test: images to test.
        size: (H, W) of every file.
        labels: 24-bit PPM as published, RGB PNG, or a 2-bit palette PNG.
        superpixels: also write superpixels, as text: squares of a quarter of the width, numbered from 1.
        extra: images that no list names, of persons `Extra_Person_A` and so on.
    """
    for number, (split, count) in enumerate((("train", train), ("val", val), ("test", test)), 1):
        lines = []
        for i in range(count):
            person = "Ann_Lee" if i == 0 else f"{split.title()}_Person_{chr(64 + i)}"
            of_person = number if i == 0 else 1
            classes = face_classes(size, seed=100 * number + i)
            write_face(root, person, of_person, classes, 100 * number + i, labels)
            if superpixels:
                write_superpixels(root, f"{person}_{of_person:04d}", squares(size))
            lines.append(f"{person} {of_person:04d}" if i % 2 == 0 else f"{person} {of_person}")
        (root / _FILES[split]).write_text("\n".join(lines) + "\n")
    for i in range(extra):
        write_face(root, f"Extra_Person_{chr(65 + i)}", 1, face_classes(size, seed=900 + i), 900 + i, None)
    return root


def write_face(
    root: Path, person: str, number: int, classes: NDArray[np.uint8], seed: int, labels: str | None = "ppm"
) -> None:
    """A photograph and, unless `labels` is None, its label."""
    name = f"{person}_{number:04d}"
    folder = root / "lfw_funneled" / person
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photograph(classes, seed)).save(folder / f"{name}.jpg", quality=95, subsampling=0)
    if labels is None:
        return
    painted = root / "parts_lfw_funneled_gt_images"
    painted.mkdir(exist_ok=True)
    if labels == "palette":  # other indices than the suite's, as the colours decide
        image = Image.fromarray(2 - classes)
        image.putpalette([value for colour in PARTS.palette[::-1] for value in colour])
        image.save(painted / f"{name}.png", bits=2)
    else:
        Image.fromarray(np.array(PARTS.palette, dtype=np.uint8)[classes]).save(painted / f"{name}.{labels}")


def write_superpixels(root: Path, name: str, numbers: NDArray[np.int64]) -> None:
    """A text file of one line a row."""
    folder = root / "parts_lfw_funneled_superpixels_mat" / name.rsplit("_", 1)[0]
    folder.mkdir(parents=True, exist_ok=True)
    np.savetxt(folder / f"{name}.dat", numbers, fmt="%d")


def squares(size: tuple[int, int]) -> NDArray[np.int64]:
    """(H, W) superpixel numbers from 1: a grid of 4x4 cells."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    return 1 + 4 * (y * 4 // size[0]) + x * 4 // size[1]


def face_classes(size: tuple[int, int] = (50, 50), seed: int = 0) -> NDArray[np.uint8]:
    """(H, W) class map: background, a face, hair around and above it."""
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[0:height, 0:width]
    cy, cx = height * (0.52 + rng.uniform(-0.04, 0.04)), width * (0.5 + rng.uniform(-0.08, 0.08))
    classes = np.zeros(size, dtype=np.uint8)
    classes[((y - cy + 0.1 * height) / (0.36 * height)) ** 2 + ((x - cx) / (0.34 * width)) ** 2 <= 1] = 2
    classes[((y - cy - 0.03 * height) / (0.32 * height)) ** 2 + ((x - cx) / (0.24 * width)) ** 2 <= 1] = 1
    return classes


def photograph(classes: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint8]:
    """(H, W, 3): each class in its own colour, with noise, so that a network can learn it."""
    rng = np.random.default_rng(seed)
    return np.clip(LOOKS[classes] + rng.normal(0, 8, (*classes.shape, 3)), 0, 255).astype(np.uint8)
