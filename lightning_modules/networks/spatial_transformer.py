"""Crops windows on the parts of a face from the image and pastes them back, differentiably, in one sampling call each.

A window is theta = [[sx, 0, tx], [0, sy, ty]] (Yin et al., STN-iCNN, equations 14 and 15): the point (u, v) of the
window, -1..1 between the centres of its outermost pixels, lies at (sx u + tx, sy v + ty) of the image, -1..1 between
the centres of its outermost pixels. This is `align_corners=True`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from structseg.lightning_modules.networks.window_checks import (
    Size,
    check_paste,
    check_shape,
    check_size,
    check_theta,
    check_window,
)

Mode = Literal["bilinear", "nearest"]


def theta_from_centers(centers: Tensor, window: Size, size: Size) -> Tensor:
    """Windows at the image's own scale around given centres.

        theta = [[(w-1)/(W-1), 0, -1 + 2x/(W-1)], [0, (h-1)/(H-1), -1 + 2y/(H-1)]]

    An odd window at a whole-pixel centre is an integer crop, to float rounding. The paper's equation 21, [[w/W, 0,
    -1 + 2x/W], ...], is not: it shifts the window by x/W pixels to the left (0 to 1) and stretches it by
    w(W-1)/((w-1)W): 1.15 % for 81 in 1024 pixels, 0.46 pixels at the window's edge. Under `align_corners=False` it is
    half a pixel off, up and left, everywhere.

    Args:
        centers: (N, P, 2), x and y in pixels, 0 = the centre of the first.
        window: (h, w) in pixels, 2 or more, no larger than the image.
        size: (H, W) of the image.

    Returns:
        theta (N, P, 2, 3), differentiable in the centres.

    Raises:
        ValueError: centres of another shape, or a window that is larger than the image or has only one row or column.

    Example:
        >>> theta_from_centers(torch.tensor([[[50.0, 0.0]]]), window=(3, 5), size=(21, 101))
        tensor([[[[ 0.0400,  0.0000,  0.0000],
                  [ 0.0000,  0.1000, -1.0000]]]])
    """
    check_shape("centers", centers, "N, P, 2")
    check_window(window, size)
    x, y = (2 * _float(centers) / _spans(size, centers) - 1).unbind(-1)
    zero = torch.zeros_like(x)
    (h, w), (height, width) = window, size
    row_x = torch.stack((zero + (w - 1) / (width - 1), zero, x), -1)
    row_y = torch.stack((zero, zero + (h - 1) / (height - 1), y), -1)
    return torch.stack((row_x, row_y), -2)


def centers_from_theta(theta: Tensor, size: Size) -> Tensor:
    """The centres of windows theta (N, P, 2, 3) in an image of `size` (H, W): x and y in pixels, (N, P, 2).

    Raises:
        ValueError: theta of another shape.
    """
    check_shape("theta", theta, "N, P, 2, 3")
    return (_float(theta[..., 2]) + 1) / 2 * _spans(size, theta)


def reframe_theta(theta: Tensor, own: Tensor | Size, size: Size) -> Tensor:
    """Converts windows of images of different sizes to the coordinates of a padded batch; images are at the upper left.

    Args:
        theta: (N, P, 2, 3), of the images at their own sizes.
        own: (N, 2), each image's (h, w) in pixels; or one (h, w) for all.
        size: (H, W) of the padded images.

    Returns:
        theta (N, P, 2, 3) of the same pixels in the padded images.

    Raises:
        ValueError: shapes that do not match, or sizes of less than two pixels a side.
    """
    check_shape("theta", theta, "N, P, 2, 3")
    check_size(size)
    if not isinstance(own, Tensor):
        own = torch.tensor([own] * len(theta))
    if own.shape != (len(theta), 2) or own.amin() < 2:
        raise ValueError(
            f"own sizes of shape {tuple(own.shape)}, smallest {own.min().item()}, expected ({len(theta)}, 2) of 2 or "
            "more: give each image's (h, w)"
        )
    theta = _float(theta)
    ratio = ((own.to(theta).flip(-1) - 1) / _spans(size, theta))[:, None, :, None]
    corner = theta.new_tensor((0.0, 0.0, 1.0))  # theta is relative to the image's centre, not to its corner
    return (theta + corner) * ratio - corner


def crop_parts(images: Tensor, theta: Tensor, window: Size, mode: Mode = "bilinear") -> Tensor:
    """The windows, sampled from the images in one call; zero outside of the image.

    float64 stays float64, everything else is float32, also inside autocast. Differentiable in images and theta.

    Args:
        images: (N, C, H, W).
        theta: (N, P, 2, 3), with positive scales and zeros off the diagonal; any position, also outside the image.
        window: (h, w) in pixels, 2 or more, no larger than the image.
        mode: `bilinear`, or `nearest` for labels (which has no gradient in theta).

    Returns:
        (N, P, C, h, w).

    Raises:
        ValueError: shapes that do not match, a window larger than the image, a theta that cannot be inverted.
    """
    check_shape("images", images, "N, C, H, W")
    check_theta(theta, len(images))
    height, width = images.shape[-2:]
    check_window(window, (height, width))
    images = _float(images)
    grid = _grid(*_window_points(theta.to(images), window))
    sampled = F.grid_sample(images, grid.flatten(1, 2), mode, "zeros", align_corners=True)
    parts: Tensor = sampled.unflatten(2, (theta.shape[1], window[0])).transpose(1, 2)
    return parts


def crop_labels(mask: Tensor, theta: Tensor, window: Size, outside: int) -> Tensor:
    """The windows' labels: the nearest pixel's, as `crop_parts(..., mode="nearest")`, but as integers.

    Args:
        mask: (N, H, W), int64, of any values, also 255.
        theta: (N, P, 2, 3).
        window: (h, w) in pixels.
        outside: label outside the image.

    Returns:
        (N, P, h, w), int64.

    Raises:
        ValueError: as `crop_parts`, and a mask of floats.
    """
    check_shape("mask", mask, "N, H, W")
    if mask.is_floating_point():
        raise ValueError(f"mask of {mask.dtype}, expected int64 labels: crop soft maps with crop_parts")
    check_theta(theta, len(mask))
    height, width = mask.shape[-2:]
    check_window(window, (height, width))
    x, y = _window_points(_float(theta), window)
    columns, rows = ((x + 1) * ((width - 1) / 2)).round(), ((y + 1) * ((height - 1) / 2)).round()
    return _take(mask[:, None], columns, rows, outside)[:, :, 0].long()


def integer_crop(images: Tensor, centers: Tensor, window: Size) -> Tensor:
    """The baseline's cropper: whole pixels around the rounded centre, zeros outside of the image.

    An even window has no middle pixel: it extends one pixel further to the left and to the top (the one-pixel offset
    of the paper's figure 7), where `crop_parts` interpolates. A centre between two pixels rounds to the even one.

    Args:
        images: (N, C, H, W), of any type, which is kept; the result is differentiable in them.
        centers: (N, P, 2), x and y in pixels.
        window: (h, w) in pixels, no larger than the image.

    Returns:
        (N, P, C, h, w).

    Raises:
        ValueError: shapes that do not match, a window larger than the image, centres that are not finite.
    """
    check_shape("images", images, "N, C, H, W")
    check_shape("centers", centers, "N, P, 2", len(images))
    height, width = images.shape[-2:]
    check_window(window, (height, width))
    if not torch.compiler.is_compiling() and not centers.isfinite().all():
        raise ValueError("centers hold nan or inf, expected pixels: see that each part has a mass (part_centers)")
    h, w = window
    x, y = centers.round().unbind(-1)
    columns = x[..., None] + torch.arange(w, device=x.device) - w // 2
    rows = y[..., None] + torch.arange(h, device=x.device) - h // 2
    return _take(images, columns, rows, 0)


def part_centers(weights: Tensor) -> tuple[Tensor, Tensor]:
    """The centroid of each map, hard or soft.

    Args:
        weights: (N, P, H, W), 0 or more: masks, or probabilities.

    Returns:
        centers (N, P, 2), x and y in pixels, the image's centre if a map is all zero; and the sums of the maps (N, P),
        by which such maps can be left out. Differentiable, without nan.

    Raises:
        ValueError: maps of another shape.
    """
    check_shape("weights", weights, "N, P, H, W")
    weights = _float(weights)
    columns, rows = weights.sum(-2), weights.sum(-1)
    mass = rows.sum(-1)
    divisor = mass.where(mass > 0, 1)
    middles = [(count - 1) / 2 for count in (weights.shape[-1], weights.shape[-2])]
    centers = [
        (line * (torch.arange(line.shape[-1], device=line.device) - middle)).sum(-1) / divisor + middle
        for line, middle in zip((columns, rows), middles, strict=True)
    ]
    return torch.stack(centers, -1), mass


def label_centers(mask: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """The mean of a class's pixels in each label map.

    Args:
        mask: (N, H, W), integers.
        label: the class.

    Returns:
        centers (N, 2), x and y in pixels, float64, 0 if the class does not occur; and its number of pixels (N,).
    """
    inside = mask == label
    # Counts of columns and rows first, to avoid a map of floats of the image's size.
    lines = [inside.sum(1).double(), inside.sum(2).double()]
    count = lines[1].sum(1)
    sums = [line @ torch.arange(line.shape[1], device=mask.device, dtype=torch.float64) for line in lines]
    return torch.stack(sums, 1) / count.clamp(min=1)[:, None], count.long()


def paste_parts(parts: Tensor, theta: Tensor, size: Size, to: Tensor, mode: Mode = "bilinear") -> Tensor:
    """Pastes windows back: the inverse of `crop_parts`, computed on the windows' pixels only.

    Each output pixel is the window sampled there, with zeros around the window: in `bilinear` mode a window fades to
    zero over one of its own pixels beyond its outermost centres. An odd window at a whole-pixel centre, at the image's
    scale, fills its own pixels and no others, to float rounding. Where
    windows overlap in a channel the largest value counts (so values below 0 count as 0) and gets the gradient; equal
    ones all get it. Pixels outside the image are dropped. The cost, forward and backward, is the area of the largest
    window for each window, plus the output.

    Args:
        parts: (N, P, C, h, w), 0 or more, such as probabilities.
        theta: (N, P, 2, 3), with which they were cropped.
        size: (H, W) of the image.
        to: (P, C), int64: the output channel of each part's channel, -1 for none. Best kept on the CPU.
        mode: `bilinear`, or `nearest` (which has no gradient in theta).

    Returns:
        (N, K, H, W), K = `to.max() + 1`; zero outside of all windows. Differentiable in parts and theta.

    Raises:
        ValueError: shapes that do not match, a theta that cannot be inverted, channels in `to` below -1, or no channel.
    """
    channels = check_paste(parts, theta, size, to, 0)
    values, rows, columns = _sample_boxes(parts, theta, size, mode)
    cells = size[0] * size[1]
    kept, part, channel = _kept(channels, 0, values.device)
    index = _places(rows, columns, size[1])[:, part] + (channel * cells)[:, None, None]
    count = 1 + max(map(max, channels))
    pasted: Tensor = _Largest.apply(values.flatten(1, 2)[:, kept].flatten(1), index.flatten(1), count * cells)
    return pasted.view(len(parts), count, *size)


@torch.no_grad()
def paste_labels(parts: Tensor, theta: Tensor, size: Size, to: Tensor, mode: Mode = "bilinear") -> Tensor:
    """The label map of pasted parts, computed without full-size maps: for prediction.

    Equal to the argmax over [1 - m, class 1, ..., class K-1], with the classes pasted by `paste_parts` and m the part's
    foreground mass (the sum of its classes' maps) pasted likewise, that is, the largest of overlapping parts.

    Args:
        parts: (N, P, C, h, w), probabilities.
        theta: (N, P, 2, 3), with which they were cropped.
        size: (H, W) of the image.
        to: (P, C), int64: the class of each part's channel, at most 255; 0 (background) and -1 are not pasted.
        mode: `bilinear` or `nearest`.

    Returns:
        (N, H, W), uint8; 0 outside of all windows.

    Raises:
        ValueError: as `paste_parts`; no channel of a class of 1 or more, or one above 255.
    """
    channels = check_paste(parts, theta, size, to, 1, 255)
    values, rows, columns = _sample_boxes(parts, theta, size, mode)
    kept, part, channel = _kept(channels, 1, values.device)
    values = values.flatten(1, 2)[:, kept]
    mass = values.new_zeros(*rows.shape, columns.shape[-1]).index_add_(1, part, values)
    # the windows are joined on the smallest canvas that holds them all
    top, left = rows.amin((1, 2), keepdim=True), columns.amin((1, 2), keepdim=True)
    height, width = (torch.stack(((rows - top).amax(), (columns - left).amax())) + 1).tolist()
    places = _places(rows - top, columns - left, width)
    index = places[:, part].flatten(1)
    highest = _largest(values.flatten(1), index, height * width).gather(1, index).view_as(values)
    heaviest = _largest(mass.flatten(1), places.flatten(1), height * width).gather(1, index).view_as(values)
    won = (values == highest) & (values > 1 - heaviest)
    image, place, y, x = won.nonzero(as_tuple=True)
    pixels = (image * size[0] + rows[image, part[place], y]) * size[1] + columns[image, part[place], x]
    classes = channel.to(torch.uint8)[place]
    labels = classes.new_zeros(len(parts) * size[0] * size[1])
    labels.scatter_reduce_(0, pixels, classes, "amin", include_self=False)  # the lowest of equal ones, as argmax
    return labels.view(len(parts), *size)


class _Largest(torch.autograd.Function):
    """Scatters values (N, M) into zeros (N, cells) at index (N, M), keeping the largest at each index.

    The gradient is gathered; that of torch's `scatter_reduce` passes over all cells several times.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, cells: int) -> Tensor:
        out = _largest(values, index, cells)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(index, values == out.gather(1, index))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        index, won = ctx.saved_tensors
        return grads[0].gather(1, index) * won, None, None


def _largest(values: Tensor, index: Tensor, cells: int) -> Tensor:
    return values.new_zeros(len(values), cells).scatter_reduce_(1, index, values, "amax")


def _kept(channels: list[list[int]], lowest: int, device: torch.device) -> list[Tensor]:
    """The channels that are pasted: their index in (P * C), their part, their output channel."""
    flat = [(part, channel) for part, row in enumerate(channels) for channel in row]
    found = [(place, *both) for place, both in enumerate(flat) if both[1] >= lowest]
    return [torch.tensor(column, device=device) for column in zip(*found, strict=True)]


def _sample_boxes(parts: Tensor, theta: Tensor, size: Size, mode: Mode) -> tuple[Tensor, Tensor, Tensor]:
    """Samples each window on a box of pixels around it: values (N, P, C, a, b), rows (N, P, a), columns (N, P, b).

    All boxes have one size and lie within the image; a window outside it has a box of zeros at the border.
    """
    parts = _float(parts)
    theta = theta.to(parts)
    height, width = size
    scale, shift = torch.stack((theta[..., 0, 0], theta[..., 1, 1]), -1), theta[..., 2]
    with torch.no_grad():
        whole = _spans(size, theta)
        span = scale * whole
        fade = span / _spans((parts.shape[-2], parts.shape[-1]), theta)  # one pixel of the window
        first = ((shift + 1) * whole - span) / 2 - fade
        longest = (span + 2 * fade).amax((0, 1)).tolist()
        b, a = (min(int(min(length, full)) + 2, full) for length, full in zip(longest, (width, height), strict=True))
        start = first.floor().clamp(min=0).minimum(first.new_tensor((width - b, height - a))).long()
        columns = start[..., 0, None] + torch.arange(b, device=theta.device)
        rows = start[..., 1, None] + torch.arange(a, device=theta.device)
    back, away = 1 / scale, -shift / scale  # as published; its rounding decides ties at half pixels
    u, v = _line(width, theta)[columns], _line(height, theta)[rows]
    x, y = u * back[..., 0, None] + away[..., 0, None], v * back[..., 1, None] + away[..., 1, None]
    values = F.grid_sample(parts.flatten(0, 1), _grid(x, y).flatten(0, 1), mode, "zeros", align_corners=True)
    return values.unflatten(0, parts.shape[:2]), rows, columns


def _places(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    return rows[..., None] * width + columns[..., None, :]


def _window_points(theta: Tensor, window: Size) -> tuple[Tensor, Tensor]:
    """The positions of a window's columns (N, P, w) and rows (N, P, h), -1..1 over the image."""
    u, v = _line(window[1], theta), _line(window[0], theta)
    return theta[..., 0, :1] * u + theta[..., 0, 2:], theta[..., 1, 1:2] * v + theta[..., 1, 2:]


def _line(count: int, like: Tensor) -> Tensor:
    return torch.linspace(-1, 1, count, dtype=like.dtype, device=like.device)


def _grid(x: Tensor, y: Tensor) -> Tensor:
    """Columns (..., w) and rows (..., h) to points (..., h, w, 2)."""
    shape = (*y.shape, x.shape[-1])
    return torch.stack((x[..., None, :].expand(shape), y[..., None].expand(shape)), -1)


def _take(maps: Tensor, columns: Tensor, rows: Tensor, outside: int) -> Tensor:
    """Maps (N, C, H, W) at integer columns (N, P, w) and rows (N, P, h): (N, P, C, h, w), else `outside`."""
    height, width = maps.shape[-2:]
    inside = ((rows >= 0) & (rows < height))[..., None] & ((columns >= 0) & (columns < width))[..., None, :]
    columns, rows = columns.clamp(0, width - 1).long(), rows.clamp(0, height - 1).long()
    index = _places(rows, columns, width).flatten(1)
    taken = maps.flatten(2).gather(2, index[:, None].expand(-1, maps.shape[1], -1))
    taken = taken.unflatten(2, inside.shape[1:]).transpose(1, 2)
    return torch.where(inside[:, :, None], taken, outside)


def _float(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _spans(size: Size, like: Tensor) -> Tensor:
    """Distances in pixels between the outermost centres: horizontal, vertical."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.tensor((size[1] - 1, size[0] - 1), dtype=dtype, device=like.device)
