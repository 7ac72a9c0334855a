"""What a finished stage of a pipeline leaves: `stage.json`, and by it whether the stage has to run again."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from structseg.files import sha256, write_result
from structseg.pipelines.stages import Stage
from structseg.yaml_files import flatten

RECORD = "stage.json"
# The folder of a run, and whether it is resumed, change no figure.
_WITHOUT_EFFECT = (
    "experiment", "runs_dir", "run_id", "resume", "ckpt_path", "trainer.default_root_dir", "data.init_args.predict_out",
    "data.init_args.predict_dir",  # an option of earlier versions
)  # fmt: skip
_SHOWN = 3  # changes that a reason lists
_HASHED = 1 << 26  # bytes: lists, tags and small weights
_LONGEST = 1000  # characters of a path


@dataclass(frozen=True)
class Inputs:
    """All that a stage's checkpoint depends on, except the code within a version.

    Attributes:
        config: each value of the resolved configuration, as JSON, by its dotted key.
        checkpoints: SHA-256 of what each earlier stage that it builds on has left.
        version: of the suite.
    """

    config: Mapping[str, str]
    checkpoints: Mapping[str, str]
    version: str

    @classmethod
    def of(cls, config: Mapping[str, Any], checkpoints: Mapping[str, str]) -> Inputs:
        """From a configuration as `structseg fit --print_config` prints it."""
        values = flatten(config)
        root = values.get("data.init_args.root")
        known = [Path(), *([Path(root)] if isinstance(root, str) else [])]  # what paths may start from
        flat = {key: json.dumps(_absolute(value, known)) for key, value in values.items() if key not in _WITHOUT_EFFECT}
        return cls(flat, dict(checkpoints), version("structseg"))

    @property
    def fingerprint(self) -> str:
        """A hash of them all."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def changes(self, before: Inputs) -> str:
        """The differences, in words; empty if nothing differs."""
        keys = dict.fromkeys([*self.config, *before.config])
        pairs = [(key, before.config.get(key, "nothing"), self.config.get(key, "nothing")) for key in keys]
        found = [f"{key} {old} -> {new}" for key, old, new in pairs if old != new]
        if self.version != before.version:
            found.append(f"structseg {before.version} -> {self.version}")
        stages = dict.fromkeys([*self.checkpoints, *before.checkpoints])
        found += [f"stage {s} changed" for s in stages if self.checkpoints.get(s) != before.checkpoints.get(s)]
        more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return ", ".join(found[:_SHOWN]) + more


@dataclass(frozen=True)
class Scored:
    """One test of a stage's checkpoint: its further arguments, what it logged (without `test/`), seconds and notices.

    The scores of a prediction have the name "".
    """

    args: tuple[str, ...]
    metrics: Mapping[str, float]
    seconds: float
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """What `stage.json` holds.

    Attributes:
        inputs: what the stage was run with; the file has their `fingerprint` too.
        run: id of the run, whose folder is beside the file; "" for a prediction.
        checkpoint: SHA-256 of its best checkpoint, or of all that a prediction made.
        seconds: of the fit or prediction.
        commit: of the suite.
        dirty: whether it held changes that were not committed.
        tests: the finished ones, by name.
        notices: what a reader of the figures has to know.
    """

    inputs: Inputs
    run: str
    checkpoint: str
    seconds: float
    commit: str
    dirty: bool
    tests: Mapping[str, Scored]
    notices: tuple[str, ...] = ()

    def with_test(self, name: str, scored: Scored) -> Record:
        """With one more test."""
        return replace(self, tests={**self.tests, name: scored})

    def write(self, folder: Path) -> None:
        """Writes it into the stage's folder, whole or not at all."""
        write_result(folder / RECORD, {"fingerprint": self.inputs.fingerprint, **asdict(self)})


def read_record(folder: Path) -> Record | None:
    """What a stage's folder has; None where the stage never came to its end, or the file is damaged."""
    try:
        content = json.loads((folder / RECORD).read_text())
        content.pop("fingerprint")
        content["inputs"] = Inputs(**content["inputs"])
        content["notices"] = tuple(content.get("notices", ()))
        content["tests"] = {name: _scored(**test) for name, test in content["tests"].items()}
        return Record(**content)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):  # the stage runs again
        return None


def _scored(args: list[str], metrics: dict[str, float | None], seconds: float, notices: Iterable[str] = ()) -> Scored:
    known = {key: math.nan if value is None else value for key, value in metrics.items()}
    return Scored(tuple(args), known, seconds, tuple(notices))


def checkpoint_of(folder: Path, run: str) -> Path:
    """The best checkpoint of a run of the stage in that folder."""
    return folder / run / "checkpoints" / "best.ckpt"


def outputs(stage: Stage, root: Path, run: str) -> tuple[Path, ...]:
    """What a stage leaves in the pipeline's folder: its best checkpoint, or what it predicts."""
    if stage.predicts is None:
        return (checkpoint_of(root / stage.name, run),)
    return tuple(root / made for made in stage.makes)


def digest(paths: Iterable[Path]) -> str:
    """SHA-256 of a file; of several, and of folders with all that is in them, that of their names and hashes."""
    paths = tuple(paths)
    if len(paths) == 1 and paths[0].is_file():
        return sha256(paths[0])
    whole = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.name != RECORD:
                whole.update(f"{file.relative_to(path.parent)} {sha256(file)}\n".encode())
    return whole.hexdigest()


@dataclass(frozen=True)
class StageStatus:
    """What a stage still needs.

    Attributes:
        fit: whether it has to be trained, or to predict.
        tests: names of the tests to do.
        why: in words.
    """

    fit: bool
    tests: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        action = "run" if self.fit else "test" if self.tests else "skip"
        return f"{action} ({self.why})"


def stage_status(stage: Stage, root: Path, inputs: Inputs, pending: Iterable[str] = ()) -> StageStatus:
    """Compares a stage's folder with what is asked for.

    Args:
        stage: the stage.
        root: the folder of the pipeline.
        inputs: what it would be run with now; its checkpoints need not have `pending`.
        pending: stages that will run before it.
    """
    folder = root / stage.name
    record = read_record(folder)
    new = [name for name in stage.needs if name in pending]
    if record is None:
        why = "not finished" if folder.is_dir() and any(folder.iterdir()) else "not run yet"
    elif new:
        why = ", ".join(f"stage {name} changed" for name in new)
    else:
        left = outputs(stage, root, record.run)
        why = inputs.changes(record.inputs) or next((f"{path} is gone" for path in left if not path.exists()), "")
        if not why and digest(left) != record.checkpoint:
            why = f"{left[0]} is not as the stage left it"
    if why or record is None:
        return StageStatus(True, tuple(stage.tests), why)
    done = {name for name, scored in record.tests.items() if scored.args == stage.tests.get(name)}
    tests = tuple(name for name in stage.tests if name not in done)
    finished = f"finished, {record.seconds / 60:.1f} min"
    missing = ", ".join(f"test {name}" if name else "its test" for name in tests)
    return StageStatus(False, tests, f"{finished}; {missing} not done yet" if tests else finished)


def _absolute(value: Any, roots: Sequence[Path]) -> Any:
    """One name for a file or folder, whatever path leads to it; that of a file includes its content."""
    if isinstance(value, list | tuple):
        return [_absolute(item, roots) for item in value]
    if not isinstance(value, str) or not value or len(value) > _LONGEST or "\0" in value:
        return value
    for path in (root / value for root in roots):
        if path.is_file():
            return f"{path.resolve()} {_content(path)}"
        if os.sep in value and path.exists():  # a single word is a setting, not a folder
            return str(path.resolve())
    return value


def _content(path: Path) -> str:
    """Hash of a file; of a large one, which takes too long to read, its size and time."""
    stat = path.stat()
    return sha256(path)[:16] if stat.st_size <= _HASHED else f"{stat.st_size} {stat.st_mtime_ns}"
