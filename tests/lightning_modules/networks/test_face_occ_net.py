import math

import pytest
import torch
from torch import nn

from structseg.lightning_modules.networks.face_occ_net import FaceOccNet


def test_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in FaceOccNet(3).parameters()) == 4_524_323
    assert sum(p.numel() for p in FaceOccNet(3, dropout=0.2).parameters()) == 4_524_323


def test_layers_are_the_published_ones():
    network = FaceOccNet(3, dropout=0.2)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64, 128, 128, 128, 256, 256, 256, 512, 128, 128, 32, 32, 3]
    assert [m.in_channels for m in convolutions] == [3, 64, 128, 128, 128, 256, 256, 512, 128, 128, 32, 32, 32]
    assert [m.stride[0] for m in convolutions] == [1, 2, 1, 2] + 9 * [1]
    assert [m.dilation[0] for m in convolutions] == [1] * 5 + [4, 3] + [1] * 6
    assert {m.padding_mode for m in convolutions} == {"reflect"}
    assert [m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm2d)] == [
        128, 128, 128, 256, 256, 256, 512, 128, 128,
    ]  # fmt: skip
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout2d)] == [0.2]


def test_weights_start_xavier_normal_with_gain_sqrt_2():
    layer = next(m for m in FaceOccNet(3).modules() if isinstance(m, nn.Conv2d) and m.out_channels == 512)
    expected = math.sqrt(2) * math.sqrt(2 / (9 * (512 + 512)))
    assert float(layer.weight.std()) == pytest.approx(expected, rel=0.01)
    assert float(layer.bias.abs().max()) == 0


@pytest.mark.parametrize("size", [(17, 18), (20, 33), (32, 32)])
def test_logits_have_the_images_size(size):
    network = FaceOccNet(4).eval()
    image = torch.rand(2, 3, *size)
    logits = network(image)
    assert logits.shape == (2, 4, *size)
    torch.testing.assert_close(network(image[1:]), logits[1:], rtol=1e-4, atol=1e-4)


def test_too_small_an_image():
    with pytest.raises(ValueError, match="image of 16 x 40, but FaceOccNet takes 17 x 17 or more"):
        FaceOccNet(3)(torch.rand(1, 3, 16, 40))
