"""The interlinked CNN: four rows of convolutions at four sizes, with connections between neighbouring rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INTERLINKED_LAYERS = 3


class _Form(NamedTuple):
    kernel: int
    last_kernel: int
    pool: int
    outer: Callable[[], nn.Module]  # activation at the input, in the merging and before the last two convolutions


_RELU = partial(nn.ReLU, inplace=True)  # safe: the gradient of the batch norm before it does not need its output
_FORMS = {"published": _Form(5, 9, 3, nn.Tanh), "paper": _Form(3, 3, 2, _RELU)}


class ICNN(nn.Module):
    """Coarse or part labels from an image of any size: 559,297 parameters for 9 classes.

    The image and its copies max-pooled to 1/2, 1/4 and 1/8 are convolved, which starts the four rows. In each of three
    interlinked layers a row is concatenated with its finer neighbour (max-pooled) and its coarser neighbour (enlarged,
    nearest), and convolved twice to its own channels. Then the rows merge from coarse to fine: enlarged, concatenated
    with the finer row, convolved to its channels. Three convolutions (2 L + 8, L, L channels for L
    classes) give the logits. Batch norm follows each convolution but the last two. Half of an odd
    size is rounded up, so that pixel i of a row covers pixels 2 i and 2 i + 1 of the finer one.

    - `published`: 5x5 kernels, the last 9x9, pooling 3x3 with stride 2; ReLU inside, tanh at the input, in the merging
      and before the last two convolutions.
    - `paper`: 3x3 kernels everywhere (figure 2), pooling 2x2, ReLU. The paper does not give the pooling's width; with
      2x2, and sides that 8 divides, the network with mirrored kernels gives the mirrored logits of a mirrored image.

    Source: Zhou, Hu, Zhang, ISNN 2015 (the interlinked rows); Yin, Yiu, Hu, Tang, STN-iCNN, figure 2 (batch norm, ReLU,
    3x3) and its published code (the other form).

    Args:
        classes: channels L of the output.
        form: `published` or `paper`, see above.
        channels: of the rows, from full size to 1/8.

    Raises:
        ValueError: a form that does not exist, no classes, or fewer than two rows.
    """

    initial_weights: str = "random"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __init__(
        self,
        classes: int,
        form: Literal["published", "paper"] = "published",
        channels: tuple[int, ...] = (8, 16, 24, 32),
    ) -> None:
        super().__init__()
        if form not in _FORMS or classes < 1 or len(channels) < 2 or min(channels) < 1:
            raise ValueError(
                f"form {form!r}, {classes} classes, channels {channels}; expected published or paper, 1 class or more, "
                f"and channels for two rows or more"
            )
        kernel, last_kernel, self.pool, outer = _FORMS[form]
        self.smallest = 2 ** (len(channels) - 1)
        self.inputs = nn.ModuleList(_layer(3, width, kernel, outer) for width in channels)
        self.interlinked = nn.ModuleList(_Interlinked(channels, kernel, self.pool) for _ in range(INTERLINKED_LAYERS))
        self.merging = nn.ModuleList(_layer(fine + coarse, fine, kernel, outer) for fine, coarse in pairwise(channels))
        self.head = nn.Sequential(
            _layer(channels[0], 2 * classes + 8, kernel, outer),
            nn.Conv2d(2 * classes + 8, classes, kernel, padding=kernel // 2),
            nn.Conv2d(classes, classes, last_kernel, padding=last_kernel // 2),
        )

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, classes, H, W), for any H and W of 8 or more.

        Raises:
            ValueError: other axes or channels, or H or W too small for the coarsest row.
        """
        if image.ndim != 4 or image.shape[1] != 3 or min(image.shape[2:]) < self.smallest:
            raise ValueError(
                f"image {tuple(image.shape)}, but ICNN takes (N, 3, H, W) with H and W of {self.smallest} or more; "
                f"enlarge it"
            )
        if image.device.type == "cpu":  # saves a third of the time
            image = image.contiguous(memory_format=torch.channels_last)
        pyramid = [image]
        while len(pyramid) < len(self.inputs):
            pyramid.append(_shrink(pyramid[-1], self.pool))
        rows = [layer(level) for layer, level in zip(self.inputs, pyramid, strict=True)]
        for layer in self.interlinked:
            rows = layer(rows)
        merged = rows.pop()
        for layer in reversed(self.merging):
            row = rows.pop()
            merged = layer(torch.cat((row, _enlarge(merged, row)), 1))
        logits: Tensor = self.head(merged)
        return logits


class _Interlinked(nn.Module):
    """Each row from itself and its neighbours."""

    def __init__(self, channels: tuple[int, ...], kernel: int, pool: int) -> None:
        super().__init__()
        self.pool = pool
        self.rows = nn.ModuleList(
            nn.Sequential(
                _layer(sum(channels[max(row - 1, 0) : row + 2]), width, kernel, _RELU),
                _layer(width, width, kernel, _RELU),
            )
            for row, width in enumerate(channels)
        )

    def forward(self, rows: list[Tensor]) -> list[Tensor]:
        mixed = []
        for index, (layer, row) in enumerate(zip(self.rows, rows, strict=True)):
            finer = [_shrink(rows[index - 1], self.pool)] if index else []
            coarser = [_enlarge(rows[index + 1], row)] if index + 1 < len(rows) else []
            mixed.append(layer(torch.cat((*finer, row, *coarser), 1)))
        return mixed


def _layer(inputs: int, outputs: int, kernel: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    # No bias: the batch norm has a shift.
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), activation())


def _shrink(features: Tensor, pool: int) -> Tensor:
    """Half the size, rounded up."""
    return F.max_pool2d(features, pool, stride=2, padding=pool // 2 if pool % 2 else 0, ceil_mode=pool % 2 == 0)


def _enlarge(features: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(features, size=like.shape[-2:], mode="nearest")
