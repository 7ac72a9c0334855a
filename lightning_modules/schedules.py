"""Learning-rate schedules over optimiser steps, whose number the module fills in."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class _StepSchedule(LRScheduler):
    """A schedule over a number of steps that the trainer knows."""

    total_steps: int | None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the state; a number of steps that is already set is kept, as a resumed run may have another one."""
        total_steps = self.total_steps
        super().load_state_dict(state_dict)
        self.total_steps = total_steps or self.total_steps

    def _position(self) -> tuple[int, int]:
        """The current step and the number of steps; at step 0 any number will do."""
        if self.total_steps is None:
            if self.last_epoch > 0:
                raise ValueError(f"{type(self).__name__} was stepped without total_steps; give it their number")
            return 0, 1 << 30
        return self.last_epoch, self.total_steps


class PolyLR(_StepSchedule):
    """Polynomial decay to zero in stairs: lr * (1 - every * floor(step / every) / total_steps) ** power.

    To be stepped at each optimiser step; 0 from `total_steps` on. DeepLab has power 0.9 and changes every 10 steps.

    Args:
        optimizer: the optimiser; each parameter group has its own base learning rate.
        total_steps: optimiser steps of the training; None: the module sets the trainer's number.
        power: exponent, above 0.
        every: steps between two changes of the learning rate.

    Raises:
        ValueError: an argument is not positive.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = PolyLR(optimizer, total_steps=4, power=1.0, every=2)
        >>> for _ in range(2):
        ...     optimizer.step()
        ...     schedule.step()
        >>> schedule.get_last_lr()
        [0.5]
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int | None = None, power: float = 0.9, every: int = 1
    ) -> None:
        if (total_steps is not None and total_steps < 1) or power <= 0 or every < 1:
            raise ValueError(
                f"total_steps {total_steps}, power {power}, every {every}; all have to be above 0, the steps whole"
            )
        self.total_steps = total_steps
        self.power = power
        self.every = every
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each parameter group at the current step."""
        step, total = self._position()
        factor = (1 - self.every * (step // self.every) / total) ** self.power if step < total else 0.0
        return [lr * factor for lr in self.base_lrs]


class OneCycle(_StepSchedule):
    """One cosine cycle: from lr / start up to lr over the first `warmup` share of the steps, then down to lr / end.

    The optimiser's learning rate lr is the highest one; momentum is not changed. From `total_steps` on the learning
    rate stays at lr / end. Source: Smith and Topin, 2017, with cosines as in fastai.

    Args:
        optimizer: the optimiser; each parameter group has its own base learning rate.
        total_steps: optimiser steps of the training; None: the module sets the trainer's number.
        warmup: share of the steps with a rising learning rate, at least 0 and below 1.
        start: divisor of the learning rate at the first step, at least 1.
        end: divisor of the learning rate at the last step, at least 1.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        warmup: float = 0.3,
        start: float = 25.0,
        end: float = 1e4,
    ) -> None:
        if (total_steps is not None and total_steps < 1) or not 0 <= warmup < 1 or start < 1 or end < 1:
            raise ValueError(
                f"total_steps {total_steps}, warmup {warmup}, start {start}, end {end}; a positive number, 0 <= warmup "
                "< 1, and divisors of at least 1 are needed"
            )
        self.total_steps = total_steps
        self.warmup = warmup
        self.start = start
        self.end = end
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each parameter group at the current step."""
        step, total = self._position()
        peak = self.warmup * total
        if step < peak:
            low, part = 1 / self.start, 1 - step / peak
        else:
            low, part = 1 / self.end, min(1.0, (step - peak) / max(1.0, total - 1 - peak))
        factor = low + (1 - low) * (1 + math.cos(math.pi * part)) / 2
        return [lr * factor for lr in self.base_lrs]
