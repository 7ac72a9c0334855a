"""CONTA's context map: the confounders weighted by an image's last mask, and the layer that joins it to features."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ContextKind = Literal["sum", "mean", "constant"]
ContextQuery = Literal["foreground", "classes"]

_SHARPNESS = 10.0  # of the first attention: W1 starts as this multiple of W2
_COLUMN = 0.7  # deviation of the first weights of M, in deviations of each feature
_SMALLEST = 1e-12


def context_map(query: Tensor, confounders: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """Equation 3: M = sum_k alpha_k c_k P(c_k), alpha = softmax_k((W1 x)^T (W2 c_k) / sqrt(n)), P(c_k) = 1/n.

    Args:
        query: x, (N, h * w), flattened maps.
        confounders: c, (n, h, w).
        w1: (n, h * w).
        w2: (n, h * w).

    Returns:
        (N, 1, h, w).

    Raises:
        ValueError: shapes that do not match.

    Source: Zhang, Zhang, Tang, Hua, Sun, "Causal Intervention for Weakly-Supervised Semantic Segmentation", NeurIPS
    2020, equation 3.

    >>> classes, cells = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), torch.zeros(2, 2)
    >>> context_map(torch.ones(1, 2), classes, cells, cells)  # alpha = 1/2, P = 1/2
    tensor([[[[0.2500, 0.2500]]]])
    """
    if confounders.ndim != 3:
        raise ValueError(f"confounders have shape {tuple(confounders.shape)}, expected (n, h, w)")
    count, height, width = confounders.shape
    expected = {"query": (len(query), height * width), "w1": (count, height * width), "w2": (count, height * width)}
    for name, tensor in (("query", query), ("w1", w1), ("w2", w2)):
        if tuple(tensor.shape) != expected[name]:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, expected {expected[name]} for confounders of "
                f"shape {tuple(confounders.shape)}"
            )
    keys = confounders.flatten(1) @ w2.T  # (n, n): row k is W2 c_k
    alpha = ((query @ w1.T) @ keys.T / math.sqrt(count)).softmax(1)
    return (alpha[:, :, None, None] * confounders / count).sum(1, keepdim=True)


class ContextMap(nn.Module):
    """The context map of images, from the class probabilities of their last segmentation, with trained W1 and W2.

    Args:
        classes: n, the number of foreground classes.
        size: (h, w) of the confounders and of the probabilities.
        kind: `sum` (equation 3), or a control with the same parameters, whose W1 and W2 are not trained: `mean`, the
            mean of the confounders for every image, and `constant`, ones.
        query: `foreground`, x = 1 - p(background); `classes`, the average of W1 on the maps of the classes that are
            not 0 everywhere (those that the tags allow, if the segmenter knew them). As W1 is linear, this is W1 on the
            average of these maps.

    Attributes:
        confounders: (n, h, w), zeros at first; that of a class without images may stay zero.
        mean: of M over images and cells before it is standardised, 0 until `start`.
        std: its standard deviation, 1 until `start`.

    Raises:
        ValueError: another kind or query, or no classes.
    """

    confounders: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        classes: int,
        size: tuple[int, int] = (32, 32),
        kind: ContextKind = "sum",
        query: ContextQuery = "foreground",
    ) -> None:
        super().__init__()
        if kind not in get_args(ContextKind):
            raise ValueError(f"kind is {kind!r}, expected sum, mean or constant")
        if query not in get_args(ContextQuery):
            raise ValueError(f"query is {query!r}, expected foreground or classes")
        if classes < 1 or min(size) < 1:
            raise ValueError(f"{classes} classes at {tuple(size)}, expected 1 or more of each")
        self.size = (int(size[0]), int(size[1]))
        self.kind, self.query = kind, query
        cells = self.size[0] * self.size[1]
        self.register_buffer("confounders", torch.zeros(classes, *self.size))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.w1 = nn.Parameter(torch.zeros(classes, cells), requires_grad=kind == "sum")
        self.w2 = nn.Parameter(torch.zeros(classes, cells), requires_grad=kind == "sum")

    @torch.no_grad()
    def start(self, probabilities: Tensor) -> None:
        """Initialises W1 and W2 so that the attention follows the image, and standardises M; needs the confounders.

        Row k of W2 is c_k minus the mean of all confounders, at unit length; row k of W1 is the same, orthogonal to the
        mean query, times ten. So the attention turns to class k if x resembles what is special of c_k, and the mean
        image prefers no class. With zeros neither would have a gradient; with random numbers, or without the centring,
        the attention, and so M, is nearly the same for every image. M gets zero mean and unit deviation over images
        and cells; a map of ones is unchanged.

        Args:
            probabilities: (N, n + 1, h, w), of the training images.
        """
        special = (self.confounders - self.confounders.mean(0)).flatten(1)
        shared = F.normalize(self._query_of(probabilities.float()).flatten(1).mean(0), dim=0, eps=_SMALLEST)
        self.w2.copy_(F.normalize(special, eps=_SMALLEST))
        self.w1.copy_(_SHARPNESS * F.normalize(special - (special @ shared)[:, None] * shared, eps=_SMALLEST))
        if self.kind != "constant":
            m = self._plain(probabilities)
            self.mean.copy_(m.mean())
            self.std.copy_(m.std(correction=0).clamp(min=_SMALLEST))

    def forward(self, probabilities: Tensor) -> Tensor:
        """M; its gradient reaches only W1 and W2.

        Args:
            probabilities: (N, n + 1, h, w), the background first.

        Returns:
            (N, 1, h, w) float32.

        Raises:
            ValueError: shapes that do not match.
        """
        return (self._plain(probabilities) - self.mean) / self.std

    def _plain(self, probabilities: Tensor) -> Tensor:
        classes = len(self.confounders)
        if probabilities.ndim != 4 or tuple(probabilities.shape[1:]) != (classes + 1, *self.size):
            raise ValueError(
                f"context has shape {tuple(probabilities.shape)}, expected (N, {classes + 1}, {self.size[0]}, "
                f"{self.size[1]}): class probabilities, background first, at context_size"
            )
        if self.kind != "sum":
            one = torch.ones_like(self.mean) if self.kind == "constant" else self.confounders.mean(0)
            return one.expand(len(probabilities), 1, *self.size)
        # Half precision would lose the small terms.
        with torch.autocast(probabilities.device.type, enabled=False):
            query = self._query_of(probabilities.detach().float()).flatten(1)
            return context_map(query, self.confounders.detach(), self.w1, self.w2)

    def _query_of(self, probabilities: Tensor) -> Tensor:
        if self.query == "foreground":
            return 1 - probabilities[:, 0]
        # By the map, not by the image's tags: a placebo has the map of another image.
        present = probabilities[:, 1:].flatten(2).any(2).sum(1)[:, None, None]
        return probabilities[:, 1:].sum(1) / present.clamp(min=1)

    def unknown(self, count: int) -> Tensor:
        """Probabilities (N, n + 1, h, w) for images without a last segmentation: all background.

        x is 0 then, and M the mean of the confounders.
        """
        background = torch.zeros(count, len(self.confounders) + 1, *self.size, device=self.confounders.device)
        background[:, 0] = 1
        return background


class ContextFusion(nn.Module):
    """A 1x1 convolution of C features and a context map to C channels; at first the identity on the features.

    The column of the map is `scale` (the deviation of each feature) times `v`, which starts at small random values:
    from zero, at the backbone's learning rate, the map would have no effect. The `constant` map acts as a bias.

    Args:
        channels: C.

    Attributes:
        scale: (C,), ones until `measure`.
    """

    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 1, bias=False)
        with torch.no_grad():
            self.convolution.weight.copy_(torch.eye(channels)[:, :, None, None])
        self.v = nn.Parameter(_COLUMN * torch.randn(channels))
        self.register_buffer("scale", torch.ones(channels))

    @torch.no_grad()
    def measure(self, features: Tensor) -> None:
        """Sets `scale` by features (N, C, H, W) of training images."""
        self.scale.copy_(features.std((0, 2, 3), correction=0))

    def forward(self, features: Tensor, context: Tensor, view: Tensor | None = None) -> Tensor:
        """The features joined with the context.

        Args:
            features: (N, C, H, W) of a crop.
            context: (N, 1, h, w) in the coordinates of the whole image.
            view: (N, 2, 3), from the crop's normalised coordinates to the image's, as `F.affine_grid` takes it with
                align_corners=False; None: the crop is the whole image.

        Returns:
            (N, C, H, W).
        """
        seen = seen_through(context, view, (features.shape[-2], features.shape[-1]))
        fused: Tensor = self.convolution(features) + (self.scale * self.v)[:, None, None] * seen.to(features.dtype)
        return fused


def seen_through(context: Tensor, view: Tensor | None, size: tuple[int, int]) -> Tensor:
    """The part of whole-image maps (N, m, h, w) that a crop shows, (N, m, *size); bilinear, 0 outside the image.

    Inside the image nothing fades towards the border: a map of ones stays ones.

    Args:
        context: (N, m, h, w).
        view: (N, 2, 3), see `ContextFusion.forward`; None: the whole image.
        size: (H, W) of the result.
    """
    if view is None:
        view = torch.eye(2, 3, device=context.device).expand(len(context), 2, 3)
    grid = F.affine_grid(view.to(context.dtype), [len(context), context.shape[1], *size], align_corners=False)
    seen = F.grid_sample(context, grid, mode="bilinear", padding_mode="border", align_corners=False)
    inside = (grid.abs() <= 1).all(-1)[:, None]
    return seen * inside
