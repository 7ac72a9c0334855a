import pytest
import torch
from torch import nn

from structseg.losses import BalancedTagLoss

# 100 images: horse and person together 30, horse alone 10, person alone 20, neither 40.
TABLE = torch.tensor([[1.0, 1.0]] * 30 + [[1.0, 0.0]] * 10 + [[0.0, 1.0]] * 20 + [[0.0, 0.0]] * 40)


def fitted(tags=TABLE, **settings):
    loss = BalancedTagLoss(**{"ridge": 1e-9, **settings})
    loss.fit(tags)
    return loss


def test_weights_by_hand():
    # Horse: P = 0.4, P(horse | person) = 30 / 50, P(horse | none) = 10 / 50.
    found = fitted().weights(torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    horse = torch.tensor([0.4 / 0.6, 0.4 / 0.2, 0.6 / 0.4, 0.6 / 0.8])
    person = torch.tensor([0.5 / 0.75, 0.5 / (1 - 0.75), 0.5 / (20 / 60), 0.5 / (40 / 60)])
    torch.testing.assert_close(found, torch.stack([horse, person], 1), rtol=1e-3, atol=0)


def test_a_class_is_independent_of_the_others_in_the_weighted_set():
    torch.manual_seed(0)
    first = (torch.rand(4000) < 0.4).float()
    second = (torch.rand(4000) < 0.1 + 0.7 * first).float()
    third = (torch.rand(4000) < 0.2 + 0.3 * second).float()
    tags = torch.stack([first, second, third], 1)
    weights = fitted(tags, limit=100.0).weights(tags)
    for k in range(3):
        for j in {0, 1, 2} - {k}:
            w, y, z = weights[:, k], tags[:, k], tags[:, j]
            with_z, without = (w * y * z).sum() / (w * z).sum(), (w * y * (1 - z)).sum() / (w * (1 - z)).sum()
            assert abs(float(with_z - without)) < 0.02, (k, j)
    plain = [first[second > 0].mean() - first[second == 0].mean()]
    assert plain[0] > 0.4, "which it is not by itself"


def test_independent_tags_leave_the_plain_loss():
    tags = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        fitted(tags)(logits, tags), nn.MultiLabelSoftMarginLoss()(logits, tags), rtol=1e-4, atol=0
    )


def test_the_loss_by_hand_and_its_gradient():
    loss, logits, tags = fitted(), torch.zeros(1, 2, requires_grad=True), torch.tensor([[1.0, 0.0]])
    value = loss(logits, tags)
    weights = loss.weights(tags)[0]
    torch.testing.assert_close(value, weights.mean() * torch.tensor(2.0).log())
    value.backward()
    torch.testing.assert_close(logits.grad[0], torch.stack([-weights[0], weights[1]]) / 4)


def test_the_control_has_the_same_weights_on_other_images():
    loss, control = fitted(), fitted(shuffled=True)
    tags, logits = TABLE[[0, 35, 50]], torch.full((3, 2), 5.0)
    logits[0] = -5.0
    expected = nn.functional.binary_cross_entropy_with_logits(logits, tags, loss.weights(tags)[[2, 0, 1]])
    torch.testing.assert_close(control(logits, tags), expected)
    assert control(logits, tags) != loss(logits, tags)


def test_extremes_stay_finite_and_within_the_limit():
    always = torch.tensor(
        [[1.0, 1.0, 0.0]] * 20 + [[0.0, 0.0, 0.0]] * 20
    )  # together without exception; one class never
    loss = fitted(always, ridge=1e-3, limit=4.0)
    weights = loss.weights(torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3))
    assert weights.isfinite().all()
    assert weights.max() <= 4
    assert weights.min() >= 0.25


@pytest.mark.parametrize("settings", [{"limit": 0.5}, {"ridge": 0.0}])
def test_wrong_settings(settings):
    with pytest.raises(ValueError, match=r"limit .*, ridge"):
        BalancedTagLoss(**settings)


def test_wrong_tags():
    with pytest.raises(ValueError, match=r"tags have shape \(0, 2\)"):
        BalancedTagLoss().fit(torch.zeros(0, 2))
    with pytest.raises(ValueError, match="of 0 classes, the tags of 2; call fit"):
        BalancedTagLoss()(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="of 2 classes, the tags of 3"):
        fitted()(torch.zeros(1, 3), torch.zeros(1, 3))
