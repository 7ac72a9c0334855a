"""Processes that the suite starts: their environment, and an end that leaves none behind."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

from structseg.files import ROOT
from structseg.messages import fail

_LOCK = ".lock"
GRACE_SECONDS = 10.0  # between asking a process to stop and killing it


def child_environment() -> dict[str, str]:
    """This process's, with the suite importable from any folder and output that is not held back."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}


@contextmanager
def exclusive_lock(folder: Path, patience: float = 0.0) -> Iterator[IO[str]]:
    """Holds the lock of a folder, as two at work in one folder would take each other's runs for their own.

    Args:
        folder: made if it is missing; the lock lies in it, and goes with the process that holds it.
        patience: seconds to wait for another process to end.

    Raises:
        RuntimeError: another process is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last = time.monotonic() + patience
    with (folder / _LOCK).open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= last:
                    raise RuntimeError(
                        f"another process is at work in {folder}; wait until it ends, or end it"
                    ) from None
                time.sleep(0.5)
        yield lock


def is_locked(folder: Path) -> bool:
    """Whether another process is at work there; nothing is written."""
    try:
        with (folder / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM becomes KeyboardInterrupt, so that the running process is ended and cleaned up after."""

    def interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001  # a signal handler's arguments
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def launcher() -> list[str]:
    """What stands before the command of a stage: `srun ...` in a SLURM job of many processes."""
    return shlex.split(os.environ.get("STRUCTSEG_LAUNCH", ""))


def command_line(args: Sequence[str]) -> str:
    """A command of the suite as it can be pasted into a shell."""
    return "structseg " + shlex.join(args)


def run_structseg(what: str, args: Sequence[str], keeps: int) -> float:
    """Runs a command of the suite in a process of its own, which shares this one's terminal.

    Args:
        what: names it in messages.
        args: what follows `structseg`.
        keeps: a file that is open for as long as the process lives, even where it outlives this one.

    Returns:
        Its seconds.

    Raises:
        RuntimeError: it failed.
        SystemExit: it was interrupted; that is said, and the code is 130.
    """
    print(command_line(args), flush=True)
    start = time.perf_counter()
    code: int | None = None
    with terminated_as_interrupted():
        process = subprocess.Popen(
            [*launcher(), sys.executable, "-m", "structseg", *args], env=child_environment(), pass_fds=(keeps,)
        )
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # Ctrl-C has reached it already, what ended this process alone has not
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
        finally:
            process.kill()
            process.wait()
    if code is None:
        fail(f"{what} was interrupted; the same command continues", 130)
    if code:
        raise RuntimeError(f"{what} failed (exit code {code}); the same command continues: {command_line(args)}")
    return time.perf_counter() - start
