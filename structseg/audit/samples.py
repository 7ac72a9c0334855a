"""One sample of `structseg check`: its files read as training reads them, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from structseg.audit.copies import thumbnail
from structseg.datamodules.files.listing import FileSample
from structseg.datamodules.images import MaskSizeError, fit_mask, open_image, read_image
from structseg.datamodules.label_spaces import LabelSpace

MISSING, BROKEN, LABELS, SIZES = "missing files", "files that cannot be read", "labels", "sizes"
EMPTY, TAGS = "empty masks", "tags that disagree with the mask"
_ERRORS = (OSError, ValueError, TypeError, MemoryError)

_SIDE_CELLS = 128  # masks are thinned to about so many rows and columns
_SIDE_PIXELS = 4  # after thinning; fewer are too small to compare
_SIDE_SHIFT = 0.02  # of the width: what lies nearer to each other lies on no side


class Finding(NamedTuple):
    """What is kept of a sample: a quarter of a KiB.

    Attributes:
        faults: kind and message of each.
        thumbnail: of the photograph, as `copies.thumbnail` gives it; None where it cannot be read.
        sides: for each of the space's pairs 1 where the first class lies on the right of the second, -1 on its left,
            0 where that is not clear.
        labels: bit i is set where the mask holds class i.
    """

    faults: tuple[tuple[str, str], ...] = ()
    thumbnail: bytes | None = None
    sides: tuple[int, ...] = ()
    labels: int = 0


class Examined(Dataset[Finding]):
    """Samples, read once each and forgotten."""

    def __init__(self, samples: Sequence[FileSample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Finding:
        return examine(self.samples[index])


def examine(sample: FileSample) -> Finding:
    """Reads the photograph, the mask and the tags of a sample; raises nothing that a file could cause."""
    faults: list[tuple[str, str]] = []
    small = mask = None
    try:
        image = read_image(sample.image)
        small = thumbnail(image)
        del image  # a mask that is read into its memory takes a third less time
    except _ERRORS as error:
        faults.append(_fault(error))
    if sample.read_mask is not None:
        try:
            mask = sample.read_mask()
        except _ERRORS as error:
            found = [_fault(error) for error in _unreadable(sample.masks)]
            faults += found or [(LABELS, str(error))]
    if mask is not None:
        what = str(sample.masks[0]) if sample.masks else f"in the annotations of {sample.name}"
        if small is not None:
            try:
                mask = fit_mask(mask, sample.image, what, sample.mask_size_may_differ)
            except MaskSizeError as error:
                faults.append((SIZES, str(error)))
        faults += _mask_faults(sample, mask, what)
    if mask is None:
        return Finding(tuple(dict.fromkeys(faults)), small)
    held = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()
    return Finding(tuple(dict.fromkeys(faults)), small, sides(mask, sample.space), sum(1 << label for label in held))


def _fault(error: Exception) -> tuple[str, str]:
    return (MISSING if isinstance(error, FileNotFoundError) else BROKEN), str(error)


def _unreadable(paths: Sequence[Path]) -> list[Exception]:
    """Why files are no images; those that are give nothing."""
    errors: list[Exception] = []
    for path in paths:
        try:
            open_image(path)
        except _ERRORS as error:
            errors.append(error)
    return errors


def _mask_faults(sample: FileSample, mask: NDArray[np.uint8], what: str) -> list[tuple[str, str]]:
    faults = []
    ignored = sample.space.ignore_index
    if all(((part == 0) | (part == ignored)).all() for part in (mask[::8, ::8], mask)):  # the first mostly suffices
        held = "background" if (mask == 0).any() else "pixels to ignore"
        faults.append((EMPTY, f"{what} holds nothing but {held}"))
    if sample.tags is not None:
        faults += _tag_faults(sample, mask, what)
    return faults


def _tag_faults(sample: FileSample, mask: NDArray[np.uint8], what: str) -> list[tuple[str, str]]:
    assert sample.tags is not None
    try:
        tags = sample.tags()
    except _ERRORS as error:
        return [(TAGS, str(error))]
    if tags is None:
        return []
    classes = sample.space.classes
    counts = np.bincount(mask.ravel(), minlength=256)
    seen = {classes[index] for index in range(1, len(classes)) if counts[index]}
    parts = []
    if seen - tags:
        parts.append(f"holds {', '.join(sorted(seen - tags))}, which the tags lack")
    if tags - seen:
        parts.append(f"has no {', '.join(sorted(tags - seen))}, which the tags name")
    return [(TAGS, f"{what} {' and '.join(parts)}")] if parts else []


def sides(mask: NDArray[np.uint8], space: LabelSpace) -> tuple[int, ...]:
    """Which of each pair of classes lies further right in a mask (H, W), as `Finding.sides`.

    Middles are compared. In a profile one class of a pair is missing, and on a face that lies on its side the two are
    one above the other: the result is 0 there.
    """
    if not space.flip_pairs:
        return ()
    step = max(1, min(mask.shape) // _SIDE_CELLS)
    thin = np.ascontiguousarray(mask[::step, ::step])
    width = thin.shape[1]
    sided = np.zeros(256, dtype=bool)
    sided[[label for pair in space.flip_pairs for label in pair]] = True
    spots = np.flatnonzero(sided.take(thin))
    labels = thin.ravel().take(spots)
    counts = np.bincount(labels, minlength=256)
    shares = np.maximum(counts, 1)
    across = np.bincount(labels, spots % width, 256) / shares
    down = np.bincount(labels, spots // width, 256) / shares
    found = []
    for first, second in space.flip_pairs:
        apart = across[first] - across[second]
        clear = abs(apart) >= max(_SIDE_SHIFT * width, abs(down[first] - down[second]))
        seen = min(counts[first], counts[second]) >= _SIDE_PIXELS
        found.append(int(np.sign(apart)) if seen and clear else 0)
    return tuple(found)
