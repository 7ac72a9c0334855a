"""Blobs: the regions whose pixels a consensus loss asks to agree."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from structseg.datamodules.batch import Sample
from structseg.datamodules.images import resize_mask
from structseg.datamodules.samplers import set_epoch

BlobKind = Literal["labels", "components", "superpixels"]

# Three rounds are nearly as good as the usual ten (on LFW 2.5 % of the pixels are in a superpixel of another label with
# both) in a third of the time.
_SLIC_ROUNDS = 3


def make_blobs(
    mask: NDArray[Any] | None,
    kind: BlobKind,
    image: NDArray[Any] | None = None,
    superpixels: NDArray[Any] | None = None,
    segments: int = 200,
) -> NDArray[np.int64]:
    """The blobs of one image; every blob has one label.

    Args:
        mask: (H, W) labels, 0 or more; 255, which losses ignore, makes blobs like any label. None, for `superpixels`
            only: the superpixels are the blobs.
        kind: `labels` makes a blob of each label, `components` one of each connected component (4-connectivity),
            `superpixels` one of each label within each superpixel.
        image: (h, w, 3) RGB, uint8 or floats in 0..1, from which SLIC makes superpixels, in Lab colours; they are
            resized to the mask by the nearest pixel.
        superpixels: (H, W) integers, used instead of SLIC; their values may have gaps.
        segments: approximate number of SLIC's superpixels.

    Returns:
        (H, W) int64, ids 0..B-1 without gaps.

    Raises:
        ValueError: mask, image or superpixels that the kind needs are missing, or shapes differ.

    Example:
        >>> make_blobs(np.array([[0, 7, 0]]), "components").tolist()
        [[0, 1, 2]]
    """
    if kind == "superpixels":
        if superpixels is None:
            if image is None:
                raise ValueError("blobs of superpixels need an image or superpixels; give one")
            superpixels = _slic(image, segments)
            if mask is not None:
                superpixels = resize_mask(superpixels, mask.shape)
        if mask is None:
            return _dense(superpixels)
        if superpixels.shape != mask.shape:
            raise ValueError(f"superpixels are {superpixels.shape} but the mask {mask.shape}; give both at one size")
        labels = _dense(mask)
        return _dense(_dense(superpixels) * (int(labels.max()) + 1) + labels)
    if mask is None:
        raise ValueError(f"blobs of {kind} need labels; images without mask have blobs of superpixels only")
    if kind == "labels":
        return _dense(mask)
    if kind == "components":  # plus 1, as the routine ignores 0
        import cc3d

        return cc3d.connected_components(mask.astype(np.uint16) + 1, connectivity=4).astype(np.int64) - 1
    raise ValueError(f"no blobs of kind {kind!r}; choose labels, components or superpixels")


def _slic(image: NDArray[Any], segments: int) -> NDArray[np.int32]:
    from skimage.segmentation import slic  # here, as it is slow to import

    pixels = np.ascontiguousarray(image, dtype=np.float32)  # SLIC scales the range itself
    found = slic(pixels, n_segments=segments, max_num_iter=_SLIC_ROUNDS, start_label=0)
    return found.astype(np.int32)


def _dense(values: NDArray[Any]) -> NDArray[np.int64]:
    """The rank of each value among those that occur."""
    shifted = values.astype(np.int64) - int(values.min())
    top = int(shifted.max())
    if top > 1 << 16:  # too large for a table
        return np.unique(shifted, return_inverse=True)[1].reshape(values.shape)
    occurs = np.bincount(shifted.ravel(), minlength=top + 1) > 0
    ranks: NDArray[np.int64] = np.cumsum(occurs) - 1
    return ranks[shifted]


class BlobDataset(Dataset[Sample]):
    """The samples of another data set, each with `blobs` of `make_blobs`, int64 of the mask's size.

    Samples with `superpixels` (H, W) get blobs of these numbers, and the key is removed. Other superpixels are made by
    SLIC, once for each sample, and kept in memory, unless samples vary by epoch: the data set has `set_epoch`, and
    `vary` is not false.

    Args:
        data: samples with `image` (3, H, W) in 0..1 and `mask` (H, W), which only superpixels can do without.
        kind: of the blobs.
        segments: approximate number of superpixels of an image.
        memory_bytes: memory for superpixels, in each worker.
    """

    def __init__(
        self, data: Dataset[Sample], kind: BlobKind, segments: int = 200, memory_bytes: int = 256 << 20
    ) -> None:
        self.data = data
        self.kind = kind
        self.segments = segments
        varies = getattr(data, "vary", hasattr(data, "set_epoch"))
        self.memory_left = memory_bytes if kind == "superpixels" and not varies else 0
        self._memory: dict[int, NDArray[np.unsignedinteger[Any]]] = {}

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sample:
        """The sample with its blobs.

        Raises:
            ValueError: the sample lacks a mask that the kind needs; the message names it.
        """
        sample = self.data[index].copy()
        kept = self._memory.get(index)
        blobs = self._make(sample) if kept is None else kept.astype(np.int64)
        if kept is None and self.memory_left > 0:
            small = blobs.astype(np.min_scalar_type(blobs.max()))
            if small.nbytes <= self.memory_left:
                self.memory_left -= small.nbytes
                self._memory[index] = small
        sample["blobs"] = torch.from_numpy(blobs)
        sample.pop("superpixels", None)
        return sample

    def _make(self, sample: Sample) -> NDArray[np.int64]:
        mask = sample["mask"].numpy() if "mask" in sample else None
        superpixels = sample["superpixels"].numpy() if "superpixels" in sample else None
        try:
            return make_blobs(mask, self.kind, sample["image"].numpy().transpose(1, 2, 0), superpixels, self.segments)
        except ValueError as error:
            raise ValueError(f"{sample['name']}: {error}") from None

    def set_epoch(self, epoch: int) -> None:
        """Passes the epoch on to the data set."""
        set_epoch(self.data, epoch)
