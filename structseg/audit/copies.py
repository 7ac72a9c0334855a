"""Finds copies among many images by thumbnails of 256 bytes, so that no image is kept in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from structseg.datamodules.images import read_image

SIDE = 16  # pixels of a thumbnail, each way
_THINNED = 64  # rows and columns that are sampled before averaging, which is five times as fast
_BITS = 12  # of 64 that the hashes of near copies may differ in
_ALIKE = 0.97  # least correlation of the thumbnails of near copies, or
_ALIKE_INSIDE, _ALIKE_WHOLE = 0.98, 0.9  # of their middle quarters and of the whole, where the borders were cropped
_LEVELS = 48  # grey levels of 255 that their means may differ by
_FLAT = 3.0  # standard deviation in grey levels below which an image is flat
_CHUNK = 1 << 18  # pairs compared at once, to fit into the cache


class Copy(NamedTuple):
    """Two images that are the same.

    Attributes:
        first, second: their positions in the list.
        identical: whether all pixels are equal.
        mirrored: whether one is the mirror image of the other.
        correlation: of their thumbnails.
    """

    first: int
    second: int
    identical: bool
    mirrored: bool
    correlation: float


def thumbnail(image: Image.Image) -> bytes:
    """The 16x16 grey levels of an RGB image, 256 bytes."""
    if max(image.size) > _THINNED:
        image = image.resize((min(image.width, _THINNED), min(image.height, _THINNED)), Image.Resampling.NEAREST)
    return image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX).tobytes()


def find_copies(thumbnails: Sequence[bytes], paths: Sequence[Path]) -> list[Copy]:
    """Finds all pairs of copies: identical, re-encoded, resized, slightly recoloured, or mirrored images.

    A hash of 64 bits (whether each low frequency lies above their median) finds candidates; the correlation of the
    thumbnails decides, and where the thumbnails are equal the decoded pixels. Flat images, whose hash means nothing,
    are copies only where the pixels are equal. Of several identical images each is paired with the first.

    Args:
        thumbnails: of the images, by `thumbnail`.
        paths: of the images.
    """
    if len(thumbnails) < 2:
        return []
    unique: dict[bytes, list[int]] = {}
    for index, pixels in enumerate(thumbnails):
        unique.setdefault(pixels, []).append(index)
    copies = []
    heads: list[int] = []  # the first of each set of identical images
    for same in unique.values():
        digests: dict[str, int] = {}
        for index in same:
            digest = _digest(paths[index]) if len(same) > 1 else ""
            if digest in digests:
                copies.append(Copy(digests[digest], index, True, False, 1.0))
            else:
                digests[digest] = index
                heads.append(index)
    heads.sort()
    return sorted(copies + _near(heads, np.frombuffer(b"".join(thumbnails[i] for i in heads), dtype=np.uint8)))


def _near(heads: list[int], flat: NDArray[np.uint8]) -> list[Copy]:
    pixels = flat.reshape(-1, SIDE, SIDE).astype(np.float32)
    means, deviations = pixels.mean(axis=(1, 2)), pixels.std(axis=(1, 2))
    shown = np.flatnonzero(deviations >= _FLAT)
    pixels, means = pixels[shown], means[shown]
    if len(shown) < 2:
        return []
    hashes = _hashes(pixels)
    middle = slice(SIDE // 4, -SIDE // 4)
    unit, inside = _standardised(pixels), _standardised(pixels[:, middle, middle])
    copies = []
    for mirrored in (False, True):
        others = _hashes(pixels[:, :, ::-1]) if mirrored else hashes
        step = -1 if mirrored else 1
        first, second = _close(hashes, others)
        correlation = (unit[first] * unit[second, :, ::step]).sum(axis=(1, 2))
        within = (inside[first] * inside[second, :, ::step]).sum(axis=(1, 2))
        alike = (correlation >= _ALIKE) | ((within >= _ALIKE_INSIDE) & (correlation >= _ALIKE_WHOLE))
        alike &= np.abs(means[first] - means[second]) <= _LEVELS
        for a, b, value in zip(first[alike], second[alike], correlation[alike], strict=True):
            copies.append(Copy(heads[shown[a]], heads[shown[b]], False, mirrored, float(value)))
    pairs: dict[tuple[int, int], Copy] = {}
    for copy in copies:  # a symmetric image is found in both orientations; the better one is kept
        kept = pairs.get((copy.first, copy.second))
        if kept is None or copy.correlation > kept.correlation:
            pairs[copy.first, copy.second] = copy
    return list(pairs.values())


def _standardised(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The images (N, h, w) with mean 0 and norm 1, so that a sum of products is a correlation."""
    centred = pixels - pixels.mean(axis=(1, 2), keepdims=True)
    length = np.sqrt((centred**2).sum(axis=(1, 2), keepdims=True))
    return np.asarray(centred / np.maximum(length, 1e-6), dtype=np.float32)


def _hashes(pixels: NDArray[np.float32]) -> NDArray[np.uint64]:
    """64-bit hashes (N,) of thumbnails (N, 16, 16): which of the 64 lowest frequencies lie above their median."""
    low = dctn(pixels, axes=(1, 2))[:, :8, :8].reshape(len(pixels), -1)
    low[:, 0] = 0  # the mean says nothing of the structure
    above = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(above, axis=1).view(np.uint64)[:, 0]


def _close(hashes: NDArray[np.uint64], others: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The positions i < j for which hash i and other hash j differ in few bits."""
    count = len(hashes)
    rows = max(1, _CHUNK // count)
    found: list[NDArray[np.int64]] = [np.zeros((0, 2), dtype=np.int64)]
    for start in range(0, count, rows):
        bits = np.bitwise_count(hashes[start : start + rows, None] ^ others[None, start:])
        row, column = np.divmod(np.flatnonzero(bits <= _BITS), bits.shape[1])
        near = np.stack([row, column], axis=1) + start
        found.append(near[row < column])
    pairs = np.concatenate(found)
    return pairs[:, 0], pairs[:, 1]


def _digest(path: Path) -> str:
    image = read_image(path)
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
