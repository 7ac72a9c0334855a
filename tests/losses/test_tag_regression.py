"""The regression of each tag on the others: against counted frequencies, extremes, wrong tags."""

import pytest
import torch

from structseg.losses import tag_regression

# 100 images: horse and person together 30, horse alone 10, person alone 20, neither 40.
TABLE = torch.tensor([[1.0, 1.0]] * 30 + [[1.0, 0.0]] * 10 + [[0.0, 1.0]] * 20 + [[0.0, 0.0]] * 40)
EVERY_THREE = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)


def test_two_tags_have_the_counted_frequencies():
    coefficients, bias = tag_regression(TABLE, ridge=1e-9)
    found = (TABLE[[0, 30, 40, 60]] @ coefficients + bias).sigmoid()
    # P(horse | person) = 30 / 50, P(horse | none) = 10 / 50; P(person | horse) = 30 / 40, P(person | none) = 20 / 60.
    expected = torch.tensor([[0.6, 0.75], [0.2, 0.75], [0.6, 1 / 3], [0.2, 1 / 3]])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    assert coefficients.diagonal().tolist() == [0, 0]


def test_independent_tags_have_no_coefficients():
    coefficients, bias = tag_regression(EVERY_THREE)
    torch.testing.assert_close(coefficients, torch.zeros(3, 3), rtol=0, atol=1e-4)
    torch.testing.assert_close(bias, torch.zeros(3), rtol=0, atol=1e-4)


def test_tags_that_determine_each_other_and_one_that_never_comes_stay_finite():
    always = torch.tensor([[1.0, 1.0, 0.0]] * 20 + [[0.0, 0.0, 0.0]] * 20)
    coefficients, bias = tag_regression(always)
    assert coefficients.isfinite().all()
    assert bias.isfinite().all()
    assert ((EVERY_THREE @ coefficients + bias).sigmoid()[:, 2] < 0.01).all()
    weaker, _ = tag_regression(always, ridge=1.0)
    assert 0 < weaker[0, 1] < coefficients[0, 1]


def test_wrong_tags_and_ridge():
    with pytest.raises(ValueError, match=r"tags have shape \(0, 2\)"):
        tag_regression(torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"tags have shape \(2,\)"):
        tag_regression(torch.zeros(2))
    with pytest.raises(ValueError, match="ridge is 0; expected a number above 0"):
        tag_regression(TABLE, ridge=0)
