"""The localisation networks of STN-iCNN: positions of the parts of a face from a coarse soft mask."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Centres (x, y) in theta's coordinates, -1..1, of left brow, right brow, left eye, right eye, nose and mouth: means
# over 200 aligned faces of CelebAMask-HQ and their mirror images. Left is the person's left.
MEAN_FACE = ((0.25, -0.17), (-0.25, -0.17), (0.24, -0.04), (-0.24, -0.04), (0.0, 0.155), (0.0, 0.495))

# 128 pixels become 63, 31, 15 and 7 by the four poolings.
_GRID = 7
_SMALLEST = 31


class Localizer(nn.Module):
    """The localisation network of the paper, nine layers: 445,416 parameters for 9 classes and 6 parts.

    Eight 3x3 convolutions, each with batch norm and ReLU, an average pooling (kernel 3, stride 2) after every two, and
    one fully connected layer. The paper calls them a simplified VGG16 and gives no widths; here they are 16, 32, 64 and
    128, a quarter of VGG16's. The figure also has a ReLU after the last layer; it is left out, as it would exclude
    negative translations (parts left of or above the centre). The input of the last layer is a grid of 7 x 7, that of
    a 128 x 128 mask; other sizes are averaged or repeated to it.

    The last layer's weights start at zero and its bias at `start`, so that training begins from windows on a mean face.

    Source: Yin, Yiu, Hu, Tang, STN-iCNN, section 2.3 and figure 3.

    Args:
        classes: channels of the mask.
        parts: number of windows.
        start: (x, y) of each part's first centre, -1..1.
        channels: of the four pairs of convolutions.

    Raises:
        ValueError: `start` has not one centre for each part.
    """

    def __init__(
        self,
        classes: int = 9,
        parts: int = 6,
        start: tuple[tuple[float, float], ...] = MEAN_FACE,
        channels: tuple[int, int, int, int] = (16, 32, 64, 128),
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, width in zip((classes, *channels), channels, strict=False):
            layers += [*_conv(inputs, width), *_conv(width, width), nn.AvgPool2d(3, stride=2)]
        self.features = nn.Sequential(*layers)
        self.last = nn.Linear(channels[-1] * _GRID**2, 4 * parts)
        self.classes, self.parts = classes, parts
        _start_at(self.last, start, parts)

    def forward(self, mask: Tensor) -> Tensor:
        """(N, classes, H, W) probabilities, H and W of 31 or more, to (N, parts, 4), unbounded.

        The four values of a part: tx and ty, the centre of its window in theta's coordinates (-1..1 over the image),
        and the logarithms of the zoom along x and y.

        Raises:
            ValueError: other axes or channels, or H or W too small for the poolings.
        """
        _check(mask, self.classes)
        grid = F.adaptive_avg_pool2d(self.features(mask), _GRID)
        answer: Tensor = self.last(grid.flatten(1))
        return answer.view(-1, self.parts, 4)


class ResNetLocalizer(nn.Module):
    """ResNet-18 as the localisation network, from random weights: 11,207,640 parameters for 9 classes and 6 parts.

    As published for ImageNet (features are averaged over the image before the last layer), except for the first
    convolution, which takes the mask's channels, and the last layer, which starts like that of `Localizer`.

    Source: He, Zhang, Ren, Sun, CVPR 2016, table 1; "can be replaced", STN-iCNN, section 2.3.

    Args:
        classes: channels of the mask.
        parts: number of windows.
        start: (x, y) of each part's first centre, -1..1.

    Raises:
        ValueError: `start` has not one centre for each part.
    """

    def __init__(self, classes: int = 9, parts: int = 6, start: tuple[tuple[float, float], ...] = MEAN_FACE) -> None:
        import timm  # takes seconds; `Localizer` does not need it

        super().__init__()
        self.network = timm.create_model("resnet18", in_chans=classes, num_classes=4 * parts, zero_init_last=False)
        self.classes, self.parts = classes, parts
        _start_at(self.network.get_submodule("fc"), start, parts)

    def forward(self, mask: Tensor) -> Tensor:
        """(N, classes, H, W) to (N, parts, 4), with the values and errors of `Localizer.forward`."""
        _check(mask, self.classes)
        answer: Tensor = self.network(mask)
        return answer.view(-1, self.parts, 4)


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _start_at(last: nn.Module, start: tuple[tuple[float, float], ...], parts: int) -> None:
    if len(start) != parts or any(len(center) != 2 for center in start):
        raise ValueError(f"start has {len(start)} centres for {parts} parts; give one (x, y) for each")
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([(x, y, 0.0, 0.0) for x, y in start]).flatten())


def _check(mask: Tensor, classes: int) -> None:
    if mask.ndim != 4 or mask.shape[1] != classes or min(mask.shape[2:]) < _SMALLEST:
        raise ValueError(
            f"mask {tuple(mask.shape)}, but the localizer takes (N, {classes}, H, W) with H and W of {_SMALLEST} or "
            f"more; enlarge it, or set its classes"
        )
