"""Fits on a real cluster of two nodes: undisturbed, requeued, cancelled, and with a node that dies."""

import csv
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from structseg.cluster import submit
from tests.data.tiny import config_text
from tests.slurm.cluster import NODES, Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]
_CREDENTIAL_SECONDS = 8  # a node refuses the same job for cred_expire, and some
_START = 240  # seconds within which a job is at work, on a busy machine
_CONFIG = config_text(48, 3, "  callbacks: [{class_path: tests.slurm.held_fit.Held}]\n")


@dataclass
class Submitted:
    """A fit of the configuration above in a folder of its own."""

    cluster: Cluster
    folder: Path
    file: str = "held.yaml"
    number: str = ""

    @property
    def runs(self):
        return self.folder / "runs"

    def arguments(self):
        layout = ["--nodes", "2", "--gpus-per-node", "0", "--cpus-per-task", "1"]
        return [self.file, *layout, "--time", "10", "--grace", "60"]

    def submit(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            found = submit.jobs(submit.parsed(self.arguments()), [], "a test")
            self.number, *others = submit.submit(found)
        return others

    def let_go(self):
        (self.runs / "go").touch()

    def at_hold(self):
        """Waits until both processes are in the middle of the second epoch."""
        self.cluster.wait(
            lambda: len(list(self.runs.glob("at.*"))) == len(NODES), f"fit at hold:\n{self.log()}", _START
        )

    def log(self):
        return "".join(path.read_text() for path in sorted(self.runs.glob("slurm/*.out")))

    def state(self):
        return self.cluster.job(self.number)

    def is_in(self, *states):
        return self.state()["JobState"] in states

    def ends(self):
        """Waits for the end of the job; a requeued one begins when its old credential is surely over, not much later."""
        pending = []

        def ended():
            if self.is_in("PENDING"):
                pending.append(time.monotonic())
                if pending[-1] > pending[0] + _CREDENTIAL_SECONDS:
                    self.cluster.hurry(self.number)
            return self.is_in("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")

        self.cluster.wait(ended, "end of the job", _START)
        return self.state()

    def is_requeued_midway(self):
        """Sends SIGUSR1 in the middle of the second epoch, and waits for the end of the job that goes on."""
        self.at_hold()
        self.cluster.call("scancel", "--signal=USR1", self.number)
        self.let_go()
        self.cluster.wait(lambda: self.state()["Restarts"] == "1", f"requeued job:\n{self.log()}", 60)
        assert self.ends()["JobState"] == "COMPLETED", self.log()

    def run(self):
        """The one folder of its one run, or of its first stage's."""
        (folder,) = (
            path.parent for pattern in ("held/*", "*/0/first/*") for path in self.runs.glob(f"{pattern}/.lock")
        )
        return folder

    def weights(self):
        return torch.load(self.run() / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]

    def figures(self):
        """The last row of each step and what the fit logged of it; times left out."""
        with (self.run() / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {
            (row["step"], key): float(value)
            for row in rows
            for key, value in row.items()
            if value and key.startswith(("train/", "val/")) and "second" not in key and "time" not in key
        }


@pytest.fixture(scope="module")
def fit(cluster, tmp_path_factory):
    def made(name, file="held.yaml"):
        folder = tmp_path_factory.mktemp(name)
        (folder / "held.yaml").write_text(_CONFIG)
        (folder / "runs").mkdir()
        return Submitted(cluster, folder, file)

    return made


@pytest.fixture(scope="module")
def undisturbed(fit):
    one = fit("undisturbed")
    one.let_go()
    one.submit()
    assert one.ends()["JobState"] == "COMPLETED", one.log()
    return one


_EPOCH_LOSS = "train/loss_epoch"  # a mean that a stop in its epoch adds up in another order


def assert_same(found, expected):
    """Bit for bit, but for the last digit of the training loss of an epoch that was cut."""
    weights, wanted = found.weights(), expected.weights()
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[key], value) for key, value in wanted.items())
    figures = expected.figures()
    assert found.figures() == pytest.approx(figures, rel=1e-6, abs=0)
    different = {key for key, value in found.figures().items() if value != figures[key]}
    assert {key for _, key in different} <= {_EPOCH_LOSS}


def test_both_nodes_make_one_run(undisturbed):
    assert {path.name: path.read_text() for path in undisturbed.runs.glob("at.*")} == {"at.0": "n1", "at.1": "n2"}
    assert undisturbed.state()["Restarts"] == "0"
    assert "resume: from scratch" in undisturbed.log()
    last = torch.load(undisturbed.run() / "checkpoints" / "last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (2, 18)  # 48 images, 2 processes of 4 a step


def test_usr1_saves_and_requeues(fit, undisturbed):
    one = fit("requeued")
    one.submit()
    one.is_requeued_midway()
    assert "SIGUSR1: stopped at step 10" in one.log()
    assert "(epoch 1, step 10)" in one.log()
    assert_same(one, undisturbed)


@pytest.mark.cluster
def test_a_cancelled_fit_goes_on_when_it_is_submitted_again(fit, undisturbed):
    one = fit("cancelled")
    one.submit()
    one.at_hold()
    one.cluster.call("scancel", one.number)
    one.let_go()
    assert one.ends()["JobState"] == "CANCELLED"
    one.cluster.wait(lambda: "SIGTERM: stopped at step 10" in one.log(), "word of the signal", 30)
    one.submit()
    assert one.ends()["JobState"] == "COMPLETED", one.log()
    assert "(epoch 1, step 10)" in one.log()
    assert_same(one, undisturbed)


def test_a_fit_survives_the_death_of_a_node(fit, undisturbed):
    one = fit("bereft")
    one.submit()
    one.at_hold()
    one.cluster.kill_node("n2")
    one.cluster.wait(lambda: one.is_in("PENDING"), f"requeued job:\n{one.log()}", 120)
    one.let_go()  # what still holds on the dead node is alone
    one.cluster.start_node("n2")
    assert one.ends()["JobState"] == "COMPLETED", one.log()
    assert one.state()["Restarts"] == "1"
    assert "(epoch 1, step 6)" in one.log()  # its last checkpoint, that of the first epoch
    assert_same(one, undisturbed)


@pytest.mark.cluster
def test_a_pipeline_is_a_chain_of_jobs(fit, undisturbed):
    one = fit("pipeline", "stages.yaml")
    stages = "{first: {}, second: {model: {optimizer: {lr: 0.001}}}}"
    (one.folder / "stages.yaml").write_text(f"config: held.yaml\nstages: {stages}\ntable: [miou]\n")
    (after,) = one.submit()
    one.at_hold()
    assert one.cluster.job(after)["Reason"] == "Dependency"
    one.is_requeued_midway()
    assert "(epoch 1, step 10)" in one.log()
    one.number = after
    assert one.ends()["JobState"] == "COMPLETED", one.log()
    assert {path.parent.name for path in one.runs.rglob("stage.json")} == {"first", "second"}
    assert_same(one, undisturbed)  # the first stage is the very fit


@pytest.mark.parametrize("more", [[], ["--seeds", "0-2%1", "--mem", "100M", "--partition", "main"]])
def test_what_a_dry_run_shows_is_a_script(fit, more, capsys, monkeypatch):
    one = fit("a folder with blanks")
    monkeypatch.chdir(one.folder)
    submit.main([*one.arguments(), *more, "--dry-run"])
    assert not (one.runs / "slurm").exists()
    shown = capsys.readouterr().out
    done = subprocess.run(["sbatch", "--test-only"], input=shown, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "using 2 processors on nodes n[1-2]" in done.stderr


def test_a_refused_job_is_one_line(fit, monkeypatch):
    one = fit("refused")
    monkeypatch.chdir(one.folder)
    with pytest.raises(RuntimeError, match=r"sbatch refused runs/slurm/held\.sbatch: .*[Nn]ode count"):
        submit.main(["held.yaml", "--nodes", "3", "--gpus-per-node", "0"])
    with pytest.raises(RuntimeError, match=r"--gpus-per-node 0"):
        submit.main(["held.yaml"])


def test_the_scripts_that_are_submitted_by_hand(cluster):
    for path in sorted(submit.TEMPLATES.glob("*.sbatch")):
        plain = path.read_text().replace("#SBATCH --gpus-per-node", "##")
        done = subprocess.run(
            ["sbatch", "--test-only", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=5"],
            input=plain, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{path}: {done.stderr}"
