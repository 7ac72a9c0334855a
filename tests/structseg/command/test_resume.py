"""`--resume auto`: a fit that is interrupted anywhere ends like an uninterrupted one."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import wandb
from pytorch_lightning.utilities.exceptions import SIGTERMException

from structseg.command import lightning as cli
from structseg.command.lightning import run
from structseg.command.main import main
from structseg.command.processes import exclusive_lock
from structseg.command.resume import find_resume_point
from structseg.lightning_modules.callbacks import interruption
from structseg.lightning_modules.callbacks.step_seed import StepSeed

EPOCHS, STEPS = 3, 4  # 16 images, 4 a batch


@pytest.fixture
def config(tiny_config):
    text = (
        tiny_config.read_text()
        .replace("    augmentation:", "    train_images: 16\n    augmentation:")
        .replace("max_epochs: 4", f"max_epochs: {EPOCHS}")
    )
    tiny_config.write_text(text)
    return tiny_config


def fit(config, folder, *more):
    return run(["fit", "--config", str(config), "--resume", "auto", *more, "--runs_dir", str(folder)])


def stopped(config, folder, step, *more, number=signal.SIGTERM):
    """A fit that gets a signal in a step, as from `scancel`."""

    class Signalled(StepSeed):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            if trainer.global_step == step:
                os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "StepSeed", Signalled)
        return fit(config, folder, *more)


def last(folder):
    (path,) = folder.glob("*/*/checkpoints/last.ckpt")
    return torch.load(path, weights_only=True)


def rows(folder):
    (path,) = folder.glob("*/*/metrics.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def same(left, right):
    """Bit for bit, however it is nested."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


TRAINED = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")


class Killed(RuntimeError):
    """Replaces SIGKILL in tests: nothing is saved after it."""


def killed(config, folder, step, *more):
    class Kills(StepSeed):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            if trainer.global_step == step:
                raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "StepSeed", Kills)
        with pytest.raises(Killed):
            fit(config, folder, *more)


def check_same(folder, whole):
    for key in TRAINED:
        assert same(last(folder)[key], last(whole)[key]), key
    assert rows(folder) == rows(whole)


EACH_STEP = ("--trainer.log_every_n_steps", "1")
WHOLE = EPOCHS * STEPS


class TestStoppedAndResumed:
    @pytest.fixture
    def whole(self, config, tmp_path):
        fit(config, tmp_path / "whole", *EACH_STEP)
        return tmp_path / "whole"

    @pytest.mark.slow
    def test_interrupted_at_a_step_it_equals_the_undisturbed_run(self, config, whole, tmp_path):
        for step in (0, STEPS - 1, STEPS):  # at all others in turn: below
            folder = tmp_path / f"at_{step}"
            with pytest.raises(SIGTERMException):
                stopped(config, folder, step, *EACH_STEP)
            assert last(folder)["global_step"] == step + 1
            fit(config, folder, *EACH_STEP)
            check_same(folder, whole)

    @pytest.mark.slow
    def test_stopped_at_every_step_in_turn(self, config, whole, tmp_path):
        for step in range(WHOLE - 1):
            with pytest.raises(SIGTERMException):
                stopped(config, tmp_path / "often", step, *EACH_STEP)
        fit(config, tmp_path / "often", *EACH_STEP)
        check_same(tmp_path / "often", whole)

    @pytest.mark.slow
    def test_killed_between_two_checkpoints(self, config, whole, tmp_path):
        folder = tmp_path / "killed"
        killed(config, folder, 2, *EACH_STEP)
        killed(config, folder, STEPS, *EACH_STEP)  # the first epoch's checkpoint is just written
        killed(config, folder, STEPS + 3, *EACH_STEP)
        fit(config, folder, *EACH_STEP)
        check_same(folder, whole)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "more",
        [
            ("--data.num_workers", "2"),
            ("--trainer.accumulate_grad_batches", "2"),
            ("--checkpoint.save_every_steps", "3"),
            ("--trainer.val_check_interval", "2"),
            ("--model.lr_scheduler", "torch.optim.lr_scheduler.StepLR", "--model.lr_scheduler.step_size", "1"),
            ("--trainer.precision", "bf16-mixed"),
        ],
        ids=[
            "workers",
            "accumulated",
            "saved every 3 steps",
            "two validations an epoch",
            "a schedule by epoch",
            "bf16",
        ],
    )
    def test_under_any_settings(self, config, tmp_path, more):
        fit(config, tmp_path / "whole", *more)
        done = last(tmp_path / "whole")["global_step"]
        with pytest.raises(SIGTERMException):
            stopped(config, tmp_path / "stopped", done // 3 + 1, *more)
        killed(config, tmp_path / "stopped", done // 3 * 2 + 1, *more)
        fit(config, tmp_path / "stopped", *more)
        for key in TRAINED:
            assert same(last(tmp_path / "stopped")[key], last(tmp_path / "whole")[key]), key


class TestOneCommand:
    def test_a_finished_run_is_left_as_it_is(self, config, tmp_path, capsys, monkeypatch):
        folder = fit(config, tmp_path).folder.path
        before = (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns
        monkeypatch.setattr(sys, "argv", ["structseg", "fit", "--config", str(config), "--resume", "auto",
                                          "--runs_dir", str(tmp_path)])  # fmt: skip
        main()
        assert f"finished already: {folder}" in "".join(capsys.readouterr())
        assert (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before
        longer = fit(config, tmp_path, "--trainer.max_epochs", str(EPOCHS + 1))
        assert longer.folder.path == folder
        assert longer.trainer.current_epoch == EPOCHS + 1

    def test_other_settings_are_another_run_and_other_hardware_is_not(self, config, tmp_path):
        with pytest.raises(SIGTERMException):
            stopped(config, tmp_path, 1)
        assert fit(config, tmp_path, "--seed_everything", "5").step == 0
        again = fit(config, tmp_path, "--trainer.devices", "1", "--data.num_workers", "1")
        assert again.step == 2
        assert len(list((tmp_path / "tiny").iterdir())) == 2

    def test_a_given_run_id(self, config, tmp_path):
        with pytest.raises(SIGTERMException):
            stopped(config, tmp_path, 1, "--run_id", "mine")
        assert (tmp_path / "tiny" / "mine" / "checkpoints" / "last.ckpt").is_file()
        with pytest.raises(ValueError, match="has a run already; add --resume auto"):
            run(["fit", "--config", str(config), "--run_id", "mine", "--runs_dir", str(tmp_path)])
        assert fit(config, tmp_path, "--run_id", "mine").step == 2
        for bad in ("a/b", "..", "", "a b"):
            with pytest.raises(ValueError, match="cannot name a folder"):
                fit(config, tmp_path, "--run_id", bad)

    def test_with_a_checkpoint_it_is_refused(self, config, tmp_path):
        (tmp_path / "last.ckpt").touch()
        with pytest.raises(ValueError, match="drop --ckpt_path, or --resume"):
            fit(config, tmp_path, "--ckpt_path", str(tmp_path / "last.ckpt"))

    def test_two_in_one_folder(self, config, tmp_path, monkeypatch):
        monkeypatch.setattr(cli, "_PATIENCE", 0.0)
        folder = fit(config, tmp_path, "--trainer.max_epochs", "1").folder.path
        with exclusive_lock(folder), pytest.raises(RuntimeError, match="another process is at work in"):
            fit(config, tmp_path)
        assert fit(config, tmp_path).step == STEPS

    def test_wandb_keeps_the_id(self, config, tmp_path, monkeypatch):
        monkeypatch.setenv("WANDB_MODE", "offline")
        with pytest.raises(SIGTERMException):
            stopped(config, tmp_path, 1)
        again = fit(config, tmp_path)
        assert again.trainer.loggers[1].version == again.folder.run_id
        segments = list((again.folder.path / "wandb").glob(f"offline-run-*-{again.folder.run_id}"))
        assert 1 <= len(segments) <= 2  # two within one second share a folder

    def test_a_fit_continues_where_wandb_cannot_start(self, config, tmp_path, monkeypatch):
        monkeypatch.setenv("WANDB_MODE", "offline")
        start = wandb.init

        def refuse(**settings):
            if settings["mode"] != "disabled":
                raise wandb.Error("run ID is in use")
            return start(**settings)

        monkeypatch.setattr(wandb, "init", refuse)
        with pytest.warns(UserWarning, match=r"W&B did not start \(Error: run ID is in use\)"):
            done = fit(config, tmp_path)
        assert done.trainer.current_epoch == EPOCHS
        assert rows(tmp_path)


class TestSignals:
    def test_after_a_fit_the_handlers_are_those_of_before(self, config, tmp_path, monkeypatch):
        def own(number, frame):
            raise AssertionError

        before = [signal.signal(number, own) for number in (signal.SIGTERM, signal.SIGUSR1)]
        try:
            cli.run(["fit", "--config", str(config), "--runs_dir", str(tmp_path), "--trainer.max_epochs", "1"])
            assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == [own, own]
        finally:
            for number, handler in zip((signal.SIGTERM, signal.SIGUSR1), before, strict=True):
                signal.signal(number, handler)

    def test_usr1_requeues_the_job(self, config, tmp_path, monkeypatch):
        told = tmp_path / "told"
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ > {told}\n")
        (tmp_path / "scontrol").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
        with pytest.raises(SIGTERMException):
            stopped(config, tmp_path, 1, number=signal.SIGUSR1)
        assert told.read_text() == "requeue 70_4\n"
        assert last(tmp_path)["global_step"] == 2

    def test_a_failed_requeue_is_reported(self, config, tmp_path, monkeypatch):
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setattr(
            interruption.subprocess, "run", lambda *a, **k: (_ for _ in ()).throw(OSError("no scontrol"))
        )
        with pytest.warns(UserWarning, match="no scontrol; the run is saved"), pytest.raises(SIGTERMException):
            stopped(config, tmp_path, 1, number=signal.SIGUSR1)

    def test_usr1_outside_slurm_saves_and_continues(self, config, tmp_path, monkeypatch):
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        done = stopped(config, tmp_path, 1, number=signal.SIGUSR1)
        assert done.trainer.current_epoch == EPOCHS
        assert last(tmp_path)["global_step"] == EPOCHS * STEPS

    def test_the_handlers_are_restored(self, config, tmp_path):
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
        with pytest.raises(SIGTERMException):
            stopped(config, tmp_path, 1)
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before

    @pytest.mark.slow
    def test_on_the_command_line(self, config, tmp_path):
        command = [sys.executable, "-m", "structseg", "fit", "--config", str(config), "--resume", "auto",
                   "--runs_dir", str(tmp_path), "--trainer.max_epochs", "400", "--checkpoint.save_every_steps", "1",
                   "--data.num_workers", "2"]  # fmt: skip
        process = subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        while not list(tmp_path.glob("*/*/checkpoints/last.ckpt")):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: the processes that decode images get it too
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 143, said
        assert "structseg: error: terminated; resume a fit" in said
        assert "Traceback" not in said
        assert find_resume_point(next(tmp_path.glob("*/*/checkpoints"))).step == last(tmp_path)["global_step"]


class TestDamage:
    @pytest.fixture
    def run_folder(self, config, tmp_path):
        with pytest.raises(SIGTERMException):
            stopped(config, tmp_path, STEPS + 1)
        return next(tmp_path.glob("*/*/checkpoints")).parent

    def test_the_previous_checkpoint_replaces_it(self, config, tmp_path, run_folder):
        path = run_folder / "checkpoints" / "last.ckpt"
        whole = path.read_bytes()
        for broken in (whole[: len(whole) // 2], b"", whole[:3000] + bytes(2000) + whole[5000:]):
            path.write_bytes(broken)
            with pytest.warns(UserWarning, match=r"last.ckpt is damaged .*resuming from last.previous.ckpt"):
                assert find_resume_point(path.parent).step == STEPS
        with pytest.warns(UserWarning, match="resuming from last.previous"):
            assert fit(config, tmp_path).trainer.current_epoch == EPOCHS

    def test_no_intact_checkpoint(self, config, tmp_path, run_folder):
        for name in ("last.ckpt", "last.previous.ckpt"):
            (run_folder / "checkpoints" / name).write_bytes(b"PK")
        with pytest.raises(ValueError, match=r"no intact checkpoint to resume from; remove .* to start again"):
            fit(config, tmp_path)

    def test_files_left_by_a_kill_are_ignored(self, config, tmp_path, run_folder):
        (run_folder / "checkpoints" / "last.ckpt.part").write_bytes(b"half")
        (run_folder / "metrics.csv.part").write_text("epoch,st")
        (run_folder / "finished.json").write_text("")
        assert fit(config, tmp_path).trainer.current_epoch == EPOCHS
        assert json.loads((run_folder / "finished.json").read_text())["max_epochs"] == EPOCHS
