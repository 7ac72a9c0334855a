"""A network whose channels are not the classes is refused by what it gives, before any loss blames the labels."""

import pytest
import torch
from torch import nn

from structseg.datamodules.label_spaces import FASSEG
from structseg.lightning_modules.fasseg_unet import FASSEGUNet


class Fixed(nn.Module):
    def __init__(self, num_classes, given=4):
        super().__init__()
        self.layer = nn.Conv2d(3, given, 1)

    def forward(self, image):
        return self.layer(image)


@pytest.mark.parametrize("given", [4, 7])
def test_channels_and_classes(given):
    module = FASSEGUNet(FASSEG, network=lambda classes: Fixed(classes, given))
    with pytest.raises(
        ValueError, match=rf"the network gives {given} channels, the label space fasseg has 6 classes; give"
    ):
        module(torch.rand(1, 3, 4, 4))
    with pytest.raises(ValueError, match=f"the network gives {given} channels"):
        module._step(
            {"image": torch.rand(1, 3, 4, 4), "mask": torch.zeros(1, 4, 4, dtype=torch.int64), "name": ["a"]}, "val"
        )
