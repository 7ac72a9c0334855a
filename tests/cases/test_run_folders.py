"""A fit that does not go on with a run never writes into a folder that has one, in SLURM jobs too."""

import os
import subprocess
import sys
import time

import pytest
import yaml

from structseg.command import lightning as cli
from structseg.command.lightning import run
from structseg.command.processes import exclusive_lock
from structseg.command.run_folder import settle_run_folder
from structseg.files import ROOT
from tests.data.tiny import config_text

JOB = {"SLURM_JOB_ID": "4711", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
_SETTLE = """
import sys, time
from pathlib import Path
from structseg.command.run_folder import settle_run_folder
time.sleep(float(sys.argv[2]))
for _ in range(int(sys.argv[3])):
    print(settle_run_folder(Path(sys.argv[1]), "exp", None).run_id)
"""


@pytest.fixture(autouse=True)
def _no_job(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["structseg"])
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))] + ["LOCAL_RANK", "RANK"]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def job(monkeypatch):
    """Sets the environment of a job: `job(SLURM_STEP_ID="1")`."""

    def enter(**more):
        for name, value in {**JOB, **more}.items():
            monkeypatch.setenv(name, value)

    enter()
    return enter


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(config_text(max_epochs=1))
    return path


def fit(config, *more):
    return run(["fit", "--config", str(config), "--runs_dir", str(config.parent / "runs"), *more])


def settled(root, times=1):
    return [settle_run_folder(root, "exp", None).run_id for _ in range(times)]


def start(root, delay=0.0, times=1, **more):
    """A process of a job that settles on its folders; it prints their names."""
    env = {**os.environ, **JOB, "PYTHONPATH": str(ROOT), **more}
    command = [sys.executable, "-c", _SETTLE, str(root), str(delay), str(times)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said(*processes):
    found = []
    for process in processes:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        found.append(out.split())
    return found


class TestFits:
    def test_a_second_fit_in_a_job_leaves_the_first(self, config, job, capsys):
        first = fit(config, "--seed_everything", "0")
        before = {path: path.read_bytes() for path in first.folder.path.rglob("*") if path.is_file()}
        second = fit(config, "--seed_everything", "1")
        assert (first.folder.run_id, second.folder.run_id) == ("4711", "4711_2")
        assert {path: path.read_bytes() for path in first.folder.path.rglob("*") if path.is_file()} == before
        assert yaml.safe_load(second.folder.config.read_text())["seed_everything"] == 1
        assert "resumed with" not in capsys.readouterr().out

    def test_a_requeued_job_begins_anew_beside_and_says_so(self, config, job):
        first = fit(config)
        job(SLURM_RESTART_COUNT="1")
        with pytest.warns(UserWarning, match=r"job 4711 was requeued.*4711_2.*--resume auto"):
            second = fit(config)
        assert second.folder.path != first.folder.path

    def test_a_requeued_job_with_resume_auto_goes_on(self, config, job):
        first = fit(config, "--resume", "auto")
        job(SLURM_RESTART_COUNT="1")
        again = fit(config, "--resume", "auto", "--trainer.max_epochs", "2")
        assert again.folder.path == first.folder.path
        assert again.step == 2

    def test_what_goes_on_or_tests_stays_in_its_folder(self, config, job):
        first = fit(config)
        last = str(first.folder.checkpoints / "last.ckpt")
        job(SLURM_STEP_ID="3")
        again = fit(config, "--ckpt_path", last, "--trainer.max_epochs", "2")
        assert again.folder.path == first.folder.path.resolve()
        for command in ("test", "validate"):
            done = run([command, "--ckpt_path", last, "--runs_dir", str(config.parent / "runs")])
            assert done.folder.path == first.folder.path.resolve()
        assert [path.name for path in (config.parent / "runs" / "tiny").iterdir()] == ["4711"]

    def test_a_fit_from_a_foreign_checkpoint_has_a_folder_of_its_own(self, config, job):
        first = fit(config)
        copy = config.parent / "copy.ckpt"
        copy.write_bytes((first.folder.checkpoints / "last.ckpt").read_bytes())
        second = fit(config, "--ckpt_path", str(copy), "--trainer.max_epochs", "2")
        assert second.folder.run_id == "4711_2"

    def test_a_fit_that_could_not_begin_leaves_no_folder(self, config, job):
        with pytest.raises(Exception, match="val/mIoU"):
            fit(config, "--checkpoint.monitor", "val/mIoU")
        assert not list((config.parent / "runs").glob("*/*"))
        assert fit(config).folder.run_id == "4711"

    def test_two_at_once_with_one_id(self, config, monkeypatch):
        monkeypatch.setattr(cli, "_PATIENCE", 0.0)
        with (
            exclusive_lock(config.parent / "runs" / "tiny" / "mine"),
            pytest.raises(RuntimeError, match="another process is at"),
        ):
            fit(config, "--run_id", "mine")
        assert fit(config, "--run_id", "mine").folder.run_id == "mine"

    def test_two_at_once_that_go_on_with_one_run(self, config, monkeypatch):
        monkeypatch.setattr(cli, "_PATIENCE", 0.0)
        first = fit(config)
        more = ("--ckpt_path", str(first.folder.checkpoints / "last.ckpt"), "--trainer.max_epochs", "2")
        with exclusive_lock(first.folder.path), pytest.raises(RuntimeError, match="another process is at work"):
            fit(config, *more)
        assert fit(config, *more).trainer.current_epoch == 2


class TestNames:
    def test_one_after_another(self, tmp_path, job):
        assert settled(tmp_path, 3) == ["4711", "4711_2", "4711_3"]
        job(SLURM_STEP_ID="1")
        assert settled(tmp_path) == ["4711_4"]
        job(SLURM_RESTART_COUNT="1")
        assert settled(tmp_path) == ["4711_5"]

    def test_an_array_task(self, tmp_path, job):
        job(SLURM_ARRAY_JOB_ID="4700", SLURM_ARRAY_TASK_ID="3")
        assert settled(tmp_path, 2) == ["4700_3", "4700_3_2"]

    def test_a_folder_of_an_older_version_is_taken(self, tmp_path, job):
        (tmp_path / "exp" / "4711").mkdir(parents=True)
        (tmp_path / "exp" / "4711" / "experiment.yaml").touch()
        assert settled(tmp_path) == ["4711_2"]

    def test_the_same_number_on_another_cluster(self, tmp_path, job):
        job(SLURM_CLUSTER_NAME="one")
        assert settled(tmp_path) == ["4711"]
        job(SLURM_CLUSTER_NAME="two", SLURM_PROCID="1")
        assert settled(tmp_path) == ["4711_2"]


class TestRanks:
    def test_those_of_one_step_settle_on_one_folder(self, tmp_path):
        step = {"SLURM_NTASKS": "3", "SLURM_STEP_ID": "0"}
        late = {2: 0.0, 0: 0.5, 1: 1.0}  # the first process is not the first to come
        ranks = [start(tmp_path, delay, SLURM_PROCID=str(rank), **step) for rank, delay in late.items()]
        assert said(*ranks) == [["4711"]] * 3

    def test_and_one_after_another_on_one_each(self, tmp_path):
        step = {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}
        ranks = [start(tmp_path, rank, 3, SLURM_PROCID=str(rank), **step) for rank in range(2)]
        assert said(*ranks) == [["4711", "4711_2", "4711_3"]] * 2

    def test_two_steps_at_once(self, tmp_path):
        steps = [
            start(tmp_path, SLURM_NTASKS="2", SLURM_STEP_ID=step, SLURM_PROCID=rank) for step in "01" for rank in "01"
        ]
        (one,), (two,), (three,), (four,) = said(*steps)
        assert one == two != three == four
        assert {one, three} == {"4711", "4711_2"}

    def test_many_at_once_without_steps(self, tmp_path):
        found = said(*(start(tmp_path, times=3) for _ in range(3)))
        assert sorted(name for names in found for name in names) == ["4711", *(f"4711_{n}" for n in range(2, 10))]

    def test_a_late_rank_does_not_join_a_fit_that_has_begun(self, tmp_path, job):
        job(SLURM_NTASKS="2", SLURM_STEP_ID="0")
        assert settled(tmp_path) == ["4711"]
        (tmp_path / "exp" / "4711" / "experiment.yaml").touch()  # written once all processes have met
        job(SLURM_PROCID="1")
        assert settled(tmp_path) == ["4711_2"]
        job(SLURM_PROCID="0")
        assert settled(tmp_path) == ["4711_2"]

    @pytest.mark.slow
    def test_a_fit_of_two_processes_has_one_folder(self, config, tmp_path):
        for expected in ("4711", "4711_2"):
            processes = []
            for rank in range(2):
                more = {
                    "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0",
                    "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODELIST": "localhost",
                    "SLURM_JOB_NAME": "fits", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1",
                }  # fmt: skip
                command = [
                    sys.executable, "-m", "structseg", "fit", "--config", str(config), "--runs_dir",
                    str(tmp_path / "runs"), "--trainer.devices", "2",
                ]  # fmt: skip
                env = {**os.environ, **JOB, "PYTHONPATH": str(ROOT), **more}
                processes.append(
                    subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                )
                time.sleep(1 - rank)
            for process in processes:
                out, _ = process.communicate(timeout=200)
                assert process.returncode == 0, out
            assert (tmp_path / "runs" / "tiny" / expected / "checkpoints" / "last.ckpt").is_file()
        assert {path.name for path in (tmp_path / "runs" / "tiny").iterdir()} == {"4711", "4711_2"}
