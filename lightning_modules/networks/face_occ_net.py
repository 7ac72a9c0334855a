"""The network of structure via consensus: a shallow encoder, dilated convolutions, and pixel shuffles."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 4


class FaceOccNet(nn.Module):
    """Convolutions down to a quarter of the size, two dilated ones in parallel, and two pixel shuffles up again.

    4,524,323 parameters for 3 classes. All kernels are 3x3 with reflection padding; ELU, then batch norm except after
    the first and the last two. Weights start Xavier-normal with gain sqrt 2. The image is padded at the right and at
    the bottom, by repeating its border, to a multiple of 4, and the logits are cropped back.

    Source: Masi, Mathai, AbdAlmageed, CVPR 2020. The two strides are taken at the second and fourth convolution.

    Args:
        num_classes: channels of the output.
        dropout: probability, 0..1, that a channel is dropped before the decoder in training; published: 0.2.
    """

    initial_weights: str = "random"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __init__(self, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *_conv(3, 64, norm=False),
            *_conv(64, 128, stride=2),
            *_conv(128, 128),
            *_conv(128, 128, stride=2),
            *_conv(128, 256),
        )
        self.dilated = nn.Sequential(*_conv(256, 256, dilation=4), *_conv(256, 256, dilation=3))
        self.decoder = nn.Sequential(
            *([nn.Dropout2d(dropout)] if dropout else []),
            *_conv(512, 512),
            nn.PixelShuffle(2),
            *_conv(128, 128),
            *_conv(128, 128),
            nn.PixelShuffle(2),
            *_conv(32, 32, norm=False),
            *_conv(32, 32, norm=False),
            nn.Conv2d(32, num_classes, 3, padding=1, padding_mode="reflect"),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight, gain=math.sqrt(2))
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, num_classes, H, W).

        Raises:
            ValueError: H or W is below 17, too small for the reflection at a quarter of the size.
        """
        height, width = image.shape[-2:]
        if min(height, width) <= 4 * STRIDE:
            raise ValueError(f"image of {height} x {width}, but FaceOccNet takes 17 x 17 or more; enlarge it")
        coarse = self.encoder(F.pad(image, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate"))
        logits: Tensor = self.decoder(torch.cat((coarse, self.dilated(coarse)), 1))
        return logits[..., :height, :width]


def _conv(inputs: int, outputs: int, stride: int = 1, dilation: int = 1, norm: bool = True) -> list[nn.Module]:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, padding_mode="reflect"),
        nn.ELU(),
    ]
    return [*layers, nn.BatchNorm2d(outputs)] if norm else layers
