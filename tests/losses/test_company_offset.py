"""The tag offset: by hand; centre, cap, placebo and gradient; invalid input."""

import math

import pytest
import torch
import torch.nn.functional as F

from structseg.losses import CompanyOffsetLoss

# Horse and person together 30, horse alone 10, person alone 20, neither 40; the third tag never comes.
TAGS = torch.tensor([[1.0, 1, 0]] * 30 + [[1.0, 0, 0]] * 10 + [[0.0, 1, 0]] * 20 + [[0.0, 0, 0]] * 40)
# The odds of a horse are 30 : 20 beside a person, 10 : 40 without; the same number holds for a person beside a horse.
COEFFICIENT = math.log(30 / 20 * 40 / 10)


def _made(**options):
    return CompanyOffsetLoss(3, **{"ridge": 1e-9, **options}).fit(TAGS)


def test_offset_and_loss_by_hand():
    loss, logits = _made(), torch.tensor([[0.3, -0.2, 0.1], [0.0, 1.0, -1.0]])
    tags = torch.tensor([[1.0, 0, 0], [0.0, 1, 0]])
    expected = COEFFICIENT * torch.tensor([[-0.5, 0.6, 0], [0.5, -0.4, 0]])  # 50 of 100 hold a person, 40 a horse
    torch.testing.assert_close(loss.offsets(tags), expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(loss(logits, tags), F.multilabel_soft_margin_loss(logits + loss.offsets(tags), tags))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("cap", [0.5, 4.0])
def test_offsets_are_centred_over_the_training_images_and_capped(signed, cap):
    torch.manual_seed(0)
    tags = torch.cat([TAGS, torch.tensor([[0.0, 0, 1]] * 30 + [[1.0, 0, 1]])])  # the third rules the others out
    loss = CompanyOffsetLoss(3, signed, cap=cap, ridge=1e-4).fit(tags)
    offsets = loss.offsets(tags)
    torch.testing.assert_close(offsets.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    assert (offsets + loss.centre).abs().max() <= cap + 1e-6
    assert (loss.coefficients >= 0).all() != signed
    assert (offsets.amax(0) - offsets.amin(0)).max() > cap / 2


def test_the_placebo_has_the_offset_of_the_next_image():
    own, other, tags = _made(), _made(offset_of="another"), TAGS[[0, 35, 50, 90]]
    logits = torch.linspace(-1, 1, 12).view(4, 3)
    moved = logits + own.offsets(tags)[[3, 0, 1, 2]]
    torch.testing.assert_close(other(logits, tags), F.multilabel_soft_margin_loss(moved, tags))
    torch.testing.assert_close(other(logits[:1], tags[:1]), F.multilabel_soft_margin_loss(logits[:1], tags[:1]))


def test_a_tag_that_the_other_tags_explain_has_a_smaller_gradient():
    logits = torch.zeros(1, 3, requires_grad=True)
    both = torch.tensor([[1.0, 1, 0]])
    plain = torch.autograd.grad(F.multilabel_soft_margin_loss(logits, both), logits)[0]
    eased = torch.autograd.grad(_made()(logits, both), logits)[0]
    assert (eased[0, :2].abs() < plain[0, :2].abs()).all()
    assert torch.autograd.gradcheck(
        lambda x: _made()(x, both), torch.zeros(1, 3, dtype=torch.double, requires_grad=True)
    )


def test_constant_tags_and_tags_that_determine_each_other_stay_finite():
    tags = torch.tensor([[1.0, 1, 0]] * 5 + [[0.0, 0, 0]] * 5)
    for signed in (False, True):
        loss = CompanyOffsetLoss(3, signed).fit(tags)
        assert loss.offsets(tags).isfinite().all()
        assert loss.used_ridge > 0
    torch.testing.assert_close(CompanyOffsetLoss(2).fit(torch.ones(6, 2)).offsets(torch.ones(1, 2)), torch.zeros(1, 2))


def test_a_state_dict_restores_the_offsets():
    again = CompanyOffsetLoss(3)
    again.load_state_dict(_made().state_dict())
    assert torch.equal(again.offsets(TAGS), _made().offsets(TAGS))
    found = again.explained(("horse", "person", "cow"))
    assert found["horse"] == {"person": pytest.approx(COEFFICIENT, abs=1e-3)}
    assert found["cow"] == {}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: CompanyOffsetLoss(0, cap=0, ridge=0.0, offset_of="mine"),
            "classes=0 .*offset_of=mine .*cap=0 .*ridge=0",
        ),
        (lambda: CompanyOffsetLoss(3)(torch.zeros(1, 3), torch.zeros(1, 3)), "offsets are not fitted yet; call fit"),
        (lambda: CompanyOffsetLoss(2).fit(TAGS), r"training tags have shape \(100, 3\), expected \(images, 2\)"),
        (lambda: _made()(torch.zeros(2, 3), torch.zeros(1, 3)), r"logits are \(2, 3\) and tags \(1, 3\)"),
        (lambda: _made().offsets(torch.zeros(3)), r"tags have shape \(3,\), expected \(images, 3\)"),
        (lambda: CompanyOffsetLoss(1).fit(torch.zeros(0, 1)), r"tags have shape \(0, 1\)"),
        (lambda: CompanyOffsetLoss(1).fit(torch.ones(1, 1)), "tags of 1 image cannot be cross-validated"),
        (lambda: CompanyOffsetLoss(3).fit(TAGS * 2), "tags hold other values than 0 and 1"),
    ],
)
def test_invalid_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
