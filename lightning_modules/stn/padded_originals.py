"""Pads images of different sizes to one size, and resizes labels and predictions to match.

A batch has small `image`s of one size, `original`s of any size, and `mask`s of the originals' sizes, padded to the
largest; a single image may have a mask of another size than its original.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from structseg.datamodules.batch import MaskFilter, shrink_by_majority
from structseg.lightning_modules.logits import resize_logits

Size = tuple[int, int]


def size_of(image: Tensor) -> Size:
    """(h, w) of (..., h, w)."""
    return image.shape[-2], image.shape[-1]


def pad(image: Tensor, size: Size, value: int = 0) -> Tensor:
    """(..., h, w) with `value` below and to the right, up to (..., H, W)."""
    return F.pad(image, (0, size[1] - image.shape[-1], 0, size[0] - image.shape[-2]), value=value)


def _largest(batch: Mapping[str, Any]) -> Size:
    height, width = (max(image.shape[axis] for image in batch["original"]) for axis in (-2, -1))
    return height, width


def pad_originals(batch: Mapping[str, Any], least: Size) -> tuple[Tensor, Tensor]:
    """The originals padded to one size of at least `least`, (N, 3, H, W), and their (N, 2) heights and widths.

    Each lies in the upper left corner.

    Raises:
        ValueError: the batch has no originals.
    """
    if "original" not in batch:
        raise ValueError("the batch has no full-size images, from which the windows are cropped; set --data.originals")
    images = batch["original"]
    largest = _largest(batch)
    size = (max(least[0], largest[0]), max(least[1], largest[1]))
    sizes = torch.tensor([size_of(image) for image in images], device=images[0].device)
    return torch.stack([pad(image, size) for image in images]), sizes


def _resized(mask: Tensor, size: Size, by: MaskFilter) -> Tensor:
    """Labels (N, H, W) at another size."""
    if by == "majority":
        return shrink_by_majority(mask, size)
    return F.interpolate(mask[:, None].float(), size, mode="nearest-exact")[:, 0].long()


def pad_labels(batch: Mapping[str, Any], size: Size, ignore_index: int, by: MaskFilter = "nearest") -> Tensor:
    """The labels (N, H, W) of padded images; a mask of another size than its image is resized."""
    mask: Tensor = batch["mask"]
    own = _largest(batch)
    return pad(mask if size_of(mask) == own else _resized(mask, own, by), size, ignore_index)


def small_labels(batch: Mapping[str, Any], by: MaskFilter = "nearest") -> Tensor:
    """The labels (N, H, W) at the size of the small images."""
    mask, size = batch["mask"], size_of(batch["image"])
    own = [size_of(image) for image in batch.get("original", ())]
    if len(set(own)) < 2:
        own = [size_of(mask)] * len(mask)
    return torch.cat([_resized(one[None, :h, :w], size, by) for one, (h, w) in zip(mask, own, strict=True)])


def classes_at_mask_size(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """The classes (N, H, W) of the small images' logits, at the size of the masks."""
    size = size_of(batch["mask"])
    own = [size_of(image) for image in batch.get("original", ())]
    if len(set(own)) < 2:
        return resize_logits(logits, size).argmax(1)
    each = [resize_logits(one[None], shape).argmax(1)[0] for one, shape in zip(logits, own, strict=True)]
    return torch.stack([pad(one, size) for one in each])


def logits_at_mask_size(scores: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Scores (N, K, H, W) of padded originals, without the padding and at the size of the masks."""
    height, width = _largest(batch)
    return resize_logits(scores[..., :height, :width], size_of(batch["mask"]))
