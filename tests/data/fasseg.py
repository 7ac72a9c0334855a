"""Makes small FASSEG trees: painted faces in the published folders, names, letter cases and file formats."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from structseg.datamodules.fasseg.files import UNLABELLED_TEST_POSES
from structseg.datamodules.label_spaces import FASSEG

POSES = ("-90", "-30", "0", "+30")
NUMBER = {"-90": 40, "-30": 44, "0": 46, "+30": 48}  # the last part of a name in V3 counts the poses
LOOKS = np.array(
    [(60, 90, 120), (205, 160, 130), (70, 45, 30), (40, 60, 90), (190, 140, 115), (170, 80, 80)], dtype=np.float64
)


def make_fasseg(
    root: Path,
    version: str = "V2",
    train: int = 4,
    test: int = 3,
    size: tuple[int, int] = (48, 36),
    ext: str = "png",
    poses: tuple[str, ...] = POSES,
) -> Path:
    """Writes one version below `root` and returns `root`.

    Args:
        root: becomes the folder that holds V1, V2 or V3.
        version: V1 and V2 number their files; V3 has persons (`train`: from 01 on, `test`: from 08 on) in a folder a
            pose, and no test labels of the poses that were never labelled.
        train: photographs (V3: persons) to train.
        test: photographs (V3: persons) to test.
        size: (H, W) of every file, 40x32 at least, so that no painted part is a speck.
        ext: of the photographs, bmp, png or jpg; labels are png where it is jpg.
        poses: of V3.
    """
    for part, count, first in (("Train", train, 1), ("Test", test, 8)):
        images = root / version / f"{part}_RGB"
        labels = root / version / (f"{part}_labels" if version == "V3" else f"{part}_Labels")
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        if version == "V3":
            keys = [
                f"{pose}/personne{first + i:02}1{NUMBER[pose]}+0{_signed(pose)}" for pose in poses for i in range(count)
            ]
        else:
            keys = [str(i + 1) for i in range(count)]
        for i, key in enumerate(keys):
            classes = face_classes(size, seed=100 * first + i)
            _write(images / f"{key}.{ext}", photograph(classes, seed=100 * first + i))
            if version == "V3" and part == "Test" and key.split("/")[0] in UNLABELLED_TEST_POSES:
                continue
            painted = palette_image(classes) if version == "V1" else smoothed(palette_image(classes), seed=i)
            _write(labels / f"{key}.{'png' if ext == 'jpg' else ext}", painted)
    return root


def face_classes(size: tuple[int, int] = (48, 36), seed: int = 0) -> NDArray[np.uint8]:
    """(H, W) class map of a face: all six classes, every part of at least 20 pixels."""
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[0:height, 0:width]
    cy, cx = height * 0.52 + rng.uniform(-1, 1), width * 0.5 + rng.uniform(-1, 1)

    def ellipse(dy: float, dx: float, ry: float, rx: float) -> NDArray[np.bool_]:
        return ((y - cy - dy * height) / (ry * height)) ** 2 + ((x - cx - dx * width) / (rx * width)) ** 2 <= 1

    classes = np.zeros(size, dtype=np.uint8)
    classes[ellipse(-0.08, 0, 0.42, 0.44)] = 2
    classes[ellipse(0.04, 0, 0.34, 0.32)] = 1
    classes[ellipse(-0.06, -0.16, 0.07, 0.11)] = 3
    classes[ellipse(-0.06, 0.16, 0.07, 0.11)] = 3
    classes[ellipse(0.07, 0, 0.07, 0.08)] = 4
    classes[ellipse(0.24, 0, 0.05, 0.15)] = 5
    return classes


def palette_image(classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) in FASSEG's colours."""
    return np.array(FASSEG.palette, dtype=np.uint8)[classes]


def smoothed(painted: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint8]:
    """Borders as V2's: half of the pixels left of another colour take a quarter of it, and keep their class.

    Only those whose left neighbour is of their own colour, so that the class is sure beside them.
    """
    rng = np.random.default_rng(seed)
    left, here, right = (painted[:, i : painted.shape[1] - 2 + i].astype(np.float64) for i in range(3))
    border = (here == left).all(2) & (here != right).any(2) & (rng.random(here.shape[:2]) < 0.5)
    result = painted.copy()
    result[:, 1:-1][border] = (0.75 * here + 0.25 * right).round().astype(np.uint8)[border]
    return result


def photograph(classes: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint8]:
    """(H, W, 3): each class in its own colour, with noise, so that a network can learn it."""
    rng = np.random.default_rng(seed)
    return np.clip(LOOKS[classes] + rng.normal(0, 8, (*classes.shape, 3)), 0, 255).astype(np.uint8)


def _signed(pose: str) -> str:
    return f"{int(pose):+d}"


def _write(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95, subsampling=0)  # formats without loss pass over both
