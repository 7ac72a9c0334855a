"""Finds configuration files by name or path and merges them with their bases.

A configuration may begin with `base: FILE`, the path of another configuration relative to its own folder, or a name.
Its own settings override those of the base: mappings are merged, lists and single values are replaced, and another
`class_path` drops the `init_args` of the base. A base may have a base.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from structseg.files import experiments_folder
from structseg.messages import nearest
from structseg.yaml_files import load_yaml


def config_names() -> dict[str, Path]:
    """The suite's configurations and pipelines by name: `FOLDER/FILE` without `.yaml`."""
    paths = (path for path in sorted(experiments_folder().glob("*/*.yaml")) if path.stem != "sweep")  # a file of W&B
    return {f"{path.parent.name}/{path.stem}": path for path in paths if path.parent.name != "results"}


def kind_of(path: Path) -> str:
    """The kind of a configuration: `fit`, `pipeline`, or `part` of others."""
    tree = load_config(path)
    if isinstance(tree, dict) and "stages" in tree:
        return "pipeline"
    whole = isinstance(tree, dict) and all("class_path" in (tree.get(key) or {}) for key in ("model", "data"))
    return "fit" if whole and not path.stem.endswith("_base") else "part"


def find_config(given: str | Path, folder: Path = Path()) -> Path:
    """Finds a configuration by its path or name.

    Args:
        given: a path; or a name such as `consensus/lfw_parts`, or `lfw_parts` if no other folder has one.
        folder: the folder that a path is relative to.

    Raises:
        FileNotFoundError: no such file or name; the message has the nearest name.
        ValueError: several have that name; the message lists them.
    """
    path = folder / given
    if path.is_file():
        return path
    known = config_names()
    fits = [name for name in known if str(given) in (name, name.partition("/")[2])]
    if len(fits) > 1:
        raise ValueError(f"several configurations are called {given}; give one of {', '.join(fits)}")
    if fits:
        return known[fits[0]]
    name = "/".join(Path(str(given).removesuffix(".yaml")).parts[-2:])
    names = {*known, *(name.partition("/")[2] for name in known)}
    hint = f" (did you mean {name}?)" if name in names else nearest(name, names) or "; structseg configs lists all"
    raise FileNotFoundError(f"no configuration {path}{hint}")


def config_chain(path: Path) -> list[tuple[Path, Any, yaml.Node | None]]:
    """A configuration, its base, the base of that and so on: the path and `load_yaml` of each.

    Raises:
        OSError: one of the files cannot be read.
        ValueError: one is not YAML, a base does not exist or is not a mapping, or the bases form a circle.
    """
    chain: list[tuple[Path, Any, yaml.Node | None]] = []
    while True:
        tree, node = load_yaml(path)
        if chain and not isinstance(tree, dict):
            raise ValueError(f"{chain[-1][0]}: its base {path} holds {str(tree)[:40]!r}, not keys and values")
        chain.append((path, tree, node))
        if not isinstance(tree, dict) or "base" not in tree:
            return chain
        base = tree.pop("base")
        if not isinstance(base, str):
            raise ValueError(f"{path}: base is {base!r}, not the path or the name of one configuration")
        try:
            above, path = path, find_config(base, path.parent)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: base: {error}") from None
        if any(path.resolve() == other.resolve() for other, *_ in chain):
            circle = " -> ".join(file.name for file in [*(other for other, *_ in chain), path])
            raise ValueError(f"{above}: its base leads back to a file that builds on it: {circle}")


def load_config(path: Path) -> Any:
    """A configuration merged with its bases; raises like `config_chain`."""
    whole: Any = {}
    for _, tree, _ in reversed(config_chain(path)):
        whole = merge(whole, tree)
    return whole


def merge(below: Any, above: Any) -> Any:
    """Merges `above` into `below` by the rules in this module's docstring."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    if not _same_class(below.get("class_path"), above.get("class_path")):
        below = {key: value for key, value in below.items() if key != "init_args"}
    merged = {key: merge(below[key], value) if key in below else value for key, value in above.items()}
    return {**below, **merged}


def _same_class(below: Any, above: Any) -> bool:
    """Whether two class paths name the same class, with or without its module; a missing path counts as the same."""
    if not isinstance(below, str) or not isinstance(above, str) or below == above:
        return True
    return below.endswith(f".{above}") or above.endswith(f".{below}")
