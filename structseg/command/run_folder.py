"""The folder of a run, `runs/<experiment>/<run id>/`: chosen once, before any logger or callback exists."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from structseg.files import CONFIG_NAME

NOTICES_NAME = "notices_test.txt"
START_NAME = "start.json"  # date, hardware and commit of the last start of a fit
_INHERITED = "STRUCTSEG_RUN_FOLDER"  # tells the processes that DDP starts the folder of the first one
_CLAIM = ".launch"  # names the launch that a SLURM run's folder belongs to; `.launch.RANK`: that process has joined
_UNUSED = (_CLAIM, ".lock")  # files of a folder in which no run has begun
_LAUNCH = ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Attributes:
        path: `runs/<experiment>/<run id>`.
        resumed: whether it has a run already.
    """

    path: Path
    resumed: bool

    @property
    def run_id(self) -> str:
        """The id of the run, which is also its W&B id."""
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
        """The notices of the last test, a line each; missing where there were none."""
        return self.path / NOTICES_NAME

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / CONFIG_NAME


def settle_run_folder(
    root: Path, experiment: str, ckpt_path: str | None, run_id: str | None = None, writes: bool = True
) -> RunFolder:
    """Chooses the folder of a run: that of its id, that of the checkpoint that it resumes from, or a new one.

    The name of a new folder is eight hexadecimal digits; under SLURM the number of the job, JOB or ARRAY_TASK, then
    JOB_2, JOB_3 for further runs of the same job: see `_claim`.

    Args:
        root: the folder of all runs.
        experiment: name of the experiment.
        ckpt_path: the checkpoint that is resumed or tested, if any.
        run_id: the run's id, where it is known beforehand.
        writes: whether anything will be written there; only then is a folder claimed.

    Raises:
        OSError: a SLURM job's folder could not be made.
    """
    inherited = os.environ.get(_INHERITED)
    if inherited and int(os.environ.get("LOCAL_RANK", "0")) > 0:
        return RunFolder(Path(inherited), resumed=(Path(inherited) / CONFIG_NAME).is_file())
    folder = root / experiment / run_id if run_id else None
    if ckpt_path and not run_id:
        owner = Path(ckpt_path).resolve().parent.parent
        if (owner / CONFIG_NAME).is_file():
            folder = owner
    if folder is None:
        folder = _new_folder(root / experiment, writes)
    os.environ[_INHERITED] = str(folder.resolve())
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
    """The number of the SLURM job, ARRAY_TASK in a job array; None outside a job step."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    if not job or not os.environ.get("SLURM_PROCID"):
        return None
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{job}_{task}" if task else job


def _claim(folder: Path) -> bool:
    """Whether this process may use a folder: as the first of its run, which makes it, or by joining the others.

    The processes of one run start at different times, on several nodes, and cannot communicate yet. What they share is
    the launch: cluster, job, step (each srun of a job is one) and how often the job was requeued. Therefore:

    - The first process makes the folder atomically: a temporary folder that names the launch is renamed, which fails
      where the name is taken. So only one launch gets it.
    - A process joins a folder of its own launch, unless it has joined it before (then this is the next run of the step,
      or a simultaneous one) or the run has begun, which happens only after all its processes have joined.
    - Any other folder belongs to another launch, to the job before it was requeued, or to an older version.

    Every process tries the names in the same order and takes each once, so that all of them choose the same folder for
    the n-th run of a launch.

    Raises:
        OSError: the folder could not be made.
    """
    launch = "\n".join(f"{name}={os.environ.get(name, '')}" for name in _LAUNCH)
    elastic = "TORCHELASTIC_RUN_ID" in os.environ  # torchrun starts several processes in one task
    membership = f"{_CLAIM}.{os.environ['RANK' if elastic else 'SLURM_PROCID']}"
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        beside.mkdir(parents=True)
        (beside / _CLAIM).write_text(launch, encoding="utf-8")
        (beside / membership).touch()
        beside.rename(folder)
        return True
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR) or not folder.exists():
            raise OSError(f"no run folder {folder} ({error.strerror}); set --runs_dir") from None
    try:
        if (folder / _CLAIM).read_text(encoding="utf-8") != launch or (folder / CONFIG_NAME).exists():
            return False
        (folder / membership).touch(exist_ok=False)
    except OSError:  # it names no launch, or this process has joined it before
        return False
    return True


def remove_unused(folder: Path) -> None:
    """Removes a claimed folder to which the run has written nothing, so that its name is free again."""
    if not (folder / _CLAIM).is_file() or any(not path.name.startswith(_UNUSED) for path in folder.iterdir()):
        return
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    with suppress(OSError):
        folder.rename(aside)  # atomic: a process that comes now makes the folder again
        shutil.rmtree(aside)
