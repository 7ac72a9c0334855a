"""Logits pooled over masks, positions taught by them: by hand, what has no mask, gradients, shapes."""

import math

import pytest
import torch

from structseg.lightning_modules.networks.mask_pooling import mask_pooled, mask_teaching_loss


def test_by_hand():
    activation = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [8.0, 0.0]]]])
    masks = torch.tensor([[[[0.0, 0.0], [0.5, 1.0]], [[0.0, 1.0], [0.0, 0.0]]]])
    # class 1: (3 / 2 + 6) / 1.5 = 5 on its mask, 3 in all; class 2: 0 and 2
    for share, expected in ((0.0, [3.0, 2.0]), (1.0, [5.0, 0.0]), (0.25, [3.5, 1.5])):
        assert mask_pooled(activation, masks, share)[0].tolist() == pytest.approx(expected)


def test_a_class_without_a_mask_is_pooled_plainly():
    activation = torch.rand(2, 3, 20, 20)
    masks = torch.zeros_like(activation)
    masks[0, 0, 0, :3] = 1  # 3 of 400 cells are too few
    torch.testing.assert_close(mask_pooled(activation, masks, 1.0), activation.mean((2, 3)))
    masks[0, 0, 0, :4] = 1
    found = mask_pooled(activation, masks, 1.0)
    torch.testing.assert_close(found[0, 0], activation[0, 0, 0, :4].mean())
    torch.testing.assert_close(found[1], activation[1].mean((1, 2)))


def test_what_lies_off_the_mask_gets_the_rest_of_the_gradient():
    activation = torch.zeros(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    masks = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]], dtype=torch.float64)
    mask_pooled(activation, masks, 0.75).sum().backward()
    assert activation.grad.flatten().tolist() == pytest.approx([0.25 / 4 + 0.75, *[0.25 / 4] * 3])
    given = torch.rand(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: mask_pooled(a, (given > 0.5).double(), 0.3), given)


def test_shapes_that_differ():
    with pytest.raises(ValueError, match=r"activations \(1, 2, 3, 3\), masks \(1, 1, 3, 3\); both have to be"):
        mask_pooled(torch.zeros(1, 2, 3, 3), torch.zeros(1, 1, 3, 3), 0.5)


def test_teaching_by_hand():
    activation = torch.tensor([[[[math.log(3), 0.0]], [[5.0, 5.0]]], [[[9.0, 9.0]], [[0.0, -math.log(3)]]]])
    masks = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]], [[[1.0, 1.0]], [[0.5, 0.25]]]])
    tags = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    first = (math.log(4 / 3) + math.log(2)) / 2  # 3/4 where 1 is right, 1/2 where 0 is
    quarter = -0.25 * math.log(1 / 4) - 0.75 * math.log(3 / 4)  # 1/4 where 1/4 is right
    second = (math.log(2) + quarter) / 2
    found = mask_teaching_loss(activation, masks, tags)
    assert found.item() == pytest.approx((first + second) / 4)
    assert mask_teaching_loss(activation, masks, torch.zeros(2, 2)) == 0
    assert mask_teaching_loss(activation, torch.zeros_like(masks), torch.ones(2, 2)) == 0, "no class has a mask"


def test_what_is_taught_is_high_on_the_mask_and_low_off_it():
    activation = torch.zeros(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    masks = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    masks[0, :, 0, 0] = 1
    mask_teaching_loss(activation, masks, torch.tensor([[1, 0]])).backward()
    assert activation.grad.flatten().tolist() == pytest.approx([-1 / 16, 1 / 16, 1 / 16, 1 / 16, 0, 0, 0, 0])
    given = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    soft = torch.rand(2, 2, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: mask_teaching_loss(a, soft, torch.ones(2, 2)), given)


def test_shapes_that_differ_in_teaching():
    with pytest.raises(ValueError, match="both have to be"):
        mask_teaching_loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 1), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"tags \(1, 3\); expected \(1, 2\)"):
        mask_teaching_loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3), torch.zeros(1, 3))
