"""CONTA's context map: the confounders, weighed by the image's own last mask, and how features take it up."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ContextKind = Literal["sum", "constant"]
ContextQuery = Literal["foreground", "classes"]

_SMALLEST_MEAN = 1e-12


def context_map(query: Tensor, confounders: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """Equation 3: M = sum_k alpha_k c_k P(c_k), alpha = softmax_k((W1 x)^T (W2 c_k) / sqrt(n)), P(c_k) = 1/n.

    Args:
        query: x, (N, h * w), rows one after another.
        confounders: c, (n, h, w).
        w1: (n, h * w).
        w2: (n, h * w).

    Returns:
        (N, 1, h, w).

    Raises:
        ValueError: shapes that do not fit.

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
    """The context map of images, from the class probabilities of their last segmentation; learns W1 and W2.

    Args:
        classes: n, of the foreground.
        size: (h, w) of the confounders and of the probabilities.
        kind: `sum` (equation 3), or its control `constant`: ones, with the same parameters, of which W1 and W2 do not
            learn.
        query: `foreground`, x = 1 - p(background); `classes`, W1 on each class map, averaged over the classes that the
            map holds at all: those that the tags allow, where the segmenter knew them. W1 is linear, so this is W1 on
            the average of these maps.
        scale: bring M to unit mean over its cells. P(c) and the averages make it tiny, and weight decay
            would switch it off.

    Attributes:
        confounders: (n, h, w), zeros until they are put in. Of a class without images they may stay zero.

    Raises:
        ValueError: another kind or query, or no classes.
    """

    confounders: Tensor

    def __init__(
        self,
        classes: int,
        size: tuple[int, int] = (32, 32),
        kind: ContextKind = "sum",
        query: ContextQuery = "foreground",
        scale: bool = True,
    ) -> None:
        super().__init__()
        if kind not in ("sum", "constant"):
            raise ValueError(f"kind is {kind!r}, expected sum or constant")
        if query not in ("foreground", "classes"):
            raise ValueError(f"query is {query!r}, expected foreground or classes")
        if classes < 1 or min(size) < 1:
            raise ValueError(f"{classes} classes at {tuple(size)}, expected 1 or more of each")
        self.size = (int(size[0]), int(size[1]))
        self.kind, self.query, self.scale = kind, query, scale
        cells = self.size[0] * self.size[1]
        self.register_buffer("confounders", torch.zeros(classes, *self.size))
        # x and c_k lie in 0..1, so W1 x and W2 c_k are below 1 then: alpha starts near 1/n, which is P(c), and yet
        # both matrices have a gradient, which zeros would not have.
        self.w1 = nn.Parameter(torch.randn(classes, cells) / math.sqrt(cells), requires_grad=kind == "sum")
        self.w2 = nn.Parameter(torch.randn(classes, cells) / math.sqrt(cells), requires_grad=kind == "sum")

    def forward(self, probabilities: Tensor) -> Tensor:
        """M, whose gradient reaches W1 and W2 alone.

        Args:
            probabilities: (N, n + 1, h, w), the background first.

        Returns:
            (N, 1, h, w) float32.

        Raises:
            ValueError: shapes that do not fit.
        """
        classes = len(self.confounders)
        if probabilities.ndim != 4 or tuple(probabilities.shape[1:]) != (classes + 1, *self.size):
            raise ValueError(
                f"context has shape {tuple(probabilities.shape)}, expected (N, {classes + 1}, {self.size[0]}, "
                f"{self.size[1]}): class probabilities, background first, at context_size"
            )
        if self.kind == "constant":
            return torch.ones(len(probabilities), 1, *self.size, device=probabilities.device)
        # In half precision the mean of the small terms is lost.
        with torch.autocast(probabilities.device.type, enabled=False):
            query = self._query_of(probabilities.detach().float()).flatten(1)
            m = context_map(query, self.confounders.detach(), self.w1, self.w2)
            return m / m.mean((1, 2, 3), keepdim=True).clamp(min=_SMALLEST_MEAN) if self.scale else m

    def _query_of(self, probabilities: Tensor) -> Tensor:
        if self.query == "foreground":
            return 1 - probabilities[:, 0]
        # By the map itself, not by the image's tags: a placebo's map is another image's.
        held = probabilities[:, 1:].flatten(2).any(2).sum(1)[:, None, None]
        return probabilities[:, 1:].sum(1) / held.clamp(min=1)

    def unknown(self, count: int) -> Tensor:
        """Probabilities (N, n + 1, h, w) for images without a last segmentation: all background.

        x is 0 then, and M the mean of the confounders.
        """
        nothing = torch.zeros(count, len(self.confounders) + 1, *self.size, device=self.confounders.device)
        nothing[:, 0] = 1
        return nothing


class ContextFusion(nn.Module):
    """A 1x1 convolution from C + 1 to C channels, of features beside a context map; starts as the identity on the C.

    Without a bias: the `constant` map takes its place.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels + 1, channels, 1, bias=False)
        with torch.no_grad():
            self.convolution.weight.copy_(torch.eye(channels, channels + 1)[:, :, None, None])

    def forward(self, features: Tensor, context: Tensor, view: Tensor | None = None) -> Tensor:
        """Features with the context taken up.

        Args:
            features: (N, C, H, W) of a crop.
            context: (N, 1, h, w) in the coordinates of the whole image.
            view: (N, 2, 3), from the crop's normalised coordinates to the image's, as `F.affine_grid` takes it with
                align_corners=False; None: the crop is the whole image.

        Returns:
            (N, C, H, W).
        """
        seen = seen_through(context, view, (features.shape[-2], features.shape[-1]))
        fused: Tensor = self.convolution(torch.cat([features, seen.to(features.dtype)], 1))
        return fused


def seen_through(context: Tensor, view: Tensor | None, size: tuple[int, int]) -> Tensor:
    """A map (N, m, h, w) of the whole image as a crop shows it, (N, m, *size); bilinear, 0 outside of the image.

    Inside, up to its border, nothing fades: a map of ones is seen as ones.

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
