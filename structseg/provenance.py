"""Where a figure comes from: the commit and the hardware."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Literal

from structseg.files import ROOT

Device = Literal["cpu", "cuda"]
_RESULTS = ("runs.csv", "metrics.csv", "images/*", ".*")  # files that measuring writes


def commit() -> tuple[str, bool]:
    """The repository's commit, and whether any file but the results has uncommitted changes.

    Outside a checkout it is `STRUCTSEG_COMMIT` (the output of `git describe --always --abbrev=40 --dirty`), else
    `unknown`, which counts as changed.
    """
    try:
        if not (ROOT / "pyproject.toml").is_file():  # an installed wheel; a repository around it is another project's
            raise FileNotFoundError
        head = _git("rev-parse", "HEAD")
        changes = _git(
            "status", "--porcelain", "--", ".", *(f":(exclude)experiments/results/{name}" for name in _RESULTS)
        )
    except (OSError, subprocess.CalledProcessError):
        given = os.environ.get("STRUCTSEG_COMMIT", "unknown-dirty")
        return given.removesuffix("-dirty"), given.endswith("-dirty")
    return head, bool(changes)


def _git(*args: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *args], check=True, capture_output=True, text=True).stdout.strip()


def available_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware(device: Device) -> str:
    """The GPU's name, or the processor's with the number of cores and of torch's threads.

    Raises:
        ValueError: `cuda` on a machine without a CUDA device.
    """
    import torch  # takes seconds, which callers of `commit` do not need

    if device == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("no CUDA device on this machine; leave out --device cuda")
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), re.MULTILINE)
        model = found[1].strip() if found else model
    return f"{model}, {available_cores()} cores, {torch.get_num_threads()} threads"
