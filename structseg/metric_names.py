"""Names of metrics: as they are logged (`test/iou/skin`) and as a tree (`iou.skin`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from structseg.yaml_files import flatten

Split = Literal["test", "val"]


def nest_metrics(logged: Mapping[str, float], split: Split = "test") -> dict[str, Any]:
    """The test's `test/...` values, or the validation's `val/...`, as a tree: `nested`."""
    prefix = f"{split}/"
    return nested({key.removeprefix(prefix): value for key, value in logged.items() if key.startswith(prefix)})


def nested(values: Mapping[str, float]) -> dict[str, Any]:
    """Values by their names' parts: `iou/skin` -> `iou.skin`.

    Where parts of the test set are scored separately (`PART/miou` is logged beside `miou`), each part has its name and
    the whole is `all`: `clean.iou.skin`, `all.iou.skin`.
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


def flat_metrics(tree: Mapping[str, Any]) -> dict[str, float]:
    """The tree's values by dotted name; null is nan."""
    values = ((name, value) for name, value in flatten(tree).items() if not isinstance(value, Mapping))
    return {name: math.nan if value is None else float(value) for name, value in values}
