"""The best and the last checkpoint, written atomically."""

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
    """`best.ckpt` by the monitored key, to test and predict with, and `last.ckpt`, from which a fit resumes.

    `best.ckpt` holds weights and card, but no state of optimiser or loops.

    `last.ckpt` is the state after the last finished epoch (with `save_every_steps` or a validation within an epoch, a
    later one), with or without monitor and validation, whether the fit finishes or ends by SIGTERM, SIGKILL or Ctrl-C.
    It is written after the epoch's validation and after `best.ckpt`, so that it holds the best score. The one before,
    `last.previous.ckpt`, is removed at the end of the fit.

    Lightning's `save_last` is not used: it saves only with a best checkpoint, and would lose other epochs.

    Args:
        monitor: key that decides which epoch is best; None: the last one, as without validation data.
        mode: `max` or `min`.
        save_every_steps: also save `last.ckpt` at multiples of this number of optimiser steps; 0 = do not.
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
        self._last_step = 0  # optimiser steps in the `last.ckpt` that this process has written
        self._best_exists = False  # at the start of the fit
        self._fitting = True  # False in a test or prediction, which has no best checkpoint

    @property
    def state_key(self) -> str:
        """The same key for every monitor (Lightning's contains it), so that a resumed fit may change it."""
        return type(self).__name__

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Resolves the folder, and checks for a best checkpoint in it before the state is loaded."""
        super().setup(trainer, pl_module, stage)
        self._fitting = stage == "fit"
        exists = trainer.is_global_zero and (Path(str(self.dirpath)) / BEST).is_file()
        self._best_exists = bool(trainer.strategy.broadcast(exists))  # so that all processes agree

    def state_dict(self) -> dict[str, Any]:
        """Lightning's state, and the mode."""
        return {**super().state_dict(), "mode": self.mode}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best score; its folder may have moved.

        The score is dropped with a warning, and the next validated epoch is the best, if `best.ckpt` is missing or the
        score is that of another key or mode.
        """
        paths = {name: str(Path(str(self.dirpath)) / name) for name in (BEST, LAST)}
        self.last_model_path = paths[LAST] if state_dict["last_model_path"] else ""
        if not state_dict["best_model_path"] or not self._fitting:
            return
        saved = (state_dict["monitor"], state_dict.get("mode", self.mode))
        if saved != (self.monitor, self.mode):
            before, now = (f"{key} ({mode})" for key, mode in (saved, (self.monitor, self.mode)))
            rank_zero_warn(f"{before} was watched, now {now} is: the next epoch with that score becomes {BEST}")
        elif not self._best_exists:
            rank_zero_warn(f"{paths[BEST]} does not exist: the next epoch with a score becomes {BEST}")
        else:
            self.best_model_path = paths[BEST]
            self.best_model_score = state_dict["best_model_score"]
            if state_dict["best_k_models"]:
                self.kth_best_model_path, self.kth_value = paths[BEST], state_dict["kth_value"]
                self.best_k_models = {paths[BEST]: self.kth_value}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Saves `last.ckpt` within an epoch: every `save_every_steps` steps, and if the fit ends there."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        loop = trainer.fit_loop.epoch_loop
        # The epoch's last step is saved after validation; saved here, a resume would skip the validation.
        if loop.batch_progress.is_last_batch or loop._should_accumulate() or self.is_saved(trainer):
            return
        if loop._is_training_done or (self.save_every_steps and trainer.global_step % self.save_every_steps == 0):
            self.write_last(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Saves `last.ckpt` after a validation within an epoch; the epoch's last one is saved with the epoch."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        within_epoch = not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if within_epoch and (self.is_saved(trainer) or not self._should_save_on_train_epoch_end(trainer)):
            self.write_last(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Saves the best, and then the last."""
        super().on_train_epoch_end(trainer, pl_module)
        if not self.is_saved(trainer):
            self.write_last(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Removes `last.previous.ckpt`, which the finished fit no longer needs; warns if there is no `best.ckpt`."""
        super().on_train_end(trainer, pl_module)
        if trainer.is_global_zero and self.is_saved(trainer):
            (Path(str(self.dirpath)) / PREVIOUS).unlink(missing_ok=True)
        if not self.best_model_path and not trainer.fast_dev_run:
            rank_zero_warn(
                f"no {BEST}: no validation has logged {self.monitor} in {trainer.current_epoch} epochs; {LAST} is the "
                "end of the fit; for a best one lower --trainer.check_val_every_n_epoch, or train for longer"
            )

    def _should_save_on_train_epoch_end(self, trainer: Any) -> bool:
        """Whether the best is chosen at the end of an epoch, not of a validation, which a fit may lack."""
        return (
            self.monitor is None
            or self.monitor.startswith("train/")
            or super()._should_save_on_train_epoch_end(trainer)
        )

    def is_saved(self, trainer: Any) -> bool:
        """Whether `last.ckpt` holds the current step."""
        return bool(self._last_step == trainer.global_step)

    def write_last(self, trainer: Any) -> None:
        """Writes `last.ckpt`; all processes must call it."""
        if trainer.fast_dev_run:
            return
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()  # a resumed fit appends to what was logged before the checkpoint
        self.last_model_path = str(Path(str(self.dirpath)) / LAST)
        trainer.save_checkpoint(self.last_model_path)
        self._last_step = trainer.global_step


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file, syncs and renames it: a crash or a full disk leaves the previous checkpoint whole.

    A replaced `last.ckpt` is kept as `last.previous.ckpt`, in case the disk damages the new one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Saves the checkpoint at `path`.

        Raises:
            OSError: it could not be written.
        """
        if storage_options is not None:
            raise TypeError("storage_options are not used by checkpoints on disk; leave them out")
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if target.name == LAST and target.is_file():
                _keep(target)
            part.replace(target)
            _sync_folder(target.parent)
        except (OSError, RuntimeError) as error:
            if _interrupted(error):  # Ctrl-C while torch finishes the file gives a RuntimeError
                part.unlink(missing_ok=True)
                raise KeyboardInterrupt from None
            free = shutil.disk_usage(target.parent).free >> 20
            part.unlink(missing_ok=True)
            kept = "; the previous one is whole" if target.is_file() else ""
            reason = f"{str(error).splitlines()[0]}; {free} MiB are free"
            raise OSError(
                f"{target} could not be written ({reason}){kept}; free some space or set --runs_dir"
            ) from None

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None) -> Any:
        """The checkpoint at `path`; always with `weights_only`, so that no code in it runs."""
        return super().load_checkpoint(path, map_location, weights_only=True)


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C caused an error."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _keep(target: Path) -> None:
    """Links the file as `last.previous.ckpt`; a rename would leave a moment without `last.ckpt`."""
    link = target.with_name(PREVIOUS + ".part")
    link.unlink(missing_ok=True)
    try:
        link.hardlink_to(target)
    except OSError:  # a file system without hard links
        shutil.copyfile(target, link)
    link.replace(target.with_name(PREVIOUS))


def _sync_folder(folder: Path) -> None:
    """Makes the new names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
