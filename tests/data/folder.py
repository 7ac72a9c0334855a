"""Makes small folders of own images and masks: a disc and a box on a ground, left and right of each other."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

CLASSES = ("background", "left_disc", "right_box")
COLOURS = np.array([(0, 0, 0), (200, 30, 30), (30, 60, 200)], dtype=np.uint8)


def mask_of(index: int, size: tuple[int, int] = (32, 40)) -> NDArray[np.uint8]:
    """(H, W) classes 0 to 2."""
    y, x = np.mgrid[: size[0], : size[1]]
    mask = np.zeros(size, dtype=np.uint8)
    mask[(y - 14 - index % 3) ** 2 + (x - 9 - index % 4) ** 2 <= 36] = 1
    mask[8 + index % 5 : 24, 22 + index % 3 : 36] = 2
    return mask


def photograph_of(index: int, size: tuple[int, int] = (32, 40)) -> NDArray[np.uint8]:
    """(H, W, 3): each class in a colour, with noise of its own."""
    noise = np.random.default_rng(index).normal(0, 25, (*size, 3))
    return np.clip(COLOURS[mask_of(index, size)] + 40.0 + noise, 0, 255).astype(np.uint8)


def make_folder(
    root: Path,
    names: Sequence[str] = ("a1", "a2", "b1", "b2", "c1", "c2"),
    save: Callable[[Path, NDArray[np.uint8]], object] = lambda path, mask: Image.fromarray(mask).save(path),
    file: bool = True,
    **more: Any,
) -> Path:
    """Writes `images`, `masks` and, with `file`, a `dataset.yaml` with `more` to `root`, and returns it."""
    for index, name in enumerate(names):
        for kind in ("images", "masks"):
            (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph_of(index)).save(root / "images" / f"{name}.png")
        save(root / "masks" / f"{name}.png", mask_of(index))
    if file:
        split = {"seed": 0, "val": 1 / 6, "test": 1 / 6}
        content = {"images": "images", "masks": "masks", "split": split, "classes": list(CLASSES), **more}
        (root / "dataset.yaml").write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return root
