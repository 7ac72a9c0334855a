"""Runs rows of the results table, one process each, within a budget of time."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from structseg.command.processes import GRACE_SECONDS, child_environment, terminated_as_interrupted
from structseg.files import ROOT, part_of
from structseg.pipelines.file import load_pipeline
from structseg.pipelines.record import finished_seconds
from structseg.pipelines.stages import pipeline_folder
from structseg.provenance import Device, hardware
from structseg.results.files import Result, images_path, read_results, result_path
from structseg.results.manifest import MINUTES_KEYS, Row, data_folder

LOG_LINES = 12  # shown of a run that failed


@dataclass(frozen=True)
class Job:
    """One seed of one row."""

    row: Row
    seed: int

    def __str__(self) -> str:
        return f"{self.row.name}.{self.seed}"


@dataclass(frozen=True)
class Place:
    """Where jobs run and what they leave.

    Attributes:
        device: what to train on.
        data_root: folder that holds the data folders.
        runs_dir: folder of all runs; logs go to its `results/`.
        manifest: the file that names the rows.
        results: folder of the results.
    """

    device: Device
    data_root: Path | None
    runs_dir: Path
    manifest: Path
    results: Path


def run_jobs(jobs: Sequence[Job], place: Place, budget_minutes: float | None = None) -> list[Job]:
    """Runs each job that fits in what is left of the budget, one after the other; a failing one does not stop the rest.

    Returns:
        The jobs that failed.

    Raises:
        FileNotFoundError: a row's data are not there; nothing was run.
    """
    for job in jobs:
        data_folder(job.row, place.data_root)
    deadline = None if budget_minutes is None else time.monotonic() + 60 * budget_minutes
    machine = hardware(place.device)
    rows = {job.row.name: job.row for job in jobs}
    failed = []
    for job in jobs:
        needed = estimate_minutes(job.row, place.device, machine, read_results(place.results), rows)
        if needed is not None:
            needed = max(needed - _finished_minutes(job, place.runs_dir), 0.0)
        left = None if deadline is None else (deadline - time.monotonic()) / 60
        if left is not None and (needed is None or needed > left):
            wanted = "unknown minutes" if needed is None else f"about {needed:.1f} min"
            print(f"{job}: not started, needs {wanted}, {max(left, 0):.1f} min are left", flush=True)
            continue
        if not _run(job, place, needed, deadline):
            failed.append(job)
    return failed


def estimate_minutes(
    row: Row, device: Device, machine: str, results: Sequence[Result], rows: Mapping[str, Row]
) -> float | None:
    """Minutes that a seed will take: as measured on this hardware, else the manifest's, scaled as other rows were.

    Args:
        row: the row.
        device: its kind chooses among the manifest's minutes.
        machine: the hardware, as results name it.
        results: what is measured so far.
        rows: the manifest.

    Returns:
        The minutes; None where neither a result nor the manifest says.
    """
    here = [result for result in results if result.hardware == machine]
    own = [result.minutes for result in here if result.row == row.name]
    if own:
        return statistics.mean(own)
    key = MINUTES_KEYS[device]
    given = row.minutes.get(key)
    if given is None:
        return None
    said = [(result, rows[result.row].minutes.get(key)) for result in here if result.row in rows]
    ratios = [result.minutes / minutes for result, minutes in said if minutes]
    return given * (statistics.median(ratios) if ratios else 1.0)


def _finished_minutes(job: Job, runs_dir: Path) -> float:
    """Of the stages of a pipeline's row that an earlier row has run, or a call by hand."""
    if job.row.pipeline is None:
        return 0.0
    pipeline = load_pipeline(ROOT / job.row.pipeline)
    return finished_seconds(pipeline.needed(job.row.stage), pipeline_folder(pipeline.path, job.seed, runs_dir)) / 60


def measure_command(job: Job, place: Place) -> list[str]:
    """The process of one job."""
    command = [sys.executable, "-m", "structseg.results.measure", job.row.name, str(job.seed), "--device", place.device]
    command += ["--manifest", str(place.manifest), "--results", str(place.results), "--runs_dir", str(place.runs_dir)]
    return command + ([] if place.data_root is None else ["--data_root", str(place.data_root)])


def _run(job: Job, place: Place, needed: float | None, deadline: float | None) -> bool:
    """Whether the job went well or was stopped for time; what went wrong is printed."""
    log = place.runs_dir / "results" / f"{job}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{job}: running{'' if needed is None else f', about {needed:.1f} min'} (log: {log})", flush=True)
    start = time.monotonic()
    with log.open("wb") as file, terminated_as_interrupted():
        process = subprocess.Popen(
            measure_command(job, place), stdout=file, stderr=file, env=child_environment(), start_new_session=True
        )
        try:
            code = process.wait(None if deadline is None else _time_to_run(deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _stop(process)
            result = result_path(place.results, job.row.name, job.seed)
            for file_left in (result, images_path(result)):
                part_of(file_left).unlink(missing_ok=True)
    minutes = (time.monotonic() - start) / 60
    if code is None:
        print(f"{job}: stopped after {minutes:.1f} min, the budget is used up; nothing is written", flush=True)
    elif code:
        print(f"{job}: failed after {minutes:.1f} min (exit code {code}); the end of {log}:", flush=True)
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        print("\n".join(f"    {line}" for line in lines[-LOG_LINES:]), flush=True)
    else:
        print(f"{job}: measured in {minutes:.1f} min", flush=True)
    return not code


def _time_to_run(left: float) -> float:
    """Seconds until the process is asked to end, so that it has ended when those that are left are over."""
    return max(left - min(GRACE_SECONDS, left / 10), 0)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks the process and all that it started to end, then ends them."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
