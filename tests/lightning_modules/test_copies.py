"""Modules of every method go to other processes and are averaged (EMA, SWA): they pickle, and copy deeply."""

import copy
import pickle

import pytest
import torch

from tests.data.ranks import CASES

METHODS = ("cross_entropy", "consensus", "stn_end_to_end", "classifier", "relation", "segmenter")


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("method", METHODS)
def test_a_copy_is_equal_and_shares_nothing(method, again):
    torch.manual_seed(0)
    module = CASES[method].make()
    made = again(module)
    assert type(made) is type(module)
    assert made.label_space == module.label_space
    assert made.make_card() == module.make_card()
    theirs, own = made.state_dict(), module.state_dict()
    assert theirs.keys() == own.keys()
    assert all(torch.equal(theirs[key], own[key]) for key in own)
    assert not {value.data_ptr() for value in theirs.values() if value.numel()} & {v.data_ptr() for v in own.values()}
    image = torch.rand(1, 3, 64, 64)
    for one in (module.eval(), made.eval()):
        one.requires_grad_(False)
    found, expected = made(image), module(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
