"""Processes that the suite starts: environment, locks of folders, clean termination."""

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
    """This process's environment, with the suite importable from any folder and unbuffered output."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}


class FolderInUseError(RuntimeError):
    """Another process works in the folder."""


@contextmanager
def exclusive_lock(folder: Path, patience: float = 0.0) -> Iterator[IO[str]]:
    """Locks a folder, so that only one process works in it.

    Args:
        folder: made if it is missing; the lock is a file in it, released at the latest when the process ends.
        patience: seconds to wait for another process to end.

    Raises:
        FolderInUseError: another process has the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last = time.monotonic() + patience
    with (folder / _LOCK).open("w", encoding="utf-8") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= last:
                    raise FolderInUseError(
                        f"another process is at work in {folder}; wait until it ends, or end it"
                    ) from None
                time.sleep(0.5)
        yield lock


def is_locked(folder: Path) -> bool:
    """Whether another process has locked a folder; nothing is written."""
    try:
        with (folder / _LOCK).open(encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Turns SIGTERM into KeyboardInterrupt, so that the child process is ended too."""

    def interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001  # a signal handler's arguments
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def launcher() -> list[str]:
    """The prefix of a stage's command: `srun ...` in a SLURM job of several processes."""
    return shlex.split(os.environ.get("STRUCTSEG_LAUNCH", ""))


def command_line(args: Sequence[str]) -> str:
    """A command of the suite as it can be pasted into a shell."""
    return "structseg " + shlex.join(args)


def run_structseg(what: str, args: Sequence[str], keeps: int) -> float:
    """Runs a command of the suite in a child process that shares this terminal.

    Args:
        what: its name in messages.
        args: the arguments after `structseg`.
        keeps: file descriptor of a lock that the child also holds, even where it outlives this process.

    Returns:
        Its duration in seconds.

    Raises:
        RuntimeError: it failed.
        SystemExit: it was interrupted; the exit code is 130.
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
            process.send_signal(signal.SIGINT)  # Ctrl-C reaches it by itself, a signal to this process does not
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
