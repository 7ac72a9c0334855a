import math

import pytest
import torch
from torch.nn import functional as F

from structseg.losses.one_hot_binary_cross_entropy import OneHotBCELoss, one_hot_binary_cross_entropy


def _logit(p):
    return math.log(p / (1 - p))


def test_a_number_worked_by_hand():
    # Two labelled pixels of three classes and an ignored one; sigmoids as written.
    sigmoids = [[0.9, 0.2, 0.5], [0.3, 0.6, 0.1], [0.5, 0.5, 0.5]]
    logits = torch.tensor([[_logit(p) for p in row] for row in sigmoids], dtype=torch.float64).T[None, :, None]
    target = torch.tensor([[[0, 2, 255]]])
    expected = -sum(math.log(p) for p in (0.9, 0.8, 0.5, 0.7, 0.4, 0.1)) / 6
    assert OneHotBCELoss()(logits, target).item() == pytest.approx(expected, abs=1e-12)


def test_without_ignored_pixels_it_is_torchs_loss_against_one_hot():
    logits, target = torch.randn(2, 5, 7, 3), torch.randint(0, 5, (2, 7, 3))
    truth = F.one_hot(target, 5).movedim(-1, 1).float()
    expected = F.binary_cross_entropy_with_logits(logits, truth)
    torch.testing.assert_close(one_hot_binary_cross_entropy(logits, target), expected)


def test_logits_of_ignored_pixels_have_no_effect_even_if_infinite():
    logits, target = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    target[0, 0] = 7
    loss = one_hot_binary_cross_entropy(logits, target, ignore_index=7)
    changed = logits.clone()
    changed[0, :, 0] = torch.inf
    changed.requires_grad_()
    again = one_hot_binary_cross_entropy(changed, target, ignore_index=7)
    again.backward()
    assert again.item() == loss.item()
    assert (changed.grad[0, :, 0] == 0).all()
    assert (changed.grad[0, :, 1:] != 0).all()


def test_nothing_labelled_is_zero_with_zero_gradient():
    logits = torch.randn(2, 3, 2, 2, requires_grad=True)
    loss = one_hot_binary_cross_entropy(logits, torch.full((2, 2, 2), 255))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_extreme_logits_stay_finite_and_right(dtype):
    logits = torch.tensor([[[[1e4]], [[-1e4]]]]).to(dtype).requires_grad_()
    right = one_hot_binary_cross_entropy(logits, torch.tensor([[[0]]]))
    wrong = one_hot_binary_cross_entropy(logits, torch.tensor([[[1]]]))
    wrong.backward()
    assert right.dtype == torch.float32
    assert right.item() == 0
    assert wrong.item() == pytest.approx(1e4, rel=0.01)
    assert logits.grad.isfinite().all()


def test_gradcheck():
    logits, target = torch.randn(1, 3, 2, 3, dtype=torch.float64, requires_grad=True), torch.randint(0, 3, (1, 2, 3))
    target[0, 0, 0] = 255
    assert torch.autograd.gradcheck(lambda x: one_hot_binary_cross_entropy(x, target), logits)


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 4, 3), (2, 1, 4, 4)])
def test_shapes_that_do_not_fit_are_named(shape):
    with pytest.raises(ValueError, match=r"logits \(2, 3, 4, 4\) and target \(.*\) do not fit"):
        one_hot_binary_cross_entropy(torch.zeros(2, 3, 4, 4), torch.zeros(shape, dtype=torch.int64))
