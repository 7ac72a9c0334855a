import pytest

from structseg.command.loggers import MetricsCSV, wandb_mode
from structseg.command.run_folder import settle_run_folder


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in ("LOCAL_RANK", "SLURM_JOB_ID", "SLURM_PROCID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)


def test_two_runs_have_two_folders(tmp_path):
    one, two = (settle_run_folder(tmp_path, "exp", None) for _ in range(2))
    assert one.path.parent == tmp_path / "exp"
    assert one.run_id != two.run_id
    assert not one.resumed
    assert not one.path.exists(), "nothing is written before the run is known to be sound"


def test_a_checkpoint_leads_back_to_its_run(tmp_path):
    owner = tmp_path / "elsewhere" / "exp" / "0badcafe"
    (owner / "checkpoints").mkdir(parents=True)
    (owner / "experiment.yaml").write_text("seed_everything: 0\n")
    found = settle_run_folder(tmp_path, "exp", str(owner / "checkpoints" / "last.ckpt"))
    assert (found.path, found.resumed, found.run_id, found.experiment) == (owner, True, "0badcafe", "exp")


def test_a_foreign_checkpoint_gets_a_new_folder(tmp_path):
    (tmp_path / "k.ckpt").touch()
    assert (
        settle_run_folder(tmp_path / "runs", "exp", str(tmp_path / "k.ckpt")).path.parent == tmp_path / "runs" / "exp"
    )


def test_processes_that_ddp_starts_share_the_folder(tmp_path, monkeypatch):
    first = settle_run_folder(tmp_path, "exp", None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert settle_run_folder(tmp_path, "exp", None).path == first.path


def test_under_slurm_the_id_is_the_jobs(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert settle_run_folder(tmp_path, "exp", None).run_id == "77"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    assert settle_run_folder(tmp_path, "exp", None).run_id == "70_4"


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
    ],
)
def test_wandb_is_online_for_logged_in_users(environment, mode, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode() == mode


def test_metrics_continue_below_the_existing_rows(tmp_path):
    for step in (1, 2):
        logger = MetricsCSV(tmp_path)
        logger.log_metrics({"val/miou": step / 10, **({"new": 5.0} if step == 2 else {})}, step)
        logger.save()
    lines = (tmp_path / "metrics.csv").read_text().split()
    assert lines[0].split(",") == ["new", "step", "val/miou"]
    assert lines[1:] == [",1,0.1", "5.0,2,0.2"]
