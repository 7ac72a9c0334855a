"""What an image's own last mask says of a class: where its logit is averaged, and where it may be high at all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALLEST = 0.01  # share of a view that a class has to cover


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
    _check(activation, masks)
    area = masks.mean((2, 3), keepdim=True)
    weights = torch.where(area >= _SMALLEST, masks / area.clamp(min=_SMALLEST), 1.0)
    return (activation * (1 + share * (weights - 1))).mean((2, 3))


def mask_teaching_loss(activation: Tensor, masks: Tensor, tags: Tensor) -> Tensor:
    """The binary cross-entropy of each position against the class's mask, of the classes that an image is tagged with.

    A tag's loss alone is content where company and ground answer for the class. Here every position answers for itself,
    given M of the image: off the class's mask it has to deny the class, whatever stands beside it.

    Args:
        activation: (N, n, H, W) logits.
        masks: (N, n, H, W) in 0..1, how far the class is at a position. A class of less than 1 % teaches nothing.
        tags: (N, n) of 0 and 1.

    Returns:
        The mean over images and classes, those that teach nothing counting as 0.

    Raises:
        ValueError: shapes that differ.

    >>> masks = torch.tensor([[[[1.0, 0.0]], [[1.0, 1.0]]]])
    >>> mask_teaching_loss(torch.zeros(1, 2, 1, 2), masks, torch.tensor([[1, 0]]))  # log 2 of the first, 0 of the other
    tensor(0.3466)
    """
    _check(activation, masks)
    if tags.shape != activation.shape[:2]:
        raise ValueError(f"tags {tuple(tags.shape)}; expected {tuple(activation.shape[:2])}")
    each = F.binary_cross_entropy_with_logits(activation, masks.clamp(0, 1), reduction="none").mean((2, 3))
    return (each * ((masks.mean((2, 3)) >= _SMALLEST) & (tags > 0))).mean()


def _check(activation: Tensor, masks: Tensor) -> None:
    if activation.shape != masks.shape or activation.ndim != 4:
        raise ValueError(
            f"activations {tuple(activation.shape)}, masks {tuple(masks.shape)}; both have to be (N, n, H, W)"
        )
