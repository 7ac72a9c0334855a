"""A picture of the confounder set: the average mask of each class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

_COLUMNS = 10
_FRAME = np.array([[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]])


def confounder_figure(
    confounders: NDArray[np.floating[Any]], images: NDArray[np.integer[Any]], classes: Sequence[str]
) -> Figure:
    """A grid of maps with the names of their classes, each from 0 (dark) to its own maximum, which is written below it.

    Args:
        confounders: (K - 1, h, w) in 0..1.
        images: (K - 1,) number of images of each mean; a class without images has an empty frame.
        classes: the K - 1 names, without the background.

    Raises:
        ValueError: the three differ in length, or there is no class.
    """
    count = len(classes)
    if not count or confounders.ndim != 3 or (len(confounders), len(images)) != (count, count):
        raise ValueError(
            f"confounders are {confounders.shape} of {len(images)} counts and {count} classes; give one of each a class"
        )
    columns = min(count, _COLUMNS if count > 24 else math.ceil(math.sqrt(1.5 * count)))
    rows = math.ceil(count / columns)
    height, width = confounders.shape[1:]
    wide, high = 1.3 * width, 1.6 * height  # a cell: the map, its name above, its numbers below
    figure = Figure(figsize=(1.4 * columns, 1.4 * rows * high / wide))
    axes = figure.add_axes((0, 0, 1, 1))  # one for all, as the layout of eighty takes seconds
    axes.axis("off")
    for index, (mean, held, name) in enumerate(zip(confounders, images, classes, strict=True)):
        left, top = index % columns * wide + 0.15 * width, index // columns * high + 0.3 * height
        middle, largest = left + width / 2, float(mean.max())
        axes.text(middle, top - 0.06 * height, name, ha="center", va="bottom", fontsize=7)
        images_of = "1 image" if held == 1 else f"{held} images"
        numbers = f"{images_of}, max {largest:.2f}" if held else "no image"
        axes.text(middle, top + 1.04 * height, numbers, ha="center", va="top", fontsize=6)
        if held:
            extent = (left, left + width, top + height, top)
            axes.imshow(mean, vmin=0, vmax=max(largest, 1e-6), cmap="magma", interpolation="nearest", extent=extent)
        else:
            axes.plot(left + width * _FRAME[0], top + height * _FRAME[1], color="0.6", linewidth=0.8)
    axes.set(xlim=(0, columns * wide), ylim=(rows * high, 0))  # imshow has changed them
    return figure
