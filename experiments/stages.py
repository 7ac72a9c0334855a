"""The file of a pipeline: fits that build on each other, in order, and whose checkpoints each of them takes.

config: synthetic_base.yaml   # what all stages share: a configuration of `structseg fit`, from this file's folder
stages:                       # each is an ordinary fit with further arguments
  coarse: {args: [--model.stage, coarse]}
  parts:  {args: [--model.stage, parts, --model.init_from, "[{coarse}]"]}    # {coarse}: its best checkpoint
  joint:
    args: [--model.stage, end_to_end, --model.init_from, "[{coarse}, {parts}]"]
    test: {plain: [], flipped: [--model.flip_test, "true"]}    # several tests of its checkpoint
table: [miou, iou/face]       # what is compared at the end
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.parser import nearest

RUN_ID = "RUN_ID"  # stands for the id of a run that is yet to come
_NAME = re.compile(r"[\w-]+")
_PLACE = re.compile(r"\{([\w-]+)\}")
_KEYS = ("config", "stages", "table")
_STAGE_KEYS = ("args", "test")
_SETTLED = ("--config", "-c", "--experiment", "--runs_dir", "--seed_everything", "--ckpt_path", "--print_config")


@dataclass(frozen=True)
class Stage:
    """One fit of a pipeline.

    Attributes:
        name: of the stage and its folder.
        args: what `structseg fit` gets besides the configuration; `{stage}` is the best checkpoint of that stage.
        tests: further arguments of `structseg test` by the name of the test; "" = one without a name.
    """

    name: str
    args: tuple[str, ...]
    tests: Mapping[str, tuple[str, ...]]

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages whose checkpoints this one takes."""
        return tuple(dict.fromkeys(name for arg in self.args for name in _PLACE.findall(arg)))

    def args_with(self, checkpoints: Mapping[str, str]) -> list[str]:
        """The arguments with the paths of the checkpoints that they name."""
        return [_PLACE.sub(lambda place: checkpoints[place[1]], arg) for arg in self.args]


@dataclass(frozen=True)
class Pipeline:
    """A file of stages.

    Attributes:
        path: the file.
        config: the configuration that all stages share.
        stages: by name, in the order of the file.
        table: metrics to compare, as `structseg test` logs them, without `test/`.
    """

    path: Path
    config: Path
    stages: Mapping[str, Stage]
    table: tuple[str, ...]

    def needed(self, last: str | None) -> list[Stage]:
        """A stage and all that it builds on, in the order of the file; None = every stage.

        Raises:
            ValueError: there is no such stage; the message has the nearest name.
        """
        if last is None:
            return list(self.stages.values())
        if last not in self.stages:
            hint = nearest(last, self.stages) or f"; there are {', '.join(self.stages)}"
            raise ValueError(f"{self.path} has no stage {last}{hint}")
        wanted, pending = {last}, [last]
        while pending:
            new = set(self.stages[pending.pop()].needs) - wanted
            wanted |= new
            pending += new
        return [stage for name, stage in self.stages.items() if name in wanted]


def pipeline_folder(path: Path, seed: int, runs_dir: Path) -> Path:
    """Where the stages of a pipeline file live: `RUNS/FOLDER_FILE/SEED`, as files of several methods share a name."""
    return runs_dir / f"{path.resolve().parent.name}_{path.stem}" / str(seed)


def load_pipeline(path: Path) -> Pipeline:
    """Reads a pipeline's file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no pipeline; all its faults in one line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no pipeline at {path}; give the YAML that names the stages")
    try:
        text = path.read_text()
        tree, node = yaml.safe_load(text), yaml.compose(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    faults = list(_faults(path, tree))
    if isinstance(node, yaml.MappingNode) and not faults:
        names = [key.value for key, _ in next(value for key, value in node.value if key.value == "stages").value]
        faults = [f"stage {name} stands twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if faults:
        raise ValueError(f"{path}: {'; '.join(faults)}")
    stages = {name: _stage(name, content) for name, content in tree["stages"].items()}
    return Pipeline(path, path.parent / tree["config"], stages, tuple(tree.get("table") or ()))


def _stage(name: str, content: dict[str, Any] | None) -> Stage:
    content = content or {}
    tests = content.get("test", {"": []}) or {}
    return Stage(name, tuple(content.get("args", ())), {test: tuple(args) for test, args in tests.items()})


def _faults(path: Path, tree: Any) -> Iterator[str]:
    if not isinstance(tree, dict):
        yield "holds no stages; expected `config: FILE` and `stages: {NAME: {args: [...]}, ...}`"
        return
    yield from (f"unknown key {key}{nearest(str(key), _KEYS)}" for key in tree if key not in _KEYS)
    config = tree.get("config")
    if not isinstance(config, str):
        yield "no config; give the YAML that all stages share, by its path from this file"
    elif not (path.parent / config).is_file():
        yield f"no configuration {path.parent / config}"
    if not _texts(tree.get("table", [])):
        yield f"table is {tree['table']!r}, not a list of metrics"
    stages = tree.get("stages")
    if not isinstance(stages, dict) or not stages:
        yield "no stages; expected `stages: {NAME: {args: [...]}, ...}`"
        return
    before: list[str] = []
    for name, content in stages.items():
        yield from (f"stage {name}: {fault}" for fault in _stage_faults(name, content, before, stages))
        before.append(name)


def _stage_faults(name: Any, content: Any, before: Collection[str], stages: Iterable[Any]) -> Iterator[str]:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        yield "a name is a text of letters, digits, underscores and hyphens"
    content = {} if content is None else content
    if not isinstance(content, dict):
        yield f"holds {content!r}, not keys and values"
        return
    yield from (f"unknown key {key}{nearest(str(key), _STAGE_KEYS)}" for key in content if key not in _STAGE_KEYS)
    args, tests = content.get("args", []), content.get("test", {"": []})
    if not _texts(args):
        yield f"args are {args!r}, not a list of texts; put numbers and braces in quotes"
        return
    yield from argument_faults(args)
    for place in dict.fromkeys(place for arg in args for place in _PLACE.findall(arg)):
        if place not in before:
            later = place in stages
            hint = "it does not come before" if later else f"there is no such stage{nearest(place, map(str, stages))}"
            yield f"{{{place}}}: {hint}"
    if tests is False:
        return
    if not isinstance(tests, dict) or not tests or not all(map(_texts, tests.values())):
        yield f"test is {tests!r}, not false or a list of texts for each name"
        return
    for test, more in tests.items():
        if not isinstance(test, str) or not (test == "" or _NAME.fullmatch(test)):
            yield f"the test name {test!r} is no text of letters, digits, underscores and hyphens"
        yield from (f"test {test}: {fault}" for fault in argument_faults(more, places=False))


def argument_faults(args: Iterable[str], places: bool = True) -> Iterator[str]:
    """What is wrong with a stage's arguments, or with a test's, which name no stage: `places` False."""
    for arg in args:
        option = arg.partition("=")[0]
        if option in _SETTLED:
            yield f"{option} is settled by the pipeline; leave it out"
        found = _PLACE.search(arg if not places else option if arg.startswith("--") else "")
        if found and not places:
            yield f"{found[0]} stands for a checkpoint in the args of a stage only"
        elif found:
            yield f"{found[0]} stands in the name of an option; it is a value: --model.init_from {found[0]}"


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
