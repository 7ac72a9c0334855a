"""The file of a pipeline: fits and predictions that build on each other, in order, and what each of them takes.

config: synthetic_base.yaml   # what all stages share: a configuration of `structseg fit`, from this file's folder
args: [--data.seed, "1"]      # further arguments of every stage
stages:                       # each is an ordinary fit with further arguments
  coarse: {args: [--model.stage, coarse]}
  parts:  {args: [--model.stage, parts, --model.init_from, "[{coarse}]"]}    # {coarse}: its best checkpoint
  joint:
    config: other.yaml        # of this stage, on top of the shared one
    args: [--model.stage, end_to_end, --model.init_from, "[{coarse}, {parts}]"]
    test: {plain: [], flipped: [--model.flip_test, "true"]}    # several tests of its checkpoint
  masks:                      # what a fit's checkpoint predicts of the training images
    predict: joint            # that fit: its configurations and arguments hold here too
    makes: [masks, sizes.npz] # what it leaves; the first has the stage's name. {sizes.npz}: where that is
table: [miou, iou/face]       # what is compared at the end

With `rounds` the stages are run several times; see `rounds`.

base: other.yaml              # a pipeline of this folder that this one starts from: keys that stand here take the
args: [--data.seed, "2"]      # place of its keys, and args come after its args
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from structseg.messages import nearest
from structseg.pipelines.stages import BEFORE, PLACE, Pipeline, Stage, unroll
from structseg.yaml_files import load_yaml

_NAME = re.compile(r"[\w-]+")
_MADE = re.compile(r"[\w-]+(\.[\w-]+)?")
_KEYS = ("base", "config", "args", "stages", "table", "rounds", "arms", "round_megabytes")
_MOST_ROUNDS = 1000
_STAGE_KEYS = ("config", "args", "test", "predict", "makes")
_SETTLED = (
    "--config", "-c", "--experiment", "--runs_dir", "--seed_everything", "--ckpt_path", "--print_config",
    "--data.predict_out",
)  # fmt: skip


def load_pipeline(path: Path) -> Pipeline:
    """Reads a pipeline's file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no pipeline; all its faults in one line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no pipeline at {path}; give the YAML that names the stages")
    tree, twice = _read(path)
    faults = list(_faults(path, tree)) or twice
    if faults:
        raise ValueError(f"{path}: {'; '.join(faults)}")
    stages = {name: _stage(path, tree, name, content) for name, content in tree["stages"].items()}
    table, megabytes = tuple(tree.get("table") or ()), float(tree.get("round_megabytes", 0))
    if "rounds" not in tree:
        return Pipeline(path, stages, table, round_megabytes=megabytes)
    rounds = unroll(stages, tree["rounds"], _arms(tree))
    unrolled = {stage.name: stage for members in rounds.values() for stage in members}
    folders = {folder: tuple(stage.name for stage in members) for folder, members in rounds.items()}
    return Pipeline(path, unrolled, table, folders, megabytes)


def _read(path: Path, starts: Path | None = None) -> tuple[Any, list[str]]:
    """What a file holds, on top of its base, and what stands twice in it; it is the base of `starts`."""
    tree, node = load_yaml(path)
    twice = list(_twice(node))
    if starts and (not isinstance(tree, dict) or "base" in tree):
        raise ValueError(f"{starts}: its base {path.name} is no pipeline that stands by itself; name one that does")
    if not isinstance(tree, dict) or "base" not in tree:
        return tree, twice
    name = tree.pop("base")
    if not isinstance(name, str) or Path(name).name != name or not (path.parent / name).is_file():
        raise ValueError(f"{path}: base is {name!r}, which is no file in {path.parent}; name a pipeline that is there")
    below, twice_below = _read(path.parent / name, path)
    args = [below.get("args", []), tree.get("args", [])]
    wrong = [given for given in args if not isinstance(given, list)]
    tree["args"] = wrong[0] if wrong else args[0] + args[1]
    return {**below, **tree}, [*twice, *twice_below]


def _twice(node: yaml.Node | None) -> Iterator[str]:
    """Keys, stages and arms of one name, of which YAML keeps the last."""
    kinds = {"stages": "stage", "arms": "arm"}
    keys = node.value if isinstance(node, yaml.MappingNode) else []
    parts = [(kinds.get(key.value), value) for key, value in keys]
    below = [(kind, value.value) for kind, value in parts if kind and isinstance(value, yaml.MappingNode)]
    for kind, pairs in [("key", keys), *below]:
        names = [key.value for key, _ in pairs]
        yield from (f"{kind} {name} stands twice" for name in dict.fromkeys(names) if names.count(name) > 1)


def _stage(path: Path, tree: Mapping[str, Any], name: str, content: dict[str, Any] | None) -> Stage:
    content = content or {}
    predicts = content.get("predict")
    tests = {} if predicts else content.get("test", {"": []}) or {}
    fit = (tree["stages"][predicts] or {}) if predicts else content
    return Stage(
        name,
        tuple(path.parent / where["config"] for where in (tree, fit) if "config" in where),
        (*tree.get("args", ()), *fit.get("args", ()), *(content.get("args", ()) if predicts else ())),
        {test: tuple(args) for test, args in tests.items()},
        predicts,
        tuple(content.get("makes", ())),
        {made: stage for stage, other in tree["stages"].items() for made in (other or {}).get("makes", ())},
    )


def _arms(tree: Mapping[str, Any]) -> dict[str, dict[str, tuple[str, ...]]]:
    arms = tree.get("arms") or {"": {}}
    return {arm: {stage: tuple(args) for stage, args in (more or {}).items()} for arm, more in arms.items()}


def _faults(path: Path, tree: Any) -> Iterator[str]:
    if not isinstance(tree, dict):
        yield "holds no stages; expected `config: FILE` and `stages: {NAME: {args: [...]}, ...}`"
        return
    yield from (f"unknown key {key}{nearest(str(key), _KEYS)}" for key in tree if key not in _KEYS)
    yield from _config_faults(path, tree)
    if not _texts(tree.get("table", [])):
        yield f"table is {tree['table']!r}, not a list of metrics"
    if _texts(tree.get("args", [])):
        yield from argument_faults(tree.get("args", []), places=False)
    else:
        yield f"args are {tree['args']!r}, not a list of texts; put numbers in quotes"
    megabytes = tree.get("round_megabytes", 0)
    if not isinstance(megabytes, int | float) or isinstance(megabytes, bool) or not 0 <= megabytes < float("inf"):
        yield f"round_megabytes is {megabytes!r}, not a number from 0"
    stages = tree.get("stages")
    if not isinstance(stages, dict) or not stages:
        yield "no stages; expected `stages: {NAME: {args: [...]}, ...}`"
        return
    before: list[str] = []
    for name, content in stages.items():
        yield from (f"stage {name}: {fault}" for fault in _stage_faults(name, content, before, stages))
        before += [name, *_made(content)]
    yield from _round_faults(tree, stages, before)


def _config_faults(path: Path, tree: Mapping[str, Any]) -> Iterator[str]:
    stages = tree.get("stages")
    contents = [c if isinstance(c, dict) else {} for c in stages.values()] if isinstance(stages, dict) else []
    own = [content["config"] for content in contents if "config" in content]
    if "config" not in tree and (not own or any("config" not in c and "predict" not in c for c in contents)):
        yield "no config; give the YAML that all stages share, by its path from this file, or each fit its own"
    for config in dict.fromkeys(map(str, ([tree["config"]] if "config" in tree else []) + own)):
        if not (path.parent / config).is_file():
            yield f"no configuration {path.parent / config}"


def _stage_faults(name: Any, content: Any, before: Collection[str], stages: Mapping[Any, Any]) -> Iterator[str]:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        yield "a name is a text of letters, digits, underscores and hyphens"
    content = {} if content is None else content
    if not isinstance(content, dict):
        yield f"holds {content!r}, not keys and values"
        return
    yield from (f"unknown key {key}{nearest(str(key), _STAGE_KEYS)}" for key in content if key not in _STAGE_KEYS)
    yield from _prediction_faults(name, content, before, stages)
    args, tests = content.get("args", []), content.get("test", {"": []})
    if not _texts(args):
        yield f"args are {args!r}, not a list of texts; put numbers and braces in quotes"
        return
    yield from argument_faults(args)
    yield from _place_faults(args, before, stages)
    if tests is False:
        return
    if not isinstance(tests, dict) or not tests or not all(map(_texts, tests.values())):
        yield f"test is {tests!r}, not false or a list of texts for each name"
        return
    for test, more in tests.items():
        if not isinstance(test, str) or not (test == "" or _NAME.fullmatch(test)):
            yield f"the test name {test!r} is no text of letters, digits, underscores and hyphens"
        yield from (f"test {test}: {fault}" for fault in argument_faults(more, places=False))


def _prediction_faults(
    name: Any, content: Mapping[str, Any], before: Collection[str], stages: Mapping[Any, Any]
) -> Iterator[str]:
    fit, makes = content.get("predict"), content.get("makes", [])
    if fit is None and makes:
        yield "makes goes with predict; a fit makes a checkpoint"
    if fit is None:
        return
    yield from (f"{key} belongs to a fit; a prediction has none" for key in ("config", "test") if key in content)
    if fit not in before or (stages.get(fit) or {}).get("predict"):
        yield f"predict is {fit!r}, which is no fit that comes before{nearest(str(fit), before)}"
    if not _texts(makes) or not all(map(_MADE.fullmatch, makes)) or not makes or makes[0] != name:
        yield f"makes is {makes!r}, not a list of the names that it leaves, {name} being the first"
    taken = {made for other, content in stages.items() if other != name for made in _made(content)} | set(stages)
    yield from (f"{made} is made by another stage" for made in _made(content) if made != name and made in taken)


def _place_faults(args: Iterable[str], before: Collection[str], stages: Mapping[Any, Any]) -> Iterator[str]:
    for place in dict.fromkeys(place for arg in args for place in PLACE.findall(arg)):
        if place.startswith(BEFORE):
            yield f"{{{place}}}: round 0 has none before; it belongs into the arms"
        elif place not in before:
            later = place in stages or any(place in _made(content) for content in stages.values())
            known = [*map(str, stages), *before]
            hint = "it does not come before" if later else f"there is no such stage{nearest(place, known)}"
            yield f"{{{place}}}: {hint}"


def _round_faults(tree: Mapping[str, Any], stages: Mapping[Any, Any], places: Collection[str]) -> Iterator[str]:
    rounds, arms = tree.get("rounds", 0), tree.get("arms", {})
    if not isinstance(rounds, int) or isinstance(rounds, bool) or not 0 <= rounds <= _MOST_ROUNDS:
        yield f"rounds is {rounds!r}, not a whole number of 0 to {_MOST_ROUNDS}: how many follow on round 0"
    if "arms" in tree and "rounds" not in tree:
        yield "arms without rounds; they are further arguments of the rounds after round 0"
    if not isinstance(arms, dict) or not all(isinstance(arm, str) and _NAME.fullmatch(arm) for arm in arms):
        yield f"arms are {arms!r}, not further arguments of stages by the name of the arm"
        return
    for arm, content in arms.items():
        if not isinstance(content, dict | None) or not all(map(_texts, (content or {}).values())):
            yield f"arm {arm}: holds {content!r}, not a list of texts for each stage"
            continue
        for stage, args in (content or {}).items():
            if stage not in stages:
                yield f"arm {arm}: no stage {stage}{nearest(str(stage), map(str, stages))}"
            yield from (f"arm {arm}: {fault}" for fault in argument_faults(args))
            for place in dict.fromkeys(place for arg in args for place in PLACE.findall(arg)):
                name = place.removeprefix(BEFORE)
                if name not in places:
                    yield f"arm {arm}: {{{place}}}: there is no such stage{nearest(name, places)}"
                elif name == place and stage in stages and place not in _places_before(stage, stages):
                    yield f"arm {arm}: {{{place}}}: it does not come before; is {{{BEFORE}{place}}} meant?"


def _places_before(stage: str, stages: Mapping[Any, Any]) -> list[str]:
    """What the stages before one leave."""
    names = list(stages)[: list(stages).index(stage)]
    return [place for name in names for place in (name, *_made(stages[name]))]


def _made(content: Any) -> list[str]:
    makes = content.get("makes", []) if isinstance(content, dict) else []
    return makes if _texts(makes) else []


def argument_faults(args: Iterable[str], places: bool = True) -> Iterator[str]:
    """What is wrong with a stage's arguments, or with a test's, which name no stage: `places` False."""
    for arg in args:
        option = arg.partition("=")[0]
        if option in _SETTLED:
            yield f"{option} is settled by the pipeline; leave it out"
        found = PLACE.search(arg if not places else option if arg.startswith("--") else "")
        if found and not places:
            yield f"{found[0]} stands for a checkpoint in the args of a stage only"
        elif found:
            yield f"{found[0]} stands in the name of an option; it is a value: --model.init_from {found[0]}"


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
