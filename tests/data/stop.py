"""An interruption, as a callback."""

from typing import Any

from pytorch_lightning import Callback


class StopAfterEpoch(Callback):
    """Ends the process's fit after an epoch, as a killed job would."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.should_stop = True
