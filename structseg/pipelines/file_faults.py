"""Finds all faults of a pipeline's file before anything is run."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from structseg.messages import nearest
from structseg.pipelines.settings import INPUTS, SETTINGS, arguments, is_text_list, made_by, places_before
from structseg.pipelines.stages import BEFORE, PLACE

_NAME = re.compile(r"[\w-]+")
_MADE = re.compile(r"[\w-]+(\.[\w-]+)?")
ABOUT_A_ROUND = ("round_megabytes", "round_minutes")
_KEYS = ("config", "stages", "table", "rounds", "arms", *ABOUT_A_ROUND, *SETTINGS)
_MOST_ROUNDS = 1000
_STAGE_KEYS = ("config", "inputs", "test", "predict", "makes", *SETTINGS)
_SET_BY_PIPELINE = (
    "--config", "-c", "--experiment", "--runs_dir", "--seed_everything", "--ckpt_path", "--print_config",
    "--data.predict_out",
)  # fmt: skip


def file_faults(tree: Any, missing: Sequence[str]) -> Iterator[str]:
    """Faults of a pipeline's file merged with its base; `missing` has the errors of configurations not found."""
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
    if not is_text_list(tree.get("table", [])):
        yield f"table is {tree['table']!r}, not a list of metrics"
    yield from _setting_faults({key: tree[key] for key in SETTINGS if key in tree}, SETTINGS)
    for key, about in ((key, tree.get(key, 0)) for key in ABOUT_A_ROUND):
        if not isinstance(about, int | float) or isinstance(about, bool) or not 0 <= about < float("inf"):
            yield f"{key} is {about!r}, not a number from 0"
    if not isinstance(stages, dict) or not stages:
        yield "no stages; expected `stages: {NAME: {model: {...}}, ...}`"
        return
    before: list[str] = []
    for name, content in stages.items():
        yield from (f"stage {name}: {fault}" for fault in _stage_faults(name, content, before, stages))
        before += [name, *made_by(content)]
    yield from _round_faults(tree, stages, before)


def _setting_faults(content: Any, known: Sequence[str], before: Collection[str] | None = None) -> list[str]:
    """Faults of settings and inputs; `before` is None where they must not refer to stages."""
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
    if not is_text_list(inputs):
        faults.append(f"inputs are {inputs!r}, not a list of names: {', '.join(INPUTS)}")
    else:
        faults += [f"no input {name}{nearest(name, INPUTS)}" for name in inputs if name not in INPUTS]
    return faults or list(argument_faults(arguments(content, before or ()), places=before is not None))


def _stage_faults(name: Any, content: Any, before: Collection[str], stages: Mapping[Any, Any]) -> Iterator[str]:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        yield "a name has only letters, digits, underscores and hyphens"
    faults = _setting_faults(content, _STAGE_KEYS, before)
    yield from faults
    if not isinstance(content, dict):
        return
    yield from _prediction_faults(name, content, before, stages)
    if not faults:
        yield from _place_faults(arguments(content, before), before, stages)
    tests = content.get("test", {"": {}})
    if tests is False:
        return
    if not isinstance(tests, dict) or not tests:
        yield f"test is {tests!r}, not false or settings for each name"
        return
    for test, more in tests.items():
        if not isinstance(test, str) or not (test == "" or _NAME.fullmatch(test)):
            yield f"the test name {test!r} has other characters than letters, digits, underscores and hyphens"
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
        yield f"predict is {fit!r}, which is not an earlier fit{nearest(str(fit), before)}"
    if not is_text_list(makes) or not all(map(_MADE.fullmatch, makes)) or not makes or makes[0] != name:
        yield f"makes is {makes!r}, not a list of the names that it leaves, {name} being the first"
    taken = {made for other, content in stages.items() if other != name for made in made_by(content)} | set(stages)
    yield from (f"{made} is made by another stage" for made in made_by(content) if made != name and made in taken)


def _place_faults(args: Iterable[str], before: Collection[str], stages: Mapping[Any, Any]) -> Iterator[str]:
    for place in dict.fromkeys(place for arg in args for place in PLACE.findall(arg)):
        if place.startswith(BEFORE):
            yield f"{{{place}}}: round 0 has no previous round; it belongs in the arms"
        elif place not in before:
            later = place in stages or any(place in made_by(content) for content in stages.values())
            known = [*map(str, stages), *before]
            hint = "no earlier stage makes it" if later else f"there is no such stage{nearest(place, known)}"
            yield f"{{{place}}}: {hint}"


def _round_faults(tree: Mapping[str, Any], stages: Mapping[Any, Any], places: Collection[str]) -> Iterator[str]:
    rounds, arms = tree.get("rounds", 0), tree.get("arms", {})
    if not isinstance(rounds, int) or isinstance(rounds, bool) or not 0 <= rounds <= _MOST_ROUNDS:
        yield f"rounds is {rounds!r}, not a whole number of 0 to {_MOST_ROUNDS}: the rounds after round 0"
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
            before = places_before(stage, stages)
            faults = _setting_faults(settings, ("inputs", *SETTINGS), before)
            yield from (f"arm {arm}: stage {stage}: {fault}" for fault in faults)
            args = [] if faults else arguments(settings or {}, before)
            for place in dict.fromkeys(place for arg in args for place in PLACE.findall(arg)):
                name = place.removeprefix(BEFORE)
                if name not in places:
                    yield f"arm {arm}: {{{place}}}: there is no such stage{nearest(name, places)}"
                elif name == place and place not in before:
                    yield f"arm {arm}: {{{place}}}: no earlier stage makes it; is {{{BEFORE}{place}}} meant?"


def argument_faults(args: Iterable[str], places: bool = True) -> Iterator[str]:
    """Faults of the arguments of a stage, or of a test, which must not refer to stages: `places` False."""
    for arg in args:
        option = arg.partition("=")[0]
        if option in _SET_BY_PIPELINE:
            yield f"{option} is set by the pipeline; leave it out"
        place = PLACE.search(arg if not places else option if arg.startswith("--") else "")
        if place and not places:
            yield f"{place[0]} stands for a checkpoint, which is allowed only in the settings of a stage"
        elif place:
            yield f"{place[0]} is in the name of a setting; it is a value: init_from: {place[0]}"
