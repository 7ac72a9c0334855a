"""The files that runs leave for the results table: `ROW.SEED.json`, whole or not there, and the images' scores."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from experiments.manifest import ROOT, Device, Split
from experiments.parser import nearest
from lightning_modules.callbacks.image_scores import write_table

PACKAGES = (
    "torch",
    "pytorch-lightning",
    "torchmetrics",
    "kornia",
    "segmentation-models-pytorch",
    "timm",
)
_KINDS = ("*.json", "*.images.csv.gz")
RELIABILITY = "reliability.json"  # what was injected and what survived, beside the rows
_NAME = re.compile(r"(?P<row>\w+)\.(?P<seed>\d+)\.json")


@dataclass(frozen=True)
class Result:
    """One measured seed of a row.

    Attributes:
        path: the file.
        row: name of the row.
        seed: the seed.
        content: all that the file holds.
    """

    path: Path
    row: str
    seed: int
    content: Mapping[str, Any]

    @property
    def minutes(self) -> float:
        """Of the fit and all tests together."""
        return float(self.content["wall_seconds"] + self.content.get("test_seconds", 0.0)) / 60

    @property
    def hardware(self) -> str:
        """What it was measured on."""
        return str(self.content["hardware"])

    @property
    def dirty(self) -> bool:
        """Whether the code held changes that the commit does not have."""
        return bool(self.content["dirty"])

    @property
    def recipe(self) -> str | None:
        """Hash of what the row's files said then; None in results from before it was kept."""
        return self.content.get("recipe")

    @property
    def scored_on(self) -> str:
        """`test` or `val`."""
        return str(self.content.get("scored_on", "test"))

    def value(self, key: str) -> float:
        """A metric by its dotted name; nan where the file has null.

        Raises:
            ValueError: there is no such metric; the message has the nearest name.
        """
        known = flat_metrics(self.content["metrics"])
        if key not in known:
            raise ValueError(f"{self.path} has no metric {key}{nearest(key, known)}; change the row's headline")
        return known[key]


def result_path(folder: Path, row: str, seed: int) -> Path:
    """Where the result of a row and seed belongs."""
    return folder / f"{row}.{seed}.json"


def images_path(result: Path) -> Path:
    """Where the scores of each image belong, beside the result."""
    return result.with_suffix(".images.csv.gz")


def read_results(folder: Path) -> list[Result]:
    """Every result in a folder, by row and seed.

    Raises:
        ValueError: a file is damaged or not of this form; the message names it.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        if path.name == RELIABILITY:
            continue
        named = _NAME.fullmatch(path.name)
        if not named:
            raise ValueError(f"{path} is no result: expected a name like ROW.SEED.json; move it away")
        found.append(_read(path, named["row"], int(named["seed"])))
    return sorted(found, key=lambda result: (result.row, result.seed))


def _read(path: Path, row: str, seed: int) -> Result:
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and measure the row again") from None
    wanted = {"row": str, "seed": int, "hardware": str, "wall_seconds": int | float, "dirty": bool, "metrics": dict}
    keys = content if isinstance(content, dict) else {}
    wrong = [key for key, kind in wanted.items() if not isinstance(keys.get(key), kind)]
    if wrong:
        raise ValueError(f"{path} is damaged (no proper {', '.join(wrong)}); remove it and measure the row again")
    if (content["row"], content["seed"]) != (row, seed):
        raise ValueError(f"{path} holds row {content['row']}, seed {content['seed']}; give it its own name back")
    return Result(path, row, seed, content)


def write_result(path: Path, content: Mapping[str, Any]) -> None:
    """Writes beside, syncs, renames: the file is whole or not there. What is not finite becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = part_of(path)
    try:
        with beside.open("w") as file:
            file.write(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_images(path: Path, tables: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """Writes the scores of each image as one table, with a first column `test` where the tests have names.

    Args:
        path: the file, as `images_path` says.
        tables: what `ImageScores` wrote, header first, by the name of the test; "" = there is but one.

    Returns:
        The file's SHA-256, for the result that it belongs to.

    Raises:
        ValueError: the tables do not have the same columns.
    """
    headers = {tuple(table[0]) for table in tables.values()}
    if len(headers) != 1:
        raise ValueError(f"the tests {', '.join(tables)} have different classes; give them rows of their own")
    lines = [[test, *line] for test, table in tables.items() for line in table[1:]]
    lines.insert(0, ["test", *headers.pop()])
    write_table(path, [line[1:] for line in lines] if set(tables) == {""} else lines)
    return sha256(path)


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def part_of(path: Path) -> Path:
    """The file that is written before it gets its name."""
    return path.with_name(f".{path.name}.part")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def nest_metrics(logged: Mapping[str, float], split: Split = "test") -> dict[str, Any]:
    """The test's `test/...` values, or the validation's `val/...`, as a tree: `nested`."""
    prefix = f"{split}/"
    return nested({key.removeprefix(prefix): value for key, value in logged.items() if key.startswith(prefix)})


def nested(values: Mapping[str, float]) -> dict[str, Any]:
    """Values by their names' parts: `iou/skin` -> `iou.skin`.

    Where parts of the test set are scored apart, that is where `PART/miou` is logged beside `miou`, each part has its
    name and the whole is `all`: `clean.iou.skin`, `all.iou.skin`.
    """
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split("/")
        branch = tree
        for name in path:
            branch = branch.setdefault(name, {})
        branch[last] = value
    parts = {name: branch for name, branch in tree.items() if isinstance(branch, dict) and "miou" in branch}
    whole = {name: branch for name, branch in tree.items() if name not in parts}
    return {"all": whole, **parts} if parts and whole else tree


def flat_metrics(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The tree's values by dotted name; null is nan."""
    found: dict[str, float] = {}
    for name, branch in tree.items():
        if isinstance(branch, Mapping):
            found |= flat_metrics(branch, f"{prefix}{name}.")
        else:
            found[prefix + name] = math.nan if branch is None else float(branch)
    return found


def portable(config: Any, data_root: Path | None) -> Any:
    """A configuration without this machine's folders: data below `$STRUCTSEG_DATA`, the rest from the repository."""
    if isinstance(config, dict):
        return {key: portable(value, data_root) for key, value in config.items()}
    if isinstance(config, list):
        return [portable(value, data_root) for value in config]
    if not isinstance(config, str) or not Path(config).is_absolute():
        return config
    for folder, name in ((data_root, "$STRUCTSEG_DATA"), (ROOT, "."), (Path.cwd(), "."), (Path.home(), "~")):
        if folder is not None and Path(config).is_relative_to(folder.resolve()):
            return (Path(name) / Path(config).relative_to(folder.resolve())).as_posix()
    return f".../{Path(config).name}"


def commit() -> tuple[str, bool]:
    """The repository's commit, and whether anything but results differs from it.

    Outside a checkout it is what `STRUCTSEG_COMMIT` says (the output of `git describe --always --abbrev=40 --dirty`);
    failing that it is unknown and taken for changed.
    """
    try:
        head = _git("rev-parse", "HEAD")
        changes = _git(
            "status", "--porcelain", "--", ".", *(f":(exclude)experiments/results/{kind}" for kind in _KINDS)
        )
    except (OSError, subprocess.CalledProcessError):
        told = os.environ.get("STRUCTSEG_COMMIT", "unknown-dirty")
        return told.removesuffix("-dirty"), told.endswith("-dirty")
    return head, bool(changes)


def _git(*args: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *args], check=True, capture_output=True, text=True).stdout.strip()


def hardware(device: Device) -> str:
    """The GPU's name, or the processor's with the number of cores and of torch's threads.

    Raises:
        ValueError: `cuda` where there is none.
    """
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("no CUDA device on this machine; leave out --device cuda")
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        model = found[1].strip() if found else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Of Python and of the packages that a figure depends on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}
