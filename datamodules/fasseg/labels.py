"""Decoding FASSEG's painted labels as class maps: protocol fasseg-labels-1, and the published code's exact match.

The painted colours are smoothed and uneven, and at borders the nearest palette colour is wrong: half-way between eyes
and skin is a grey that is nearest to hair. The protocol therefore looks at the classes around a pixel first.
"""

from itertools import combinations
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from structseg.datamodules.label_spaces import FASSEG

PROTOCOL: Final = "fasseg-labels-1"
CLOSE_DISTANCE_SQUARED = 45 * 45  # palette colours are at least 128 apart, so that no other is within 45
MIXTURE_DISTANCE_SQUARED = 45 * 45
MIXTURE_REACH = 2  # pixels to each side: a 5x5 window
MIXTURE_MARGIN = 1e-6  # a later pair must be better by this, so that rounding does not decide
SPECK_PIXELS = 16
# Largest share of pixels that are neither a palette colour nor a mixture. The 418 published labels have at most 0.42 %,
# their photographs at least 99 %.
OPEN_LIMIT = 0.2

_PALETTE = np.array(FASSEG.palette, dtype=np.int64)
_OPEN = 255


def decode_fasseg(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The class map of a label image by protocol fasseg-labels-1, at the image's native size.

    (1) A colour within distance 45 of a palette colour is that class. (2) Other pixels within 45 of the straight line
    between the colours of two classes in their 5x5 window get the nearer of the two. (3) The rest get the class of the
    nearest decided pixel. (4) Parts of 16 pixels or fewer are erased and filled as in (3), unless that would erase
    everything, as in images of 16 pixels or fewer.

    Args:
        rgb: (H, W, 3) uint8, before any resizing.

    Returns:
        (H, W) uint8, classes 0..5 in the order of `label_spaces.FASSEG`.

    Raises:
        TypeError: not uint8.
        ValueError: not (H, W, 3), no pixels, or more than a fifth of the pixels are not colours of the palette.
    """
    _check(rgb)
    classes = _sure(rgb)
    sure = classes != _OPEN
    _mixtures(rgb, classes, sure)
    open_share = float((classes == _OPEN).mean())
    if open_share > OPEN_LIMIT:
        raise ValueError(
            f"not a FASSEG label image: {open_share:.0%} of the pixels are neither colours of the palette nor mixtures "
            f"of two (labels have under 1 %); give the painted label, not the photograph"
        )
    classes = _fill(classes)
    return _without_specks(classes)


def decode_published(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The class map of the published code: exact matches, everything else background; for comparison only.

    The published code applies it after `resize_published`, which leaves 4.2 % of the pixels of V2's training labels
    without a match at 256x256.

    Args:
        rgb: (H, W, 3) uint8, already resized.

    Returns:
        (H, W) uint8, classes 0..5 in the order of `label_spaces.FASSEG` (the published code swaps nose and eyes).

    Raises:
        TypeError: not uint8.
        ValueError: not (H, W, 3) or no pixels.
    """
    _check(rgb)
    classes = _exact(rgb)
    classes[classes == _OPEN] = 0
    return classes


def resize_published(rgb: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A label image resized to (H, W) as by the published code: colours mixed by a bicubic filter.

    The filter is OpenCV's (A = -0.75, no antialiasing), as in torch; Pillow's, with antialiasing, would lose 6.0 %.
    """
    _check(rgb)
    colours = torch.from_numpy(np.array(rgb, dtype=np.float32).transpose(2, 0, 1)[None])
    mixed = functional.interpolate(colours, size, mode="bicubic", align_corners=False)
    return mixed[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def _check(rgb: NDArray[np.uint8]) -> None:
    if rgb.dtype != np.uint8:
        raise TypeError(f"label image of dtype {rgb.dtype}; expected uint8 R, G, B (convert with PIL's convert('RGB'))")
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise ValueError(f"label image of shape {rgb.shape}; expected (H, W, 3) with at least one pixel")


def _exact(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    classes = np.full(rgb.shape[:2], _OPEN, dtype=np.uint8)
    codes = (rgb[..., 0].astype(np.uint32) << 16) | (rgb[..., 1].astype(np.uint32) << 8) | rgb[..., 2]
    for index, (r, g, b) in enumerate(FASSEG.palette):
        classes[codes == (r << 16 | g << 8 | b)] = index
    return classes


def _sure(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Step 1, computing distances for the few inexact pixels only."""
    classes = _exact(rgb)
    off = classes == _OPEN
    distances = ((rgb[off].astype(np.int64)[:, None] - _PALETTE) ** 2).sum(axis=2)
    nearest = distances.argmin(axis=1).astype(np.uint8)
    nearest[distances.min(axis=1) > CLOSE_DISTANCE_SQUARED] = _OPEN
    classes[off] = nearest
    return classes


def _mixtures(rgb: NDArray[np.uint8], classes: NDArray[np.uint8], sure: NDArray[np.bool_]) -> None:
    """Step 2, in place."""
    rows, columns = np.nonzero(~sure)
    bits = np.where(sure, np.left_shift(1, np.where(sure, classes, 0)), 0).astype(np.uint8)
    bits = np.pad(bits, MIXTURE_REACH)
    present = np.zeros(len(rows), dtype=np.uint8)
    for dy in range(2 * MIXTURE_REACH + 1):
        for dx in range(2 * MIXTURE_REACH + 1):
            present |= bits[rows + dy, columns + dx]

    pixels = rgb[rows, columns].astype(np.int64)
    best = np.full(len(rows), np.inf)
    taken = np.full(len(rows), _OPEN, dtype=np.uint8)
    for i, j in combinations(range(len(_PALETTE)), 2):
        both = (1 << i) | (1 << j)
        line = _PALETTE[j] - _PALETTE[i]
        length = int(line @ line)
        offset = pixels - _PALETTE[i]
        along = offset @ line
        t = np.clip(along / length, 0.0, 1.0)
        error = ((offset - t[:, None] * line) ** 2).sum(axis=1)
        wins = ((present & both) == both) & (error < best - MIXTURE_MARGIN)
        best[wins] = error[wins]
        taken[wins] = np.where(2 * along[wins] > length, j, i)
    taken[best > MIXTURE_DISTANCE_SQUARED] = _OPEN
    classes[rows, columns] = taken


def _fill(classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Step 3: every open pixel gets the class of the nearest decided one, the lowest of equally near ones.

    The distance transform gives the exact distance but an arbitrary one of the nearest pixels. Therefore all pixels at
    that squared distance, a whole number, are compared.
    """
    from scipy import ndimage

    gaps = classes == _OPEN
    if not gaps.any():
        return classes
    rows, columns = np.nonzero(gaps)
    squared = np.rint(ndimage.distance_transform_edt(gaps)[gaps] ** 2).astype(np.int64)
    filled = np.full(len(rows), _OPEN, dtype=np.uint8)
    height, width = classes.shape
    for distance in np.unique(squared):
        here = np.flatnonzero(squared == distance)
        for dy, dx in _offsets(int(distance)):
            y, x = rows[here] + dy, columns[here] + dx
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            # An open neighbour is 255, so that the minimum ignores it.
            filled[here[inside]] = np.minimum(filled[here[inside]], classes[y[inside], x[inside]])
    result = classes.copy()
    result[gaps] = filled
    return result


def _offsets(squared: int) -> list[tuple[int, int]]:
    """All integer steps (dy, dx) of that squared length."""
    steps = []
    reach = int(np.sqrt(squared))
    for dy in range(-reach, reach + 1):
        dx = round(float(np.sqrt(squared - dy * dy)))
        if dy * dy + dx * dx == squared:
            steps += [(dy, dx), (dy, -dx)]
    return steps


def _without_specks(classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Step 4."""
    from skimage import measure

    parts = measure.label(classes, background=_OPEN, connectivity=2)
    specks = np.bincount(parts.ravel()) <= SPECK_PIXELS
    specks[0] = False
    erased = specks[parts]
    if not erased.any() or erased.all():
        return classes
    return _fill(np.where(erased, np.uint8(_OPEN), classes))
