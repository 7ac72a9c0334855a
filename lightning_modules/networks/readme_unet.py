"""The U-Net-like network published for FASSEG (public repository goldmyu/face-semantic-segmentation)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STRIDE = 16


class ReadmeUNet(nn.Module):
    """Four convolutions down, four transposed convolutions up, three joins: 2,098,770 parameters for 6 classes.

    As published: pooling before the activation, batch-norm after every convolution but the last, dropout of single
    values in the second and fourth step, no join at full size and no convolution after a join. The convolutions that
    the published class defines but never runs are left out.

    Args:
        num_classes: channels of the output.
        in_channels: channels of the image.
        dropout: probability, 0..1, that a value is dropped in training.
    """

    initial_weights: str = "random"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __init__(self, num_classes: int, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.down1 = _down(in_channels, 12, kernel_size=7)
        self.down2 = _down(12, 48, kernel_size=5, dropout=dropout)
        self.down3 = _down(48, 192, kernel_size=3)
        self.down4 = _down(192, 768, kernel_size=3, dropout=dropout)
        self.up1 = _up(768, 192)
        self.up2 = _up(2 * 192, 48)
        self.up3 = _up(2 * 48, 12)
        self.up4 = nn.ConvTranspose2d(2 * 12, num_classes, kernel_size=2, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes, H, W).

        Raises:
            ValueError: H or W is no multiple of 16.
        """
        height, width = image.shape[-2:]
        if height % STRIDE or width % STRIDE or not height or not width:
            fitting = tuple(max(STRIDE, STRIDE * ((size + STRIDE // 2) // STRIDE)) for size in (height, width))
            raise ValueError(
                f"image of {height} x {width} (height x width), but ReadmeUNet takes multiples of {STRIDE}; "
                f"resize or pad it to {fitting[0]} x {fitting[1]}"
            )
        half = self.down1(image)
        quarter = self.down2(half)
        eighth = self.down3(quarter)
        # Concatenation: first the decoder's features, then the encoder's.
        up = torch.cat((self.up1(self.down4(eighth)), eighth), dim=1)
        up = torch.cat((self.up2(up), quarter), dim=1)
        up = torch.cat((self.up3(up), half), dim=1)
        logits: Tensor = self.up4(up)
        return logits


def _down(in_channels: int, out_channels: int, kernel_size: int, dropout: float = 0.0) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
        nn.BatchNorm2d(out_channels),
        nn.MaxPool2d(2),
        nn.ReLU(),
    ]
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


def _up(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(0.01),
    )
