"""The same Python program in several processes, as ranks of one run that the caller has started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from socket import socket

from structseg.files import ROOT


def run_ranks(world: int, folder: Path, args: Sequence[str]) -> None:
    """Runs `python ARGS` in so many processes and waits for them; what they print goes to `FOLDER/RANK.log`.

    Raises:
        AssertionError: one of them failed; with the ends of all logs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in range(world):
        own = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own |= {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(world), "PYTHONPATH": str(ROOT)}
        with (folder / f"{rank}.log").open("w") as log:
            command = [sys.executable, *args]
            processes.append(subprocess.Popen(command, env={**os.environ, **own}, cwd=ROOT, stdout=log, stderr=log))
    try:
        codes = [process.wait(timeout=550) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(codes), "\n".join((folder / f"{rank}.log").read_text()[-1500:] for rank in range(world))
