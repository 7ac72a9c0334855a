"""Saves a fit that is sent a signal to stop, after the same step on every process."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from pytorch_lightning.utilities.exceptions import SIGTERMException

from structseg.lightning_modules.callbacks.checkpoints import BestAndLast

REQUEUE = signal.SIGUSR1  # sent before the time limit by `#SBATCH --signal=USR1@120`
_SIGNALS = (signal.SIGTERM, REQUEUE)


class Interruption(Callback):
    """Saves `last.ckpt` at the end of the optimiser step in which a signal arrives, and stops the fit.

    SIGTERM (`scancel`, pre-emption, a shutdown): saves and stops; requeueing is left to SLURM. SIGUSR1: under SLURM
    saves, requeues the job and stops; elsewhere it saves and the fit continues. After an epoch's last step the fit
    stops only once validation is done and the epoch's checkpoint is written.

    All processes stop at the same step, even if the signal reaches only some: they exchange it at each step.

    Raises:
        SIGTERMException: the fit has saved and stops.
    """

    def __init__(self) -> None:
        self._received = 0
        self._before: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keeps the handlers that were set before Lightning's, for `teardown`."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}

    def _install(self) -> None:
        """Replaces Lightning's handlers, which save within a step or ignore SIGTERM."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self._received != signal.SIGTERM:  # which takes precedence
            self._received = number

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on, signals are only recorded."""
        self._install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_sanity_check_start`, for a fit without validation."""
        self._install()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops between two epochs if the last one is saved."""
        checkpoint = _checkpoint(trainer)
        if checkpoint is not None and checkpoint.is_saved(trainer):
            self._act(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves and stops if any process got a signal."""
        loop = trainer.fit_loop.epoch_loop
        # Saved after an epoch's last step, a resume would skip the epoch's validation.
        if not loop.batch_progress.is_last_batch and not loop._should_accumulate():
            self._act(trainer)

    def _act(self, trainer: Trainer) -> None:
        number = self._agreed(trainer)
        if not number:
            return
        self._received = 0
        checkpoint = _checkpoint(trainer)
        if checkpoint is None:
            rank_zero_warn("a signal to stop, and nothing is saved: this fit keeps no checkpoints")
        elif not checkpoint.is_saved(trainer):
            checkpoint.write_last(trainer)
            self._log(trainer)
        step = trainer.global_step
        if number == REQUEUE and job_id() is None:
            rank_zero_info(f"saved at step {step}; this is no SLURM job, so the fit continues")
            return
        rank_zero_info(f"{signal.Signals(number).name}: stopped at step {step}")
        if number == REQUEUE:
            if trainer.is_global_zero:
                requeue()
            trainer.strategy.barrier()  # if one process ended before, the launcher would end the others
        raise SIGTERMException

    def _log(self, trainer: Trainer) -> None:
        """Logs the step's values, which Lightning does after the callbacks; a logger may have been stopped already."""
        try:
            trainer._logger_connector.update_train_step_metrics()
        except Exception as error:  # noqa: BLE001  # any error of a logger: the fit is saved
            rank_zero_warn(f"the last step's values were not logged: {error}")
        for logger in trainer.loggers:
            with suppress(Exception):
                logger.save()

    def _agreed(self, trainer: Trainer) -> int:
        """The signal that any process has received, 0 for none."""
        if trainer.world_size == 1:
            return self._received
        flag = torch.tensor(_SIGNALS.index(self._received) + 1 if self._received else 0)
        flag = flag.to(trainer.strategy.root_device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return int(_SIGNALS[int(flag) - 1]) if int(flag) else 0

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restores the handlers that were set before the fit."""
        if threading.current_thread() is threading.main_thread():
            for number, before in self._before.items():
                if before is not None:  # None: a handler not installed from Python, which cannot be restored
                    signal.signal(number, before)
        self._before = {}


def _checkpoint(trainer: Trainer) -> BestAndLast | None:
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # it writes nothing
        return None
    return next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestAndLast)), None)


def requeue_before_training(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001  # a handler's arguments
    """Handler of SIGUSR1 before there is anything to save: requeues the job, which then starts again."""
    if os.environ.get("SLURM_PROCID", "0") == "0":
        requeue()
    raise SIGTERMException


def job_id() -> str | None:
    """SLURM's id of this job, `ARRAY_TASK` for a task of an array; None outside SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def requeue() -> None:
    """Asks SLURM to run this job again; warns if it refuses."""
    command = ["scontrol", "requeue", str(job_id())]
    try:
        # A new session, so that signals to this job do not end the command.
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, start_new_session=True)
        problem = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        rank_zero_warn(f"{' '.join(command)}: {problem}; the run is saved: submit the job again")
    else:
        rank_zero_info(f"requeued job {job_id()}")
