"""Class activation maps against a plain loop over scales and mirror images."""

import pytest
import torch
import torch.nn.functional as F

from structseg.lightning_modules.conta.class_activation import class_activation_maps
from structseg.lightning_modules.networks.backbones import Backbone
from structseg.lightning_modules.networks.cam_classifier import CAMClassifier

SCALES = (1.0, 0.5, 1.5, 2.0)
MIRROR = torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])


def _made(context="none"):
    torch.manual_seed(0)
    network = CAMClassifier(Backbone("test_resnet", 16, "random"), 3, context, context_size=(4, 4)).eval()
    if network.context is not None:
        network.context.confounders.copy_(torch.rand(3, 4, 4))
        torch.nn.init.normal_(network.fusion.convolution.weight[:, -1:])
    return network


def _batch():
    return torch.randn(2, 3, 50, 39), torch.rand(2, 4, 4, 4).softmax(1)


@torch.no_grad()
def _plain(network, image, context, scales, flip):
    """One image, one scale and one direction at a time."""
    out = []
    for i in range(len(image)):
        total = torch.zeros(3, 13, 10)
        known = None if context is None else context[i : i + 1]
        for scale in scales:
            size = (round(50 * scale), round(39 * scale))
            one = image[i : i + 1]
            if scale != 1:
                one = F.interpolate(one, size, mode="bicubic", antialias=True, align_corners=False)
            both = network.activation(one, known).relu()
            if flip:
                both = both + network.activation(one.flip(-1), known, MIRROR).relu().flip(-1)
            total += F.interpolate(both, (13, 10), mode="bilinear", align_corners=False)[0]
        out.append(torch.stack([plane / plane.max() if plane.max() > 0 else plane for plane in total]))
    return torch.stack(out)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("kind", ["none", "sum"])
def test_as_a_plain_loop(kind, flip):
    network, (image, context) = _made(kind), _batch()
    context = None if kind == "none" else context
    found = class_activation_maps(network, image, context, SCALES, flip)
    torch.testing.assert_close(found, _plain(network, image, context, SCALES, flip), atol=1e-5, rtol=1e-4)
    assert found.shape == (2, 3, 13, 10)
    assert found.amax((2, 3)).unique().tolist() in ([1.0], [0.0, 1.0])


def test_an_image_does_not_depend_on_its_batch():
    network, (image, context) = _made("sum"), _batch()
    alone = class_activation_maps(network, image[1:], context[1:], SCALES)
    torch.testing.assert_close(class_activation_maps(network, image, context, SCALES)[1:], alone, atol=1e-5, rtol=1e-4)


def test_the_mirror_image_has_the_mirrored_maps():
    network, (image, _) = _made(), _batch()
    plain = class_activation_maps(network, image, None, SCALES)
    mirrored = class_activation_maps(network, image.flip(-1), None, SCALES)
    torch.testing.assert_close(mirrored.flip(-1), plain, atol=1e-5, rtol=1e-4)


def test_the_smallest_size_and_any_other():
    network, (image, _) = _made(), _batch()
    assert class_activation_maps(network, image, None, (1.0,), size=(5, 7)).shape == (2, 3, 5, 7)
    assert class_activation_maps(network, image[..., :1, :1], None, SCALES).shape == (2, 3, 1, 1)


def test_a_class_without_activation_stays_zero_and_nan_stays_nan():
    network, (image, _) = _made(), _batch()
    with torch.no_grad():
        network.head.weight[1] = 0
        found = class_activation_maps(network, image, None, SCALES)
        assert not found[:, 1].any()
        assert found.isfinite().all()
        network.head.weight[2] = torch.nan
        assert class_activation_maps(network, image, None, SCALES)[:, 2].isnan().all()
