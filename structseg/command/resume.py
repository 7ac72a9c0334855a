"""`--resume auto`: where a fit resumes, whatever ended it: nothing, a requeue, a crash, a node's death, or its end."""

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
from structseg.files import FINISHED
from structseg.lightning_modules.callbacks.checkpoints import LAST, PREVIOUS
from structseg.lightning_modules.checkpoints.card import read_card

_WHERE = ("accelerator", "strategy", "devices", "num_nodes", "plugins", "sync_batchnorm", "benchmark", "profiler")
_SHOWN = ("enable_progress_bar", "enable_model_summary", "default_root_dir")
_NOT_THE_RUN = ("config", "ckpt_path", "resume", "run_id", "memory", "runs_dir", "experiment", "weights_only")
_UNTIL = ("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time")


class ResumePoint(NamedTuple):
    """Where a fit begins.

    Attributes:
        checkpoint: what it resumes from; None: from scratch.
        epoch: the epoch that it resumes in, counted from 0.
        step: optimiser steps that are done.
    """

    checkpoint: Path | None = None
    epoch: int = 0
    step: int = 0

    def __str__(self) -> str:
        """As a run's log says it."""
        if self.checkpoint is None:
            return "resume: from scratch"
        return f"resume: {self.checkpoint} (epoch {self.epoch}, step {self.step})"


def id_of(config: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for a configuration, its seed included.

    What only says where it runs (devices, nodes, folders) is left out, so that the same command finds its own run in
    any job on any node; and so is how long it trains, so that a longer one resumes it.
    """
    trainer = {k: v for k, v in config["trainer"].items() if k not in (*_WHERE, *_SHOWN, *_UNTIL)}
    data = {k: v for k, v in (config["data"].get("init_args") or {}).items() if k != "num_workers"}
    kept = {k: v for k, v in config.items() if k not in _NOT_THE_RUN}
    text = json.dumps(
        {**kept, "trainer": trainer, "data": [config["data"]["class_path"], data]}, sort_keys=True, default=str
    )
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def check_id(run_id: str) -> None:
    """Refuses a name that is no single folder.

    Raises:
        ValueError: it has other characters than letters, digits, `.`, `_` and `-`, or begins with a dot.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", run_id):
        raise ValueError(f"--run_id {run_id!r} is no name of a folder; use letters, digits, '.', '_' and '-'")


def find_resume_point(checkpoints: Path) -> ResumePoint:
    """The newest whole checkpoint of a run: `last.ckpt`, or the one before where that is damaged.

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
                warnings.warn(f"{damaged[0]}; going on from {path.name}, the one before it", stacklevel=2)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            over = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]
            return ResumePoint(path, int(content["epoch"]) + over, int(content["global_step"]))
        damaged.append(problem)
    if damaged:
        raise ValueError(
            f"{' and '.join(damaged)}: no whole checkpoint to resume from; remove {checkpoints.parent} to begin anew "
            "(best.ckpt in it can be tested and used, not resumed)"
        )
    return ResumePoint()


def find_unfinished(experiment: Path, config: Mapping[str, Any]) -> Path | None:
    """The newest run of an experiment that has the same settings, a checkpoint and no end, and that nobody works on."""
    runs = sorted(experiment.glob("*/experiment.yaml"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for run in (path.parent for path in runs):
        if (run / FINISHED).is_file() or not (run / "checkpoints" / LAST).is_file():
            continue
        with suppress(OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, RuntimeError):
            if id_of(_unlinked(yaml.safe_load((run / "experiment.yaml").read_text()))) == id_of(_unlinked(config)):
                with exclusive_lock(run):
                    return run
    return None


def _unlinked(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without what the model takes from the data, which a written configuration leaves out."""
    model = config["model"]
    kept = {k: v for k, v in (model["init_args"] or {}).items() if k not in ("label_space", "mean", "std")}
    return {**config, "model": {**model, "init_args": kept}}


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, by the checksums in it; None where it is whole."""
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
    """What of a configuration says when the fit is at its end."""
    return json.dumps({key: config["trainer"][key] for key in _UNTIL}, default=str) + "\n"


def mark_finished(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes that the fit in this folder came to its end."""
    beside = folder / f"{FINISHED}.part"
    beside.write_text(_end(config))
    beside.replace(folder / FINISHED)


def is_finished(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the fit in this folder came to its end, and no other end is asked for now."""
    mark = folder / FINISHED
    return mark.is_file() and mark.read_bytes() == _end(config).encode()
