"""The file of a pipeline: fits and predictions that build on each other, in order, and what each of them takes.

config: synthetic_base.yaml   # what all stages share: a configuration, by name or by path from this file
data: {seed: 1}               # further settings of every stage: model, data, trainer, checkpoint, pictures
stages:                       # each is an ordinary fit with further settings
  coarse: {model: {stage: coarse}}
  parts:  {model: {stage: parts, init_from: ["{coarse}"]}}    # {coarse}: its best checkpoint
  joint:
    config: other.yaml        # of this stage, on top of the shared one
    model: {stage: end_to_end, init_from: ["{coarse}", "{parts}"]}
    test: {plain: {}, flipped: {model: {flip_test: true}}}    # several tests of its checkpoint; false: none
  masks:                      # what a fit's checkpoint predicts of the training images
    predict: joint            # that fit: its configurations and settings hold here too
    makes: [masks, sizes.npz] # what it leaves; the first has the stage's name. {sizes.npz}: where that is
  last: {inputs: [masks]}     # what earlier stages made, as the option of `INPUTS` that takes it
table: [miou, iou/face]       # what is compared at the end

With `rounds: N` the stages are run N times more, once for each of the `arms`, which add settings; with `rounds: 0` the
arms that take nothing of a round before differ from round 0 on:

arms:                         # `inputs` that no earlier stage of a round makes are those of the round before
  none: {}
  sum: {classifier: {model: {context: sum}, inputs: [queries, confounders]}}
  continued: {classifier: {model: {init_from: "{before.classifier}"}}}    # of the round before

A pipeline may start from another one: `base: other.yaml`, see `structseg.command.config_files`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from structseg.command.config_files import config_chain, find_config, merge
from structseg.messages import nearest
from structseg.pipelines.stages import BEFORE, PLACE, Pipeline, Stage, unroll

_NAME = re.compile(r"[\w-]+")
_MADE = re.compile(r"[\w-]+(\.[\w-]+)?")
SETTINGS = ("model", "data", "trainer", "checkpoint", "pictures")
# What a stage may take by its name: the option that takes it, and what a prediction makes.
INPUTS = {
    "cams": ("--data.cams", "cams"),
    "relation_labels": ("--data.masks", "relation_labels"),
    "pseudo_masks": ("--data.masks", "pseudo_masks"),
    "masks": ("--data.masks", "masks"),
    "queries": ("--data.queries", "queries"),
    "confounders": ("--model.confounders", "confounders.npz"),
}
_KEYS = ("config", "stages", "table", "rounds", "arms", "round_megabytes", *SETTINGS)
_MOST_ROUNDS = 1000
_STAGE_KEYS = ("config", "inputs", "test", "predict", "makes", *SETTINGS)
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
    tree: Any = {}
    missing: list[str] = []
    twice: list[str] = []
    for file, content, node in reversed(config_chain(path)):
        twice += _twice(node)
        tree = merge(tree, _placed(file, content, missing))
    faults = list(_faults(tree, missing)) or twice
    if faults:
        raise ValueError(f"{path}: {'; '.join(faults)}")
    stages = {name: _stage(tree, name, content) for name, content in tree["stages"].items()}
    table, megabytes = tuple(tree.get("table") or ()), float(tree.get("round_megabytes", 0))
    if "rounds" not in tree:
        return Pipeline(path, stages, table, round_megabytes=megabytes)
    rounds = unroll(stages, tree["rounds"], _arms(tree))
    unrolled = {stage.name: stage for members in rounds.values() for stage in members}
    folders = {folder: tuple(stage.name for stage in members) for folder, members in rounds.items()}
    return Pipeline(path, unrolled, table, folders, megabytes)


def _placed(file: Path, tree: Any, missing: list[str]) -> Any:
    """What a file holds, with the paths of its configurations, which start from that file, found."""
    stages = tree.get("stages") if isinstance(tree, dict) else None
    for part in [tree, *(stages.values() if isinstance(stages, dict) else ())]:
        if isinstance(part, dict) and "config" in part:
            try:
                part["config"] = str(find_config(str(part["config"]), file.parent))
            except (OSError, ValueError) as error:
                missing.append(str(error))
    return tree


def _twice(node: yaml.Node | None) -> Iterator[str]:
    """Keys, stages and arms of one name, of which YAML keeps the last."""
    kinds = {"stages": "stage", "arms": "arm"}
    keys = node.value if isinstance(node, yaml.MappingNode) else []
    parts = [(kinds.get(key.value), value) for key, value in keys]
    below = [(kind, value.value) for kind, value in parts if kind and isinstance(value, yaml.MappingNode)]
    for kind, pairs in [("key", keys), *below]:
        names = [key.value for key, _ in pairs]
        yield from (f"{kind} {name} stands twice" for name in dict.fromkeys(names) if names.count(name) > 1)


def _stage(tree: Mapping[str, Any], name: str, content: dict[str, Any] | None) -> Stage:
    content, stages = content or {}, tree["stages"]
    predicts = content.get("predict")
    tests = {} if predicts else content.get("test", {"": {}}) or {}
    fit = (stages[predicts] or {}) if predicts else content
    args = [*_args(tree, ()), *_args(fit, _places_before(predicts or name, stages))]
    return Stage(
        name,
        tuple(Path(where["config"]) for where in (tree, fit) if "config" in where),
        (*args, *(_args(content, _places_before(name, stages)) if predicts else ())),
        {test: tuple(_args(more or {}, ())) for test, more in tests.items()},
        predicts,
        tuple(content.get("makes", ())),
        {made: stage for stage, other in stages.items() for made in (other or {}).get("makes", ())},
    )


def _arms(tree: Mapping[str, Any]) -> dict[str, dict[str, tuple[str, ...]]]:
    arms = {
        arm: {
            name: tuple(_args(content or {}, _places_before(name, tree["stages"])))
            for name, content in (more or {}).items()
        }
        for arm, more in (tree.get("arms") or {"": {}}).items()
    }
    if tree["rounds"]:
        return arms
    return {arm: more for arm, more in arms.items() if f"{{{BEFORE}" not in str(more)} or {"": {}}


def _args(content: Mapping[str, Any], before: Collection[str]) -> list[str]:
    """Inputs and settings as arguments of `structseg fit`; `before` is what the earlier stages of a round leave."""
    args: list[str] = []
    for name in content.get("inputs", ()):
        option, made = INPUTS[name]
        args += [option, f"{{{made if made in before else BEFORE + made}}}"]
    for section in SETTINGS:
        args += _options(section, content.get(section) or {})
    return args


def _options(name: str, value: Any) -> list[str]:
    """`model` and `{stage: parts}` as `--model.stage parts`; lists and the like as JSON."""
    if not isinstance(value, dict):
        return [f"--{name}", value if isinstance(value, str) else json.dumps(value, default=str)]
    args = [f"--{name}", str(value["class_path"])] if "class_path" in value else []
    for key, own in value.items():
        if key != "class_path" and (key, own) != ("init_args", None):
            args += _options(name if key == "init_args" else f"{name}.{key}", own)
    return args


def _faults(tree: Any, missing: Sequence[str]) -> Iterator[str]:
    if not isinstance(tree, dict):
        yield "holds no stages; expected `config: FILE` and `stages: {NAME: {model: {...}}, ...}`"
        return
    stages = tree.get("stages")
    yield from (f"unknown key {key}{nearest(str(key), _KEYS)}" for key in tree if key not in _KEYS)
    contents = [c if isinstance(c, dict) else {} for c in stages.values()] if isinstance(stages, dict) else []
    fits = ["config" in content for content in contents if "predict" not in content]
    if "config" not in tree and not (fits and all(fits)):
        yield "no config; give the YAML that all stages share, by its path from this file, or each fit its own"
    yield from dict.fromkeys(missing)
    if not _texts(tree.get("table", [])):
        yield f"table is {tree['table']!r}, not a list of metrics"
    yield from _setting_faults({key: tree[key] for key in SETTINGS if key in tree}, SETTINGS)
    megabytes = tree.get("round_megabytes", 0)
    if not isinstance(megabytes, int | float) or isinstance(megabytes, bool) or not 0 <= megabytes < float("inf"):
        yield f"round_megabytes is {megabytes!r}, not a number from 0"
    if not isinstance(stages, dict) or not stages:
        yield "no stages; expected `stages: {NAME: {model: {...}}, ...}`"
        return
    before: list[str] = []
    for name, content in stages.items():
        yield from (f"stage {name}: {fault}" for fault in _stage_faults(name, content, before, stages))
        before += [name, *_made(content)]
    yield from _round_faults(tree, stages, before)


def _setting_faults(content: Any, known: Sequence[str], before: Collection[str] | None = None) -> list[str]:
    """What is wrong with settings and inputs; `before` is None where they name no stage."""
    if not isinstance(content, dict | None):
        return [f"holds {content!r}, not keys and values"]
    content = content or {}
    faults = [f"unknown key {key}{nearest(str(key), known)}" for key in content if key not in known]
    faults += [
        f"{key} is {content[key]!r}, not keys and values"
        for key in SETTINGS
        if not isinstance(content.get(key), dict | None)
    ]
    inputs = content.get("inputs", [])
    if not _texts(inputs):
        faults.append(f"inputs are {inputs!r}, not a list of names: {', '.join(INPUTS)}")
    else:
        faults += [f"no input {name}{nearest(name, INPUTS)}" for name in inputs if name not in INPUTS]
    return faults or list(argument_faults(_args(content, before or ()), places=before is not None))


def _stage_faults(name: Any, content: Any, before: Collection[str], stages: Mapping[Any, Any]) -> Iterator[str]:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        yield "a name is a text of letters, digits, underscores and hyphens"
    faults = _setting_faults(content, _STAGE_KEYS, before)
    yield from faults
    if not isinstance(content, dict):
        return
    yield from _prediction_faults(name, content, before, stages)
    if not faults:
        yield from _place_faults(_args(content, before), before, stages)
    tests = content.get("test", {"": {}})
    if tests is False:
        return
    if not isinstance(tests, dict) or not tests:
        yield f"test is {tests!r}, not false or settings for each name"
        return
    for test, more in tests.items():
        if not isinstance(test, str) or not (test == "" or _NAME.fullmatch(test)):
            yield f"the test name {test!r} is no text of letters, digits, underscores and hyphens"
        yield from (f"test {test}: {fault}" for fault in _setting_faults(more, SETTINGS))


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
        yield "arms without rounds; they are further settings of the rounds after round 0"
    if not isinstance(arms, dict) or not all(isinstance(arm, str) and _NAME.fullmatch(arm) for arm in arms):
        yield f"arms are {arms!r}, not further settings of stages by the name of the arm"
        return
    for arm, content in arms.items():
        if not isinstance(content, dict | None):
            yield f"arm {arm}: holds {content!r}, not settings of stages"
            continue
        for stage, settings in (content or {}).items():
            if stage not in stages:
                yield f"arm {arm}: no stage {stage}{nearest(str(stage), map(str, stages))}"
                continue
            before = _places_before(stage, stages)
            faults = _setting_faults(settings, ("inputs", *SETTINGS), before)
            yield from (f"arm {arm}: stage {stage}: {fault}" for fault in faults)
            args = [] if faults else _args(settings or {}, before)
            for place in dict.fromkeys(place for arg in args for place in PLACE.findall(arg)):
                name = place.removeprefix(BEFORE)
                if name not in places:
                    yield f"arm {arm}: {{{place}}}: there is no such stage{nearest(name, places)}"
                elif name == place and place not in before:
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
            yield f"{found[0]} stands for a checkpoint, which only the settings of a stage name"
        elif found:
            yield f"{found[0]} stands in the name of a setting; it is a value: init_from: {found[0]}"


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
