"""The manipulation check: by hand, over batches, what it says, and what it refuses."""

import pytest
import torch

from structseg.lightning_modules.metrics.manipulation import ManipulationCheck, manipulation_notice


def _checked(*updates):
    check = ManipulationCheck()
    for update in updates:
        check.update(*update)
    return {key: float(value) for key, value in check.compute().items()}


def test_shares_of_the_deviation_over_all_batches():
    torch.manual_seed(0)
    logits, zeroed, swapped = 3 + 2 * torch.randn(20, 4), torch.randn(20, 4), torch.randn(20, 4)
    found = _checked((logits[:15], zeroed[:15], swapped[:15]), (logits[15:], zeroed[15:]))
    assert found["zeroed"] == pytest.approx(float((zeroed - logits).abs().mean() / logits.std(correction=0)))
    swaps = (swapped - logits)[:15].abs().mean()
    assert found["swapped"] == pytest.approx(float(swaps / logits.std(correction=0)))


@pytest.mark.parametrize(
    ("zeroed", "swapped", "said"),
    [
        (0.2, 0.06, ""),
        (0.2, None, ""),
        (0.09, 0.06, "zeroing it moves the logits by 9.0% of their deviation (10% is needed), another image's moves"),
        (0.2, 0.04, "another image's moves the logits by 4.0% of their deviation (5% is needed)"),
        (0.01, None, "no test of the context map M: zeroing it moves the logits by 1.0%"),
    ],
)
def test_below_its_share_it_is_no_test(zeroed, swapped, said):
    logits = torch.tensor([[-1.0, 1.0]])
    found = _checked((logits, logits + zeroed, None if swapped is None else logits - swapped))
    assert found["tested"] == (not said)
    notice = manipulation_notice(found)
    assert (said in notice) if said else not notice


def test_nothing_counted_and_wrong_shapes():
    assert manipulation_notice(_checked()) == ""
    with pytest.raises(ValueError, match=r"logits are \(1, 2\) and \(1, 3\)"):
        ManipulationCheck().update(torch.zeros(1, 2), torch.zeros(1, 3))
