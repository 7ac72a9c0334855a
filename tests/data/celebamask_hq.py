"""Makes small CelebAMask-HQ trees: painted faces with all 19 classes, in the published layout and the compact one."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from structseg.datamodules.label_spaces import CELEBAMASK_HQ

# Both sides look alike, as on a photograph.
LOOKS = np.array(CELEBAMASK_HQ.palette, dtype=np.float64)
for _left, _right in CELEBAMASK_HQ.flip_pairs:
    LOOKS[_right] = LOOKS[_left]

# Middle and radii as shares of the height and width, (y, x, ry, rx), of ellipses; l_* is on the right of the picture.
_SHAPES = {
    "skin": (0.50, 0.50, 0.32, 0.26),
    "nose": (0.54, 0.50, 0.08, 0.05),
    "eye_g": (0.43, 0.50, 0.08, 0.24),
    "l_eye": (0.43, 0.61, 0.05, 0.07),
    "r_eye": (0.43, 0.39, 0.05, 0.07),
    "l_brow": (0.32, 0.62, 0.04, 0.08),
    "r_brow": (0.32, 0.38, 0.04, 0.08),
    "l_ear": (0.48, 0.80, 0.10, 0.06),
    "r_ear": (0.48, 0.20, 0.10, 0.06),
    "mouth": (0.68, 0.50, 0.05, 0.11),
    "u_lip": (0.645, 0.50, 0.03, 0.11),
    "l_lip": (0.725, 0.50, 0.03, 0.10),
    "hair": (0.14, 0.50, 0.12, 0.32),
    "hat": (0.06, 0.50, 0.07, 0.28),
    "ear_r": (0.60, 0.80, 0.04, 0.04),
    "neck_l": (0.87, 0.50, 0.03, 0.26),
    "neck": (0.86, 0.50, 0.06, 0.16),
    "cloth": (0.98, 0.50, 0.06, 0.48),
}
_RARE = ("eye_g", "hat", "ear_r", "neck_l")  # on every other face


def make_celebamask_hq(
    root: Path,
    layout: str = "compact",
    count: int = 10,
    size: tuple[int, int] = (48, 48),
    mirrored: int = 2,
    split_file: bool = True,
    numbers: tuple[int, ...] | None = None,
) -> Path:
    """Writes the data set to `root` and returns `root`.

    Args:
        root: becomes the folder of `images` and `masks`, or the parent of `CelebAMask-HQ` in the published layout.
        layout: `compact` or `full`.
        count: of images.
        size: (H, W) of the masks, 40x40 at least; the images of the published layout are of twice the size.
        mirrored: so many of the first images have left and right exchanged, listed in `left_right_reversed.json`.
        split_file: whether `split_622.json` is written, 6:2:2 in order of names.
        numbers: of the images in the published layout, instead of 0 to `count` - 1.
    """
    home = root / "CelebAMask-HQ" if layout == "full" else root
    names = [str(number) for number in numbers or range(count)] if layout == "full" else compact_names(count)
    for index, name in enumerate(names):
        parts = face_parts(size, seed=index, exchanged=index < mirrored)
        if layout == "full":
            image, mask = home / "CelebA-HQ-img", home / "CelebAMask-HQ-mask-anno" / str(int(name) // 2000)
            for part, covered in parts.items():
                pixels = (covered * 255).astype(np.uint8)
                _save(Image.fromarray(pixels).convert("RGB"), mask / f"{int(name):05}_{part}.png")
        else:
            image, mask = home / "images", home / "masks"
            indices = Image.fromarray(merge(parts))
            indices.putpalette([value for colour in CELEBAMASK_HQ.palette for value in colour])
            _save(indices, mask / f"{name}.png")
        times = 2 if layout == "full" else 1
        _save(
            Image.fromarray(photograph(merge(parts), seed=index).repeat(times, 0).repeat(times, 1)),
            image / f"{name}.jpg",
        )
    first, second = len(names) * 6 // 10, len(names) * 8 // 10
    if split_file:
        split = {"train": names[:first], "val": names[first:second], "test": names[second:]}
        (home / "split_622.json").write_text(json.dumps(split))
    if mirrored:
        lists = {"reversed": names[:mirrored], "undecided": []}
        (home / "left_right_reversed.json").write_text(json.dumps(lists))
    if layout == "full":
        write_mapping(home, {name: original(index) for index, name in enumerate(names)})
    return root


def compact_names(count: int) -> list[str]:
    """Names of 32 hexadecimal digits, sorted; each index has the same name whatever the count."""
    return [f"{index:02x}" + np.random.default_rng(index).bytes(15).hex() for index in range(count)]


def original(index: int) -> int:
    """CelebA's number, from 1, of the images of the published layout: of five, three train, one val, one test."""
    return (1000, 2000, 3000, 170000, 190000)[index % 5] + index


def write_mapping(home: Path, numbers: dict[str, int]) -> None:
    """The file that names CelebA's image, by its number from 1, for each image."""
    lines = [f"{name:<10}{number - 1:<10}{number:06}.jpg" for name, number in numbers.items()]
    text = "\n".join(["idx       orig_idx  orig_file", *lines, ""])
    (home / "CelebA-HQ-to-CelebA-mapping.txt").write_text(text)


def face_parts(
    size: tuple[int, int] = (48, 48), seed: int = 0, exchanged: bool = False
) -> dict[str, NDArray[np.bool_]]:
    """Where each part of a face lies, (H, W) each; parts overlap. Odd seeds have neither glasses nor hat nor jewels.

    `exchanged`: left and right are named the wrong way round.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[0:height, 0:width] + 0.5
    dy, dx = rng.uniform(-0.02, 0.02, 2)
    parts = {}
    for name, (cy, cx, ry, rx) in _SHAPES.items():
        if name in _RARE and seed % 2:
            continue
        parts[name] = ((y / height - cy - dy) / ry) ** 2 + ((x / width - cx - dx) / rx) ** 2 <= 1
    if exchanged:
        for left, right in (("l_eye", "r_eye"), ("l_brow", "r_brow"), ("l_ear", "r_ear")):
            parts[left], parts[right] = parts[right], parts[left]
    return parts


def merge(parts: dict[str, NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """(H, W) class map, later parts over earlier ones."""
    classes = np.zeros(parts["skin"].shape, dtype=np.uint8)
    for index, name in enumerate(CELEBAMASK_HQ.classes):
        if name in parts:
            classes[parts[name]] = index
    return classes


def photograph(classes: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint8]:
    """(H, W, 3): each class in its own colour, left as right, with noise, so that a network can learn it."""
    rng = np.random.default_rng(seed)
    return np.clip(LOOKS[classes] + rng.normal(0, 8, (*classes.shape, 3)), 0, 255).astype(np.uint8)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95, subsampling=0)  # PNG passes over both
