"""Checks the keys that callbacks monitor before a run starts."""

from __future__ import annotations

import difflib

from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from structseg.lightning_modules.base import TrainedModule


def check_watched_keys(callbacks: list[Callback], module: TrainedModule, has_validation: bool) -> None:
    """Checks that the module logs all monitored keys; without validation data, makes the last epoch the best one.

    Raises:
        ValueError: a callback monitors a key that no step logs.
    """
    logged = module.logged_keys()
    for callback in callbacks:
        if not isinstance(callback, ModelCheckpoint | EarlyStopping) or callback.monitor is None:
            continue
        if not has_validation and callback.monitor.startswith("val/"):
            if isinstance(callback, EarlyStopping):
                raise ValueError(f"early stopping watches {callback.monitor}, but nothing is held out; set --data.fold")
            print(f"nothing is held out for validation: best.ckpt is the last epoch, not the best {callback.monitor}")
            callback.monitor = None
        elif callback.monitor not in logged:
            near = difflib.get_close_matches(callback.monitor, sorted(logged), 3, 0.3)
            name = type(callback).__name__
            raise ValueError(f"{name} watches {callback.monitor}, which no step logs; choose {' or '.join(near)}")
