"""Class activation maps over several scales and mirror images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from structseg.lightning_modules.networks.cam_classifier import CAMClassifier

_STRIDE = 4  # of the maps, to the image


@torch.no_grad()
def class_activation_maps(
    network: CAMClassifier,
    image: Tensor,
    context: Tensor | None = None,
    scales: Sequence[float] = (1.0, 0.5, 1.5, 2.0),
    flip: bool = True,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """The rectified activations of each class, summed over scales and mirror images, divided by the class's maximum.

    An image and its mirror image go through the network together, and the mirror image sees the mirrored context.

    Args:
        network: in evaluation mode.
        image: (N, 3, H, W), whole images, normalised.
        context: (N, n + 1, h, w), see `CAMClassifier.activation`.
        scales: of the image's sides.
        flip: add each scale's mirror image.
        size: of the maps; None: a quarter of the image's, rounded up.

    Returns:
        (N, n, *size) float32 in 0..1. A class without any activation is 0 everywhere, every other one has a 1.

    Source: IRNet (Ahn, Cho, Kwak, CVPR 2019), published code.
    """
    height, width = image.shape[-2:]
    size = size or (-(-height // _STRIDE), -(-width // _STRIDE))
    views = None
    if flip:
        whole = torch.eye(2, 3, device=image.device)
        mirrored = whole * torch.tensor([[-1.0], [1.0]], device=image.device)
        views = torch.stack([whole, mirrored]).repeat_interleave(len(image), 0)
        context = None if context is None else context.repeat(2, 1, 1, 1)
    total = torch.zeros(())
    for scale in scales:
        scaled = _resized(image, (max(1, round(height * scale)), max(1, round(width * scale))))
        if flip:
            scaled = torch.cat([scaled, scaled.flip(-1)])
        maps = network.activation(scaled, context, views).float().relu()
        if flip:
            straight, mirror = maps.chunk(2)
            maps = straight + mirror.flip(-1)
        total = total.to(maps.device) + F.interpolate(maps, size, mode="bilinear", align_corners=False)
    most = total.amax((2, 3), keepdim=True)
    return torch.where(most == 0, torch.zeros_like(total), total / most)  # nan stays nan


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The images at another size, cubic and without aliasing, as the published code reads them."""
    if (image.shape[-2], image.shape[-1]) == size:
        return image
    resized = F.interpolate(image, size, mode="bicubic", antialias=True, align_corners=False)
    return resized.contiguous(memory_format=torch.channels_last)
