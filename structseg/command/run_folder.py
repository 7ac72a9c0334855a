"""Where a run lives: `runs/<experiment>/<run id>/`, settled once, before any logger or callback exists."""

from __future__ import annotations

import csv
import errno
import io
import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.csv_logs import _ExperimentWriter
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn

from structseg.files import CONFIG_NAME

NOTICES_NAME = "notices_test.txt"
START_NAME = "start.json"  # when, on what and from which commit a fit was last started
_HANDED_DOWN = "STRUCTSEG_RUN_FOLDER"  # from the first process to the ones that DDP starts
_CLAIM = ".launch"  # in the folder of a SLURM job's run: by what it was started; with `.RANK`: that this process joined
_OURS = (_CLAIM, ".lock")  # what a run's folder may hold before there is anything of a run in it
_LAUNCH = ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")


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


def settle_run_folder(
    root: Path, experiment: str, ckpt_path: str | None, run_id: str | None = None, writes: bool = True
) -> RunFolder:
    """The folder that a run uses: that of its id, that of the checkpoint that it resumes from, or a new one.

    A new one has no run in it. Its name is eight hexadecimal digits; under SLURM the number of the job, JOB or
    ARRAY_TASK, and from the second run of a job on JOB_2, JOB_3: see `_claim`.

    Args:
        root: the folder of all runs.
        experiment: name of the experiment.
        ckpt_path: the checkpoint that is resumed or tested, if any.
        run_id: the run's id, where it is known beforehand.
        writes: whether anything is going to be written there; what writes nothing claims no folder.

    Raises:
        OSError: a SLURM job's folder could not be made.
    """
    handed_down = os.environ.get(_HANDED_DOWN)
    if handed_down and int(os.environ.get("LOCAL_RANK", "0")) > 0:
        return RunFolder(Path(handed_down), resumed=(Path(handed_down) / CONFIG_NAME).is_file())
    folder = root / experiment / run_id if run_id else None
    if ckpt_path and not run_id:
        owner = Path(ckpt_path).resolve().parent.parent
        if (owner / CONFIG_NAME).is_file():
            folder = owner
    if folder is None:
        folder = _new_folder(root / experiment, writes)
    os.environ[_HANDED_DOWN] = str(folder.resolve())
    return RunFolder(folder, resumed=(folder / CONFIG_NAME).is_file())


def _new_folder(parent: Path, writes: bool) -> Path:
    job = _job()
    if job is None:
        return next(folder for folder in iter(lambda: parent / secrets.token_hex(4), None) if not folder.exists())
    if not writes:
        return parent / job
    names = (job if number == 1 else f"{job}_{number}" for number in count(1))
    return next(parent / name for name in names if _claim(parent / name))


def _job() -> str | None:
    """The number of the SLURM job, ARRAY_TASK for one of an array; None where this is no process of a job's step."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    if not job or not os.environ.get("SLURM_PROCID"):
        return None
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{job}_{task}" if task else job


def _claim(folder: Path) -> bool:
    """Takes a folder for the run that this process begins, or joins the other processes of the run there.

    The processes of one run start at different times, on several nodes, and cannot speak with each other yet. What
    they share is the launch: cluster, job, step (each srun of a job is one) and how often the job was requeued. So:

    - The first process, whichever that is, makes the folder with the launch written in it, at one stroke: a folder
      that holds the launch is renamed to it, which fails where the name is taken. Of two launches one has it.
    - A process joins a folder of its own launch, unless it has been in it already (this is then the next run of the
      step, or another at the same time) or the run has begun, which it does not before all its processes have met.
    - Whatever else there is, is someone's: of another launch, of the job before it was requeued, of an older version.

    Every process tries the names in the same order and takes each once, so the n-th run of a launch is the same
    folder for all of them, without a word between them.

    Raises:
        OSError: it could not be made.
    """
    launch = "\n".join(f"{name}={os.environ.get(name, '')}" for name in _LAUNCH)
    elastic = "TORCHELASTIC_RUN_ID" in os.environ  # torchrun starts several processes in one task
    mine = f"{_CLAIM}.{os.environ['RANK' if elastic else 'SLURM_PROCID']}"
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        beside.mkdir(parents=True)
        (beside / _CLAIM).write_text(launch)
        (beside / mine).touch()
        beside.rename(folder)
        return True
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR) or not folder.exists():
            raise OSError(f"no run folder {folder} ({error.strerror}); set --runs_dir") from None
    try:
        if (folder / _CLAIM).read_text() != launch or (folder / CONFIG_NAME).exists():
            return False
        (folder / mine).touch(exist_ok=False)
    except OSError:  # no claim in it, or this process's own
        return False
    return True


def leave_unused(folder: Path) -> None:
    """Removes a folder that was claimed for a run which wrote nothing, so that its name is free again."""
    if not (folder / _CLAIM).is_file() or any(not path.name.startswith(_OURS) for path in folder.iterdir()):
        return
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    with suppress(OSError):
        folder.rename(aside)  # at one stroke: whoever comes now makes it anew
        shutil.rmtree(aside)


def wandb_mode() -> str:
    """`WANDB_MODE` where it is set; otherwise online for someone who is logged in, and offline for everyone else."""
    chosen = os.environ.get("WANDB_MODE")
    if chosen:
        if chosen not in _WANDB_MODES:
            raise ValueError(f"WANDB_MODE is {chosen}; set it to online, offline or disabled")
        return _WANDB_MODES[chosen]
    from requests.utils import get_netrc_auth

    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return "online" if os.environ.get("WANDB_API_KEY") or get_netrc_auth(host) else "offline"


def make_loggers(folder: RunFolder, step: int | None = None) -> list[Logger]:
    """W&B under the run's id, unless it is disabled, and `metrics.csv`, both in the run's folder.

    Args:
        folder: the run's.
        step: that the fit resumes from, for `MetricsCSV`.
    """
    mode = wandb_mode()
    if mode == "disabled":
        return [MetricsCSV(folder.path, step)]
    wandb_logger = _WandB(
        project=os.environ.get("WANDB_PROJECT", "structseg"),
        name=f"{folder.experiment}-{folder.run_id}",
        group=folder.run_id,  # offline segments of one run stay together
        save_dir=folder.path,
        id=folder.run_id,
        mode=mode,
    )
    wandb_logger._wandb_init.pop("anonymous", None)  # W&B warns about the setting even where it is None
    return [MetricsCSV(folder.path, step), wandb_logger]  # a tracker that is gone takes none of its rows along


def with_metrics_csv(chosen: Logger | list[Logger] | bool, folder: RunFolder, step: int | None) -> list[Logger]:
    """`metrics.csv` beside the loggers that were chosen; TensorBoard's files lie in the run's folder, too."""
    others = chosen if isinstance(chosen, list) else [chosen] if isinstance(chosen, Logger) else []
    for logger in others:
        if isinstance(logger, TensorBoardLogger):
            logger._root_dir, logger._name, logger._version = str(folder.path), "", ""
    return [MetricsCSV(folder.path, step), *(one for one in others if not isinstance(one, CSVLogger))]


class _WandB(WandbLogger):
    """Like WandbLogger, but the fit continues without W&B where that cannot start, as after the death of a node."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, or one that keeps nothing."""
        try:
            return super().experiment
        except Exception as error:  # whatever W&B raises, metrics.csv has the figures
            if self._wandb_init["mode"] == "disabled":
                raise
            rank_zero_warn(f"no W&B here ({type(error).__name__}: {error}); the figures are in metrics.csv")
            self._wandb_init["mode"] = "disabled"
            return super().experiment


class MetricsCSV(CSVLogger):
    """`metrics.csv` in the run's folder; a resumed run adds to the rows that are there.

    Args:
        folder: the run's.
        step: optimiser steps that are done where the fit resumes. Rows of later ones are left out, as these steps will
            be taken again; those of a test stay. None: all rows stay.
    """

    def __init__(self, folder: Path, step: int | None = None) -> None:
        super().__init__(folder, name="", version="")
        self._step = step

    @property
    @rank_zero_only
    def experiment(self) -> _ExperimentWriter:
        """The writer; made at first use."""
        if self._experiment is None:
            self._experiment = _WholeCSV(Path(self.log_dir), self._step)
        return self._experiment


class _WholeCSV(ExperimentWriter):
    """Appends rows, and writes all of them beside the file and renames where there are new columns.

    A run that is killed leaves no half of the file. Lightning saves after every row that is logged.
    """

    def __init__(self, folder: Path, step: int | None) -> None:
        self.hparams: dict[str, Any] = {}
        self.log_dir = str(folder)
        self.file = folder / self.NAME_METRICS_FILE
        self.metrics: list[dict[str, Any]] = []  # those that are not in the file yet
        self._kept: list[dict[str, Any]] = []
        self._columns: list[str] = []  # of the file, once this writer has written it
        if self.file.is_file():
            text = self.file.read_bytes().decode()
            whole = io.StringIO(text[: text.rfind("\n") + 1])  # a full disk may have cut the last row
            self._kept = [row for row in csv.DictReader(whole) if step is None or _stays(row, step)]

    def save(self) -> None:
        """Writes what has come since."""
        if not self.metrics:
            return
        new, self.metrics = self.metrics, []
        self._kept += new
        if self._columns and all(row.keys() <= set(self._columns) for row in new):
            with self.file.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerows(new)
            return
        self._columns = sorted({key for row in self._kept for key in row})
        self.file.parent.mkdir(parents=True, exist_ok=True)
        beside = self.file.with_suffix(".csv.part")
        with beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._kept)
        beside.replace(self.file)


def _stays(row: dict[str, Any], step: int) -> bool:
    at = row.get("step") or "0"
    return not at.isdecimal() or int(at) < step or any(row[key] for key in row if key.startswith("test/"))
