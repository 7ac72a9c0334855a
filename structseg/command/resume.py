"""`--resume auto`: finds the checkpoint that a fit resumes from, however its run ended, and marks finished fits."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from structseg.command.processes import exclusive_lock
from structseg.files import FINISHED, write_whole
from structseg.lightning_modules.callbacks.checkpoints import LAST, PREVIOUS
from structseg.lightning_modules.checkpoints.card import read_card

# Settings of the trainer by what they affect: where a fit runs, what it shows, how long it trains.
_WHERE = ("accelerator", "strategy", "devices", "num_nodes", "plugins", "sync_batchnorm", "benchmark", "profiler")
_SHOWN = ("enable_progress_bar", "enable_model_summary", "default_root_dir")
_NOT_THE_RUN = ("config", "ckpt_path", "resume", "run_id", "memory", "runs_dir", "experiment", "weights_only")
_UNTIL = ("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time")


class ResumePoint(NamedTuple):
    """Where a fit begins.

    Attributes:
        checkpoint: the file that it resumes from; None: it starts from scratch.
        epoch: the epoch that it resumes in, counted from 0.
        step: number of optimiser steps already taken.
    """

    checkpoint: Path | None = None
    epoch: int = 0
    step: int = 0

    def __str__(self) -> str:
        """The line of the run's log."""
        if self.checkpoint is None:
            return "resume: from scratch"
        return f"resume: {self.checkpoint} (epoch {self.epoch}, step {self.step})"


def id_of(config: Mapping[str, Any]) -> str:
    """A hash of a configuration with its seed: eight hexadecimal digits.

    Settings of where it runs (devices, nodes, folders) are left out, so that the same command finds its run in any job
    on any node; so is the length of the training, so that a longer fit resumes the shorter one.
    """
    trainer = {k: v for k, v in config["trainer"].items() if k not in (*_WHERE, *_SHOWN, *_UNTIL)}
    data = {k: v for k, v in (config["data"].get("init_args") or {}).items() if k != "num_workers"}
    kept = {k: v for k, v in config.items() if k not in _NOT_THE_RUN}
    text = json.dumps(
        {**kept, "trainer": trainer, "data": [config["data"]["class_path"], data]}, sort_keys=True, default=str
    )
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def check_id(run_id: str) -> None:
    """Refuses a run id that cannot name a folder.

    Raises:
        ValueError: it has other characters than letters, digits, `.`, `_` and `-`, or begins with a dot.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", run_id):
        raise ValueError(f"--run_id {run_id!r} cannot name a folder; use letters, digits, '.', '_' and '-'")


def find_resume_point(checkpoints: Path) -> ResumePoint:
    """The newest intact checkpoint of a run: `last.ckpt`, or the previous one where that is damaged.

    Args:
        checkpoints: the folder `checkpoints` of a run; it need not exist.

    Raises:
        ValueError: there are checkpoints, and all are damaged.
    """
    damaged: list[str] = []
    for path in (checkpoints / LAST, checkpoints / PREVIOUS):
        if not path.is_file():
            continue
        problem = damage(path)
        if problem is None:
            if damaged:
                warnings.warn(f"{damaged[0]}; resuming from {path.name}, the previous one", stacklevel=2)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            over = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]
            return ResumePoint(path, int(content["epoch"]) + over, int(content["global_step"]))
        damaged.append(problem)
    if damaged:
        raise ValueError(
            f"{' and '.join(damaged)}: no intact checkpoint to resume from; remove {checkpoints.parent} to start again "
            "(best.ckpt in it can be tested and used, not resumed)"
        )
    return ResumePoint()


def find_unfinished(experiment: Path, config: Mapping[str, Any]) -> Path | None:
    """The newest unfinished run of an experiment with the same settings and a checkpoint that no process is using."""
    runs = sorted(experiment.glob("*/experiment.yaml"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for run in (path.parent for path in runs):
        if (run / FINISHED).is_file() or not (run / "checkpoints" / LAST).is_file():
            continue
        with suppress(OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, RuntimeError):
            if id_of(_unlinked(yaml.safe_load((run / "experiment.yaml").read_text(encoding="utf-8")))) == id_of(
                _unlinked(config)
            ):
                with exclusive_lock(run):
                    return run
    return None


def _unlinked(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the model's settings that come from the data, which a saved one leaves out."""
    model = config["model"]
    kept = {k: v for k, v in (model["init_args"] or {}).items() if k not in ("label_space", "mean", "std")}
    return {**config, "model": {**model, "init_args": kept}}


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, by its checksums; None where it is intact."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            return f"{path} is damaged in {broken}"
        read_card(path)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        return f"{path} is damaged ({str(error) or type(error).__name__})"
    except ValueError as error:
        return str(error)
    return None


def _end(config: Mapping[str, Any]) -> str:
    """The settings that say when a fit ends, as text."""
    return json.dumps({key: config["trainer"][key] for key in _UNTIL}, default=str) + "\n"


def mark_finished(folder: Path, config: Mapping[str, Any]) -> None:
    """Marks the fit in this folder as finished."""
    write_whole(folder / FINISHED, _end(config).encode())


def is_finished(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the fit in this folder is finished, and was asked to train for as long as this one."""
    mark = folder / FINISHED
    return mark.is_file() and mark.read_bytes() == _end(config).encode()
