"""Seeds for the relation network: the confident foreground and background of class activation maps, after a CRF."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

IGNORED = 255


def seed_maps(
    cams: NDArray[np.floating[Any]], size: tuple[int, int], foreground: float = 0.30, background: float = 0.05
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The strict and the lenient label map: the class of the largest map if it is above the threshold, else 0.

    Each then goes through `DenseCRF.labels`; `combine` joins the two.

    Images whose maps are all zero are background everywhere, as in the published code.

    Args:
        cams: (K - 1, h, w) in 0..1, of the foreground classes; resized to `size`, bilinear.
        size: (H, W) of both maps.
        foreground: threshold of the strict map, up to 1.
        background: threshold of the lenient map, above 0 and not above `foreground`.

    Returns:
        Two arrays (H, W) uint8 of 0..K-1.

    Raises:
        ValueError: thresholds out of order, or maps of another shape or not finite.

    Source: IRNet (Ahn, Cho, Kwak, CVPR 2019) and its published settings.

    >>> [labels.tolist() for labels in seed_maps(np.array([[[0.4, 0.1, 0.01]]]), (1, 3))]
    [[[1, 0, 0]], [[1, 1, 0]]]
    """
    if not 0 < background <= foreground <= 1:
        raise ValueError(
            f"foreground {foreground}, background {background}; 0 < background <= foreground <= 1 is needed"
        )
    if cams.ndim != 3 or not np.isfinite(cams).all():
        raise ValueError(f"cams of shape {cams.shape}, or with nan; finite (K - 1, h, w) are needed")
    value, best = np.zeros(size, dtype=np.float32), np.zeros(size, dtype=np.uint8)
    for index, cam in enumerate(cams):
        if cam.any():  # most classes of an image have no map
            large = _resized(cam, size)
            best[large > value] = index + 1
            np.maximum(value, large, out=value)
    strict, lenient = (np.where(value > threshold, best, 0).astype(np.uint8) for threshold in (foreground, background))
    return strict, lenient


def combine(strict: NDArray[np.uint8], lenient: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Foreground where the strict map is foreground; background where both are background; else ignored (255).

    >>> combine(np.array([[2, 0, 0]], np.uint8), np.array([[2, 1, 0]], np.uint8)).tolist()
    [[2, 255, 0]]
    """
    return np.where((strict == 0) & (lenient != 0), IGNORED, strict).astype(np.uint8)


def _resized(cam: NDArray[np.floating[Any]], size: tuple[int, int]) -> NDArray[np.float32]:
    # Pillow enlarges as torch does without aligned corners.
    picture = Image.fromarray(cam.astype(np.float32))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
