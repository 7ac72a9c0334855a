"""Where a run lives: `runs/<experiment>/<run id>/`, settled once, before any logger or callback exists."""

from __future__ import annotations

import os
import secrets
import warnings
from dataclasses import dataclass
from pathlib import Path

from lightning_fabric.loggers.csv_logs import _ExperimentWriter
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities import rank_zero_only
from requests.utils import get_netrc_auth

CONFIG_NAME = "experiment.yaml"
NOTICES_NAME = "notices_test.txt"
_HANDED_DOWN = "STRUCTSEG_RUN_FOLDER"  # from the first process to the ones that DDP starts


_WANDB_MODES = {"online": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run. Its name is the run id, which is also the W&B id.

    Attributes:
        path: the folder, `runs/<experiment>/<run id>`.
        resumed: whether it was there before.
    """

    path: Path
    resumed: bool

    @property
    def run_id(self) -> str:
        """The run id."""
        return self.path.name

    @property
    def experiment(self) -> str:
        """The name of the experiment."""
        return self.path.parent.name

    @property
    def checkpoints(self) -> Path:
        """Where `best.ckpt` and `last.ckpt` are."""
        return self.path / "checkpoints"

    @property
    def notices(self) -> Path:
        """What the last test noticed, a line each; there only if it noticed anything."""
        return self.path / NOTICES_NAME

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / CONFIG_NAME


def settle_run_folder(root: Path, experiment: str, ckpt_path: str | None) -> RunFolder:
    """The folder that a run uses: that of the checkpoint which it goes on from, or a new one.

    Args:
        root: the folder of all runs.
        experiment: name of the experiment.
        ckpt_path: the checkpoint that is resumed or tested, if any.
    """
    handed_down = os.environ.get(_HANDED_DOWN)
    if handed_down and int(os.environ.get("LOCAL_RANK", "0")) > 0:
        return RunFolder(Path(handed_down), resumed=(Path(handed_down) / CONFIG_NAME).is_file())
    folder = root / experiment / _new_id()
    if ckpt_path:
        owner = Path(ckpt_path).resolve().parent.parent
        if (owner / CONFIG_NAME).is_file():
            folder = owner
    os.environ[_HANDED_DOWN] = str(folder.resolve())
    return RunFolder(folder, resumed=(folder / CONFIG_NAME).is_file())


def _new_id() -> str:
    """Eight hexadecimal digits; under SLURM the job's own number, which all its processes know."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    if job and os.environ.get("SLURM_PROCID"):
        task = os.environ.get("SLURM_ARRAY_TASK_ID")
        return f"{job}_{task}" if task else job
    return secrets.token_hex(4)


def wandb_mode() -> str:
    """`WANDB_MODE` where it is set; otherwise online for someone who is logged in, and offline for everyone else."""
    chosen = os.environ.get("WANDB_MODE")
    if chosen:
        if chosen not in _WANDB_MODES:
            raise ValueError(f"WANDB_MODE is {chosen}; set it to online, offline or disabled")
        return _WANDB_MODES[chosen]
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return "online" if os.environ.get("WANDB_API_KEY") or get_netrc_auth(host) else "offline"


def make_loggers(folder: RunFolder) -> list[Logger]:
    """W&B under the run's id, unless it is disabled, and `metrics.csv`, both in the run's folder."""
    mode = wandb_mode()
    if mode == "disabled":
        return [MetricsCSV(folder.path)]
    wandb_logger = WandbLogger(
        project=os.environ.get("WANDB_PROJECT", "structseg"),
        name=f"{folder.experiment}-{folder.run_id}",
        group=folder.run_id,  # offline segments of one run stay together
        save_dir=folder.path,
        id=folder.run_id,
        mode=mode,
    )
    wandb_logger._wandb_init.pop("anonymous", None)  # W&B warns about the setting even where it is None
    return [wandb_logger, MetricsCSV(folder.path)]


class MetricsCSV(CSVLogger):
    """`metrics.csv` in the run's folder; a resumed run goes on below the rows that are there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="")

    @property
    @rank_zero_only
    def experiment(self) -> _ExperimentWriter:
        """The writer; made at first use."""
        if self._experiment is None:
            file = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
            kept = file.rename(file.with_suffix(".kept")) if file.is_file() else None
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Experiment logs directory")  # nothing of ours is deleted
                self._experiment = ExperimentWriter(log_dir=self.log_dir)
            if kept is not None:  # the writer deletes a file that it finds
                kept.rename(file)
                header = file.read_text().partition("\n")[0].strip()
                self._experiment.metrics_keys = header.split(",") if header else []
        return self._experiment
