import time
import urllib.error

import huggingface_hub.constants as hub
import pytest
import segmentation_models_pytorch as smp
import torch

from structseg.lightning_modules.networks import pretrained as module
from structseg.lightning_modules.networks.pretrained import packaged_state_dict
from structseg.lightning_modules.networks.smp import SMPNetwork

SMALL = {"encoder_name": "tu-mobilenetv3_small_050", "encoder_weights": "random"}


@pytest.fixture(scope="module")
def small() -> SMPNetwork:
    return SMPNetwork(4, decoder_channels=(16, 8, 8, 8, 8), **SMALL).eval()


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """A hub that refuses connections at once, and an empty cache."""
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize("size", [(1, 1), (37, 65), (64, 96)])
def test_any_size_works(small, size):
    with torch.inference_mode():
        assert small(torch.rand(2, 3, *size)).shape == (2, 4, *size)


def test_pads_at_the_right_and_bottom_by_repeating_the_border(small):
    image = torch.rand(1, 3, 30, 61)
    rows, columns = [*range(30), 29, 29], [*range(61), 60, 60, 60]
    with torch.inference_mode():
        expected = small.network(image[:, :, rows][..., columns])[..., :30, :61]
        assert torch.equal(small(image), expected)


def test_packaged_weights_reach_the_encoder_and_say_so():
    network = SMPNetwork(3)
    weights = packaged_state_dict("tf_efficientnet_lite0")
    encoder = network.network.encoder.model.state_dict()
    assert len(encoder) == 288
    assert all(torch.equal(tensor, weights[name]) for name, tensor in encoder.items())
    assert network.initial_weights == "packaged efficientnet-lite0 (ImageNet, Apache-2.0, sha256 57934424…)"
    assert network.mean == network.std == (0.5, 0.5, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["FPN", "PSPNet", "DeepLabV3Plus", "Linknet", "UPerNet", "Segformer"])
def test_packaged_weights_in_other_architectures(architecture):
    network = SMPNetwork(3, architecture, "tu-tf_efficientnet_lite1").eval()
    assert network.initial_weights.startswith("packaged efficientnet-lite1")
    stem = network.network.encoder.model.conv_stem.weight
    assert torch.equal(stem, packaged_state_dict("tf_efficientnet_lite1")["conv_stem.weight"])
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 70, 90)).shape == (1, 3, 70, 90)


def test_random_weights_ask_for_no_normalisation(small):
    assert (small.initial_weights, small.mean, small.std) == ("random", None, None)


def test_shorter_decoder_makes_a_shallower_encoder():
    network = SMPNetwork(3, decoder_channels=(16, 8, 8), **SMALL)
    assert network.network.encoder.output_stride == 8
    assert network.network.segmentation_head[0].in_channels == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "Unett"}, r"no architecture 'Unett'; nearest: Unet,"),
        ({"architecture": "deeplab"}, r"nearest: DeepLabV3"),
        ({"encoder_name": "tu-resnett18"}, r"no encoder_name 'tu-resnett18'; nearest: tu-resnet18,"),
        ({"encoder_name": "resnet-50"}, r"nearest: resnet50"),
        (
            {"encoder_name": "efficientnet-b0"},
            r"no packaged weights for efficientnet-b0; set encoder_weights to imagenet .* or random, or take one of tf_",
        ),
        ({"encoder_name": "timm-tf_efficientnet_lite0"}, r"pads symmetrically.*tu-tf_efficientnet_lite0"),
        (
            {"encoder_name": "resnet18", "encoder_weights": "imgnet"},
            r"give imagenet .the hub has: imagenet, ssl, swsl. or random",
        ),
        (
            {"encoder_name": "tu-resnet18", "encoder_weights": "x"},
            r"unknown for tu-resnet18; give imagenet .the hub has: a1_in1k.* or random",
        ),
        ({"architecture": "FPN", "decoder_channels": 64}, r"FPN has no decoder_channels"),
        ({"decoder_channels": 64}, r"decoder_channels is 64, but Unet takes the form of its default, \(256"),
        ({"architecture": "PAN", "decoder_channels": (8, 8, 8)}, r"but PAN takes the form of its default, 32"),
        ({"decoder_channels": (64,)}, r"has 1 steps; Unet takes 3 to 5"),
    ],
)
def test_wrong_names_and_options_say_what_is_right(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        SMPNetwork(3, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_unreachable_hub_fails_fast_in_one_line(no_hub, encoder):
    start = time.perf_counter()
    with pytest.raises(
        FileNotFoundError, match=r"weights '\w+' of .*resnet18 .*encoder_weights: packaged.*HF_HOME"
    ) as e:
        SMPNetwork(3, encoder_name=encoder, encoder_weights="imagenet")
    assert time.perf_counter() - start < 10  # the hub's client alone takes 25 to 50 seconds
    assert "\n" not in str(e.value)
    assert hub.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("encoder", "weights", "asked", "label"),
    [
        ("resnet18", "ssl", ("resnet18", "ssl"), "ssl (hub)"),
        ("tu-resnet18", "imagenet", ("tu-resnet18.a1_in1k", True), "a1_in1k (hub)"),
        ("tu-resnet18", "a2_in1k", ("tu-resnet18.a2_in1k", True), "a2_in1k (hub)"),
        ("tu-resnet18.a3_in1k", "imagenet", ("tu-resnet18.a3_in1k", True), "a3_in1k (hub)"),
    ],
)
def test_hub_weights_are_asked_for_by_name(monkeypatch, encoder, weights, asked, label):
    seen = []

    def create_model(architecture, name, choice, classes):
        seen.append((name, choice))
        return torch.nn.Identity()

    settings = {"input_range": [0, 1], "input_space": "RGB", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    monkeypatch.setattr(smp, "create_model", create_model)
    monkeypatch.setattr(smp.encoders, "get_preprocessing_params", lambda name, weights: settings)
    monkeypatch.setattr(module, "reachable", lambda endpoint: True)
    network = SMPNetwork(3, encoder_name=encoder, encoder_weights=weights)
    assert seen == [asked]
    assert (network.initial_weights, network.mean, network.std) == (label, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))

    settings["input_range"] = [0, 255]
    with pytest.raises(ValueError, match=r"want RGB images in \[0, 255\]"):
        SMPNetwork(3, encoder_name=encoder, encoder_weights=weights)


def test_a_refusing_server_counts_as_reachable(monkeypatch):
    def refuse(request, timeout):
        raise urllib.error.HTTPError(request.full_url, 403, "forbidden", None, None)

    monkeypatch.setattr(module.urllib.request, "urlopen", refuse)
    assert module.reachable("http://127.0.0.1:9")


@pytest.mark.parametrize("given", [None, "None", "null", "random"])
def test_null_is_random_and_said(given):
    network = SMPNetwork(3, encoder_name="resnet18", encoder_weights=given)
    assert (network.initial_weights, network.mean) == ("random", None)
