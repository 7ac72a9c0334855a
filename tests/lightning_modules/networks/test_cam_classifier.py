"""The classifier behind the activation maps: its head, its context and its controls, and C2AM."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from structseg.lightning_modules.networks.backbones import Backbone
from structseg.lightning_modules.networks.cam_classifier import CAMClassifier

KINDS = ["sum", "mean", "constant"]


def _made(context="none", position=3, **options):
    torch.manual_seed(0)
    network = CAMClassifier(Backbone("test_resnet", 16, "random"), 3, context, position, context_size=(4, 4), **options)
    if network.context is not None:
        network.context.confounders.copy_(torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1)))
    return network.eval()


def _batch():
    generator = torch.Generator().manual_seed(2)
    return torch.rand(2, 3, 64, 48, generator=generator), torch.rand(2, 4, 4, 4, generator=generator).softmax(1)


def test_logits_are_the_mean_activation_and_the_head_has_no_bias():
    network, (image, _) = _made(), _batch()
    features = network.backbone(image)[-1]
    expected = features.mean((2, 3)) @ network.head.weight[:, :, 0, 0].T
    torch.testing.assert_close(network(image), expected)
    assert network.activation(image).shape == (2, 3, 4, 3)


@pytest.mark.parametrize("position", [1, 2, 3])
@pytest.mark.parametrize("context", KINDS)
def test_without_a_column_every_context_is_as_none(context, position):
    image, probabilities = _batch()
    plain, other = _made(), _made(context, position)
    assert not torch.equal(other(image, probabilities), plain(image))
    with torch.no_grad():
        other.fusion.v.zero_()
    assert torch.equal(other(image, probabilities), plain(image))
    assert torch.equal(other.activation(image, probabilities), plain.activation(image))


@pytest.mark.parametrize("position", [1, 2, 3])
def test_the_map_joins_at_its_stage(position):
    image, probabilities = _batch()
    network = _made("sum", position)
    channels = network.backbone.channels[position]
    assert network.fusion.convolution.weight.shape == (channels, channels, 1, 1)
    m = network.context(probabilities)

    def expected(stage, features):
        return network.fusion(features, m) if stage == position else features

    with torch.no_grad():
        found = network.activation(image, probabilities)
        torch.testing.assert_close(found, network.head(network.backbone(image, expected)[-1]))


@pytest.mark.parametrize("position", [1, 2, 3])
def test_the_effect_of_a_map_differs_between_images(position):
    """After the last stage it did not: the map moved a class's logit by one number, whatever the image."""
    network = _made("sum", position)
    network.start_context(*_batch())
    image, probabilities = _batch()
    with torch.no_grad():
        one, other = (network(image, probabilities[k : k + 1].expand(2, -1, -1, -1)) for k in (0, 1))
    effect = other - one  # of the same change of map, on two images
    assert (effect[0] - effect[1]).abs().max() > 0.05 * effect.abs().max() > 0


def test_the_start_is_measured_on_training_images():
    network, (image, probabilities) = _made("sum"), _batch()
    network.train()
    network.start_context(image, probabilities)
    assert network.training
    network.eval()
    m = network.context(probabilities)
    torch.testing.assert_close(
        torch.stack([m.mean(), m.std(correction=0)]), torch.tensor([0.0, 1.0]), atol=1e-4, rtol=0
    )
    features = network.backbone(image)[3]
    torch.testing.assert_close(network.fusion.scale, features.std((0, 2, 3), correction=0))
    plain = _made()
    plain.start_context(image, probabilities)  # nothing to start


def test_controls_have_the_parameters_of_sum():
    def count(context):
        return sum(parameter.numel() for parameter in _made(context).parameters())

    channels = 4 * 4 * 3 * 2
    fused = _made("sum").backbone.channels[3]
    assert count("sum") == count("mean") == count("constant") == count("none") + channels + fused * (fused + 1)


def test_without_probabilities_the_mean_of_the_confounders_is_taken():
    network, (image, probabilities) = _made("sum"), _batch()
    network.start_context(image, probabilities)
    blank = torch.zeros_like(probabilities)
    blank[:, 0] = 1
    assert torch.equal(network(image), network(image, blank))
    assert not torch.equal(network(image), network(image, probabilities))


def test_a_mirrored_view_sees_the_mirrored_context():
    network, (image, probabilities) = _made("sum"), _batch()
    seen = []
    network.fusion.register_forward_hook(lambda module, inputs, output: seen.append(output - inputs[0]))  # the identity
    with torch.no_grad():
        network(image, probabilities)
        network(image.flip(-1), probabilities, torch.tensor([[-1.0, 0, 0], [0, 1, 0]]).expand(2, 2, 3))
    torch.testing.assert_close(seen[1], seen[0].flip(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("context", KINDS)
def test_ddp_finds_a_gradient_for_every_parameter(context, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(_made(context, 3).train())
        for _ in range(2):
            wrapped(*_batch()).sum().backward()
    finally:
        dist.destroy_process_group()


def test_w1_and_w2_learn_from_the_start():
    network, (image, probabilities) = _made("sum"), _batch()
    network.start_context(image, probabilities)
    probabilities.requires_grad_(True)
    network(image, probabilities)[0, 0].backward()
    assert network.context.w1.grad.abs().sum() > 0
    assert network.context.w2.grad.abs().sum() > 0
    assert probabilities.grad is None


def test_c2am_multiplies_by_the_global_map_before_the_mean():
    image, _ = _batch()
    network = _made(c2am=True)
    plain = _made()(image)
    torch.testing.assert_close(network(image), plain)  # ones until the map is known
    network.global_cams.zero_()
    network.global_cams[0, :64] = 0.5  # mean 0.25
    network.global_cams[1] = 0.1
    torch.testing.assert_close(network(image), plain * torch.tensor([0.25, 0.1, 0.0]))
    assert torch.equal(network.activation(image), _made().activation(image))
    assert "global_cams" in network.state_dict()
    assert "global_cams" not in _made().state_dict()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"context_position": 0}, "context_position is 0, expected a stage of the backbone, 1 to 3"),
        ({"context_position": 4}, "context_position is 4, after which only a linear head and a mean follow"),
        ({"context_position": 5}, "context_position is 5"),
        ({"context": "placebo"}, "kind is 'placebo', expected sum, mean or constant"),
    ],
)
def test_wrong_settings(given, message):
    with pytest.raises(ValueError, match=message):
        CAMClassifier(Backbone("test_resnet", 16, "random"), 3, **given)
