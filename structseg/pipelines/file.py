"""Reads the file of a pipeline: fits and predictions that depend on each other, in order.

config: synthetic_base.yaml   # configuration of all stages, by name or by path from this file
data: {seed: 1}               # further settings of every stage: model, data, trainer, checkpoint, pictures
stages:                       # each is an ordinary fit with further settings
  coarse: {model: {stage: coarse}}
  parts:  {model: {stage: parts, init_from: ["{coarse}"]}}    # {coarse}: its best checkpoint
  joint:
    config: other.yaml        # of this stage, on top of the shared one
    model: {stage: end_to_end, init_from: ["{coarse}", "{parts}"]}
    test: {plain: {}, flipped: {model: {flip_test: true}}}    # several tests of its checkpoint; false: none
  masks:                      # predictions for the training images
    predict: joint            # by the checkpoint of this fit, with its configurations and settings
    makes: [masks, sizes.npz] # outputs; the first has the name of the stage. {sizes.npz} stands for the path of one
  last: {inputs: [masks]}     # outputs of earlier stages, passed by the options in `INPUTS`
table: [miou, iou/face]       # metrics of the table at the end

With `rounds: N` the stages are run N more times for each of the `arms`, which add settings; with `rounds: 0` the arms
that use nothing of a previous round differ from round 0 on:

arms:                         # `inputs` that no earlier stage of the round makes are those of the previous round
  none: {}
  sum: {classifier: {model: {context: sum}, inputs: [queries, confounders]}}
  continued: {classifier: {model: {init_from: "{before.classifier}"}}}    # of the round before

A pipeline may start from another one: `base: other.yaml`, see `structseg.options.config_files`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from structseg.options.config_files import config_chain, config_names, find_config, merge
from structseg.pipelines.file_faults import ABOUT_A_ROUND, file_faults
from structseg.pipelines.settings import arguments, places_before
from structseg.pipelines.stages import BEFORE, Pipeline, Stage, unroll


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
    if isinstance(tree, dict) and "stages" not in tree and "class_path" in str(tree.get("model")):
        name = next((name for name, known in config_names().items() if known == path), path)
        raise ValueError(f"{path} is one fit, no pipeline; structseg fit {name} runs it")
    faults = list(file_faults(tree, missing)) or twice
    if faults:
        raise ValueError(f"{path}: {'; '.join(faults)}")
    stages = {name: _stage(tree, name, content) for name, content in tree["stages"].items()}
    table = tuple(tree.get("table") or ())
    needs: dict[str, Any] = {key: float(tree.get(key, 0)) for key in ABOUT_A_ROUND}
    if "rounds" not in tree:
        return Pipeline(path, stages, table, **needs)
    rounds = unroll(stages, tree["rounds"], _arms(tree))
    unrolled = {stage.name: stage for members in rounds.values() for stage in members}
    folders = {folder: tuple(stage.name for stage in members) for folder, members in rounds.items()}
    return Pipeline(path, unrolled, table, folders, **needs)


def _placed(file: Path, tree: Any, missing: list[str]) -> Any:
    """The content of a file with its configurations replaced by their paths, which are relative to that file."""
    stages = tree.get("stages") if isinstance(tree, dict) else None
    for part in [tree, *(stages.values() if isinstance(stages, dict) else ())]:
        if isinstance(part, dict) and "config" in part:
            try:
                part["config"] = str(find_config(str(part["config"]), file.parent))
            except (OSError, ValueError) as error:
                missing.append(str(error))
    return tree


def _twice(node: yaml.Node | None) -> Iterator[str]:
    """Messages for duplicate keys, stages and arms, of which YAML would silently keep the last."""
    kinds = {"stages": "stage", "arms": "arm"}
    keys = node.value if isinstance(node, yaml.MappingNode) else []
    parts = [(kinds.get(key.value), value) for key, value in keys]
    below = [(kind, value.value) for kind, value in parts if kind and isinstance(value, yaml.MappingNode)]
    for kind, pairs in [("key", keys), *below]:
        names = [key.value for key, _ in pairs]
        yield from (f"{kind} {name} is there twice" for name in dict.fromkeys(names) if names.count(name) > 1)


def _stage(tree: Mapping[str, Any], name: str, content: dict[str, Any] | None) -> Stage:
    content, stages = content or {}, tree["stages"]
    predicts = content.get("predict")
    tests = {} if predicts else content.get("test", {"": {}}) or {}
    fit = (stages[predicts] or {}) if predicts else content
    args = [*arguments(tree, ()), *arguments(fit, places_before(predicts or name, stages))]
    return Stage(
        name,
        tuple(Path(where["config"]) for where in (tree, fit) if "config" in where),
        (*args, *(arguments(content, places_before(name, stages)) if predicts else ())),
        {test: tuple(arguments(more or {}, ())) for test, more in tests.items()},
        predicts,
        tuple(content.get("makes", ())),
        {made: stage for stage, other in stages.items() for made in (other or {}).get("makes", ())},
    )


def _arms(tree: Mapping[str, Any]) -> dict[str, dict[str, tuple[str, ...]]]:
    arms = {
        arm: {
            name: tuple(arguments(content or {}, places_before(name, tree["stages"])))
            for name, content in (more or {}).items()
        }
        for arm, more in (tree.get("arms") or {"": {}}).items()
    }
    if tree["rounds"]:
        return arms
    return {arm: more for arm, more in arms.items() if f"{{{BEFORE}" not in str(more)} or {"": {}}
