"""Turns the settings and inputs of a stage in a pipeline's file into arguments of `structseg fit`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from structseg.pipelines.stages import BEFORE

SETTINGS = ("model", "data", "trainer", "checkpoint", "pictures")
# The inputs that a stage may name: the option that takes the input, and the output of a prediction that it is.
INPUTS = {
    "cams": ("--data.cams", "cams"),
    "relation_labels": ("--data.masks", "relation_labels"),
    "pseudo_masks": ("--data.masks", "pseudo_masks"),
    "masks": ("--data.masks", "masks"),
    "queries": ("--data.queries", "queries"),
    "confounders": ("--model.confounders", "confounders.npz"),
}


def arguments(content: Mapping[str, Any], before: Collection[str]) -> list[str]:
    """Inputs and settings as arguments of `structseg fit`; `before` has the outputs of earlier stages of the round."""
    args: list[str] = []
    for name in content.get("inputs", ()):
        option, made = INPUTS[name]
        args += [option, f"{{{made if made in before else BEFORE + made}}}"]
    for section in SETTINGS:
        args += _options(section, content.get(section) or {})
    return args


def _options(name: str, value: Any) -> list[str]:
    """`model` and `{stage: parts}` as `--model.stage parts`; values other than strings as JSON."""
    if not isinstance(value, dict):
        return [f"--{name}", value if isinstance(value, str) else json.dumps(value, default=str)]
    args = [f"--{name}", str(value["class_path"])] if "class_path" in value else []
    for key, own in value.items():
        if key != "class_path" and (key, own) != ("init_args", None):
            args += _options(name if key == "init_args" else f"{name}.{key}", own)
    return args


def places_before(stage: str, stages: Mapping[Any, Any]) -> list[str]:
    """The outputs of the stages before one."""
    names = list(stages)[: list(stages).index(stage)]
    return [place for name in names for place in (name, *made_by(stages[name]))]


def made_by(content: Any) -> list[str]:
    """The outputs that a prediction lists; empty for a fit."""
    makes = content.get("makes", []) if isinstance(content, dict) else []
    return makes if is_text_list(makes) else []


def is_text_list(value: Any) -> bool:
    """Whether a value is a list of strings."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
