"""Options of the trainer that people use: obeyed, or refused in one line before the first step."""

import csv
import sys

import pytest
import torch
from pytorch_lightning.callbacks import ProgressBar
from torch import nn

from structseg.command.lightning import run
from structseg.lightning_modules.fasseg_unet import FASSEGUNet
from tests.data.tiny import config_text


class Pooled(nn.Module):
    """Logits (N, K, H, W) from a batch norm that sees one value a channel and image, as in DeepLab's image pooling."""

    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, classes, 1), nn.BatchNorm2d(classes))

    def forward(self, image):
        return self.layers(image).expand(-1, -1, *image.shape[2:])


class Logging(FASSEGUNet):
    """A user's own module that logs at each step."""

    def training_step(self, batch, batch_idx):
        self.log("train/mine", 1.0)
        return super().training_step(batch, batch_idx)


@pytest.fixture
def fit(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["structseg"])
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def fit(*more, images=8, network=None, module="FASSEGUNet"):
        text = config_text(images, max_epochs=2).replace("FASSEGUNet", module)
        (tmp_path / "tiny.yaml").write_text(text if network is None else text.replace("ReadmeUNet", network))
        return run(["fit", "--config", str(tmp_path / "tiny.yaml"), "--runs_dir", str(tmp_path), *more])

    return fit


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_weights_in_half_precision_are_refused(fit, precision):
    with pytest.raises(ValueError, match=f"{precision} keeps no float32 .* use {precision.split('-')[0]}-mixed"):
        fit("--trainer.precision", precision)


def test_no_checkpoints_where_none_are_wanted(fit, tmp_path):
    fit("--trainer.enable_checkpointing", "false")
    assert not list(tmp_path.glob("**/*.ckpt"))
    assert list(tmp_path.glob("*/*/metrics.csv"))


@pytest.mark.parametrize(("images", "each"), [(9, 4), (1, 4), (5, 1)])
def test_a_last_batch_of_one_under_batch_norm_is_said_before_the_first_step(fit, tmp_path, images, each):
    with pytest.raises(ValueError, match=rf"one image \({images} images, {each} a batch\).* set another"):
        fit("--data.batch_size", str(each), images=images, network=f"{__name__}.Pooled")
    assert not list(tmp_path.glob("*/*/checkpoints/*"))
    assert not list(tmp_path.glob("*/*/failed_batch.pt"))


def test_looking_for_it_leaves_no_trace(fit):
    """A last batch of one that the network can take is trained as if nobody had looked."""
    weights = []
    for looks in (True, False):
        module = FASSEGUNet if looks else Blind
        done = fit(images=9, module=f"{module.__module__}.{module.__name__}")
        weights.append(done.model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


class Blind(FASSEGUNet):
    def on_train_start(self):
        pass


@pytest.mark.parametrize("average", ["EMAWeightAveraging", "StochasticWeightAveraging"])
def test_averaged_weights(fit, average):
    more = ["--trainer.callbacks.swa_lrs", "0.01"] if average.startswith("Stoch") else []
    assert fit("--trainer.callbacks", average, *more).trainer.state.finished


def test_what_a_step_logs_is_in_the_file_of_a_short_epoch(fit, tmp_path):
    fit(module=f"{__name__}.Logging")
    (path,) = tmp_path.glob("*/*/metrics.csv")
    with path.open(newline="") as file:
        assert [row["train/mine"] for row in csv.DictReader(file) if row["train/mine"]] == ["1.0", "1.0"]


def test_another_logger_keeps_metrics_csv(fit, tmp_path):
    fit("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", str(tmp_path / "other"))
    assert list(tmp_path.glob("tiny/*/metrics.csv"))
    assert not (tmp_path / "other").exists()


def test_tensorboard_lies_in_the_runs_folder(fit, tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    done = fit("--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", str(tmp_path / "other"))
    assert (done.folder.path / "metrics.csv").is_file()
    assert list(done.folder.path.glob("events.out.tfevents*"))


def test_a_progress_bar_of_the_users_takes_the_place_of_ours(fit):
    cli = fit("--trainer.callbacks", "TQDMProgressBar", "--trainer.enable_progress_bar", "true")
    bars = [one for one in cli.trainer.callbacks if isinstance(one, ProgressBar)]
    assert [type(one).__name__ for one in bars] == ["TQDMProgressBar"]


def test_a_callback_whose_default_is_an_enumeration_is_saved(fit, tmp_path):
    fit("--trainer.callbacks", "Timer", "--trainer.callbacks.duration", "00:00:10:00")
    assert "interval: step" in next(tmp_path.glob("*/*/experiment.yaml")).read_text()


def test_barebones_is_refused(fit):
    with pytest.raises(ValueError, match="barebones keeps no checkpoint"):
        fit("--trainer.barebones", "true")


def test_what_the_trainer_says_in_vain_is_not_shown(fit, caplog):
    fit()
    assert "weights_only" not in caplog.text
