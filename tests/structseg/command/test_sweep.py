"""The W&B sweep file: its commands can be run."""

import os
import re

import yaml

from structseg.command.lightning import run
from structseg.files import ROOT
from tests.data.fasseg import make_fasseg

SWEEP = ROOT / "experiments" / "fasseg_unet" / "sweep.yaml"


def commands(sweep, environment):
    """The first command that a W&B agent would make of the sweep: the first value of each parameter."""
    chosen = [f"--{name}={spec['values'][0]}" for name, spec in sweep["parameters"].items()]
    made = []
    for word in sweep["command"]:
        if word == "${args}":
            made += chosen
        elif word == "${program}":
            made.append(sweep["program"])
        else:
            made.append(re.sub(r"\$\{envvar:(\w+)\}", lambda m: environment[m[1]], word))
    return made


def test_one_of_its_commands_runs(tmp_path):
    root = make_fasseg(tmp_path / "fasseg", train=5, test=1)
    sweep = yaml.safe_load(SWEEP.read_text())
    assert set(sweep["parameters"]) == {
        "model.optimizer.init_args.lr", "model.loss.init_args.dice_weight", "model.network.init_args.encoder_name",
    }  # fmt: skip
    words = commands(sweep, {**os.environ, "FASSEG_ROOT": str(root)})
    assert words[:2] == ["structseg", "fit"]
    small = [
        "--data.size",
        "[64, 48]",
        "--trainer.max_epochs",
        "1",
        "--trainer.precision",
        "32",
        "--trainer.accelerator",
        "cpu",
    ]
    done = run([*words[1:], *small, "--trainer.enable_progress_bar", "false", "--runs_dir", str(tmp_path / "runs")])
    assert sweep["metric"]["name"] in done.trainer.callback_metrics
    first = {name: spec["values"][0] for name, spec in sweep["parameters"].items()}
    assert done.model.optimizer([torch_parameter()]).defaults["lr"] == first["model.optimizer.init_args.lr"]


def torch_parameter():
    import torch

    return torch.zeros(1, requires_grad=True)
