"""Stops a fit whose loss or gradients are not finite, on all processes at once, and saves the batch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from structseg.lightning_modules.callbacks.image_scores import gathered
from structseg.lightning_modules.checkpoints.failed_batch import save_failed_batch

FAILED_BATCH = "failed_batch.pt"

_SHOWN = 4  # names of a batch that the error lists


class NumericGuard(Callback):
    """Raises if a loss or a gradient is nan or infinite, before the optimiser uses it.

    All processes raise the same message in the same step. The batch is saved in the run's folder as `failed_batch.pt`,
    and those of further affected processes as `failed_batch_rankR.pt` (`failed_batch`); so is the batch of a step that
    raises a ValueError itself.

    With a gradient scaler gradients are not checked: it handles those that are not finite.
    """

    def __init__(self) -> None:
        self._step: tuple[Any, int, int] | None = None  # batch, its index in the epoch, torch's seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keeps the batch until the step is done."""
        self._step = batch, batch_idx, torch.initial_seed()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Checks the loss.

        Raises:
            ValueError: it is not finite on some process; the message names step, batch and first images.
        """
        wrong = None if bool(loss.isfinite().all()) else f"the loss is {loss.item()}"
        self._stop_together(trainer, pl_module, wrong)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Checks the gradients.

        Raises:
            ValueError: one is not finite; the message names the first such parameter.
        """
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        grads = {name: parameter.grad for name, parameter in pl_module.named_parameters() if parameter.grad is not None}
        wrong = None
        if not bool(get_total_norm(grads.values(), norm_type=float("inf")).isfinite()):
            first = next(name for name, grad in grads.items() if not bool(grad.isfinite().all()))
            wrong = f"the gradient of {first} is not finite"
        self._stop_together(trainer, pl_module, wrong)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Releases the batch."""
        self._step = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves the batch of a step that raised a ValueError, as for logits that are nan."""
        if self._step is not None and isinstance(exception, ValueError):
            path = Path(trainer.default_root_dir) / _file_name(trainer.global_rank)
            warnings.warn(self._save(path, trainer, pl_module, str(exception)), stacklevel=2)

    def _stop_together(self, trainer: Trainer, module: LightningModule, wrong: str | None) -> None:
        """Raises on all processes if there is something `wrong` on one."""
        world, rank = trainer.world_size, trainer.global_rank
        first = world if wrong is None else rank
        if world > 1:
            lowest = torch.tensor(first, device=module.device)
            torch.distributed.all_reduce(lowest, torch.distributed.ReduceOp.MIN)
            first = int(lowest)
        if first == world:
            return
        message = ""
        if wrong is not None:
            path = Path(trainer.default_root_dir) / (FAILED_BATCH if rank == first else _file_name(rank))
            message = self._message(path, trainer, module, wrong)
        self._step = None
        message = gathered(message, world)[first]
        started: Any = getattr(trainer.strategy.launcher, "procs", None)
        if started:
            # They raise too; for their exit codes Lightning would kill this process before it shows the message.
            started.clear()
        raise ValueError(message)

    def _message(self, path: Path, trainer: Trainer, module: LightningModule, wrong: str) -> str:
        assert self._step is not None
        batch, batch_idx, _ = self._step
        names = batch.get("name", []) if isinstance(batch, dict) else []
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        where = f"rank {trainer.global_rank}, " if trainer.world_size > 1 else ""
        what = (
            f"{wrong} in {where}epoch {trainer.current_epoch}, batch {batch_idx}, step {trainer.global_step} "
            f"({', '.join(names[:_SHOWN])}{more})"
        )
        return f"{what}; lower the learning rate, or look at these images; {self._save(path, trainer, module, what)}"

    def _save(self, path: Path, trainer: Trainer, module: LightningModule, what: str) -> str:
        """Saves the batch; returns a sentence on where."""
        assert self._step is not None
        try:
            save_failed_batch(path, trainer, module, *self._step, what)
        except OSError as error:
            return f"the batch was not kept ({error})"
        return f"the batch is kept: python -m structseg.lightning_modules.checkpoints.failed_batch {path}"


def _file_name(rank: int) -> str:
    return FAILED_BATCH if rank == 0 else f"failed_batch_rank{rank}.pt"
