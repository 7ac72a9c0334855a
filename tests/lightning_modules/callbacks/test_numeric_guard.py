from types import SimpleNamespace

import pytest
import torch

from lightning_modules.callbacks.numeric_guard import NumericGuard

TRAINER = SimpleNamespace(current_epoch=2)
BATCH = {"name": ["a", "b", "c", "d", "e"]}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_fit_and_names_the_images(value):
    with pytest.raises(ValueError, match=rf"loss is {value} in epoch 2, batch 7 \(a, b, c, d and 1 more\)"):
        NumericGuard().on_train_batch_end(TRAINER, None, {"loss": torch.tensor(value)}, BATCH, 7)


def test_a_number_passes():
    NumericGuard().on_train_batch_end(TRAINER, None, {"loss": torch.tensor(3.0)}, BATCH, 7)
    NumericGuard().on_train_batch_end(TRAINER, None, None, BATCH, 7)  # Lightning skipped the step
