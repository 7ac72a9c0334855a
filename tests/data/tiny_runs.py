"""A module and a trainer for the tiny data, and what the module predicts, worked out by hand."""

from functools import partial

import numpy as np
import torch
from pytorch_lightning import Trainer
from torch import nn

from structseg.lightning_modules.segmentation import SegmentationModule
from tests.data.tiny import TinyNetwork


def make_module(data, lr=0.03):
    torch.manual_seed(0)
    loss = nn.CrossEntropyLoss(ignore_index=255)
    space = data.label_space
    return SegmentationModule(TinyNetwork(len(space)), loss, space, optimizer=partial(torch.optim.Adam, lr=lr))


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


def save_checkpoint(path, module, class_path, size=(32, 32), **init_args):
    """Writes what a fit of the module would, of a configuration with these settings of the model."""
    module.resolved_config = {"model": {"class_path": class_path, "init_args": init_args}}
    module.input_size = size
    torch.save({"structseg": module.make_card(), "state_dict": module.state_dict(), "epoch": 0}, path)
    return path
