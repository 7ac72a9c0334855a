import warnings

import pytest
from torch import nn

from structseg.datamodules.label_spaces import PARTS
from structseg.lightning_modules.segmentation import SegmentationModule
from tests.data.tiny import TinyDataModule, TinyNetwork
from tests.data.tiny_runs import make_trainer


class OnWeights(SegmentationModule):
    wants_weights = True


def module(kind=SegmentationModule):
    return kind(TinyNetwork(len(PARTS)), nn.CrossEntropyLoss(ignore_index=255), PARTS)


def fit(one, folder, **settings):
    data = TinyDataModule(label_space="parts", batch_size=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_trainer(folder, [], limit_train_batches=1, limit_val_batches=0, **settings).fit(one, data)
    return one.notices


def test_a_batch_that_is_not_the_recipes_is_noticed_with_all_that_makes_it(tmp_path):
    one = module()
    one.recipe_batch = 16
    assert fit(one, tmp_path, accumulate_grad_batches=3) == [
        "6 images an optimiser step (2 a batch, 3 batches, 1 devices), the recipe has 16; "
        "set --trainer.accumulate_grad_batches or the learning rate"
    ]
    assert one.make_card()["notices"] == one.notices


def test_the_recipes_batch_by_accumulation_is_none(tmp_path):
    one = module()
    one.recipe_batch = 6
    assert fit(one, tmp_path, accumulate_grad_batches=3) == []


def test_random_weights_are_noticed_where_the_method_stands_on_others(tmp_path):
    assert fit(module(), tmp_path) == []
    assert "random weights" in fit(module(OnWeights), tmp_path)[0]


def test_a_notice_is_given_once():
    one = module()
    with pytest.warns(UserWarning, match="look here"):
        one.notice("look here")
    one.notice("look here")
    assert one.notices == ["look here"]
