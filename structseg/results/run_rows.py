"""Measures rows of the results, each seed in its own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from structseg.command.processes import GRACE_SECONDS, child_environment, terminated_as_interrupted
from structseg.provenance import Device, hardware
from structseg.results.manifest import Row, data_folder

LOG_LINES = 12  # lines that are shown of a failed run's log


@dataclass(frozen=True)
class Job:
    """One seed of one row."""

    row: Row
    seed: int

    def __str__(self) -> str:
        return f"{self.row.name}.{self.seed}"


@dataclass(frozen=True)
class Place:
    """Where jobs run and write their results.

    Attributes:
        device: to train on.
        data_root: folder that holds the data folders.
        runs_dir: folder of all runs; logs go to its `results/`.
        manifest: the file that lists the rows.
        results: folder of the results.
    """

    device: Device
    data_root: Path | None
    runs_dir: Path
    manifest: Path
    results: Path


def run_jobs(jobs: Sequence[Job], place: Place) -> list[Job]:
    """Runs the jobs one after the other; a failed job does not stop the others.

    Returns:
        The jobs that failed.

    Raises:
        FileNotFoundError: the data of a row are missing; nothing was run.
        ValueError: no such device on this machine; nothing was run.
    """
    for job in jobs:
        data_folder(job.row, place.data_root)
    if place.device == "cuda":
        hardware(place.device)
    return [job for job in jobs if not _run(job, place)]


def measure_command(job: Job, place: Place) -> list[str]:
    """The command line of a job's process."""
    command = [sys.executable, "-m", "structseg.results.measure", job.row.name, str(job.seed), "--device", place.device]
    command += ["--manifest", str(place.manifest), "--results", str(place.results), "--runs_dir", str(place.runs_dir)]
    return command + ([] if place.data_root is None else ["--data_root", str(place.data_root)])


def _run(job: Job, place: Place) -> bool:
    """Runs a job and prints its outcome; whether it succeeded."""
    log = place.runs_dir / "results" / f"{job}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{job}: running (log: {log})", flush=True)
    start = time.monotonic()
    with log.open("wb") as file, terminated_as_interrupted():
        process = subprocess.Popen(
            measure_command(job, place), stdout=file, stderr=file, env=child_environment(), start_new_session=True
        )
        try:
            code = process.wait()
        finally:
            _stop(process)
    minutes = (time.monotonic() - start) / 60
    if code:
        print(f"{job}: failed after {minutes:.1f} min (exit code {code}); the end of {log}:", flush=True)
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        print("\n".join(f"    {line}" for line in lines[-LOG_LINES:]), flush=True)
    else:
        print(f"{job}: measured in {minutes:.1f} min", flush=True)
    return not code


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupts the process and its children, then kills them."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
