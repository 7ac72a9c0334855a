"""STN-iCNN's losses of window positions, and of the mask that is pasted together from windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from structseg.losses.ranks import divisor

_LEAST_LIKELIHOOD = 1e-6  # limits the loss of a pixel that no window of its part covers to 13.8


def theta_loss(theta: Tensor, truth: Tensor, present: Tensor, counts_over_ranks: bool = False) -> Tensor:
    """Smooth L1 loss between windows, over the four entries of theta that are not zero by construction.

    Source: Yin, Yiu, Hu, Tang, STN-iCNN, equations 19 and 20.

    Args:
        theta: (N, P, 2, 3), [[sx, 0, tx], [0, sy, ty]], predicted.
        truth: (N, P, 2, 3).
        present: (N, P) bool, whether the part is in the image; windows of absent parts do not count.
        counts_over_ranks: divide by the counts of all processes, for DDP; they must then call it together.

    Returns:
        A scalar, the mean over the windows of present parts; 0 with zero gradient if no part is present.

    Raises:
        ValueError: shapes that do not match.

    Example:
        The first of two windows counts; its tx is wrong by 0.2: 0.5 * 0.2 ** 2 / 4 entries.

        >>> theta = torch.zeros(1, 2, 2, 3)
        >>> theta[0, 0, 0, 2], theta[0, 1] = 0.2, 9.0
        >>> theta_loss(theta, torch.zeros(1, 2, 2, 3), torch.tensor([[True, False]]))
        tensor(0.0050)
    """
    if theta.shape[-2:] != (2, 3) or theta.shape != truth.shape or theta.shape[:-2] != present.shape:
        raise ValueError(
            f"theta {tuple(theta.shape)}, truth {tuple(truth.shape)} and present {tuple(present.shape)} do not fit; "
            "(N, P, 2, 3) twice and (N, P) do"
        )
    errors = F.smooth_l1_loss(_free(theta), _free(truth), reduction="none").mean(-1)
    return (errors * present).sum() / divisor(present.sum(), counts_over_ranks)


def _free(theta: Tensor) -> Tensor:
    """The entries (..., 4) that are not zero by construction."""
    return torch.stack([theta[..., 0, 0], theta[..., 1, 1], theta[..., 0, 2], theta[..., 1, 2]], -1)


def pasted_loss(scores: Tensor, target: Tensor, pixels: int, ignore_index: int = 255) -> Tensor:
    """Negative log-likelihood of an image's labels under a pasted mask.

    Args:
        scores: (N, K, H, W) in 0..1, score of each class; they need not sum to 1.
        target: (N, H, W) int64, 0..K-1 or `ignore_index`.
        pixels: divisor of the sum over all pixels, such as the number of pixels of all windows.
        ignore_index: target value of the ignored pixels.

    Returns:
        A scalar. A pixel whose class has the score 0 costs 13.8, without gradient.

    Raises:
        ValueError: shapes that do not match.

    Example:
        >>> pasted_loss(torch.full((1, 2, 1, 2), 0.5), torch.tensor([[[0, 255]]]), pixels=1)
        tensor(0.6931)
    """
    if scores.ndim != 4 or target.shape != (scores.shape[0], *scores.shape[2:]):
        raise ValueError(
            f"scores {tuple(scores.shape)} and target {tuple(target.shape)} do not fit; (N, K, H, W) and (N, H, W) do"
        )
    counted = target != ignore_index
    likelihood = scores.gather(1, target.masked_fill(~counted, 0)[:, None])[:, 0]
    return -(likelihood.clamp(min=_LEAST_LIKELIHOOD).log() * counted).sum() / pixels
