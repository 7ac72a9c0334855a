"""The light and grain of a photographed face, so that pasted occluders match it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from structseg.datamodules.drawing.geometry import Array
from structseg.datamodules.drawing.grid import Grid, Patch
from structseg.datamodules.label_spaces import CELEBAMASK_HQ

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_USUAL_CAST = np.array([1.2, 0.96, 0.84], np.float32)  # mean colour over mean brightness of CelebAMask-HQ's photographs
_CELLS = 16
_SKIN = [CELEBAMASK_HQ.classes.index(name) for name in ("skin", "nose")]


class Light:
    """The light and the grain of one image.

    Args:
        image: (3, H, W) float32 in 0..1.
        mask: (h, w) labels of CELEBAMASK_HQ, of any size.

    Attributes:
        colour: (3,) colour of a white surface: exposure and cast.
        skin: (3,) mean colour of the face's skin.
        noise: standard deviation of the grain, at most 0.03.
        soft: standard deviation of the blur in pixels, 0 (sharp edges) to 2.
    """

    def __init__(self, image: Array, mask: NDArray[np.integer]) -> None:
        height, width = image.shape[1:]
        luma = np.tensordot(_LUMA, image, 1)
        step = max(1, min(height, width) // 64)
        small, dim = image[:, ::step, ::step], luma[::step, ::step]
        rows = (np.arange(dim.shape[0]) * step + 0.5) * (mask.shape[0] / height)
        columns = (np.arange(dim.shape[1]) * step + 0.5) * (mask.shape[1] / width)
        skin = np.isin(mask[np.ix_(rows.astype(np.intp), columns.astype(np.intp))], _SKIN)
        self.skin: Array = small[:, skin].mean(1) if skin.any() else small.mean((1, 2))
        low, high = np.percentile(dim, (2, 98))
        mean = small.mean((1, 2))
        cast = np.sqrt(mean / max(float(mean.mean()), 1e-3) / _USUAL_CAST)
        self.colour: Array = np.clip(cast, 0.85, 1.15) * np.float32(np.clip(high / 0.9, 0.25, 1.1))
        self._field = _field(dim, skin)
        self.noise, steepest = _grain(luma)
        # The steepest slope of a step blurred by sigma is 0.4 * height / sigma per pixel. Few edges have the picture's
        # whole contrast, so that sharp ones come out as 1.3 pixels.
        self.soft = float(np.clip(0.4 * (high - low) / max(steepest, 1e-3) - 1.3, 0.0, 2.0))

    def shade(self, patch: Patch, grid: Grid) -> Array:
        """(h, w) smoothed brightness of the nearby skin relative to its mean, 0.5..1.5."""
        down = _weights(patch.y, grid.y, len(self._field))
        across = _weights(patch.x, grid.x, self._field.shape[1])
        return np.clip(down @ self._field @ across.T, 0.5, 1.5)


def _field(dim: Array, skin: NDArray[np.bool_]) -> Array:
    """(16, 16) brightness relative to the mean skin; 1 away from the skin."""
    if not skin.any():
        return np.ones((_CELLS, _CELLS), np.float32)
    weight = skin.astype(np.float32)
    sigma = (0.07 * dim.shape[0], 0.07 * dim.shape[1])
    light = ndimage.gaussian_filter(dim * weight / max(float(dim[skin].mean()), 1e-3), sigma, truncate=3.0)
    weight = ndimage.gaussian_filter(weight, sigma, truncate=3.0)
    field = (light + 0.05) / (weight + 0.05)
    rows, columns = ((np.arange(_CELLS) * (side - 1)) // (_CELLS - 1) for side in dim.shape)
    cells: Array = field[np.ix_(rows, columns)]
    return cells.astype(np.float32)


def _weights(at: Array, ends: Array, cells: int) -> Array:
    """(n, cells) weights of linear interpolation between cells from the grid's first pixel to the last."""
    place = (at - ends[0]) / max(float(ends[-1] - ends[0]), 1e-6) * (cells - 1)
    return np.maximum(1.0 - np.abs(place[:, None] - np.arange(cells, dtype=np.float32)), 0.0).astype(np.float32)


def _grain(luma: Array) -> tuple[float, float]:
    """The standard deviation of the noise and the steepest slope per pixel in the middle of an image."""
    height, width = luma.shape
    top, left = max(0, (height - 128) // 2), max(0, (width - 128) // 2)
    part = luma[top : top + 128, left : left + 128]
    # The second difference in both directions is 0 on flat, sloping or striped areas (Immerkaer 1996), and its median
    # is robust against edges. Its standard deviation is 6 times the noise's, its median 0.67 of that.
    second = np.diff(np.diff(part, 2, 0), 2, 1)
    noise = float(np.median(np.abs(second))) / (6 * 0.6745) if second.size else 0.0
    slope = np.abs(np.diff(part, axis=1))
    return min(noise, 0.03), float(np.percentile(slope, 99.5)) if slope.size else 0.0
