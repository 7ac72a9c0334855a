"""The record of a finished stage, `stage.json`, by which a pipeline decides whether the stage has to run again."""

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
# Settings that do not change the result: the folder of a run, and whether it is resumed.
_WITHOUT_EFFECT = (
    "experiment", "runs_dir", "run_id", "resume", "ckpt_path", "trainer.default_root_dir", "data.init_args.predict_out",
    "data.init_args.predict_dir",  # an option of earlier versions
)  # fmt: skip
_SHOWN = 3  # changes that a message lists
_HASHED = 1 << 26  # bytes of the largest file that is hashed
_LONGEST = 1000  # characters of a path


@dataclass(frozen=True)
class Inputs:
    """Everything that a stage's result depends on, except changes of the code within a version.

    Attributes:
        config: values of the resolved configuration, as JSON, by dotted key.
        checkpoints: SHA-256 of the outputs of each stage that it depends on.
        version: of the suite.
    """

    config: Mapping[str, str]
    checkpoints: Mapping[str, str]
    version: str

    @classmethod
    def of(cls, config: Mapping[str, Any], checkpoints: Mapping[str, str]) -> Inputs:
        """From a resolved configuration, as `structseg fit --print_config` prints it."""
        values = flatten(config)
        root = values.get("data.init_args.root")
        roots = [Path(), *([Path(root)] if isinstance(root, str) else [])]  # that paths may be relative to
        flat = {key: json.dumps(_absolute(value, roots)) for key, value in values.items() if key not in _WITHOUT_EFFECT}
        return cls(flat, dict(checkpoints), version("structseg"))

    @property
    def fingerprint(self) -> str:
        """A hash of all inputs."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def changes(self, before: Inputs) -> str:
        """A description of the differences; empty for equal inputs."""
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
    """One test of a stage's checkpoint, or the scores of a prediction.

    Attributes:
        args: further arguments of the test.
        metrics: logged values, without `test/`.
        seconds: duration.
        notices: of the test.
    """

    args: tuple[str, ...]
    metrics: Mapping[str, float]
    seconds: float
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """The content of `stage.json`.

    Attributes:
        inputs: of the stage; the file has their `fingerprint` too.
        run: id of the run, whose folder is next to the file; "" for a prediction.
        checkpoint: SHA-256 of its best checkpoint, or of the outputs of a prediction.
        seconds: duration of the fit or prediction.
        commit: of the suite.
        dirty: whether there were uncommitted changes.
        tests: finished tests by name; the scores of a prediction have the name "".
        notices: warnings for readers of the scores.
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
        """A copy with one more test."""
        return replace(self, tests={**self.tests, name: scored})

    def write(self, folder: Path) -> None:
        """Writes the record into the stage's folder, atomically."""
        write_result(folder / RECORD, {"fingerprint": self.inputs.fingerprint, **asdict(self)})


def read_record(folder: Path) -> Record | None:
    """The record in a stage's folder; None where the stage is not finished or the file is damaged."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
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
    """The best checkpoint of a run in a stage's folder."""
    return folder / run / "checkpoints" / "best.ckpt"


def outputs(stage: Stage, root: Path, run: str) -> tuple[Path, ...]:
    """The outputs of a stage in the pipeline's folder: its best checkpoint, or its predictions."""
    if stage.predicts is None:
        return (checkpoint_of(root / stage.name, run),)
    return tuple(root / made for made in stage.makes)


def digest(paths: Iterable[Path]) -> str:
    """SHA-256 of a file; for several files, or folders with all their files, that of the names and hashes."""
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
    """What remains to be done for a stage.

    Attributes:
        fit: whether its fit or prediction has to run.
        tests: names of the tests to run.
        why: the reason.
    """

    fit: bool
    tests: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        action = "run" if self.fit else "test" if self.tests else "skip"
        return f"{action} ({self.why})"


def stage_status(stage: Stage, root: Path, inputs: Inputs, pending: Iterable[str] = ()) -> StageStatus:
    """Compares a stage's record with its current inputs.

    Args:
        stage: the stage.
        root: the folder of the pipeline.
        inputs: its current inputs; those of `pending` stages may be missing.
        pending: earlier stages that have to run first.
    """
    folder = root / stage.name
    record = read_record(folder)
    changed = [name for name in stage.needs if name in pending]
    if record is None:
        why = "not finished" if folder.is_dir() and any(folder.iterdir()) else "not run yet"
    elif changed:
        why = ", ".join(f"stage {name} changed" for name in changed)
    else:
        made = outputs(stage, root, record.run)
        why = inputs.changes(record.inputs) or next((f"{path} is missing" for path in made if not path.exists()), "")
        if not why and digest(made) != record.checkpoint:
            why = f"{made[0]} was modified"
    if why or record is None:
        return StageStatus(True, tuple(stage.tests), why)
    done = {name for name, scored in record.tests.items() if scored.args == stage.tests.get(name)}
    tests = tuple(name for name in stage.tests if name not in done)
    finished = f"finished, {record.seconds / 60:.1f} min"
    missing = ", ".join(f"test {name}" if name else "its test" for name in tests)
    return StageStatus(False, tests, f"{finished}; {missing} not done yet" if tests else finished)


def _absolute(value: Any, roots: Sequence[Path]) -> Any:
    """The value with resolved paths, and with the hash of each file, so that equal inputs compare equal."""
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
    """Hash of a file; for a large file, which takes too long to read, its size and modification time."""
    stat = path.stat()
    return sha256(path)[:16] if stat.st_size <= _HASHED else f"{stat.st_size} {stat.st_mtime_ns}"
