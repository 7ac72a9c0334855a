"""Every setting of optimiser and schedule on resume: applied from the next step on, or refused in one line."""

import signal
import sys

import pytest
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from structseg.command.lightning import run
from structseg.lightning_modules.fasseg_unet import FASSEGUNet
from tests.data.tiny import config_text

LAST = "checkpoints/last.ckpt"
POLY = ("--model.lr_scheduler", "PolyLR")
PLATEAU = (
    "--model.lr_scheduler",
    "pytorch_lightning.cli.ReduceLROnPlateau",
    "--model.lr_scheduler.monitor",
    "val/loss",
)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["structseg"])
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture
def fit(tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(config_text(max_epochs=2))  # 2 steps an epoch

    def fit(*more, epochs=2):
        where = ["--runs_dir", str(tmp_path), "--run_id", "mine", "--resume", "auto"]
        run(["fit", "--config", str(config), *where, "--trainer.max_epochs", str(epochs), *more])
        return torch.load(tmp_path / "tiny" / "mine" / LAST, weights_only=True)

    fit.first = 0.003  # the learning rate of the tiny configuration
    return fit


def learning_rate(checkpoint):
    return checkpoint["optimizer_states"][0]["param_groups"][0]["lr"]


@pytest.mark.parametrize(
    "schedule",
    [
        ("--model.lr_scheduler", "null"),
        POLY,
        ("--model.lr_scheduler", "OneCycle"),
        ("--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "1"),
        ("--model.lr_scheduler", "ExponentialLR", "--model.lr_scheduler.gamma", "0.5"),
        ("--model.lr_scheduler", "CosineAnnealingLR", "--model.lr_scheduler.T_max", "9"),
        PLATEAU,
    ],
    ids=lambda words: words[1],
)
def test_a_learning_rate_is_what_it_would_be_had_the_run_begun_with_it(fit, tmp_path, schedule):
    fit(*schedule, "--model.optimizer.lr", "0.01")
    resumed = learning_rate(fit(*schedule, "--model.optimizer.lr", "0.001", epochs=4))
    (tmp_path / "tiny" / "mine").rename(tmp_path / "first")
    whole = learning_rate(fit(*schedule, "--model.optimizer.lr", "0.001", epochs=4))
    assert resumed == pytest.approx(whole, rel=1e-9)
    assert resumed <= 0.001


@pytest.mark.parametrize(
    ("option", "value", "key", "expected"),
    [
        ("weight_decay", "0.25", "weight_decay", 0.25),
        ("betas", "[0.5, 0.75]", "betas", (0.5, 0.75)),
        ("amsgrad", "false", "amsgrad", False),
    ],
)
def test_other_settings_of_the_optimiser_are_applied(fit, option, value, key, expected):
    fit()
    after = fit(f"--model.optimizer.{option}", value, epochs=3)
    assert tuple(after["optimizer_states"][0]["param_groups"][0][key]) == expected if key == "betas" else True
    assert after["optimizer_states"][0]["param_groups"][0][key] == expected
    assert after["global_step"] == 6


def test_settings_of_a_schedule_are_applied(fit):
    fit(*POLY, "--model.lr_scheduler.power", "1.0", epochs=2)
    after = fit(*POLY, "--model.lr_scheduler.power", "0.5", "--model.optimizer.lr", "0.01", epochs=4)
    assert after["lr_schedulers"][0]["power"] == 0.5
    other = fit(*POLY, "--model.lr_scheduler.power", "0.5", "--model.optimizer.lr", "0.01", epochs=6)
    assert learning_rate(other) == 0.0
    assert other["global_step"] == 12


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ((), ("--model.optimizer", "SGD", "--model.optimizer.lr", "0.1"), "optimizer AdamW, this fit has SGD"),
        (POLY, ("--model.lr_scheduler", "OneCycle"), "lr_scheduler PolyLR, this fit has OneCycle"),
        (POLY, ("--model.lr_scheduler", "null"), "lr_scheduler PolyLR, this fit has None"),
        (
            ("--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "1"),
            ("--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "3"),
            r"lr_scheduler.step_size cannot change in a resumed fit \(1 -> 3\)",
        ),
        (
            ("--model.lr_scheduler", "OneCycleLR", "--model.lr_scheduler.max_lr", "1", "--model.lr_scheduler.total_steps", "4"),
            ("--model.lr_scheduler", "OneCycleLR", "--model.lr_scheduler.max_lr", "1", "--model.lr_scheduler.total_steps", "4"),
            "OneCycleLR has 4 steps, the fit 8",
        ),
    ],
)  # fmt: skip
def test_what_cannot_change_is_refused_and_nothing_is_lost(fit, tmp_path, capsys, first, second, said):
    fit(*first)
    before = (tmp_path / "tiny" / "mine" / LAST).read_bytes()
    with pytest.raises(ValueError, match=said):
        fit(*second, epochs=4)
    assert (tmp_path / "tiny" / "mine" / LAST).read_bytes() == before


@pytest.mark.parametrize("more", [("--data.batch_size", "2"), ("--data.num_workers", "1")], ids=" ".join)
def test_the_loader_may_change(fit, more):
    fit()
    assert fit(*more, epochs=3)["global_step"] == 4 + (4 if "--data.batch_size" in more else 2)


def test_another_batch_size_amid_an_epoch_shows_each_image_once(fit, tmp_path, monkeypatch):
    """Stopped after one of two batches of 4, and again after a batch of 2: the last batch has the other two images."""
    names, step = [], FASSEGUNet.training_step

    def seen(self, batch, batch_idx):
        names.append(batch["name"])
        if len(names) <= 2:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(FASSEGUNet, "training_step", seen)
    with pytest.raises(SIGTERMException):
        fit(epochs=1)
    with pytest.raises(SIGTERMException):
        fit("--data.batch_size", "2", epochs=1)
    fit("--data.batch_size", "2", epochs=1)
    assert [len(batch) for batch in names] == [4, 2, 2]
    assert len({name for batch in names for name in batch}) == 8


@pytest.mark.parametrize("every", ["1", "2"])
def test_a_plateau_that_was_interrupted_is_one_that_was_not(fit, tmp_path, every):
    more = (*PLATEAU, "--model.lr_scheduler.patience", "0", "--model.lr_scheduler.threshold", "0.9",
            "--trainer.check_val_every_n_epoch", every)  # fmt: skip
    for epochs in (1, 2, 3, 6):
        cut = fit(*more, epochs=epochs)
    (tmp_path / "tiny" / "mine").rename(tmp_path / "first")
    whole = fit(*more, epochs=6)
    for state in (cut, whole):
        state["lr_schedulers"][0].pop("_last_lr", None)
    assert cut["lr_schedulers"] == whole["lr_schedulers"]
    assert learning_rate(cut) == learning_rate(whole) < fit.first
