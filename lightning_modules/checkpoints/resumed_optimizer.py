"""New optimiser or schedule settings in a resumed fit: applied to the restored state, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Schedules that compute each learning rate from numbers that may change between two steps.
_ADJUSTABLE = ("PolyLR", "OneCycle", "ReduceLROnPlateau")
_KEEP = "keep the checkpoint's, or begin a new run"


def apply_settings(checkpoint: dict[str, Any], before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Changes the states of optimiser and schedule in a checkpoint to the settings of the resumed fit.

    Lightning would restore the old values. A learning rate becomes what it would be at this step if the run had
    started with the new one.

    Args:
        checkpoint: as Lightning loads it; its `optimizer_states` and `lr_schedulers` are changed in place.
        before: the module's arguments that the checkpoint was trained with, as in its card.
        now: those of this fit.

    Raises:
        ValueError: another optimiser or schedule, or a setting that cannot change in a resumed fit.
    """
    for part in ("optimizer", "lr_scheduler"):
        old, new = _chosen(before.get(part)), _chosen(now.get(part))
        if old[0] != new[0]:
            raise ValueError(f"the checkpoint was trained with {part} {old[0]}, this fit has {new[0]}; {_KEEP}")
        for key, value in new[1].items():
            if key not in old[1] or old[1][key] == value or key in ("total_steps", "monitor"):
                continue
            adjust = _adjust_optimizer if part == "optimizer" else _adjust_schedule
            if not adjust(checkpoint, new[0], key, old[1][key], value):
                raise ValueError(f"{part}.{key} cannot change in a resumed fit ({old[1][key]} -> {value}); {_KEEP}")


def _chosen(setting: Any) -> tuple[str | None, dict[str, Any]]:
    """The name of the class that a configuration chooses, and its arguments."""
    if not setting:
        return None, {}
    if isinstance(setting, str):
        return setting.rsplit(".", 1)[-1], {}
    return setting["class_path"].rsplit(".", 1)[-1], dict(setting.get("init_args") or {})


def _adjust_optimizer(checkpoint: dict[str, Any], _: str | None, key: str, old: Any, new: Any) -> bool:
    groups = [group for state in checkpoint["optimizer_states"] for group in state["param_groups"]]
    if any(key not in group for group in groups) or (key == "lr" and not old):
        return False
    if key != "lr":
        for group in groups:
            group[key] = tuple(new) if isinstance(group[key], tuple) else new
        return True
    factor = new / old
    for group in groups:
        group.update({name: group[name] * factor for name in ("lr", "initial_lr") if name in group})
    for state in checkpoint["lr_schedulers"]:
        for name in ("base_lrs", "_last_lr"):
            if name in state:
                state[name] = [lr * factor for lr in state[name]]
    return True


def _adjust_schedule(checkpoint: dict[str, Any], name: str | None, key: str, _: Any, new: Any) -> bool:
    states = checkpoint["lr_schedulers"]
    if name not in _ADJUSTABLE or any(not isinstance(state.get(key), int | float | str) for state in states):
        return False
    for state in states:
        state[key] = new
    return True
