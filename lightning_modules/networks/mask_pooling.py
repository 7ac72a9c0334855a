"""Averages a class's logit over the class's region in the last round's mask."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOB_SIZE, _BLOB_SPREAD = (32, 32), 0.25  # standard deviation, as a share of the image's sides
_SMALLEST = 0.01  # share of a crop that a class must cover


def mask_pooled(activation: Tensor, masks: Tensor, share: float) -> Tensor:
    """The mean of each class's activation, a share of it over the class's mask, the rest over all positions.

    In the causal graph of CONTA the context C acts on the label Y not only through the image X: X <- C -> M -> Y, with
    M made of C and the image. The plain mean over all positions lets all of X explain a tag, also other objects and the
    background. The choice of masks decides what is estimated. The image's own (`--data.context_of own`) condition on
    M, with the errors of the last round. The class's mask in another image (`another_of_class`) is a c drawn from the
    class's confounders independently of the image, as in the sum over c of equation 2: over an epoch, a position counts
    as often as the class is found there. The image's own masks at random displacements (`displaced`), with the same
    areas but without a location, are the control of both.

    Args:
        activation: (N, n, H, W).
        masks: (N, n, H, W) in 0..1, share of the class at a position. A class of less than 1 % is averaged over all.
        share: 0 = the plain mean, 1 = the mask alone.

    Returns:
        (N, n).

    Raises:
        ValueError: shapes that differ.

    >>> mask_pooled(torch.tensor([[[[4.0, 0.0]]]]), torch.tensor([[[[0.5, 0.0]]]]), 0.5)  # 4 on the mask, 2 in all
    tensor([[3.]])
    """
    if activation.shape != masks.shape or activation.ndim != 4:
        raise ValueError(
            f"activations {tuple(activation.shape)}, masks {tuple(masks.shape)}; both have to be (N, n, H, W)"
        )
    area = masks.mean((2, 3), keepdim=True)
    weights = torch.where(area >= _SMALLEST, masks / area.clamp(min=_SMALLEST), 1.0)
    return (activation * (1 + share * (weights - 1))).mean((2, 3))


def centre_blob() -> Tensor:
    """A Gaussian in the centre of an image, (1, 1, 32, 32) in 0..1: a location that depends on no class or image."""
    sides = [(torch.arange(count) + 0.5) / count - 0.5 for count in _BLOB_SIZE]
    rows, columns = (torch.exp(-0.5 * (side / _BLOB_SPREAD).square()) for side in sides)
    return (rows[:, None] * columns)[None, None]
