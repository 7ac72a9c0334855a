"""Backbones: five stages of any network, at a chosen stride, with a way into each stage."""

import copy
import urllib.error

import huggingface_hub.constants as hub
import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from torch import nn

import structseg.lightning_modules.networks.pretrained as module
from structseg.lightning_modules.networks.backbones import Backbone
from structseg.lightning_modules.networks.pretrained import load_packaged

SIZE = (45, 70)


def _sides(stride):
    return tuple(-(-side // stride) for side in SIZE)


@pytest.mark.parametrize(
    "name", ["test_resnet", "tf_efficientnet_lite0", "torchvision/resnet18", "torchvision/mobilenet_v2"]
)
@pytest.mark.parametrize(("output_stride", "last"), [(8, (8, 8, 8)), (16, (8, 16, 16)), (32, (8, 16, 32))])
def test_five_stages_at_the_output_stride(name, output_stride, last):
    backbone = Backbone(name, output_stride, "random").eval()
    with torch.no_grad():
        maps = backbone(torch.rand(2, 3, *SIZE))
    assert backbone.strides == (2, 4, *last)
    assert [tuple(features.shape[-2:]) for features in maps] == [_sides(stride) for stride in backbone.strides]
    assert tuple(features.shape[1] for features in maps) == backbone.channels


def test_a_network_without_a_stage_of_stride_2_shows_its_stem():
    backbone = Backbone("test_convnext", 16, "random").eval()
    assert backbone.strides == (4, 4, 8, 16, 16)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "torchvision/mobilenet_v2"])
@pytest.mark.parametrize(("output_stride", "step"), [(16, 2), (8, 4)])
def test_dilation_keeps_the_values_at_the_positions_that_are_left(name, output_stride, step):
    """A trous: every second (fourth) value of the dilated network is that of the strided one, the borders too."""
    torch.manual_seed(0)
    strided = Backbone(name, 32, "random").eval()
    dilated = Backbone(name, output_stride, "random").eval()
    dilated.load_state_dict(strided.state_dict())
    image = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        expected, found = strided(image)[-1], dilated(image)[-1]
    torch.testing.assert_close(found[..., ::step, ::step], expected, atol=1e-5, rtol=1e-4)
    assert expected.std() > 0


@pytest.mark.slow
def test_torchvisions_dilation_is_met():
    torch.manual_seed(0)
    reference = torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True]).eval()
    backbone = Backbone("torchvision/resnet50", 16, "random").eval()
    state = reference.state_dict()
    backbone.network.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc")})
    trunk = nn.Sequential(*[child for name, child in reference.named_children() if name not in ("avgpool", "fc")])
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image)[-1], trunk(image))


@pytest.mark.parametrize("name", ["test_resnet", "tf_efficientnet_lite0", "torchvision/mobilenet_v2"])
def test_what_is_injected_is_what_the_next_stage_sees(name):
    backbone = Backbone(name, 16, "random").eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        plain = backbone(image)
        for at in range(5):
            seen = []

            def inject(stage, features, at=at, seen=seen):
                seen.append(stage)
                return torch.zeros_like(features) if stage == at else features

            changed = backbone(image, inject)
            assert seen == [0, 1, 2, 3, 4]
            assert not changed[at].any()
            assert all(torch.equal(changed[i], plain[i]) for i in range(at))
            assert all(not torch.equal(changed[i], plain[i]) for i in range(at + 1, 5))
        assert all(torch.equal(a, b) for a, b in zip(backbone(image), plain, strict=True))  # nothing stays behind


def test_nothing_stays_behind_after_an_error_and_a_copy_is_its_own():
    backbone = Backbone("test_resnet", 16, "random").eval()

    def fail(stage, features):
        raise RuntimeError("no")

    image = torch.rand(1, 3, 64, 64)
    with pytest.raises(RuntimeError, match="no"):
        backbone(image, fail)
    assert not any(hooked._forward_hooks for hooked in backbone.modules())
    twin = copy.deepcopy(backbone)
    with torch.no_grad():
        next(twin.parameters()).zero_()
        assert not torch.equal(twin(image)[-1], backbone(image)[-1])


def test_ddp_takes_it(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(Backbone("test_resnet", 16, "random"))
        for _ in range(2):  # a parameter without a gradient would stop the second pass
            wrapped(torch.rand(2, 3, 64, 64), lambda stage, features: 2 * features)[-1].sum().backward()
    finally:
        dist.destroy_process_group()


def test_packaged_weights_are_those_of_the_package_and_dilate_with_same_padding():
    backbone = Backbone("tf_efficientnet_lite0", 16, "packaged").eval()
    reference = timm.create_model("tf_efficientnet_lite0", features_only=True)
    load_packaged(reference, "tf_efficientnet_lite0")
    image = torch.randn(1, 3, 97, 64)
    with torch.no_grad():
        found, expected = backbone(image), reference.eval()(image)
    for stage in range(4):  # up to stride 16 nothing is dilated
        torch.testing.assert_close(found[stage], expected[stage])
    assert found[4].shape[-2:] == (7, 4)
    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)
    assert backbone.initial_weights.startswith("packaged efficientnet-lite0")


def test_the_probe_leaves_no_trace():
    backbone = Backbone("torchvision/resnet18", 16, "random")
    assert backbone.training
    assert int(backbone.network.bn1.num_batches_tracked) == 0
    assert backbone.initial_weights == "random"
    assert backbone.mean is None


@pytest.mark.parametrize(
    ("name", "output_stride", "weights", "message"),
    [
        ("resnet5", 16, "random", "timm .* has no network 'resnet5'; nearest: resnet"),
        ("torchvision/resnet5", 16, "random", "torchvision .* has no network 'resnet5'; nearest: resnet50"),
        ("resnet18", 4, "random", "output_stride is 4, expected 8, 16 or 32"),
        ("resnet18", 16, "imagenet", "weights is 'imagenet', expected packaged"),
        ("test_resnet", 16, "packaged", "no packaged weights for test_resnet"),
        ("torchvision/resnet18", 16, "packaged", "no packaged weights for torchvision/resnet18"),
        ("test_vit", 16, "random", "gives no stages at output stride 16 .*use output_stride: 32"),
        ("test_vit", 32, "random", "stages, expected 5"),
        ("torchvision/shufflenet_v2_x0_5", 16, "random", "no sequential trunk"),
        ("torchvision/densenet121", 16, "random", "have strides .* not up to 16"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name, output_stride, weights, message):
    with pytest.raises(ValueError, match=message) as caught:
        Backbone(name, output_stride, weights)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["test_resnet", "torchvision/resnet18"])
def test_weights_that_cannot_be_had_are_one_line(name, monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(module, "reachable", lambda endpoint: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    before = hub.HF_HUB_OFFLINE
    with pytest.raises(FileNotFoundError, match=f"weights of {name} are neither .* weights: packaged") as caught:
        Backbone(name)
    assert "\n" not in str(caught.value)
    assert before == hub.HF_HUB_OFFLINE


def test_pretrained_weights_bring_their_normalisation(monkeypatch):
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **kwargs: state)
    backbone = Backbone("torchvision/resnet18", 16, "pretrained")
    assert torch.equal(backbone.network.conv1.weight, state["conv1.weight"])
    assert backbone.mean == (0.485, 0.456, 0.406)
    assert backbone.std == (0.229, 0.224, 0.225)
    assert backbone.initial_weights == "torchvision resnet18 IMAGENET1K_V1 (download)"


def test_gradients_reach_every_parameter():
    backbone = Backbone("torchvision/mobilenet_v3_small", 16, "random")
    F.relu(backbone(torch.rand(2, 3, 64, 64))[-1]).sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
