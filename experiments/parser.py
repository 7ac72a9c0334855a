"""The command line's parser: errors in one line, the nearest name for a misspelt one, nothing guessed."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import sys
from typing import Any, NoReturn

from jsonargparse import set_parsing_settings
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.cli import LightningArgumentParser
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from datamodules.augmentation import Augmentation
from datamodules.base import SegmentationDataModule
from datamodules.label_spaces import LabelSpace
from lightning_modules.base import SegmentationModule

set_parsing_settings(subclasses_enabled=[LabelSpace])  # one value to link, not a group of options

SUBCOMMANDS = ("fit", "validate", "test", "predict")


def fail(message: str, code: int = 1) -> NoReturn:
    """Ends the program with one line on stderr."""
    sys.stderr.write(f"structseg: error: {' '.join(message.split())}\n")
    raise SystemExit(code)


def check_order(args: list[str]) -> None:
    """Options before the subcommand, or before `--config`, would be lost in silence; they are refused."""
    if not args or args[0] in ("-h", "--help"):
        return
    if args[0] not in SUBCOMMANDS:
        near = difflib.get_close_matches(args[0], SUBCOMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"the subcommand comes first: {', '.join(SUBCOMMANDS)}"
        fail(f"{args[0]} is no subcommand; {hint}", 2)
    for position, arg in enumerate(args[1:], 1):
        if arg.split("=", 1)[0] in ("--config", "-c"):
            before = [a for a in args[1:position] if a.startswith("-") and a.split("=", 1)[0] not in ("--config", "-c")]
            if before:
                fail(f"{before[0]} stands before --config, which would override it; give --config first", 2)


class StructsegParser(LightningArgumentParser):
    """LightningArgumentParser with one-line errors and without abbreviations."""

    def _get_option_tuples(self, option_string: str) -> list[Any]:  # noqa: ARG002  # argparse's hook
        return []  # an abbreviated option is refused, not guessed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exits with 2 and one line that names the nearest known key where one was misspelt."""
        if not self.exit_on_error:  # a nested parser, whose failure the outer one weighs
            super().error(message, ex)
        fail(_shorten(message) + _nearest(message), 2)


def _shorten(message: str) -> str:
    """The deepest complaint of a nested message: what is wrong, without the list of all that was tried."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    unknown = re.search(r"Expected a dot import path string: (\S+)", message)
    if unknown:
        return f"{lines[0].rstrip(':')}: there is no class {unknown[1]}"
    deep = [line for line in lines if re.search(r"not accept|nrecognized|Expected a|No action for|does not|required", line)]
    first = lines[0] if lines else message
    if deep and deep[-1] != first:
        return f"{first} {deep[-1]}"
    return first


def _classes() -> list[type]:
    """Every class that a configuration is likely to name: the suite's, the optimisers, schedules and callbacks."""
    ours = ("losses", "datamodules", "lightning_modules", "experiments", "torch.optim", "pytorch_lightning")
    pending: list[type] = [SegmentationModule, SegmentationDataModule, nn.Module, Optimizer, LRScheduler, Callback]
    found = [Trainer]
    while pending:
        one = pending.pop()
        pending += one.__subclasses__()
        if one.__module__.startswith(ours):
            found.append(one)
    return found


def _known_classes() -> set[str]:
    return {found.__name__ for found in _classes()}


def _known_names() -> set[str]:
    """The names of every option of the suite, the trainer and the optimisers, without their prefixes."""
    names = {"config", "ckpt_path", "print_config", "experiment", "runs_dir", "seed_everything", "trainer", "model"}
    for found in _classes():
        names |= set(inspect.signature(found.__init__).parameters)  # type: ignore[misc]
    names |= {field.name for field in dataclasses.fields(Augmentation)}
    return names - {"self", "args", "kwargs"}


def _nearest(message: str) -> str:
    unknown = re.search(r"Expected a dot import path string: (\S+)", message)
    if unknown:
        near = difflib.get_close_matches(unknown[1], sorted(_known_classes()), 1, 0.6)
        return f" (did you mean {near[0]}?)" if near else ""
    found = re.search(r"option '([^']+)'|[Uu]nrecognized arguments: *'?--([\w.]+)|[Kk]ey \"([\w.]+)\"", message)
    if not found or not re.search(r"accept|nrecognized", message):
        return ""
    leaf = next(group for group in found.groups() if group).rsplit(".", 1)[-1]
    near = difflib.get_close_matches(leaf, sorted(_known_names() - {leaf}), 1, 0.6)
    return f" (did you mean {near[0]}?)" if near else ""
