import pytest
import torch
from torch import nn

from structseg.lightning_modules.networks.localizer import MEAN_FACE, Localizer, ResNetLocalizer

BOTH = (Localizer, ResNetLocalizer)


def _parameters(network):
    return sum(p.numel() for p in network.parameters())


def test_parameters_are_those_counted_by_hand():
    # Eight convolutions without bias, the norms' scales and shifts, and 7 * 7 * 128 features to 24 values.
    kernels = 9 * (9 * 16 + 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128)
    assert _parameters(Localizer()) == kernels + 2 * 2 * (16 + 32 + 64 + 128) + 24 * (7 * 7 * 128 + 1)
    # torchvision's and timm's ResNet-18 has 11,689,512 with 3 channels and 1,000 classes.
    assert _parameters(ResNetLocalizer()) == 11_689_512 + 64 * 49 * 6 - 513 * 1000 + 513 * 24


def test_the_layers_are_the_papers_nine():
    layers = [m for m in Localizer().modules() if not list(m.children())]
    block = 2 * [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] + [nn.AvgPool2d]
    assert [type(m) for m in layers] == 4 * block + [nn.Linear]
    assert {(m.kernel_size, m.padding, m.stride) for m in layers if isinstance(m, nn.Conv2d)} == {
        ((3, 3), (1, 1), (1, 1))
    }
    assert {(m.kernel_size, m.stride, m.padding) for m in layers if isinstance(m, nn.AvgPool2d)} == {(3, 2, 0)}


@pytest.mark.parametrize("network", BOTH)
@pytest.mark.parametrize("size", [(128, 128), (64, 64), (31, 50)])
def test_starts_on_the_mean_face_whatever_the_mask(network, size):
    answer = network()(torch.rand(2, 9, *size))
    assert answer.shape == (2, 6, 4)
    expected = torch.tensor([(x, y, 0.0, 0.0) for x, y in MEAN_FACE])
    assert torch.equal(answer, expected.expand(2, 6, 4))


def test_the_mean_face_is_a_face():
    x, y = torch.tensor(MEAN_FACE).T
    assert (x[[0, 2]] > 0).all(), "the left side is the person's own, on the picture's right"
    assert torch.equal(x[[0, 2]], -x[[1, 3]])
    assert y[0] == y[1] < y[2] == y[3] < y[4] < y[5]


@pytest.mark.parametrize("network", BOTH)
def test_other_parts_and_classes(network):
    answer = network(classes=2, parts=2, start=((0.5, -0.5), (0.25, 0.0)))(torch.rand(2, 2, 64, 64))
    assert torch.equal(answer[1], torch.tensor([[0.5, -0.5, 0.0, 0.0], [0.25, 0.0, 0.0, 0.0]]))


def test_at_128_the_last_layer_sees_the_flattened_features():
    network = Localizer().eval()
    nn.init.normal_(network.last.weight)
    mask = torch.rand(2, 9, 128, 128)
    features = network.features(mask)
    assert features.shape == (2, 128, 7, 7)
    torch.testing.assert_close(network(mask).flatten(1), network.last(features.flatten(1)))


@pytest.mark.parametrize("network", BOTH)
def test_gradients_reach_every_parameter_and_the_mask(network):
    localizer = network()
    for last in (m for m in localizer.modules() if isinstance(m, nn.Linear)):
        nn.init.normal_(last.weight)
    mask = torch.rand(2, 9, 64, 64, requires_grad=True)
    localizer(mask).square().sum().backward()
    still = [name for name, p in localizer.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []
    assert mask.grad.abs().max() > 0


def test_learns_where_a_blob_lies():
    torch.manual_seed(0)
    network = Localizer(classes=1, parts=1, start=((0.0, 0.0),), channels=(4, 4, 8, 8))
    axis = torch.linspace(-1, 1, 47)
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(40):
        centers = torch.rand(16, 2) - 0.5
        mask = (-20 * ((x - centers[:, :1, None]) ** 2 + (y - centers[:, 1:, None]) ** 2)).exp()[:, None]
        loss = (network(mask)[:, 0, :2] - centers).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02, "a quarter of the centres' own variance, 1/12"


@pytest.mark.parametrize("network", BOTH)
@pytest.mark.parametrize("shape", [(1, 8, 64, 64), (1, 9, 30, 64), (1, 9, 64, 30), (9, 64, 64)])
def test_masks_that_do_not_fit(network, shape):
    with pytest.raises(ValueError, match=r"mask \(.*\), but the localizer takes \(N, 9, H, W\) with H and W of 31"):
        network()(torch.zeros(shape))


@pytest.mark.parametrize("network", BOTH)
def test_a_start_for_other_parts(network):
    with pytest.raises(ValueError, match="start has 6 centres for 5 parts"):
        network(parts=5)
