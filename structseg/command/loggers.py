"""The loggers of a run: `metrics.csv` always, W&B unless it is disabled, or the loggers that the user chose."""

from __future__ import annotations

import csv
import io
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from lightning_fabric.loggers.csv_logs import _ExperimentWriter
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn

from structseg.command.run_folder import RunFolder

_WANDB_MODES = {"online": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
_WANDB_SECONDS = 5


def wandb_mode() -> str:
    """`WANDB_MODE` where it is set; otherwise online for a user who is logged in, else offline."""
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
        step: the optimiser step that the fit resumes from, for `MetricsCSV`.
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
    return [MetricsCSV(folder.path, step), wandb_logger]  # first, so that a failing W&B costs it no rows


def with_metrics_csv(chosen: Logger | list[Logger] | bool, folder: RunFolder, step: int | None) -> list[Logger]:
    """`metrics.csv` and the chosen loggers; TensorBoard's files go to the run's folder too."""
    loggers = chosen if isinstance(chosen, list) else [chosen] if isinstance(chosen, Logger) else []
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger._root_dir, logger._name, logger._version = str(folder.path), "", ""
    return [MetricsCSV(folder.path, step), *(logger for logger in loggers if not isinstance(logger, CSVLogger))]


def finish_wandb(stopped: bool) -> None:
    """Ends the W&B run, which a second run in this process would otherwise continue.

    Where the job was `stopped`, W&B's own process may be gone too, so the wait for it is limited.
    """
    wandb = sys.modules.get("wandb")
    if wandb is None:
        return

    def give_up(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001  # a handler's arguments
        raise TimeoutError

    if not stopped:
        wandb.finish()
        return
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_WANDB_SECONDS)
    try:
        wandb.finish()
    except Exception as error:  # noqa: BLE001  # the fit is saved
        rank_zero_warn(f"W&B did not end properly ({type(error).__name__}: {error}); its files so far are kept")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class _WandB(WandbLogger):
    """Like WandbLogger, but the fit continues without W&B where that cannot start, as after the death of a node."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; a disabled one where W&B cannot start."""
        try:
            return super().experiment
        except Exception as error:  # whatever W&B raises, metrics.csv has the figures
            if self._wandb_init["mode"] == "disabled":
                raise
            rank_zero_warn(f"W&B did not start ({type(error).__name__}: {error}); the figures are in metrics.csv")
            self._wandb_init["mode"] = "disabled"
            return super().experiment


class MetricsCSV(CSVLogger):
    """`metrics.csv` in the run's folder; a resumed run adds to the rows that are there.

    Args:
        folder: the run's.
        step: the optimiser step that the fit resumes from. Rows of later steps, which will be taken again, are dropped,
            except those of a test. None: all rows stay.
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
    """Appends rows; where a row has new columns the file is written anew and renamed, so that it is never half there.

    Lightning saves after every row that is logged.
    """

    def __init__(self, folder: Path, step: int | None) -> None:
        self.hparams: dict[str, Any] = {}
        self.log_dir = str(folder)
        self.file = folder / self.NAME_METRICS_FILE
        self.metrics: list[dict[str, Any]] = []  # rows that are not in the file yet
        self._kept: list[dict[str, Any]] = []
        self._columns: list[str] = []  # of the file, once this writer has written it
        if self.file.is_file():
            text = self.file.read_bytes().decode()
            whole = io.StringIO(text[: text.rfind("\n") + 1])  # a full disk may have cut the last row
            self._kept = [row for row in csv.DictReader(whole) if step is None or _stays(row, step)]

    def save(self) -> None:
        """Writes the rows logged since the last save."""
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
