"""The regression of each tag on the others: against counted frequencies and scikit-learn, extremes, invalid tags."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from structseg.losses import cross_validated_ridge, tag_regression

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


def test_coefficients_stay_finite_for_tags_that_determine_each_other_and_for_a_constant_one():
    always = torch.tensor([[1.0, 1.0, 0.0]] * 20 + [[0.0, 0.0, 0.0]] * 20)
    coefficients, bias = tag_regression(always)
    assert coefficients.isfinite().all()
    assert bias.isfinite().all()
    assert ((EVERY_THREE @ coefficients + bias).sigmoid()[:, 2] < 0.01).all()
    weaker, _ = tag_regression(always, ridge=1.0)
    assert 0 < weaker[0, 1] < coefficients[0, 1]


def _drawn(images, company, seed=0):
    """Four tags: the second equals the first with probability `company`, the third excludes it, the last is random."""
    random = np.random.default_rng(seed)
    first, last = random.random((2, images)) < 0.5
    second = np.where(random.random(images) < company, first, random.random(images) < 0.5)
    third = ~first & (random.random(images) < 0.5)
    return torch.from_numpy(np.stack([first, second, third, last], 1)).float()


def test_against_scikit_learn():
    tags, ridge = _drawn(200, 0.8), 0.01
    coefficients, bias = tag_regression(tags, ridge)
    for k in range(4):
        rest = [j for j in range(4) if j != k]
        model = LogisticRegression(C=1 / (2 * ridge * len(tags)), tol=1e-10, max_iter=1000)
        model.fit(tags[:, rest].numpy(), tags[:, k].numpy())
        np.testing.assert_allclose(coefficients[rest, k], model.coef_[0], atol=1e-3)
        np.testing.assert_allclose(bias[k], model.intercept_[0], atol=1e-3)


def test_unsigned_coefficients_keep_only_positive_evidence():
    tags, ridge = _drawn(200, 0.8), 0.01
    signed, _ = tag_regression(tags, ridge)
    coefficients, _ = tag_regression(tags, ridge, signed=False)
    assert (signed < -0.1).any()
    assert (coefficients >= 0).all()
    assert coefficients[0, 2] == coefficients[2, 0] == 0
    assert coefficients[3, 0] == 0
    single = LogisticRegression(C=1 / (2 * ridge * len(tags)), tol=1e-10, max_iter=1000)
    single.fit(tags[:, [1]].numpy(), tags[:, 0].numpy())  # the other coefficients are held at 0
    np.testing.assert_allclose(coefficients[1, 0], single.coef_[0, 0], atol=1e-3)


def test_the_chosen_ridge_depends_on_how_strongly_tags_depend_on_each_other():
    strong, nothing = cross_validated_ridge(_drawn(300, 0.95)), cross_validated_ridge(EVERY_THREE.repeat(20, 1))
    assert strong < 0.01
    assert nothing == 1
    assert cross_validated_ridge(_drawn(300, 0.95)) == strong


def test_invalid_tags_and_ridge():
    with pytest.raises(ValueError, match=r"tags have shape \(0, 2\)"):
        tag_regression(torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"tags have shape \(2,\)"):
        tag_regression(torch.zeros(2))
    with pytest.raises(ValueError, match="ridge is 0; expected a number above 0"):
        tag_regression(TABLE, ridge=0)
