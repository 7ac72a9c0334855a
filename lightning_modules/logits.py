"""Resizing and checking of logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def classes_at(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class of each pixel after bilinear resizing, equal to `F.interpolate(logits, size).argmax(1)`.

    One class at a time, so that memory does not grow with K: about 14 bytes a pixel of `size` instead of 4 (K + 1) or
    more.

    Args:
        logits: (N, K, H, W), K from 1 to 256. Of equal logits the first class wins; a nan never does.
        size: (h, w) of the result.

    Returns:
        (N, h, w) uint8.

    Raises:
        ValueError: logits without four axes, or more classes than fit.
    """
    if logits.ndim != 4 or not 1 <= logits.shape[1] <= 256:
        raise ValueError(f"logits have shape {tuple(logits.shape)}; expected (N, K, H, W) with K from 1 to 256")
    best = torch.full((len(logits), 1, *size), -torch.inf, dtype=logits.dtype, device=logits.device)
    classes = torch.zeros((len(logits), *size), dtype=torch.uint8, device=logits.device)
    for index in range(logits.shape[1]):
        plane = F.interpolate(logits[:, index : index + 1], size, mode="bilinear", align_corners=False)
        classes.masked_fill_((plane > best)[:, 0], index)
        torch.fmax(best, plane, out=best)
    return classes


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (N, K, H, W) resized to (N, K, *size), bilinear; unchanged if they have that size."""
    if (logits.shape[-2], logits.shape[-1]) == tuple(size):
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def require_finite(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """The logits, if the largest one of each pixel is finite: nan would be taken for a class.

    Args:
        logits: (N, K, H, W), or (N, K) of whole images; an excluded class may be -inf.
        batch: the batch of the N images, with their `name`.

    Raises:
        ValueError: nan, inf, or -inf for all classes at some pixel; the message names the images.
    """
    finite = logits.amax(1).isfinite().reshape(len(logits), -1).all(1)
    if not finite.all():
        names = batch.get("name", range(len(finite)))
        wrong = ", ".join(str(name) for name, good in zip(names, finite.tolist(), strict=True) if not good)
        raise ValueError(
            f"the logits of {wrong} are not finite; the training has diverged: take an earlier checkpoint, or train "
            "with a lower learning rate"
        )
    return logits
