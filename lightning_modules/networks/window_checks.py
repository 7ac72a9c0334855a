"""Checks of the spatial transformer: shapes, sizes and windows; errors of one line."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Size = tuple[int, int]


def check_shape(name: str, tensor: Tensor, shape: str, images: int | None = None) -> None:
    """Checks for a shape such as "N, P, 2"; letters match any number."""
    dims = shape.split(", ")
    fits = tensor.ndim == len(dims) and all(
        not dim.isdigit() or int(dim) == found for dim, found in zip(dims, tensor.shape, strict=True)
    )
    if not fits or images not in (None, len(tensor)):
        expected = shape if images is None else shape.replace("N", str(images))
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)}, expected ({expected}): see its docstring for the axes"
        )


def check_size(size: Size) -> None:
    """Checks for an image of 2 x 2 or more."""
    if min(size) < 2:
        raise ValueError(f"size {size[0]} x {size[1]}, expected (H, W) of 2 or more: theta has no scale for one pixel")


def check_window(window: Size, size: Size) -> None:
    """Checks for a window of 2 x 2 or more that fits into the image."""
    check_size(size)
    if min(window) < 2 or window[0] > size[0] or window[1] > size[1]:
        raise ValueError(
            f"window of {window[0]} x {window[1]}, expected 2 x 2 up to the image's {size[0]} x {size[1]} (h x w): pad "
            "the image at the right and at the bottom, or take a smaller window"
        )


def check_theta(theta: Tensor, images: int) -> None:
    """Checks for invertible theta (N, P, 2, 3), except under torch.compile; one synchronisation on a GPU."""
    check_shape("theta", theta, "N, P, 2, 3", images)
    if torch.compiler.is_compiling():
        return
    good = theta.isfinite().all(-1).all(-1)
    for axis in (0, 1):
        good &= (theta[..., axis, axis] > 0) & (theta[..., axis, 1 - axis] == 0)
    if not good.all():
        image, part = (~good).nonzero()[0].tolist()
        raise ValueError(
            f"theta {theta[image, part].tolist()} of image {image}, part {part} cannot be inverted, expected "
            "[[sx, 0, tx], [0, sy, ty]], finite, with scales above 0: see what the localizer predicts"
        )


def check_paste(
    parts: Tensor, theta: Tensor, size: Size, to: Tensor, lowest: int, most: float = math.inf
) -> list[list[int]]:
    """Checks the arguments of `paste_parts`; returns the channels as integers."""
    check_shape("parts", parts, "N, P, C, h, w")
    check_size(size)
    if min(parts.shape[-2:]) < 2:
        raise ValueError(f"windows of {parts.shape[-2]} x {parts.shape[-1]}, expected 2 x 2 or more: crop larger ones")
    check_theta(theta, len(parts))
    if theta.shape[1] != parts.shape[1]:
        raise ValueError(f"{parts.shape[1]} parts, but {theta.shape[1]} thetas: give one window a part")
    if to.shape != parts.shape[1:3] or to.dtype != torch.int64:
        raise ValueError(
            f"to of {to.dtype}, shape {tuple(to.shape)}, expected int64, {tuple(parts.shape[1:3])}: say for each part "
            "and channel where it goes"
        )
    channels: list[list[int]] = to.tolist()
    lowest_found, highest = min(map(min, channels)), max(map(max, channels))
    if lowest_found < -1 or not lowest <= highest <= most:
        raise ValueError(
            f"to holds channels {lowest_found}..{highest}, expected -1 (none) up to {most}, one of {lowest} or more "
            "at least: see the label space"
        )
    return channels
