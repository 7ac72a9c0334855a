"""Tables of subcommands and usual options, which the command line reads before anything slow is loaded."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from structseg.messages import UsageError


class Subcommand(NamedTuple):
    """A subcommand.

    Attributes:
        module: its entry point is `main(args)`; `args` are the arguments after the subcommand, for Lightning's with it.
        line: description.
    """

    module: str
    line: str


class Option(NamedTuple):
    """A usual option of Lightning's subcommands.

    Attributes:
        name: with its dashes.
        value: placeholder of its value in the help.
        line: description.
        default: as written on the command line; None where it is long or depends on the configuration.
        only: the subcommands that have it; empty: all three.
    """

    name: str
    value: str
    line: str
    default: str | None = None
    only: tuple[str, ...] = ()


_LIGHTNING = "structseg.command.lightning"
LIGHTNING = {
    "fit": Subcommand(_LIGHTNING, "train, keep the best and the last checkpoint"),
    "validate": Subcommand(_LIGHTNING, "score the held-out images"),
    "test": Subcommand(_LIGHTNING, "score the test images; a checkpoint is enough"),
}
SUBCOMMANDS = {
    **LIGHTNING,
    "predict": Subcommand("structseg.prediction.command", "label images, folders, a video or a camera"),
    "init": Subcommand("structseg.own_data.command", "write the dataset.yaml of your own images and masks"),
    "demo": Subcommand("structseg.command.demo", "train and test on drawn faces, in a few minutes on a CPU"),
    "pipeline": Subcommand("structseg.pipelines.command", "fits that build on each other, finished ones skipped"),
    "rounds": Subcommand("structseg.pipelines.rounds", "scores of a pipeline's rounds, and pictures of their results"),
    "check": Subcommand("structseg.audit.command", "report every broken file of a data set"),
    "runs": Subcommand("structseg.results.runs", "list your runs, compare two of them, free disk space"),
    "submit": Subcommand("structseg.cluster.submit", "write a SLURM job for a configuration, and submit it"),
    "fetch": Subcommand("structseg.command.fetch", "download weights and data, for nodes without a network"),
    "configs": Subcommand("structseg.command.configs_list", "list the configurations that --config finds by name"),
    "show": Subcommand("structseg.command.show", "draw an augmented batch with its labels"),
    "results": Subcommand("structseg.results.command", "the results table, and the runs behind it"),
    "report": Subcommand("structseg.results.report", "a run, or rows of the results, as one HTML page"),
    "completion": Subcommand("structseg.command.completion", "print a completion script for bash or zsh"),
}

# Names of subcommands in other suites.
_OTHER_NAMES = {
    "train": "fit",
    "resume": "fit --resume auto",
    "val": "validate",
    "valid": "validate",
    "validation": "validate",
    "eval": "test",
    "evaluate": "test",
    "infer": "predict",
    "inference": "predict",
    "segment": "predict",
    "stages": "pipeline",
    "new": "init",
    "verify": "check",
    "lint": "check",
    "slurm": "submit",
    "sbatch": "submit",
    "view": "show",
    "visualize": "show",
    "visualise": "show",
    "table": "results",
    "benchmark": "results",
    "list": "runs",
    "history": "runs",
}

_SCORING, _FIT = ("validate", "test"), ("fit",)
OPTIONS = (
    Option("--config", "CONFIG", "an experiment, by path or name; structseg configs lists them"),
    Option("--ckpt_path", "FILE", "the checkpoint; in fit the one to resume from"),
    Option("--data.root", "FOLDER", "where the data set lies"),
    Option("--data.batch_size", "N", "images a batch, on each device"),
    Option("--data.num_workers", "N", "processes that decode images", "0"),
    Option("--model.optimizer.lr", "X", "learning rate", only=_FIT),
    Option("--trainer.max_epochs", "N", "passes over the training images", only=_FIT),
    Option("--trainer.accelerator", "A", "cpu, gpu or auto", "auto"),
    Option("--trainer.devices", "N", "GPUs, or processes on a CPU", "auto"),
    Option("--trainer.precision", "P", "32, bf16-mixed or 16-mixed; default: 32"),
    Option("--seed_everything", "N", "of weights, order and augmentation", "0", _FIT),
    Option("--resume", "auto", "the same command resumes its own run", "never", _FIT),
    Option("--run_id", "NAME", "of the run's folder", only=_FIT),
    Option("--experiment", "NAME", "default: the configuration's file name"),
    Option("--runs_dir", "FOLDER", "of all runs", "runs"),
    Option("--memory", "return", "freed memory goes back to the system, on a CPU; slower", "keep"),
    Option("--print_config", "", "print every setting, and stop"),
)

# Every first part of an option's name; a test compares them with the parsers.
_ROOTS = {
    "help", "config", "print_config", "seed_everything", "trainer", "model", "data", "experiment", "runs_dir",
    "checkpoint", "pictures", "ckpt_path", "weights_only", "memory",
}  # fmt: skip
ROOTS = {
    "fit": _ROOTS | {"resume", "run_id"},
    "validate": _ROOTS | {"verbose"},
    "test": _ROOTS | {"verbose"},
    "predict": _ROOTS | {"return_predictions"},  # a pipeline's stage, which predicts a split of the data
}

# Names of options in other suites, besides the last parts of the names above.
OTHER_OPTIONS = {
    "batch": "data.batch_size",
    "bs": "data.batch_size",
    "cfg": "config",
    "ckpt": "ckpt_path",
    "checkpoint_path": "ckpt_path",
    "data_dir": "data.root",
    "data_root": "data.root",
    "device": "trainer.accelerator",
    "dataset": "data",
    "encoder": "model.network.encoder_name",
    "backbone": "model.network.encoder_name",
    "pretrained": "model.network.encoder_weights",
    "epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "image_size": "data.size",
    "img_size": "data.size",
    "learning_rate": "model.optimizer.lr",
    "max_epoch": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "name": "run_id",
    "resume_from": "ckpt_path",
    "num_gpus": "trainer.devices",
    "resolution": "data.size",
    "seed": "seed_everything",
    "weights": "ckpt_path",
    "workers": "data.num_workers",
}

EXAMPLES = {
    "fit": (
        "structseg fit fasseg_v2 --data.root FASSEG",
        "structseg fit fasseg_v2 --data.root FASSEG --trainer.max_epochs 40 --resume auto",
        "structseg fit lfw_parts --data.root LFW --trainer.devices 8 --data.num_workers 4",
    ),
    "validate": (
        "structseg validate runs/fasseg_v2/ID/checkpoints/best.ckpt --data.root FASSEG --data.fold 0",
        "structseg validate runs/lfw_parts/ID/checkpoints/last.ckpt --trainer.accelerator cpu",
        "structseg validate --config runs/lfw_parts/ID/experiment.yaml --ckpt_path best.ckpt",
    ),
    "test": (
        "structseg test runs/fasseg_v2/ID/checkpoints/best.ckpt",
        "structseg test runs/fasseg_v2/ID/checkpoints/best.ckpt --data.root FASSEG --trainer.accelerator cpu",
        "structseg test --config lfw_parts --ckpt_path best.ckpt",
    ),
}
USAGE = {
    "fit": "structseg fit CONFIG [options]",
    "validate": "structseg validate CHECKPOINT [options]",
    "test": "structseg test CHECKPOINT [options]",
}


def overview() -> str:
    """The help of `structseg` itself."""
    lines = [f"  {name:11}{subcommand.line}" for name, subcommand in SUBCOMMANDS.items()]
    head = "structseg SUBCOMMAND ...; -h after a subcommand shows its usual options, --help all of them\n"
    return "\n".join([head, *lines])


def options_of(subcommand: str) -> list[Option]:
    """The usual options of one of Lightning's subcommands."""
    return [option for option in OPTIONS if not option.only or subcommand in option.only]


def check_subcommand(name: str) -> None:
    """Refuses a subcommand that does not exist.

    Raises:
        UsageError: no subcommand has this name; the message has the nearest one.
    """
    if name in SUBCOMMANDS:
        return
    if name.startswith("-"):
        raise UsageError(f"{name} is no subcommand; the subcommand comes first: {', '.join(SUBCOMMANDS)}")
    near = _OTHER_NAMES.get(name.lower()) or next(iter(difflib.get_close_matches(name.lower(), SUBCOMMANDS, 1)), None)
    near = near or _OTHER_NAMES.get(next(iter(difflib.get_close_matches(name.lower(), _OTHER_NAMES, 1, 0.8)), ""))
    hint = f"did you mean {near}?" if near else f"the subcommand comes first: {', '.join(SUBCOMMANDS)}"
    raise UsageError(f"{name} is no subcommand; {hint}")
