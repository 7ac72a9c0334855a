"""Files: the root of the repository, hashes, atomic writes."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]  # of the repository
CONFIG_NAME = "experiment.yaml"  # in a run's folder: its resolved configuration
FINISHED = "finished.json"  # in a run's folder once its fit is complete


def experiments_folder() -> Path:
    """The folder of the configurations: beside this package in a checkout, inside it in an installed wheel."""
    inside = Path(__file__).resolve().parent / "experiments"
    return inside if inside.is_dir() else ROOT / "experiments"


def write_result(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON by `write_whole`; numbers that are not finite become null."""
    write_whole(path, (json.dumps(_plain(content), indent=2, allow_nan=False) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file atomically: to a temporary file, synced, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = part_of(path)
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def part_of(path: Path) -> Path:
    """The temporary file that is written before it is renamed to `path`."""
    return path.with_name(f".{path.name}.part")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
