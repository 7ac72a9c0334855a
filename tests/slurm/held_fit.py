"""A callback that holds a fit in the middle of an epoch, on every process, until the test lets it go."""

import os
import time
from pathlib import Path

from pytorch_lightning import Callback

HOLDS_AT = 9  # optimiser steps that are done; 6 an epoch


class Held(Callback):
    """Waits before its tenth step for the file `go` in `runs`; says where it is in `at.RANK`."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == HOLDS_AT:
            runs = Path("runs")
            (runs / f"at.{trainer.global_rank}").write_text(os.environ.get("SLURMD_NODENAME", ""))
            while not (runs / "go").exists():
                time.sleep(0.05)
