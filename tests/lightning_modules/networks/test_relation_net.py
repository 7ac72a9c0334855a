"""RelationNet: parameters counted by hand, sizes, a backbone that stands still, the mean displacement."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from structseg.lightning_modules.networks.backbones import Backbone
from structseg.lightning_modules.networks.relation_net import RelationNet, _enlarged

TINY = "test_resnet"  # timm's, of 0.5 million parameters


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return RelationNet(Backbone(TINY, 16, "random"))


def test_parameters_with_resnet50_are_those_counted_by_hand():
    with torch.device("meta"):
        network = RelationNet(Backbone("resnet50", 16, "random"))
    stages = (64, 256, 512, 1024, 2048)
    edge = sum(32 * c + 2 * 32 for c in stages) + (5 * 32 + 1)  # convolution without bias, norm; head with bias
    assert edge == 125_409
    widths = (64, 128, 256, 256, 256)
    displacement = sum(c * w + 2 * w for c, w in zip(stages, widths, strict=True))
    displacement += 768 * 256 + 2 * 256 + 448 * 256 + 2 * 256 + 256 * 2  # merged at 8, merged at 4, without bias
    assert displacement == 1_269_120
    found = [sum(p.numel() for p in branch) for branch in network.branches()]
    assert found == [edge, displacement]
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 1_394_529
    groups = [module.num_groups for module in network.modules() if isinstance(module, nn.GroupNorm)]
    assert groups == [4] * 5 + [8, 16, 16, 16, 16] + [16, 16]


@pytest.mark.parametrize("size", [(64, 96), (77, 83), (33, 34), (1, 5)])
def test_maps_are_a_quarter_rounded_up(net, size):
    edges, displacement = net.eval()(torch.rand(2, 3, *size))
    expected = (-(-size[0] // 4), -(-size[1] // 4))
    assert edges.shape == (2, 1, *expected)
    assert displacement.shape == (2, 2, *expected)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_any_output_stride_and_padding(stride):
    network = RelationNet(Backbone("tf_efficientnet_lite0", stride, "random")).eval()
    edges, displacement = network(torch.rand(1, 3, 70, 90))
    assert edges.shape[-2:] == displacement.shape[-2:] == (18, 23)


def test_edges_of_each_stage_by_hand(net):
    image = torch.rand(1, 3, 48, 64)
    net.eval()
    maps = net.backbone(image)
    maps[0] = F.max_pool2d(maps[0], 3, 2, 1)
    logits = net.edge_head.bias.view(1, 1, 1, 1).expand(1, 1, 12, 16).clone()
    for at, (stage, features) in enumerate(zip(net.edge_stages, maps, strict=True)):
        convolution, norm = stage
        reduced = F.group_norm(F.conv2d(features, convolution.weight), 4, norm.weight, norm.bias)
        if at > 1:
            reduced = F.interpolate(reduced, (12, 16), mode="bilinear")
        logits += F.conv2d(reduced.relu(), net.edge_head.weight[:, 32 * at : 32 * at + 32])
    torch.testing.assert_close(net(image)[0], logits)


def test_an_odd_size_is_cut_and_not_stretched():
    eighth = torch.arange(3.0).view(1, 1, 1, 3)
    found = _enlarged(eighth, 2, torch.zeros(1, 1, 1, 5))
    assert found.flatten().tolist() == [0.0, 0.25, 0.75, 1.25, 1.75]


def test_the_backbone_stands_still(net):
    net.train()
    assert net.training
    assert net.edge_head.training
    assert not any(module.training for module in net.backbone.modules())
    before = {key: value.clone() for key, value in net.backbone.state_dict().items()}
    edges, displacement = net(torch.rand(2, 3, 64, 64))
    (edges.sum() + displacement.sum()).backward()
    assert all(p.grad is None for p in net.backbone.parameters())
    assert all(p.grad is not None for branch in net.branches() for p in branch)
    assert all(torch.equal(value, before[key]) for key, value in net.backbone.state_dict().items())
    net.zero_grad()


def test_branches_do_not_share_a_parameter(net):
    edge, displacement = net.branches()
    edges, _ = net(torch.rand(1, 3, 32, 32))
    gradients = torch.autograd.grad(edges.sum(), displacement, allow_unused=True)
    assert all(gradient is None for gradient in gradients)
    learning = {id(p) for p in net.parameters() if p.requires_grad}
    assert learning == {id(p) for p in edge + displacement}
    assert len(learning) == len(edge) + len(displacement)


def test_the_mean_displacement_is_taken_off_in_evaluation_only(net):
    image = torch.rand(1, 3, 32, 40)
    net.mean_shift.copy_(torch.tensor([1.5, -2.0]))
    with torch.no_grad():
        edges, raw = net.train()(image)
        same, shifted = net.eval()(image)
    net.mean_shift.zero_()
    torch.testing.assert_close(same, edges)
    torch.testing.assert_close(raw[:, 0] - shifted[:, 0], torch.full((1, 8, 10), 1.5), atol=1e-5, rtol=0)
    torch.testing.assert_close(raw[:, 1] - shifted[:, 1], torch.full((1, 8, 10), -2.0), atol=1e-5, rtol=0)
    assert "mean_shift" in net.state_dict()
