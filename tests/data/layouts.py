"""A small folder of VOC-style label maps: a horse with a person on it, and void between."""

from pathlib import Path

import numpy as np
from PIL import Image

from structseg.datamodules.label_spaces import VOC

NAMES = [f"2007_{number:06d}" for number in range(10)]


def layout_folder(folder: Path) -> Path:
    """Writes the ten maps: odd ones hold a horse alone, even ones a rider too."""
    palette = [value for rgb in VOC.palette for value in rgb]
    horse, person = VOC.classes.index("horse"), VOC.classes.index("person")
    for number, name in enumerate(NAMES):
        mask = np.zeros((75, 100), np.uint8)
        mask[28:62, 18 + number : 72 + number] = 255
        mask[30:60, 20 + number : 70 + number] = horse
        if number % 2 == 0:
            mask[8:40, 36 + number : 54 + number] = 255
            mask[10:38, 38 + number : 52 + number] = person
        image = Image.fromarray(mask)
        image.putpalette(palette)
        image.save(folder / f"{name}.png")
    return folder
