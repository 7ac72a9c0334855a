"""The rows of the results: `experiments/results/manifest.yaml`, and the commands that measure a row."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from structseg.files import ROOT, experiments_folder
from structseg.messages import nearest
from structseg.options.config_files import load_config
from structseg.pipelines.file import load_pipeline
from structseg.pipelines.settings import is_text_list
from structseg.pipelines.stages import Pipeline
from structseg.provenance import Device
from structseg.yaml_files import load_yaml

Split = Literal["val", "test"]

MANIFEST = experiments_folder() / "results" / "manifest.yaml"
_TOP = experiments_folder().parent  # the paths of the manifest are relative to it
SYNTHETIC = "synthetic"  # for data that are drawn, not read
MISSING_ROWS = "missing"  # for all rows that are not measured
MINUTES_KEYS: dict[Device, str] = {"cpu": "cpu", "cuda": "gpu"}


@dataclass(frozen=True)
class Row:
    """A row of the results: an experiment to measure with one or more seeds.

    Attributes:
        name: of the row and its files: letters, digits and underscores.
        what: one sentence that describes it.
        config: YAML of the experiment, relative to the repository; None where a pipeline trains the row.
        data: folder of the data below the data root; `synthetic` for drawn data.
        headline: path of the metric that tables show: `miou`, `clean.miou`, `round_1.pseudo_masks.pseudo_miou`.
        minutes: approximate time of one seed, fit and tests, with all stages that a pipeline's stage depends on, on 2
            `cpu` cores and on a `gpu`; None: not run there.
        seeds: one run each.
        overrides: further arguments of `structseg fit`; none for a pipeline, whose rows share their stages.
        also: further metrics that are kept.
        tests: further arguments of `structseg test` for each test of the same checkpoint; its name begins its metrics:
            `128.miou`. Empty: one test without a name.
        scored_on: `test`, or `val` for a row that serves to choose settings and is scored by `structseg validate`.
        pipeline: YAML of the pipeline that trains the row, relative to the repository, if any.
        stage: the stage of the pipeline that the row scores.
        data_option: the option for the folder of the data.
        decides: the question that the row decides, and by which outcome; written before it is run.
    """

    name: str
    what: str
    config: str | None
    data: str
    headline: str
    minutes: Mapping[str, float | None]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = field(default=())
    also: tuple[str, ...] = field(default=())
    tests: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scored_on: Split = "test"
    pipeline: str | None = None
    stage: str | None = None
    data_option: str = "--data.root"
    decides: str = ""

    @property
    def method(self) -> str:
        """The folder of the source, such as `conta`."""
        return Path(self.source).parent.name or "other"

    @property
    def kept(self) -> tuple[str, ...]:
        """The metrics that the results keep."""
        return tuple(dict.fromkeys((self.headline, *self.also)))

    @property
    def headline_test(self) -> str:
        """The test of the headline, whose images' scores are kept; "" for the only test."""
        name = self.headline.partition(".")[0]
        return name if name in self.tests else ""

    @property
    def source(self) -> str:
        """The YAML that defines the training, relative to the repository."""
        return self.config or self.pipeline or ""

    @property
    def path(self) -> Path:
        """The source, as an absolute path."""
        return _TOP / self.source


def load_manifest(path: Path = MANIFEST, stages: bool = True) -> dict[str, Row]:
    """Reads the rows by name, in the order of the file.

    Args:
        path: the manifest.
        stages: whether to read the pipelines and check that they have the stages of the rows.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a manifest; the message has all its faults.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no manifest at {path}; give one with --manifest")
    tree, node = load_yaml(path)
    if not isinstance(tree, dict) or not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{path} holds no rows; expected `name: {{what: ..., config: ...}}` for each")
    names = [key.value for key, _ in node.value]
    faults = [f"row {name} is given twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    read = lru_cache(None)(load_pipeline)
    for name, content in tree.items():
        faults += [f"row {name}: {fault}" for fault in _faults(str(name), content)]
        faults += [f"row {name}: {fault}" for fault in (_stage_faults(content, read) if stages else ())]
    if faults:
        raise ValueError(f"{path}: {'; '.join(faults)}")
    return {name: _row(name, content) for name, content in tree.items()}


def _row(name: str, content: dict[str, Any]) -> Row:
    minutes: dict[str, float | None] = {key: content["minutes"].get(key) for key in MINUTES_KEYS.values()}
    lists: dict[str, Any] = {key: tuple(content[key]) for key in ("seeds", "overrides", "also") if key in content}
    tests = {name: tuple(args) for name, args in content.get("tests", {}).items()}
    return Row(name=name, **{"config": None, **content, **lists, "minutes": minutes, "tests": tests})


def _faults(name: str, content: Any) -> Iterable[str]:
    if not re.fullmatch(r"\w+", name) or name == MISSING_ROWS:
        yield f"a name has letters, digits and underscores, and is not {MISSING_ROWS}"
    if not isinstance(content, dict):
        yield f"holds {content!r}, not keys and values"
        return
    known = {item.name: item for item in fields(Row) if item.name != "name"}
    for key in content:
        if key not in known:
            yield f"unknown key {key}{nearest(str(key), known)}"
    needed = [key for key, item in known.items() if item.default is MISSING and item.default_factory is MISSING]
    yield from (f"no {key}" for key in needed if key not in (*content, "config"))
    for key in ("what", "config", "pipeline", "stage", "data", "data_option", "headline", "decides"):
        if key in content and not (isinstance(content[key], str) and content[key]):
            yield f"{key} is {content[key]!r}, not a string"
    yield from _source_faults(content)
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(map(_whole, seeds)) or len(set(seeds)) < len(seeds):
        yield f"seeds are {seeds!r}, not a list of different whole numbers from 0"
    for key in ("overrides", "also"):
        texts = content.get(key, [])
        if not is_text_list(texts):
            yield f"{key} are {texts!r}, not a list of strings"
    yield from _test_faults(content)
    minutes = content.get("minutes", {})
    if not isinstance(minutes, dict) or not all(v is None or (_number(v) and v > 0) for v in minutes.values()):
        yield f"minutes are {minutes!r}, not numbers above 0 for cpu and gpu"
    else:
        keys = tuple(MINUTES_KEYS.values())
        yield from (f"unknown key minutes.{k}{nearest(str(k), keys)}" for k in minutes if k not in keys)


def _source_faults(content: dict[str, Any]) -> Iterable[str]:
    if ("config" in content) == ("pipeline" in content):
        yield "both config and pipeline; a row has one of them" if "config" in content else "no config, and no pipeline"
    if ("stage" in content) != ("pipeline" in content):
        yield "pipeline and stage belong together; one is missing"
    if "pipeline" in content and content.get("overrides"):
        yield "overrides; settings of a pipeline's stages belong in its file, as rows share stages"
    if isinstance(content.get("config"), str) and not (_TOP / content["config"]).is_file():
        yield f"no file {content['config']}"


def _stage_faults(content: Any, read: Callable[[Path], Pipeline]) -> Iterable[str]:
    pipeline, stage = (content.get(key) if isinstance(content, dict) else None for key in ("pipeline", "stage"))
    if isinstance(pipeline, str) and isinstance(stage, str):
        try:
            read(_TOP / pipeline).needed(stage)
        except (FileNotFoundError, ValueError) as error:
            yield str(error)


def _test_faults(content: dict[str, Any]) -> Iterable[str]:
    if content.get("scored_on", "test") not in get_args(Split):
        yield f"scored_on is {content['scored_on']!r}, not {' or '.join(get_args(Split))}"
    if "tests" not in content:
        return
    tests = content["tests"]
    if not isinstance(tests, dict) or not tests or not all(map(is_text_list, tests.values())):
        yield f"tests are {tests!r}, not a list of strings for each name"
        return
    wrong = [name for name in tests if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name)]
    yield from (
        f"the test name {name!r} has other characters than letters, digits, underscores and hyphens" for name in wrong
    )
    also = content["also"] if is_text_list(content.get("also")) else []
    for metric in () if wrong else (content.get("headline"), *also):
        of_round = isinstance(metric, str) and metric.startswith("round_") and "pipeline" in content
        if isinstance(metric, str) and not of_round and metric.split(".")[0] not in tests:
            yield f"metric {metric} belongs to no test; say which: {', '.join(f'{name}.{metric}' for name in tests)}"


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def find_row(rows: Mapping[str, Row], name: str) -> Row:
    """The row of that name.

    Raises:
        ValueError: no such row; the message has the nearest name.
    """
    if name not in rows:
        hint = nearest(name, rows) or "; `structseg results METHOD` lists those of a method"
        raise ValueError(f"no row {name} in the manifest{hint}")
    return rows[name]


def find_data_root(given: str | None) -> Path | None:
    """The folder of the data folders: as given, `STRUCTSEG_DATA`, or `../shared/data` next to the repository."""
    named = given or os.environ.get("STRUCTSEG_DATA")
    beside = ROOT.parent / "shared" / "data"
    return Path(named).expanduser().resolve() if named else beside if beside.is_dir() else None


def data_folder(row: Row, data_root: Path | None) -> Path | None:
    """The folder of a row's data; None for drawn data.

    Raises:
        FileNotFoundError: the folder does not exist, or no data root is given.
    """
    if row.data == SYNTHETIC:
        return None
    if data_root is None:
        raise FileNotFoundError(
            f"row {row.name} reads {row.data}; give the folder that holds {row.data}/ with --data_root, or set "
            f"STRUCTSEG_DATA to it"
        )
    if not (data_root / row.data).is_dir():
        raise FileNotFoundError(
            f"row {row.name} reads {data_root / row.data}, which is not a folder; check --data_root"
        )
    return data_root / row.data


class Recipes:
    """Computes hashes of the settings of rows, reading each file once."""

    def __init__(self) -> None:
        self._config = lru_cache(None)(load_config)
        self._pipeline = lru_cache(None)(load_pipeline)

    def of(self, row: Row) -> str:
        """A hash of the settings of a row's training and tests: 16 hexadecimal digits.

        Leaves out arms and stages that the row does not depend on, the seed, the folder of the data and the device.

        Raises:
            FileNotFoundError: one of its files does not exist.
            ValueError: one is damaged.
        """
        content: list[Any] = [row.overrides, dict(row.tests)]
        if row.pipeline is None:
            content.append(self._config(row.path))
        else:
            for stage in self._pipeline(row.path).needed(row.stage):
                configs = [self._config(path) for path in stage.configs]
                content.append([stage.name, configs, stage.args, dict(stage.tests)])
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def args_to_fit(row: Row, seed: int, device: Device, data: str | None, source: str, runs_dir: str) -> list[str]:
    """The arguments of `structseg` that train a row.

    Args:
        row: the row.
        seed: one of its seeds.
        device: to train on.
        data: folder of the data; None for drawn data.
        source: path of the row's YAML.
        runs_dir: folder of all runs.
    """
    if row.stage is not None:
        args = ["pipeline", source, "--until", row.stage, "--seed", str(seed), "--runs_dir", runs_dir, "--"]
        return args + args_of_stages(row, device, data)
    args = ["fit", "--config", source, "--experiment", row.name, "--runs_dir", runs_dir, "--seed_everything", str(seed)]
    return [*args, *row.overrides, *args_of_stages(row, device, data)]


def args_of_stages(row: Row, device: Device, data: str | None) -> list[str]:
    """The arguments of every fit of a row, each stage of a pipeline included."""
    return ([row.data_option, data] if data is not None else []) + _on(device)


def args_to_score(row: Row, checkpoint: str, seed: int, device: Device) -> dict[str, list[str]]:
    """The arguments of `structseg` that score a checkpoint, by the name of the test; "" is a test without a name."""
    command = "test" if row.scored_on == "test" else "validate"
    args = [command, "--ckpt_path", checkpoint, "--seed_everything", str(seed)]
    return {name: [*args, *more, *_on(device)] for name, more in (row.tests or {"": ()}).items()}


def _on(device: Device) -> list[str]:
    return ["--trainer.accelerator", MINUTES_KEYS[device], "--trainer.devices", "1"]
