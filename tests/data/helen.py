"""Makes small trees of HELEN with part labels: painted faces of all 11 classes in the published layout."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from structseg.datamodules.helen.files import IMAGES, LABELS, LISTS
from structseg.datamodules.label_spaces import HELEN

# Both sides look alike, as on a photograph.
LOOKS = np.array(HELEN.palette, dtype=np.float64)
for _left, _right in HELEN.flip_pairs:
    LOOKS[_right] = LOOKS[_left]

# Middle and radii as shares of the height and width, (y, x, ry, rx), of ellipses, the later ones on top of the earlier
# ones. What is called left is on the right of the picture, the pictured person's own.
_SHAPES = {
    "hair": (0.22, 0.50, 0.20, 0.34),
    "skin": (0.52, 0.50, 0.40, 0.30),
    "left_brow": (0.33, 0.64, 0.04, 0.10),
    "right_brow": (0.33, 0.36, 0.04, 0.10),
    "left_eye": (0.44, 0.63, 0.05, 0.08),
    "right_eye": (0.44, 0.37, 0.05, 0.08),
    "nose": (0.56, 0.50, 0.10, 0.07),
    "upper_lip": (0.74, 0.50, 0.04, 0.15),
    "lower_lip": (0.83, 0.50, 0.04, 0.14),
    "inner_mouth": (0.78, 0.50, 0.03, 0.12),
}


def make_helen(
    root: Path,
    train: int = 4,
    val: int = 2,
    test: int = 3,
    sizes: tuple[tuple[int, int], ...] = ((60, 48), (48, 64), (56, 56)),
) -> Path:
    """Writes the published layout below `root` and returns `root`.

    Image `i` of a split is named `{1, 2 or 3}{i:03}_1` and has the size `sizes[i % len(sizes)]`. The lists write their
    lines in the published form with more or fewer spaces, every third as the name alone.

    Args:
        root: becomes the folder of `images`, `labels` and the lists.
        train: images in exemplars.txt.
        val: images in tuning.txt.
        test: images in testing.txt.
        sizes: (H, W) of images and masks, in turn; 40x40 at least.
    """
    for number, (split, count) in enumerate((("train", train), ("val", val), ("test", test)), 1):
        lines = []
        for i in range(count):
            name = name_of(split, i)
            write_face(root, name, face_classes(sizes[i % len(sizes)], seed=100 * number + i), 100 * number + i)
            lines.append((f"{i + 1} , {name}", f"{i + 1},{name}  ", name)[i % 3])
        (root / LISTS[split]).write_text("\n".join(lines) + "\n")
    return root


def name_of(split: str, index: int) -> str:
    """The name of a made image."""
    return f"{list(LISTS).index(split) + 1}{index:03}_1"


def write_face(root: Path, name: str, classes: NDArray[np.uint8], seed: int = 0) -> None:
    """A photograph and its eleven soft masks, blurred so that they agree with `classes` by their largest value."""
    (root / IMAGES).mkdir(parents=True, exist_ok=True)
    photograph = Image.fromarray(paint(classes, seed))
    photograph.save(root / IMAGES / f"{name}.jpg", quality=95, subsampling=0)
    write_masks(root, name, soft_masks(classes))


def write_masks(root: Path, name: str, masks: NDArray[np.uint8]) -> tuple[Path, ...]:
    """(11, H, W) values 0..255 as the published files, whose paths it returns."""
    folder = root / LABELS / name
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"{name}_lbl{index:02}.png" for index in range(len(masks)))
    for path, mask in zip(paths, masks, strict=True):
        Image.fromarray(mask).save(path)
    return paths


def soft_masks(classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(11, H, W): each class blurred by a pixel, and raised by 160 on its own pixels, where it is the largest."""
    masks = []
    for index in range(len(HELEN)):
        own = Image.fromarray((classes == index).astype(np.uint8) * 95)
        masks.append(np.asarray(own.filter(ImageFilter.BoxBlur(1))) + (classes == index).astype(np.uint8) * 160)
    return np.stack(masks).astype(np.uint8)


def face_classes(size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """(H, W) class map with all classes of HELEN; the seed moves the face by a pixel or two."""
    rng = np.random.default_rng(seed)
    dy, dx = rng.integers(-1, 2, 2)
    height, width = size
    y, x = np.mgrid[0:height, 0:width]
    classes = np.zeros(size, dtype=np.uint8)
    for name, (cy, cx, ry, rx) in _SHAPES.items():
        inside = ((y - dy - cy * height) / (ry * height)) ** 2 + ((x - dx - cx * width) / (rx * width)) ** 2 <= 1
        classes[inside] = HELEN.classes.index(name)
    return classes


def paint(classes: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint8]:
    """(H, W, 3): each class in its own colour, with noise, so that a network can learn it."""
    rng = np.random.default_rng(seed)
    return np.clip(LOOKS[classes] + rng.normal(0, 8, (*classes.shape, 3)), 0, 255).astype(np.uint8)
