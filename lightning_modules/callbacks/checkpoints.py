"""Checkpoints: the best and the last, each written whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_warn

BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "last.previous.ckpt"


class BestAndLast(ModelCheckpoint):
    """`best.ckpt` by the watched key, to be tested and used, and `last.ckpt`, from which a fit resumes.

    `best.ckpt` holds the weights and the card, and no state of optimiser or loops. Once the fit has come to its end,
    the `last.previous.ckpt` that was kept beside goes.

    `last.ckpt` is the state after the last finished epoch (and, with `save_every_steps`, the last multiple), whatever
    is watched or not watched, with and without validation, after a plain end, SIGTERM, SIGKILL, Ctrl-C. It is written
    after the epoch's validation and after `best.ckpt`, so that it holds the best score so far. Validations within an
    epoch, and an end within one, are saved likewise.

    Lightning's own `save_last` is not used: it follows the saving of a best checkpoint, and an epoch that is not the
    best, or is not validated, would be lost.

    Args:
        monitor: key that decides which is best; None: the last epoch is, as without validation data.
        mode: `max` or `min`.
        save_every_steps: also save `last.ckpt` every so many optimiser steps; 0 = at the end of an epoch only.
    """

    CHECKPOINT_NAME_LAST = "last"

    def __init__(self, monitor: str | None = "val/miou", mode: str = "max", save_every_steps: int = 0) -> None:
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename="best",
            save_last=False,
            save_weights_only=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self.save_every_steps = save_every_steps
        self._last_step = 0  # optimiser steps in `last.ckpt`, of those that this process has written
        self._best_is_there = False  # when the fit began
        self._fitting = True  # False in a test or prediction, where a best one found earlier means nothing

    @property
    def state_key(self) -> str:
        """One key whatever is watched, so that a checkpoint finds its callback again."""
        return type(self).__name__

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Settles the folder, and looks whether a best checkpoint is in it: before the state is loaded."""
        super().setup(trainer, pl_module, stage)
        self._fitting = stage == "fit"
        there = trainer.is_global_zero and (Path(str(self.dirpath)) / BEST).is_file()
        self._best_is_there = bool(trainer.strategy.broadcast(there))  # all processes have to decide alike

    def state_dict(self) -> dict[str, Any]:
        """Lightning's, and by which mode the best one was chosen."""
        return {**super().state_dict(), "mode": self.mode}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the best score so far, in whatever folder the run lies now.

        The score is forgotten, and a warning says so, where its `best.ckpt` is not in the folder or where it is of
        another key or mode: then the next validated epoch is the best.
        """
        here = {name: str(Path(str(self.dirpath)) / name) for name in (BEST, LAST)}
        self.last_model_path = here[LAST] if state_dict["last_model_path"] else ""
        if not state_dict["best_model_path"] or not self._fitting:
            return
        watched = (state_dict["monitor"], state_dict.get("mode", self.mode))
        if watched != (self.monitor, self.mode):
            before, now = (f"{key} ({mode})" for key, mode in (watched, (self.monitor, self.mode)))
            rank_zero_warn(f"{before} was watched, now {now} is: the next epoch with that score becomes {BEST}")
        elif not self._best_is_there:
            rank_zero_warn(f"{here[BEST]} is not there: the next epoch with a score takes its place")
        else:
            self.best_model_path = here[BEST]
            self.best_model_score = state_dict["best_model_score"]
            if state_dict["best_k_models"]:
                self.kth_best_model_path, self.kth_value = here[BEST], state_dict["kth_value"]
                self.best_k_models = {here[BEST]: self.kth_value}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keeps `last.ckpt` fresh within long epochs, and where the fit ends within one."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        loop = trainer.fit_loop.epoch_loop
        # The epoch's last step is saved after validation: saved here, the epoch would be taken for a validated one.
        if loop.batch_progress.is_last_batch or loop._should_accumulate() or self.is_saved(trainer):
            return
        if loop._is_training_done or (self.save_every_steps and trainer.global_step % self.save_every_steps == 0):
            self.write_last(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Within an epoch, saves what the validation has found; the epoch's last one is saved with the epoch."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        amid = not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if amid and (self.is_saved(trainer) or not self._should_save_on_train_epoch_end(trainer)):
            self.write_last(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Saves the best, and then the last."""
        super().on_train_epoch_end(trainer, pl_module)
        if not self.is_saved(trainer):
            self.write_last(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Says so where there is no best one; the fit is at its end, and what was kept for a damaged disk goes."""
        super().on_train_end(trainer, pl_module)
        if trainer.is_global_zero and self.is_saved(trainer):
            (Path(str(self.dirpath)) / PREVIOUS).unlink(missing_ok=True)
        if not self.best_model_path and not trainer.fast_dev_run:
            rank_zero_warn(
                f"no {BEST}: no validation has logged {self.monitor} in {trainer.current_epoch} epochs; {LAST} is the "
                "end of the fit; for a best one lower --trainer.check_val_every_n_epoch, or train for longer"
            )

    def _should_save_on_train_epoch_end(self, trainer: Any) -> bool:
        """Whether the best is decided at the end of an epoch, not of a validation, which may never come."""
        return (
            self.monitor is None
            or self.monitor.startswith("train/")
            or super()._should_save_on_train_epoch_end(trainer)
        )

    def is_saved(self, trainer: Any) -> bool:
        """Whether `last.ckpt` holds this very step."""
        return bool(self._last_step == trainer.global_step)

    def write_last(self, trainer: Any) -> None:
        """Writes `last.ckpt` now; every process has to come here."""
        if trainer.fast_dev_run:
            return
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()  # what has been logged up to here is on the disk when the checkpoint is
        self.last_model_path = str(Path(str(self.dirpath)) / LAST)
        trainer.save_checkpoint(self.last_model_path)
        self._last_step = trainer.global_step


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside, syncs, renames: a crash or a full disk leaves the previous file as it was.

    The `last.ckpt` that is replaced stays as `last.previous.ckpt`, for a disk that damages what it has taken.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Saves the checkpoint at `path`.

        Raises:
            OSError: it could not be written; the message says so, and that the previous one is whole.
        """
        if storage_options is not None:
            raise TypeError("storage_options are not used by checkpoints on disk; leave them out")
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(target.name + ".part")
        try:
            with beside.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if target.name == LAST and target.is_file():
                _keep(target)
            beside.replace(target)
            _sync_folder(target.parent)
        except (OSError, RuntimeError) as error:
            if _interrupted(error):  # Ctrl-C within the file's end, which then cannot be written
                beside.unlink(missing_ok=True)
                raise KeyboardInterrupt from None
            free = shutil.disk_usage(target.parent).free >> 20
            beside.unlink(missing_ok=True)
            kept = "; the previous one is whole" if target.is_file() else ""
            reason = f"{str(error).splitlines()[0]}; {free} MiB are free"
            raise OSError(
                f"{target} could not be written ({reason}){kept}; free some space or set --runs_dir"
            ) from None

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None) -> Any:
        """The checkpoint at `path`: tensors and plain values, and never a program, whatever is asked for."""
        return super().load_checkpoint(path, map_location, weights_only=True)


def _interrupted(error: BaseException | None) -> bool:
    """Whether an error came of Ctrl-C."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _keep(target: Path) -> None:
    """Gives the file a second name, so that at no moment there is no `last.ckpt`."""
    link = target.with_name(PREVIOUS + ".part")
    link.unlink(missing_ok=True)
    try:
        link.hardlink_to(target)
    except OSError:  # a disk without links
        shutil.copyfile(target, link)
    link.replace(target.with_name(PREVIOUS))


def _sync_folder(folder: Path) -> None:
    """The new names survive a power cut too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
