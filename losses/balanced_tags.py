"""A multi-label loss under which each class is independent of the other tags: inverse propensity weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BalancedTagLoss(nn.Module):
    """Multi-label soft margin, weighted so that what stands beside a class says nothing of it.

    In the causal graph of CONTA the company of a class confounds it: a horse comes with a person, so a person's pixels
    speak for `horse`. That company is known, it is in the tags. With y_k the tag of class k and z the others, the
    weights of a stabilised backdoor adjustment

        w_k = P(y_k) / P(y_k | z),    P(y_k | z) a logistic regression on z

    make y_k independent of z in the weighted training set: horses without persons and persons without horses count for
    more. What no tag tells of (the ground that a class stands on) is not adjusted for. Source of the weights: Robins,
    Hernan, Brumback, "Marginal structural models", Epidemiology 2000.

    Args:
        limit: largest weight, and one over the smallest, of an image and class; 1 or more.
        ridge: of the regression's coefficients, per image.
        shuffled: give each image of a batch the weights of another: the control, with the same weights and no
            information.

    Attributes:
        coefficients: (n, n), column k that of class k on the other tags; the diagonal is 0.
        bias: (n,).
        prior: (n,) P(y_k = 1).

    Raises:
        ValueError: a setting out of its range.
    """

    coefficients: Tensor
    bias: Tensor
    prior: Tensor

    def __init__(self, limit: float = 10.0, ridge: float = 1e-3, shuffled: bool = False) -> None:
        super().__init__()
        if limit < 1 or ridge <= 0:
            raise ValueError(f"limit {limit}, ridge {ridge}; 1 or more, and above 0, are needed")
        self.limit, self.ridge, self.shuffled = limit, ridge, shuffled
        for name in ("coefficients", "bias", "prior"):
            self.register_buffer(name, torch.empty(0), persistent=False)  # of the training data, not of the network

    def fit(self, tags: Tensor) -> None:
        """Learns how each tag hangs on the others.

        Args:
            tags: (N, n) of 0 and 1, of all training images.

        Raises:
            ValueError: another form, or no images.
        """
        if tags.ndim != 2 or not len(tags):
            raise ValueError(f"tags have shape {tuple(tags.shape)}; expected (images, classes), of one image or more")
        y = tags.detach().cpu().double()
        size = y.shape[1]
        free = 1 - torch.eye(size, dtype=torch.float64)
        weights = torch.zeros(size, size, dtype=torch.float64, requires_grad=True)
        prior = y.mean(0)
        start = (prior.clamp(1e-4, 1 - 1e-4) / (1 - prior.clamp(1e-4, 1 - 1e-4))).log()
        bias = start.clone().requires_grad_(True)
        solver = torch.optim.LBFGS([weights, bias], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

        def objective() -> Tensor:
            solver.zero_grad()
            likelihood = F.binary_cross_entropy_with_logits(y @ (weights * free) + bias, y, reduction="sum") / len(y)
            total: Tensor = likelihood + self.ridge * (weights * free).square().sum()
            total.backward()
            return total

        with torch.enable_grad():
            solver.step(objective)
        device = self.prior.device
        self.coefficients = (weights * free).detach().float().to(device)
        self.bias, self.prior = bias.detach().float().to(device), prior.float().to(device)

    def weights(self, tags: Tensor) -> Tensor:
        """(N, n) of images with these tags (N, n).

        Raises:
            ValueError: `fit` has not been called, or for another number of classes.
        """
        if len(self.prior) != tags.shape[-1]:
            raise ValueError(f"the weights are of {len(self.prior)} classes, the tags of {tags.shape[-1]}; call fit")
        expected = (tags @ self.coefficients + self.bias).sigmoid()
        found = torch.where(tags > 0, self.prior / expected, (1 - self.prior) / (1 - expected))
        return found.nan_to_num(1.0).clamp(1 / self.limit, self.limit)

    def forward(self, logits: Tensor, tags: Tensor) -> Tensor:
        """The mean over images and classes.

        Args:
            logits: (N, n).
            tags: (N, n) float of 0 and 1.
        """
        weights = self.weights(tags)
        if self.shuffled:
            weights = weights.roll(1, 0)
        return F.binary_cross_entropy_with_logits(logits, tags, weights)
