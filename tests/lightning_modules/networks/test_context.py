"""The context map against numbers by hand, its gradient, and how features take it up."""

import math

import pytest
import torch

from structseg.lightning_modules.networks.context import ContextFusion, ContextMap, context_map, seen_through

# Two classes on a map of 1 x 2.
CONFOUNDERS = torch.tensor([[[1.0, 0.0]], [[0.5, 1.0]]])
W1 = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
W2 = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
QUERY = torch.tensor([[1.0, 0.5]])
# W1 x = (1, 1); W2 c_1 = (1, 0), W2 c_2 = (1.5, 1); products 1 and 2.5, over sqrt(2).
ALPHA_2 = 1 / (1 + math.exp(-1.5 / math.sqrt(2)))
ALPHA = (1 - ALPHA_2, ALPHA_2)


def test_equation_3_by_hand():
    found = context_map(QUERY, CONFOUNDERS, W1, W2)
    expected = torch.tensor([[[[(ALPHA[0] + 0.5 * ALPHA[1]) / 2, ALPHA[1] / 2]]]])
    torch.testing.assert_close(found, expected)


def test_equation_3_against_loops():
    torch.manual_seed(0)
    n, h, w = 5, 3, 4
    query, classes = torch.rand(2, h * w).double(), torch.rand(n, h, w).double()
    w1, w2 = torch.randn(n, h * w).double(), torch.randn(n, h * w).double()
    for image in range(2):
        scores = [(w1 @ query[image]).dot(w2 @ classes[k].flatten()) / math.sqrt(n) for k in range(n)]
        alpha = torch.stack(scores).softmax(0)
        expected = sum(alpha[k] * classes[k] / n for k in range(n))
        torch.testing.assert_close(context_map(query, classes, w1, w2)[image, 0], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(1, 3)}, r"query has shape \(1, 3\), expected \(1, 2\)"),
        ({"w1": torch.zeros(3, 2)}, r"w1 has shape \(3, 2\), expected \(2, 2\)"),
        ({"w2": torch.zeros(2, 4)}, "w2 has shape"),
        ({"confounders": torch.zeros(2, 2)}, r"confounders have shape \(2, 2\), expected \(n, h, w\)"),
    ],
)
def test_wrong_shapes(change, message):
    given = {"query": QUERY, "confounders": CONFOUNDERS, "w1": W1, "w2": W2, **change}
    with pytest.raises(ValueError, match=message):
        context_map(**given)


def _by_hand(kind="sum", query="foreground"):
    context = ContextMap(2, (1, 2), kind, query)
    context.confounders.copy_(CONFOUNDERS)
    with torch.no_grad():
        context.w1.copy_(W1)
        context.w2.copy_(W2)
    return context


def _probabilities(first, second):
    """Two foreground maps of 1 x 2 cells, and what is left to the background."""
    foreground = torch.tensor([[first], [second]])
    return torch.cat([1 - foreground.sum(0, keepdim=True), foreground])[None]


def test_foreground_is_what_is_not_background():
    found = _by_hand()(_probabilities([0.75, 0.25], [0.25, 0.25]))
    torch.testing.assert_close(found, context_map(QUERY, CONFOUNDERS, W1, W2))


def test_classes_are_averaged_over_those_that_the_map_holds():
    context = _by_hand(query="classes")

    def of(*query):
        return context_map(torch.tensor([query]), CONFOUNDERS, W1, W2)

    torch.testing.assert_close(context(_probabilities([0.8, 0.2], [0.1, 0.6])), of(0.45, 0.4))
    torch.testing.assert_close(context(_probabilities([0.0, 0.0], [0.1, 0.6])), of(0.1, 0.6))
    torch.testing.assert_close(context(_probabilities([0.0, 0.0], [0.0, 0.0])), of(0.0, 0.0))
    assert not torch.equal(of(0.1, 0.6), of(0.45, 0.4))


def _started(kind="sum", classes=5, size=(8, 8), images=40, seed=0):
    """A map whose classes lie in different rows over a blob that they share, and queries of one class each."""
    generator = torch.Generator().manual_seed(seed)
    blob = torch.full((classes, *size), 0.3)
    for k in range(classes):
        blob[k, k] = 0.6
    held = torch.randint(classes, (images,), generator=generator)
    foreground = (blob[held] * (0.7 + 0.3 * torch.rand(images, *size, generator=generator)))[:, None]
    probabilities = torch.cat([1 - foreground, foreground, foreground.new_zeros(images, classes - 1, *size)], 1)
    context = ContextMap(classes, size, kind)
    context.confounders.copy_(blob)
    context.start(probabilities)
    return context, probabilities, held


@pytest.mark.parametrize("kind", ["sum", "mean"])
def test_m_is_standardised_over_the_training_images(kind):
    context, probabilities, _ = _started(kind)
    m = context(probabilities)
    torch.testing.assert_close(m.mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(m.std(correction=0), torch.tensor(1.0), atol=1e-4, rtol=0)
    differs = (m - m.mean(0)).std() > 0.1
    assert differs == (kind == "sum")
    assert {"mean", "std"} <= set(context.state_dict())


def test_at_the_start_the_attention_follows_the_image_and_prefers_no_class():
    context, probabilities, held = _started()
    m = context(probabilities)[:, 0]
    assert m[:, :5].mean(2).argmax(1).tolist() == held.tolist()  # the row that is special of the image's class
    query = (1 - probabilities[:, 0]).flatten(1)
    scores = query @ context.w1.T @ (context.w2 @ context.confounders.flatten(1).T)
    assert scores.mean(0).std() < 0.05 * scores.std()
    torch.testing.assert_close(context.w2.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(context.w1.norm(dim=1), torch.full((5,), 10.0))


@pytest.mark.parametrize("absent", [[1], [0, 1]])
def test_classes_without_images_are_no_trouble(absent):
    context = _by_hand()
    context.confounders[absent] = 0
    context.start(_probabilities([0.7, 0.2], [0.1, 0.3]))
    found = context(_probabilities([0.7, 0.2], [0.1, 0.3]))
    found[0, 0, 0, 0].backward()
    assert found.isfinite().all()
    assert context.w1.grad.isfinite().all()
    assert found.any() == (len(absent) == 1)


@pytest.mark.parametrize("query", ["foreground", "classes"])
def test_the_gradient_reaches_w1_and_w2_alone(query):
    context = _by_hand(query=query)
    context.confounders.requires_grad_(True)
    probabilities = _probabilities([0.7, 0.2], [0.1, 0.3]).requires_grad_(True)
    context(probabilities)[0, 0, 0, 0].backward()
    assert probabilities.grad is None
    assert context.confounders.grad is None
    assert context.w1.grad.abs().sum() > 0
    assert context.w2.grad.abs().sum() > 0


def test_the_constant_map_is_ones_with_the_parameters_of_sum():
    constant, other = _by_hand("constant"), _by_hand()
    probabilities = _probabilities([0.7, 0.2], [0.1, 0.3])
    constant.start(probabilities)
    assert torch.equal(constant(probabilities), torch.ones(1, 1, 1, 2))
    torch.testing.assert_close(_by_hand("mean")(probabilities)[0, 0], CONFOUNDERS.mean(0))
    shapes = [[tuple(p.shape) for p in one.parameters()] for one in (constant, other)]
    assert shapes[0] == shapes[1]
    assert not any(p.requires_grad for p in constant.parameters())
    assert all(p.requires_grad for p in other.parameters())


def test_without_a_mask_the_map_is_the_mean_of_the_confounders():
    context = _by_hand()
    torch.testing.assert_close(context(context.unknown(2)), CONFOUNDERS.mean(0).div(2).expand(2, 1, 1, 2))


def test_half_precision_does_not_swallow_it():
    context = _by_hand()
    context.confounders.mul_(1e-6)
    probabilities = _probabilities([0.7, 0.2], [0.1, 0.3])
    context.start(probabilities)
    with torch.autocast("cpu", torch.bfloat16):
        found = context(probabilities)
    torch.testing.assert_close(found, context(probabilities), atol=0, rtol=0)
    torch.testing.assert_close(found.std(correction=0), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "stack"}, "kind is 'stack', expected sum, mean or constant"),
        ({"query": "all"}, "query is 'all', expected foreground or classes"),
        ({"classes": 0}, "0 classes at"),
    ],
)
def test_wrong_settings(given, message):
    with pytest.raises(ValueError, match=message):
        ContextMap(**{"classes": 2, **given})


def test_wrong_probabilities():
    with pytest.raises(ValueError, match=r"context has shape \(1, 2, 1, 2\), expected \(N, 3, 1, 2\)"):
        _by_hand()(torch.zeros(1, 2, 1, 2))


def test_fusion_starts_as_the_identity_and_a_column_in_deviations_of_the_features():
    torch.manual_seed(0)
    fusion = ContextFusion(60)
    spread = torch.linspace(0, 3, 60)[:, None, None]
    features, context = spread * torch.randn(4, 60, 5, 7), torch.ones(4, 1, 4, 4)
    fusion.measure(features)
    torch.testing.assert_close(fusion.scale, features.transpose(0, 1).flatten(1).std(1, correction=0))
    added = fusion(features, context) - features
    torch.testing.assert_close(added, (fusion.scale * fusion.v)[:, None, None].expand_as(added), atol=1e-5, rtol=0)
    assert 0.5 < fusion.v.std() < 0.9
    assert torch.equal(fusion(features, context * 0), features)
    fusion(features, context).sum().backward()
    assert fusion.v.grad[1:].all()
    assert sum(p.numel() for p in fusion.parameters()) == 60 * 61


def test_fusion_adds_the_map_through_the_view():
    fusion = ContextFusion(2)
    with torch.no_grad():
        fusion.v.copy_(torch.tensor([0.0, 3.0]))
    context = torch.arange(16.0).view(1, 1, 4, 4)
    crop = torch.tensor([[[0.5, 0.0, 0.5], [0.0, 0.5, -0.5]]])  # the upper right quarter
    fused = fusion(torch.zeros(1, 2, 2, 2), context, crop)
    torch.testing.assert_close(fused[0, 1], 3 * torch.tensor([[2.0, 3.0], [6.0, 7.0]]))
    assert not fused[0, 0].any()


def test_a_mirrored_view_sees_the_mirrored_map():
    torch.manual_seed(0)
    context = torch.rand(2, 3, 32, 32)
    views = torch.tensor([[0.6, 0.0, 0.2], [0.0, 0.7, -0.4]]).expand(2, 2, 3)
    mirrored = views.clone()
    mirrored[:, 0, 0] *= -1
    plain, turned = seen_through(context, views, (16, 12)), seen_through(context, mirrored, (16, 12))
    torch.testing.assert_close(turned, plain.flip(-1), atol=1e-5, rtol=0)
    exact = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).expand(2, 2, 3)
    assert torch.equal(seen_through(context, exact, (32, 32)), context.flip(-1))
    assert torch.equal(seen_through(context, None, (32, 32)), context)


def test_ones_are_seen_as_ones_and_as_nothing_outside():
    ones = torch.ones(1, 1, 4, 4)
    torch.testing.assert_close(seen_through(ones, None, (64, 64)), torch.ones(1, 1, 64, 64))
    wide = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]])  # the image is the middle of the view
    seen = seen_through(ones, wide, (8, 8))
    expected = torch.zeros(1, 1, 8, 8)
    expected[..., 2:6, 2:6] = 1
    torch.testing.assert_close(seen, expected)
