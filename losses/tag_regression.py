"""How each image tag depends on the image's other tags: a logistic regression with a ridge."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def tag_regression(tags: Tensor, ridge: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Logistic regression of each tag on the other tags of its image: logit P(y_k = 1) = b_k + sum over j of c_jk y_j.

    Args:
        tags: (N, n) of 0 and 1, of N images and n classes.
        ridge: weight of the squared coefficients beside the mean log-likelihood of an image; above 0.

    Returns:
        Coefficients (n, n) float32, column k those of class k, the diagonal 0; and the bias (n,) float32.

    Raises:
        ValueError: tags of another shape, no images, or a ridge that is not above 0.
    """
    if tags.ndim != 2 or not len(tags):
        raise ValueError(f"tags have shape {tuple(tags.shape)}; expected (images, classes), of one image or more")
    if ridge <= 0:
        raise ValueError(f"ridge is {ridge}; expected a number above 0")
    y = tags.detach().cpu().double()
    size = y.shape[1]
    off_diagonal = 1 - torch.eye(size, dtype=torch.float64)
    weights = torch.zeros(size, size, dtype=torch.float64, requires_grad=True)
    prior = y.mean(0).clamp(1e-4, 1 - 1e-4)
    bias = (prior / (1 - prior)).log().requires_grad_(True)
    solver = torch.optim.LBFGS([weights, bias], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        solver.zero_grad()
        logits = y @ (weights * off_diagonal) + bias
        likelihood = F.binary_cross_entropy_with_logits(logits, y, reduction="sum") / len(y)
        total: Tensor = likelihood + ridge * (weights * off_diagonal).square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(objective)
    return (weights * off_diagonal).detach().float().to(tags.device), bias.detach().float().to(tags.device)
