"""Stops a fit whose loss is no number."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

_SHOWN = 4  # names of a batch that the error lists


class NumericGuard(Callback):
    """Raises at the first training step whose loss is nan or infinite, before another step builds on it."""

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002  # Lightning's hook
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Looks at the loss of the step that has just been taken.

        Raises:
            ValueError: it is not finite; the message has the epoch, the batch and its first images.
        """
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and not bool(torch.isfinite(loss)):
            names = batch.get("name", []) if isinstance(batch, dict) else []
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise ValueError(
                f"the loss is {float(loss)} in epoch {trainer.current_epoch}, batch {batch_idx} "
                f"({', '.join(names[:_SHOWN])}{more}); lower the rate, or look at these images"
            )
