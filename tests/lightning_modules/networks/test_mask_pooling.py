"""Logits pooled over masks: by hand, what has no mask, gradients, shapes."""

import pytest
import torch

from structseg.lightning_modules.networks.mask_pooling import centre_blob, mask_pooled


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


def test_the_blob_lies_in_the_middle_and_is_symmetric():
    blob = centre_blob()
    assert blob.shape == (1, 1, 32, 32)
    for turned in (blob.flip(2), blob.flip(3), blob.transpose(2, 3)):
        torch.testing.assert_close(turned, blob)
    assert blob[0, 0, 15:17, 15:17].min() > 0.99
    assert 0.1 < blob[0, 0, 0, 16] < 0.16  # 2 deviations from the middle
