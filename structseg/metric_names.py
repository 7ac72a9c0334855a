"""Names of metrics: logged (`test/iou/skin`), and nested by their parts (`iou.skin`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from structseg.yaml_files import flatten

Split = Literal["test", "val"]


def nest_metrics(logged: Mapping[str, float], split: Split = "test") -> dict[str, Any]:
    """The logged `test/...` or `val/...` values, nested by `nested`."""
    prefix = f"{split}/"
    return nested({key.removeprefix(prefix): value for key, value in logged.items() if key.startswith(prefix)})


def nested(values: Mapping[str, float]) -> dict[str, Any]:
    """Values nested by the parts of their names: `iou/skin` -> `iou.skin`.

    Where subsets of the test set are scored separately (`SUBSET/miou` is logged beside `miou`), the whole set gets the
    name `all`: `clean.iou.skin`, `all.iou.skin`.
    """
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split("/")
        branch = tree
        for name in path:
            branch = branch.setdefault(name, {})
        branch[last] = value
    subsets = {name: branch for name, branch in tree.items() if isinstance(branch, dict) and "miou" in branch}
    whole = {name: branch for name, branch in tree.items() if name not in subsets}
    return {"all": whole, **subsets} if subsets and whole else tree


def flat_metrics(tree: Mapping[str, Any]) -> dict[str, float]:
    """The values of nested metrics by dotted name; null becomes nan."""
    values = ((name, value) for name, value in flatten(tree).items() if not isinstance(value, Mapping))
    return {name: math.nan if value is None else float(value) for name, value in values}
