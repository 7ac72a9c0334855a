"""Losses of windows: numbers by hand, absent parts, gradients, shapes."""

import math

import pytest
import torch

from structseg.losses import pasted_loss, theta_loss


def window(sx: float = 0.3, sy: float = 0.2, tx: float = 0.1, ty: float = -0.4) -> torch.Tensor:
    return torch.tensor([[[[sx, 0, tx], [0, sy, ty]]]], dtype=torch.float64)


ONE = torch.ones(1, 1, dtype=torch.bool)


@pytest.mark.parametrize("name", ["sx", "sy", "tx", "ty"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_each_entry_counts_a_quarter(name: str, sign: int) -> None:
    """Off by 0.2: 0.5 * 0.04 / 4; off by 2: 1.5 / 4, as beyond 1 the loss is linear."""
    values = {"sx": 0.3, "sy": 0.2, "tx": 0.1, "ty": -0.4}
    for off, cost in ((0.2, 0.005), (2.0, 0.375)):
        moved = window(**{**values, name: values[name] + sign * off})
        assert theta_loss(moved, window(), ONE).item() == pytest.approx(cost)
    assert theta_loss(window(), window(), ONE).item() == 0


def test_absent_parts_are_left_out_of_the_mean() -> None:
    theta = torch.cat([window(tx=0.3), window(tx=9.0), window()], 1)
    truth = window().expand(1, 3, 2, 3)
    assert theta_loss(theta, truth, torch.tensor([[True, False, True]])).item() == pytest.approx(0.005 / 2)
    leaf = theta.clone().requires_grad_()
    nothing = theta_loss(leaf, truth, torch.zeros(1, 3, dtype=torch.bool))
    nothing.backward()
    assert nothing.item() == 0
    assert leaf.grad is not None
    assert (leaf.grad == 0).all()


def test_gradients() -> None:
    torch.manual_seed(0)
    theta, truth = torch.randn(2, 6, 2, 3, dtype=torch.float64), torch.randn(2, 6, 2, 3, dtype=torch.float64)
    present = torch.rand(2, 6) > 0.3
    assert torch.autograd.gradcheck(lambda t: theta_loss(t, truth, present), theta.requires_grad_())
    scores = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, 4, 5))
    target[0, 0] = 255
    assert torch.autograd.gradcheck(lambda s: pasted_loss(s, target, 7), scores)


def test_pasted_by_hand() -> None:
    """-log 0.5 - log 0.2, one pixel ignored, over 4 pixels of windows."""
    scores = torch.tensor([[[[0.5, 0.9, 0.8]], [[0.5, 0.1, 0.2]]]])
    target = torch.tensor([[[0, 255, 1]]])
    assert pasted_loss(scores, target, 4).item() == pytest.approx((math.log(2) + math.log(5)) / 4)
    assert pasted_loss(scores, torch.full_like(target, 255), 4).item() == 0


def test_a_pixel_that_no_window_covers_has_a_loss_without_gradient() -> None:
    scores = torch.zeros(1, 2, 1, 1, requires_grad=True)
    cost = pasted_loss(scores, torch.ones(1, 1, 1, dtype=torch.int64), 1)
    cost.backward()
    assert cost.item() == pytest.approx(-math.log(1e-6), rel=1e-5)
    assert scores.grad is not None
    assert (scores.grad == 0).all()


def test_shapes() -> None:
    with pytest.raises(ValueError, match=r"theta \(1, 1, 2, 3\), truth \(1, 2, 2, 3\)"):
        theta_loss(window(), window().expand(1, 2, 2, 3), ONE)
    with pytest.raises(ValueError, match="do not fit"):
        theta_loss(window(), window(), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"scores \(1, 2, 3, 3\) and target \(1, 3, 4\)"):
        pasted_loss(torch.rand(1, 2, 3, 3), torch.zeros(1, 3, 4, dtype=torch.int64), 1)
