"""Logistic regression of each image tag on the other tags of the image, with a ridge penalty."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

RIDGES = tuple(float(ridge) for ridge in np.logspace(0, -4, 9))  # strongest first
_FOLDS = 5
_MOST_BIAS = 12.0  # the bias of a constant tag would grow without limit

Array = NDArray[np.float64]


def tag_regression(tags: Tensor, ridge: float = 1e-3, signed: bool = True) -> tuple[Tensor, Tensor]:
    """Logistic regression of each tag on the other tags of its image: logit P(y_k = 1) = b_k + sum over j of c_jk y_j.

    Args:
        tags: (N, n) of 0 and 1, of N images and n classes.
        ridge: weight of the squared coefficients, added to the mean negative log-likelihood of an image; above 0.
        signed: False keeps every coefficient at 0 or above: another tag speaks for a class, never against it.

    Returns:
        Coefficients (n, n) float32, those of class k in column k, the diagonal 0; and the bias (n,) float32.

    Raises:
        ValueError: tags of another shape or with other values, no images, or a ridge that is not above 0.
    """
    y = _as_array(tags)
    if not ridge > 0:
        raise ValueError(f"ridge is {ridge}; expected a number above 0")
    weights, bias = _fit(y, ridge, signed)
    return torch.from_numpy(weights).float().to(tags.device), torch.from_numpy(bias).float().to(tags.device)


def cross_validated_ridge(tags: Tensor, signed: bool = True) -> float:
    """The ridge of `RIDGES` with the highest likelihood in 5-fold cross-validation; of equal ones the strongest.

    The folds are drawn with a fixed seed.

    Args:
        tags: (N, n) of 0 and 1, N at least 2.
        signed: see `tag_regression`.

    Raises:
        ValueError: tags of another shape or with other values, or fewer than two images.
    """
    y = _as_array(tags)
    if len(y) < 2:
        raise ValueError("the tags of 1 image cannot be cross-validated; give 2 images or more, or a ridge")
    fold = np.random.default_rng(0).permutation(len(y)) % min(_FOLDS, len(y))

    def held_out_loss(ridge: float) -> float:
        total = 0.0
        for number in range(fold.max() + 1):
            weights, bias = _fit(y[fold != number], ridge, signed)
            total += _negative_log_likelihood(y[fold == number], weights, bias)[0].sum()
        return total

    return RIDGES[int(np.argmin([held_out_loss(ridge) for ridge in RIDGES]))]


def _as_array(tags: Tensor) -> Array:
    if tags.ndim != 2 or not len(tags):
        raise ValueError(f"tags have shape {tuple(tags.shape)}; expected (images, classes), of one image or more")
    if not ((tags == 0) | (tags == 1)).all():
        raise ValueError("tags hold other values than 0 and 1; give 1 for a class that the image holds, else 0")
    return np.asarray(tags.detach().cpu().double().numpy())


def _negative_log_likelihood(y: Array, weights: Array, bias: Array) -> tuple[Array, Array]:
    """That of each tag, (N, n), and its derivative with respect to the tag's logit."""
    logits = y @ weights + bias
    return np.logaddexp(0, logits) - y * logits, 1 / (1 + np.exp(-logits)) - y


def _fit(y: Array, ridge: float, signed: bool) -> tuple[Array, Array]:
    rows, counts = np.unique(y, axis=0, return_counts=True)
    share, size = (counts / len(y))[:, None], y.shape[1]
    free = 1 - np.eye(size)

    def objective(flat: Array) -> tuple[float, Array]:
        weights, bias = flat[:-size].reshape(size, size), flat[-size:]
        values, slopes = _negative_log_likelihood(rows, weights, bias)
        slopes = share * slopes
        by_weight = (rows.T @ slopes + 2 * ridge * weights) * free
        return (share * values).sum() + ridge * (weights**2).sum(), np.append(by_weight.ravel(), slopes.sum(0))

    lowest = None if signed else 0.0
    bounds: list[Any] = [(lowest, None) if one else (0.0, 0.0) for one in free.ravel()]
    prior = y.mean(0).clip(1e-4, 1 - 1e-4)
    start = np.append(np.zeros(size * size), np.log(prior / (1 - prior)))
    options = {"maxiter": 2000, "maxfun": 10000, "ftol": 1e-15, "gtol": 1e-9}
    limits = bounds + [(-_MOST_BIAS, _MOST_BIAS)] * size
    solution = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=limits, options=options).x
    return solution[:-size].reshape(size, size), solution[-size:]
