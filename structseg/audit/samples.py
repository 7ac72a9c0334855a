"""Checks the files of one sample, reading them as training does."""

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

_SIDE_CELLS = 128  # rows and columns of a mask that are sampled, about
_SIDE_PIXELS = 4  # of these that a class needs to be compared
_SIDE_SHIFT = 0.02  # of the width: least distance between the two sides


class Finding(NamedTuple):
    """The result for a sample, about 256 bytes.

    Attributes:
        faults: kind and message of each.
        thumbnail: of the photograph, by `copies.thumbnail`; None where it cannot be read.
        sides: for each pair of `flip_pairs` 1 where the first class lies right of the second, -1 where left, 0 where
            that is not clear.
        labels: bit i is set where the mask holds class i.
    """

    faults: tuple[tuple[str, str], ...] = ()
    thumbnail: bytes | None = None
    sides: tuple[int, ...] = ()
    labels: int = 0


class Examined(Dataset[Finding]):
    """The findings of samples, as a data set for a loader."""

    def __init__(self, samples: Sequence[FileSample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Finding:
        return examine(self.samples[index])


def examine(sample: FileSample) -> Finding:
    """Reads the photograph, the mask and the tags of a sample; a broken file is a fault of the result, not an error."""
    faults: list[tuple[str, str]] = []
    small = mask = None
    try:
        image = read_image(sample.image)
        small = thumbnail(image)
        del image  # reading the mask into the freed memory takes a third less time
    except _ERRORS as error:
        faults.append(_fault(error))
    if sample.read_mask is not None:
        try:
            mask = sample.read_mask()
        except _ERRORS as error:
            unreadable = [_fault(error) for error in _unreadable(sample.masks)]
            faults += unreadable or [(LABELS, str(error))]
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
    present = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()
    labels = sum(1 << label for label in present)
    return Finding(tuple(dict.fromkeys(faults)), small, sides(mask, sample.space), labels)


def _fault(error: Exception) -> tuple[str, str]:
    return (MISSING if isinstance(error, FileNotFoundError) else BROKEN), str(error)


def _unreadable(paths: Sequence[Path]) -> list[Exception]:
    """The errors of those files that cannot be opened as images."""
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
    if all(((part == 0) | (part == ignored)).all() for part in (mask[::8, ::8], mask)):  # a sample mostly suffices
        content = "background" if (mask == 0).any() else "pixels to ignore"
        faults.append((EMPTY, f"{what} holds nothing but {content}"))
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
    """Which class of each left-right pair lies further right in a mask (H, W): `Finding.sides`.

    Compares the centres of the classes. The result is 0 where one class is missing, as in a profile, or one lies above
    the other, as in a face that is turned on its side.
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
    result = []
    for first, second in space.flip_pairs:
        apart = across[first] - across[second]
        clear = abs(apart) >= max(_SIDE_SHIFT * width, abs(down[first] - down[second]))
        seen = min(counts[first], counts[second]) >= _SIDE_PIXELS
        result.append(int(np.sign(apart)) if seen and clear else 0)
    return tuple(result)
