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

LAST, PREVIOUS = "last.ckpt", "last.previous.ckpt"


class BestAndLast(ModelCheckpoint):
    """`best.ckpt` by the watched key and `last.ckpt`, each epoch.

    Args:
        monitor: key that decides which is best; without validation data the last one is.
        mode: `max` or `min`.
        save_every_steps: also save `last.ckpt` every so many training steps; 0 = at the end of an epoch only.
    """

    CHECKPOINT_NAME_LAST = "last"

    def __init__(self, monitor: str | None = "val/miou", mode: str = "max", save_every_steps: int = 0) -> None:
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename="best",
            save_last=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self.save_every_steps = save_every_steps

    @property
    def state_key(self) -> str:
        """One key whatever is watched, so that a checkpoint finds its callback again."""
        return type(self).__name__

    def _save_last_checkpoint(self, trainer: Any, monitor_candidates: dict[str, Any]) -> None:
        if not trainer.fast_dev_run:
            for logger in trainer.loggers:
                if isinstance(logger, CSVLogger):
                    logger.save()  # what has been logged up to here is on the disk when the checkpoint is
            super()._save_last_checkpoint(trainer, monitor_candidates)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keeps `last.ckpt` fresh within long epochs."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        due = self.save_every_steps and trainer.global_step % self.save_every_steps == 0
        # The epoch's last step is saved after validation: saved here, the epoch would be taken for a validated one.
        if due and not self.is_saved(trainer) and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.write_last(trainer)

    def is_saved(self, trainer: Any) -> bool:
        """Whether a checkpoint of this very step is there."""
        return bool(self._last_global_step_saved == trainer.global_step)

    def write_last(self, trainer: Any) -> None:
        """Writes `last.ckpt` now; every process has to come here."""
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


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
            free = shutil.disk_usage(target.parent).free >> 20
            beside.unlink(missing_ok=True)
            kept = "; the previous one is whole" if target.is_file() else ""
            reason = f"{str(error).splitlines()[0]}; {free} MiB are free"
            raise OSError(
                f"{target} could not be written ({reason}){kept}; free some space or set --runs_dir"
            ) from None

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None) -> Any:  # noqa: ARG002  # Lightning's
        """The checkpoint at `path`: tensors and plain values, and never a program, whatever is asked for."""
        return super().load_checkpoint(path, map_location, weights_only=True)


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
