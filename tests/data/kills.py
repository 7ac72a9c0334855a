"""A fit killed at random moments and started again, over and over: `python -m tests.data.kills CONFIG FOLDER TIMES SEED`.

Prints one JSON line: how many were injected, how many left a valid state, how many checkpoints were lost, how many fell
into the writing of a checkpoint, and whether the fit ended with the weights of an undisturbed one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import torch

from structseg.command.lightning import run
from structseg.command.resume import find_resume_point

EARLY, AFTER = 0.1, 1.0  # share of kills before a start has saved anything; most seconds after its first saving
PATIENCE = 120.0


def start(config: Path, folder: Path) -> int:
    """The fit in a process of its own; this one has used no threads yet, so that it may fork."""
    child = os.fork()
    if child:
        return child
    sys.argv = ["structseg"]
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    code = 1
    try:
        run(["fit", "--config", str(config), "--resume", "auto", "--runs_dir", str(folder), "--run_id", "killed"])
        code = 0
    finally:
        os._exit(code)


def wait_for(path: Path, child: int) -> None:
    """Until a file is being written, at most until the process ends."""
    path.unlink(missing_ok=True)  # of an earlier kill
    last = time.monotonic() + PATIENCE
    while not path.exists() and time.monotonic() < last and not ended(child):
        time.sleep(0.0005)


def ended(child: int) -> bool:
    """Whether a process is over; it is left to be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def weights(checkpoints: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(checkpoints / "last.ckpt", weights_only=True)["state_dict"]
    return state


def main() -> None:
    config, folder, times, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    chance = random.Random(seed)
    checkpoints = folder / "killed" / config.stem / "killed" / "checkpoints"
    found = {"injected": 0, "survived": 0, "lost": 0, "in_a_write": 0}
    saved = 0
    while found["injected"] < times:
        child = start(config, folder / "killed")
        if chance.random() < EARLY:
            time.sleep(chance.uniform(0.2, 3.0))
        else:
            wait_for(checkpoints / "last.ckpt.part", child)
            time.sleep(chance.uniform(0, AFTER))
        if os.waitpid(child, os.WNOHANG)[0]:
            break  # it came to its end
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found["injected"] += 1
        found["in_a_write"] += bool(list(checkpoints.glob("*.part")))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                step = find_resume_point(checkpoints).step
        except (ValueError, UserWarning) as error:
            sys.stderr.write(f"{error}\n")
            continue
        found["survived"] += 1
        found["lost"] += step < saved
        saved = max(saved, step)
    codes = [os.waitpid(start(config, folder / name), 0)[1] for name in ("killed", "whole")]
    ends = [weights(folder / name / config.stem / "killed" / "checkpoints") for name in ("killed", "whole")]
    equal = ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    print(json.dumps({**found, "codes": codes, "equal": equal, "step_at_last_kill": saved}))


if __name__ == "__main__":
    main()
