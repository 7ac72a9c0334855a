"""A full disk: finished files stay intact, and the fit continues when there is space again."""

import os
import shutil
import subprocess

import pytest
import torch

from structseg.command import lightning as cli
from structseg.command.lightning import run
from structseg.command.resume import find_resume_point
from structseg.lightning_modules.callbacks.step_seed import StepSeed


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own of 200 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no disk of its own can be mounted: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk):
    """Writes until nothing more goes in."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(os.urandom(size))
            except OSError:
                continue


class FillsTheDisk(StepSeed):
    disk, step = None, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if trainer.global_step == FillsTheDisk.step:
            fill(FillsTheDisk.disk)


def fit(config, folder):
    args = ["fit", "--config", str(config), "--resume", "auto", "--runs_dir", str(folder)]
    return run([*args, "--checkpoint.save_every_steps", "1"])


@pytest.mark.slow
def test_a_fit_on_a_full_disk(tiny_config, small_disk, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    whole = fit(tiny_config, tmp_path / "whole").folder.checkpoints
    monkeypatch.setattr(FillsTheDisk, "disk", small_disk)
    monkeypatch.setattr(FillsTheDisk, "step", 3)
    with monkeypatch.context() as patch:
        patch.setattr(cli, "StepSeed", FillsTheDisk)
        with pytest.raises(OSError, match=r"No space left|could not be written"):
            fit(tiny_config, small_disk)
    checkpoints = next(small_disk.glob("*/*/checkpoints"))
    assert find_resume_point(checkpoints).step == 3
    assert not list(checkpoints.glob("*.part"))
    (small_disk / "filler").unlink()
    fit(tiny_config, small_disk)
    ends = [torch.load(folder / "last.ckpt", weights_only=True)["state_dict"] for folder in (checkpoints, whole)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[1])
    assert shutil.disk_usage(small_disk).free > 0
