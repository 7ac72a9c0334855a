"""DeepLabV2: the published network by its numbers and by what reaches what; its files of weights; several scales."""

import hashlib

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from structseg.lightning_modules.networks import deeplab_v2
from structseg.lightning_modules.networks.deeplab_v2 import CaffeResNet101, DeepLabV2, MultiScale, _Bottleneck

LITE = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def whole():
    """The published network without the memory of its numbers."""
    with torch.device("meta"):
        return DeepLabV2(21)


@pytest.fixture
def small(monkeypatch):
    """`resnet101` with one narrow block a stage."""
    monkeypatch.setattr(deeplab_v2, "_BLOCKS", (1, 1, 1, 1))
    monkeypatch.setattr(deeplab_v2, "_WIDTHS", (4, 8, 8, 8))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


class TestPublishedNetwork:
    def test_parameters(self, whole):
        trunk = whole.backbone
        parts = [count(trunk.conv1) + count(trunk.bn1)]
        parts += [count(stage) for stage in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4)]
        assert parts == [9_536, 215_808, 1_219_584, 26_090_496, 14_964_736]
        assert count(whole.aspp) == 1_548_372
        assert count(whole) == 44_048_532
        assert len(list(whole.parameters())) == 320
        assert sum(isinstance(module, nn.Conv2d) for module in whole.modules()) == 108

    def test_batch_norm(self, whole):
        norms = [module for module in whole.modules() if isinstance(module, nn.BatchNorm2d)]
        assert sum(count(norm) for norm in norms) == 105_344
        assert sum(buffer.numel() for buffer in whole.buffers()) == 105_448
        assert len(norms) == 104
        assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-5, 0.001)}

    def test_sizes(self, small):
        deeplab = DeepLabV2(21)  # narrow: sizes do not depend on it
        network = MultiScale(deeplab)
        image = torch.rand(2, 3, 321, 321)
        assert [tuple(one.shape) for one in network.train()(image)] == [(2, 21, n, n) for n in (41, 21, 31, 41)]
        assert network.eval()(image).shape == (2, 21, 41, 41)
        assert [one.shape[-1] for one in deeplab.backbone(image)] == [161, 81, 41, 41, 41]
        assert network(torch.rand(1, 3, 320, 481)).shape == (1, 21, 41, 61)

    def test_dilations_and_strides(self, whole):
        trunk = whole.backbone
        for stage, dilation in ((trunk.layer1, 1), (trunk.layer2, 1), (trunk.layer3, 2), (trunk.layer4, 4)):
            assert {block.conv2.dilation for block in stage} == {(dilation, dilation)}
            assert {block.conv2.stride for block in stage} == {(1, 1)}
        strided = [name for name, module in trunk.named_modules() if getattr(module, "stride", None) in ((2, 2), 2)]
        assert strided == ["conv1", "maxpool", "layer2.0.conv1", "layer2.0.downsample.0"]
        assert trunk.maxpool.ceil_mode

    def test_has_the_names_and_shapes_of_torchvision(self, whole):
        with torch.device("meta"):
            other = torchvision.models.resnet101()
        theirs = {key: value.shape for key, value in other.state_dict().items() if not key.startswith("fc.")}
        assert {key: value.shape for key, value in whole.backbone.state_dict().items()} == theirs
        # ... and strides elsewhere, so theirs cannot stand in for it.
        assert other.layer2[0].conv1.stride == (1, 1)
        assert other.layer2[0].conv2.stride == (2, 2)


def reached(block, size=15):
    """Where the input matters to the output's centre, or to any of it, for a block of random positive weights."""
    for parameter in block.parameters():
        nn.init.uniform_(parameter, 0.1, 1.0)
    image = torch.rand(1, 8, size, size, requires_grad=True)
    return image, block.eval()(image)


@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_dilation_reaches_as_far_as_it_says(dilation):
    image, output = reached(_Bottleneck(8, 4, 1, dilation))
    output[0, :, 7, 7].sum().backward()
    rows, columns = image.grad[0].abs().sum(0).nonzero().T.tolist()
    steps = {7 - dilation, 7, 7 + dilation}
    assert set(rows) == steps
    assert set(columns) == steps


def test_the_stride_sits_in_the_reduction():
    # A strided 3x3 sees every pixel; a strided 1x1, on both ways, only every second one.
    image, output = reached(_Bottleneck(8, 4, 2, 1))
    output.sum().backward()
    seen = image.grad[0].abs().sum(0) > 0
    expected = torch.zeros(15, 15, dtype=torch.bool)
    expected[::2, ::2] = True
    assert torch.equal(seen, expected)


def test_a_block_by_hand():
    torch.manual_seed(0)
    block, image = _Bottleneck(8, 4, 1, 2).eval(), torch.rand(2, 8, 6, 6)
    scale = 1 / (1 + 1e-5) ** 0.5  # a new batch norm in evaluation
    inner = F.relu(scale * F.conv2d(image, block.conv1.weight))
    inner = F.relu(scale * F.conv2d(inner, block.conv2.weight, padding=2, dilation=2))
    shortcut = scale * F.conv2d(image, block.downsample[0].weight)
    expected = F.relu(scale * F.conv2d(inner, block.conv3.weight) + shortcut)
    torch.testing.assert_close(block(image), expected)
    assert _Bottleneck(16, 4, 1, 1).downsample is None


class TestHead:
    def test_is_the_sum_of_four(self, small):
        network = DeepLabV2(5).eval()
        nn.init.uniform_(network.aspp[2].bias)
        image = torch.rand(1, 3, 65, 97)
        features = network.backbone(image)[-1]
        expected = sum(
            F.conv2d(features, branch.weight, branch.bias, padding=d, dilation=d)
            for d, branch in zip((6, 12, 18, 24), network.aspp, strict=True)
        )
        torch.testing.assert_close(network(image), expected)

    def test_starts_small(self, small):
        torch.manual_seed(0)
        network = DeepLabV2(200)
        weights = torch.cat([branch.weight.flatten() for branch in network.aspp])
        assert weights.std().item() == pytest.approx(0.01, rel=0.02)
        assert abs(weights.mean().item()) < 1e-4
        assert all((branch.bias == 0).all() for branch in network.aspp)


class TestBackbones:
    def test_any_backbone_at_stride_8(self):
        network = DeepLabV2(5, LITE, "packaged").eval()
        assert network(torch.rand(1, 3, 128, 96)).shape == (1, 5, 16, 12)
        assert network.initial_weights.startswith("packaged efficientnet-lite0")
        assert (network.mean, network.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        assert MultiScale(network).initial_weights == network.initial_weights
        network.read_weights()  # nothing to read
        assert not network.caution

    def test_weights_that_it_cannot_have(self):
        with pytest.raises(ValueError, match=r"weights is 'a\.pth'; tf_efficientnet_lite0 takes packaged, pretrained"):
            DeepLabV2(5, LITE, "a.pth")
        with pytest.raises(ValueError, match=r"'packaged', but no package or hub has resnet101 .* torchvision/resnet"):
            DeepLabV2(5, weights="packaged")
        with pytest.raises(ValueError, match=r"'pretrained', but no package"):
            DeepLabV2(5, weights="pretrained")


class TestFiles:
    @pytest.fixture
    def state(self, small):
        torch.manual_seed(1)
        return CaffeResNet101().state_dict()

    @pytest.mark.parametrize("kind", ["plain", "nested", "safetensors", "old"])
    def test_are_read(self, state, tmp_path, kind):
        path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
        content = {**state, "fc.weight": torch.zeros(10, 32), "fc.bias": torch.zeros(10)}
        if kind == "old":
            content = {key: value for key, value in content.items() if "num_batches" not in key}
        if kind == "safetensors":
            save_file(content, path)
        else:
            torch.save({"state_dict": content} if kind == "nested" else content, path)
        network = DeepLabV2(3, weights=str(path))
        assert network.initial_weights == f"file {path.name}"
        network.read_weights()
        for key, value in network.backbone.state_dict().items():
            assert torch.equal(value, state[key])
        assert not network.caution

    def test_of_torchvision_are_read_with_a_caution(self, state, tmp_path, monkeypatch):
        path = tmp_path / "w.pth"
        torch.save(state, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        monkeypatch.setattr(deeplab_v2, "_TORCHVISION_FILES", frozenset({digest}))
        network = DeepLabV2(3, weights=str(path))
        network.read_weights()
        assert "w.pth is torchvision's, whose strides sit in the 3x3" in network.caution

    def test_the_known_files_of_torchvision(self):
        assert {"63fe2227", "cd907fc2"} == deeplab_v2._TORCHVISION_FILES

    def test_that_do_not_fit(self, state, tmp_path):
        path = tmp_path / "w.pth"
        state.pop("layer3.0.conv2.weight")
        torch.save({**state, "head.weight": torch.zeros(1), "conv1.weight": torch.zeros(64, 3, 3, 3)}, path)
        network = DeepLabV2(3, weights=str(path))
        before = network.backbone.conv1.weight.clone()
        with pytest.raises(
            ValueError,
            match=r"1 tensors missing, such as layer3\.0\.conv2\.weight; 1 tensors unknown, such as head\.weight; "
            r"1 tensors of other shapes, such as conv1\.weight",
        ):
            network.read_weights()
        assert torch.equal(network.backbone.conv1.weight, before)

    def test_that_are_missing_or_damaged(self, small, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no weights at .*gone\.pth; set --model\.weights"):
            DeepLabV2(3, weights=str(tmp_path / "gone.pth")).read_weights()
        for name in ("w.pth", "w.safetensors"):
            (tmp_path / name).write_bytes(b"not weights at all")
            with pytest.raises(ValueError, match=r"holds no readable weights"):
                DeepLabV2(3, weights=str(tmp_path / name)).read_weights()
        torch.save([1, 2], tmp_path / "w.pth")
        with pytest.raises(ValueError, match=r"holds no state dict of tensors"):
            DeepLabV2(3, weights=str(tmp_path / "w.pth")).read_weights()


class Halves(nn.Module):
    """The image's first two channels at half the size, sampled; counts what it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, image):
        self.seen.append(tuple(image.shape[-2:]))
        return image[:, :2, ::2, ::2] * len(self.seen)  # each scale says something else


def test_several_scales_and_their_maximum():
    image = torch.randn(1, 3, 16, 24)
    network = MultiScale(Halves())
    full, half, most, best = network.train()(image)
    assert network.network.seen == [(16, 24), (8, 12), (12, 18)]
    assert [tuple(one.shape[-2:]) for one in (full, half, most, best)] == [(8, 12), (4, 6), (6, 9), (8, 12)]
    small = F.interpolate(image, scale_factor=0.5, mode="bilinear", align_corners=False)
    assert torch.equal(half, 2 * small[:, :2, ::2, ::2])
    expected = full
    for one in (half, most):
        expected = torch.maximum(expected, F.interpolate(one, (8, 12), mode="bilinear", align_corners=False))
    assert torch.equal(best, expected)
    for one in (full, half, most):
        assert not torch.equal(best, F.interpolate(one, (8, 12), mode="bilinear", align_corners=False))
    network.network.seen.clear()
    assert torch.equal(network.eval()(image), best)


def test_without_scales_it_is_the_network_alone():
    image = torch.randn(1, 3, 16, 24)
    network = MultiScale(Halves(), ())
    (logits,) = network.train()(image)
    assert torch.equal(logits, image[:, :2, ::2, ::2])
    assert torch.equal(network.eval()(image), 2 * logits)  # Halves counts its calls


def test_another_output_stride_is_for_other_backbones():
    network = DeepLabV2(3, "tf_efficientnet_lite0", "random", output_stride=16).eval()
    assert network(torch.zeros(1, 3, 64, 96)).shape == (1, 3, 4, 6)
    with pytest.raises(ValueError, match="output_stride is 16; resnet101 has 8"):
        DeepLabV2(3, output_stride=16)
