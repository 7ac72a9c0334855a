"""Random numbers that depend on the training step only."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer


class StepSeed(Callback):
    """Seeds torch before each training batch by (seed, epoch, batch, rank), so that a resumed fit has equal dropout."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seeds the generators of all devices."""
        seed = [int(os.environ.get("PL_GLOBAL_SEED", "0")), trainer.current_epoch, batch_idx, trainer.global_rank, 1]
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
