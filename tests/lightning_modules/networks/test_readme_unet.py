import pytest
import torch
from torch.nn import functional as F

from structseg.lightning_modules.networks.readme_unet import ReadmeUNet


def _step_parameters(network: ReadmeUNet) -> dict[str, tuple[int, int]]:
    """Parameters of the first layer of each step, and of the rest of it."""
    sizes = {}
    for name, step in network.named_children():
        layers = [step] if isinstance(step, torch.nn.ConvTranspose2d) else list(step)
        first = sum(p.numel() for p in layers[0].parameters())
        sizes[name] = (first, sum(p.numel() for layer in layers[1:] for p in layer.parameters()))
    return sizes


def test_has_the_published_sizes_step_by_step():
    network = ReadmeUNet(6)
    assert _step_parameters(network) == {
        "down1": (1_776, 24),
        "down2": (14_448, 96),
        "down3": (83_136, 384),
        "down4": (1_327_872, 1_536),
        "up1": (590_016, 384),
        "up2": (73_776, 96),
        "up3": (4_620, 24),
        "up4": (582, 0),
    }
    assert sum(p.numel() for p in network.parameters()) == 2_098_770
    assert sum(b.numel() for b in network.buffers()) == 2_551


@pytest.mark.parametrize("height_width", [(16, 16), (32, 48)])
def test_output_has_the_size_of_the_image(height_width):
    network = ReadmeUNet(4, in_channels=2).eval()
    assert network(torch.rand(2, 2, *height_width)).shape == (2, 4, *height_width)


def test_steps_are_the_published_ones():
    network = ReadmeUNet(6).eval()
    image = torch.randn(1, 3, 16, 16)
    convolution, norm = network.down1[:2]
    norm.running_mean.normal_()
    statistics = norm.running_mean, norm.running_var, norm.weight, norm.bias
    with torch.no_grad():
        full = F.batch_norm(F.conv2d(image, convolution.weight, convolution.bias, padding=3), *statistics, eps=1e-5)
        torch.testing.assert_close(network.down1(image), F.relu(F.max_pool2d(full, 2)))
    deep = torch.randn(1, 768, 2, 2)
    convolution, norm = network.up1[:2]
    statistics = norm.running_mean, norm.running_var, norm.weight, norm.bias
    with torch.no_grad():
        full = F.conv_transpose2d(deep, convolution.weight, convolution.bias, stride=2)
        expected = F.leaky_relu(F.batch_norm(full, *statistics, eps=1e-5), 0.01)
        torch.testing.assert_close(network.up1(deep), expected)


def test_joins_put_the_way_up_first():
    # With the way up silenced before the last join, only the input weights of the kept channels (12 to 23) matter.
    network = ReadmeUNet(3).eval()
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        network.up3[1].weight.zero_()
        network.up3[1].bias.zero_()
        before = network(image)
        network.up4.weight[:12] += 1
        assert torch.equal(network(image), before)
        network.up4.weight[12:] += 1
        assert not torch.allclose(network(image), before)


def test_each_output_block_comes_from_one_place_of_the_half_size_map():
    # No join at full size and no convolution after one: the last layer maps one position to 2 x 2 pixels.
    network = ReadmeUNet(1).eval()
    half = torch.zeros(1, 24, 8, 8)
    half[:, :, 3, 5] = 1
    changed = (network.up4(half) != network.up4(torch.zeros_like(half)))[0, 0].nonzero()
    assert {tuple(place) for place in changed.tolist()} <= {(6, 10), (6, 11), (7, 10), (7, 11)}


def test_dropout_takes_single_values_of_the_second_and_fourth_step_only():
    network = ReadmeUNet(6, dropout=0.5).train()
    assert [any(isinstance(m, torch.nn.Dropout) for m in step.modules()) for step in network.children()] == [
        False, True, False, True, False, False, False, False,
    ]  # fmt: skip
    kept = network.down2[-1](torch.ones(1, 48, 16, 16))
    share = (kept[0] > 0).float().mean(dim=(1, 2))
    assert ((share > 0.2) & (share < 0.8)).all()  # whole channels would give shares of 0 and 1


def test_refuses_other_sizes_and_names_the_nearest_that_fits():
    with pytest.raises(ValueError, match=r"250 x 33 .* multiples of 16; .* 256 x 32$"):
        ReadmeUNet(6)(torch.zeros(1, 3, 250, 33))
    with pytest.raises(ValueError, match=r"3 x 0 .* 16 x 16$"):
        ReadmeUNet(6)(torch.zeros(1, 3, 3, 0))


def test_starts_at_random_and_asks_for_no_normalisation():
    network = ReadmeUNet(6)
    assert (network.initial_weights, network.mean, network.std) == ("random", None, None)
