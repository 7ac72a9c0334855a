"""A class's logit averaged over where the last round's mask of the image has the class."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOB_SIZE, _BLOB_SPREAD = (32, 32), 0.25  # its deviation, as a share of the image's sides
_SMALLEST = 0.01  # share of a crop that a class has to cover


def mask_pooled(activation: Tensor, masks: Tensor, share: float) -> Tensor:
    """The mean of each class's activation, a share of it over the class's mask, the rest over all positions.

    In the causal graph of CONTA the context C acts on the label Y past the image, X <- C -> M -> Y, M being what C
    makes of this image. The plain mean over all positions lets all of X answer for a tag, company and ground as well.
    Whose masks these are decides what is estimated. The image's own (`--data.context_of own`) condition on M, which
    has the faults of the last round. Each class's mask in another image that has it (`another_of_class`) is a c drawn
    from the class's confounders whatever the image, as the sum over c in equation 2 is: over an epoch's images a
    position counts as often as the class is found there. The image's own masks shifted at random (`displaced`) pool as
    many tags over as much and know no place: the control of both.

    Args:
        activation: (N, n, H, W).
        masks: (N, n, H, W) in 0..1, how far the class is at a position. A class of less than 1 % is pooled plainly.
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
    """A Gaussian in the middle of an image, (1, 1, 32, 32) in 0..1: a place that is of no class and of no image."""
    sides = [(torch.arange(count) + 0.5) / count - 0.5 for count in _BLOB_SIZE]
    rows, columns = (torch.exp(-0.5 * (side / _BLOB_SPREAD).square()) for side in sides)
    return (rows[:, None] * columns)[None, None]
