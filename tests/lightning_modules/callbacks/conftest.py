"""One tracked run that the callbacks' tests look at from all sides."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from torch import nn

from lightning_modules.base import SegmentationModule
from lightning_modules.callbacks.pictures import Pictures
from lightning_modules.callbacks.tables import ScoreTables
from tests.data.tiny import TinyDataModule, TinyNetwork
from tests.data.wandb_file import WandbRun, read_wandb_file


def make_module(data, lr=0.03):
    torch.manual_seed(0)
    loss = nn.CrossEntropyLoss(ignore_index=255)
    space = data.label_space
    return SegmentationModule(TinyNetwork(len(space)), loss, space, partial(torch.optim.Adam, lr=lr))


def make_trainer(folder, callbacks, loggers=False, **settings):
    settings = {"max_epochs": 1, "enable_checkpointing": False, "log_every_n_steps": 1, **settings}
    return Trainer(
        default_root_dir=folder,
        callbacks=callbacks,
        logger=loggers,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def predict(module, dataset):
    """The module's classes of each sample at its mask's size, by hand: (name, image, truth, prediction)."""
    module.eval()
    with torch.no_grad():
        for sample in (dataset[i] for i in range(len(dataset))):
            logits = module(sample["image"][None])
            size = tuple(sample["mask"].shape)
            logits = nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)
            yield sample["name"], sample["image"], sample["mask"].numpy(), logits.argmax(1)[0].numpy()


def count_pixels(module, dataset, classes, names=None):
    """The confusion matrix by hand, rows truth."""
    confusion = np.zeros((classes, classes), int)
    for name, _, truth, prediction in predict(module, dataset):
        if names is None or name in names:
            counted = truth != 255
            np.add.at(confusion, (truth[counted], prediction[counted]), 1)
    return confusion


@dataclass
class TrackedRun:
    folder: Path
    data: TinyDataModule
    module: SegmentationModule
    wandb: WandbRun

    @property
    def media(self):
        (files,) = self.folder.glob("wandb/offline-run-*/files")
        return files


@pytest.fixture(scope="session")
def tracked_run(tmp_path_factory):
    """Five epochs with masks at their own size, drawn every second epoch, then the test."""
    folder = tmp_path_factory.mktemp("tracked")
    data = TinyDataModule(score_at="native")
    data.test_subsets = {"easy": frozenset({"test_000", "test_002"})}
    module = make_module(data)
    tracker = WandbLogger(project="tiny", save_dir=folder, id="tiny0001", offline=True)
    trainer = make_trainer(
        folder,
        [ScoreTables(), Pictures(count=3, every_n_epochs=2)],
        [tracker, CSVLogger(folder, name="", version="")],
        max_epochs=5,
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(folder / "last.ckpt")
    trainer.test(module, data, verbose=False)
    tracker.experiment.finish()
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return TrackedRun(folder, data, module, read_wandb_file(file))
