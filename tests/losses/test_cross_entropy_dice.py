import math

import pytest
import torch
import torch.nn.functional as F

from structseg.losses import CrossEntropyDiceLoss, cross_entropy_dice


def test_a_number_worked_by_hand():
    # Two pixels, two classes, probabilities (0.75, 0.25) and (0.5, 0.5), labels 0 and 1.
    logits = torch.log(torch.tensor([[[[0.75, 0.5]], [[0.25, 0.5]]]], dtype=torch.float64))
    target = torch.tensor([[[0, 1]]])
    entropy = -(math.log(0.75) + math.log(0.5)) / 2
    dice = (2 * 0.75 / (1.25 + 1), 2 * 0.5 / (0.75 + 1))
    expected = entropy + 2 * (1 - sum(dice) / 2)
    assert cross_entropy_dice(logits, target, dice_weight=2).item() == pytest.approx(expected, abs=1e-12)


def test_without_dice_it_is_torchs_cross_entropy():
    logits, target = torch.randn(2, 5, 7, 3), torch.randint(0, 5, (2, 7, 3))
    target[0, :2] = 255
    expected = F.cross_entropy(logits, target, ignore_index=255, label_smoothing=0.1)
    torch.testing.assert_close(cross_entropy_dice(logits, target, 0, 0.1), expected)


def test_ignored_pixels_take_no_part():
    logits, target = torch.randn(1, 3, 4, 4, requires_grad=True), torch.randint(0, 3, (1, 4, 4))
    target[0, 0] = 255
    loss = cross_entropy_dice(logits, target)
    loss.backward()
    assert (logits.grad[0, :, 0] == 0).all()
    changed = logits.detach().clone()
    changed[0, :, 0] += 5
    torch.testing.assert_close(cross_entropy_dice(changed, target), loss.detach())


def test_nothing_labelled_is_zero_with_zero_gradient():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = cross_entropy_dice(logits, torch.full((1, 2, 2), 255))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_low_precision_and_large_logits_stay_finite(dtype, size):
    logits = (torch.randn(1, 3, 4, 4) * size).to(dtype).requires_grad_()
    loss = CrossEntropyDiceLoss()(logits, torch.randint(0, 3, (1, 4, 4)))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_gradcheck():
    logits, target = torch.randn(1, 3, 2, 3, dtype=torch.float64, requires_grad=True), torch.randint(0, 3, (1, 2, 3))
    target[0, 0, 0] = 255
    assert torch.autograd.gradcheck(lambda x: cross_entropy_dice(x, target, 0.7, 0.1), logits)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"logits \(2, 3, 4, 4\) and target \(1, 4, 4\) do not fit"):
        cross_entropy_dice(torch.zeros(2, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64))


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="dice_weight=-1"):
        CrossEntropyDiceLoss(dice_weight=-1)
