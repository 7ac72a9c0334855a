"""Reads YAML files of plain values and limited size; errors name the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_LARGEST = 256 << 10  # bytes, which take about a second to read
_MOST = 100_000  # values, with those that aliases repeat
_DEEPEST = 50

# The C parser is ten times as fast, but crashes on deep nesting, so `_check_depth` runs first.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(path: Path) -> tuple[Any, yaml.Node | None]:
    """The content of a file, and its node tree, in which duplicate keys are still present.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not YAML of plain values, or its aliases expand to too many values; the message names it.
    """
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, a configuration {_LARGEST} at most; check the path")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        _check_depth(text)
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, None
        _count(node, {})
        return loader.construct_document(node), node
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())[:400]}") from None


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by dotted key; an empty mapping is a value too.

    >>> flatten({"model": {"lr": 0.1, "heads": {}}})
    {'model.lr': 0.1, 'model.heads': {}}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} deep")


def _count(node: yaml.Node, counted: dict[int, int | None]) -> int:
    """The number of values in a node, with aliases expanded."""
    if id(node) in counted:
        known = counted[id(node)]
        if known is None:
            raise ValueError("an alias stands for what it is in; write the values out")
        return known
    counted[id(node)] = None
    total = 1
    if isinstance(node, yaml.SequenceNode):
        total += sum(_count(value, counted) for value in node.value)
    elif isinstance(node, yaml.MappingNode):
        total += sum(_count(key, counted) + _count(value, counted) for key, value in node.value)
    if total > _MOST:
        raise ValueError(f"its aliases unfold to more than {_MOST} values; write fewer")
    counted[id(node)] = total
    return total
