"""Which module defines a class that a configuration names without its path, so that only that module is imported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import structseg
from structseg.command.config_files import load_config

_ROOMS = ("losses", "datamodules", "lightning_modules")
_CLASS = re.compile(r"^class ([A-Za-z]\w*)", re.MULTILINE)


@cache
def class_modules() -> dict[str, tuple[str, ...]]:
    """The modules of the rooms that define a class of each name; nothing is imported for it."""
    found: dict[str, tuple[str, ...]] = {}
    for room in _ROOMS:
        folder = next(path for path in (Path(base) / room for base in structseg.__path__) if path.is_dir())
        for file in sorted(folder.rglob("*.py")):
            module = ".".join(["structseg", room, *file.relative_to(folder).with_suffix("").parts])
            for name in _CLASS.findall(file.read_text()):
                found[name] = (*found.get(name, ()), module.removesuffix(".__init__"))
    return found


def import_all() -> None:
    """Imports every module that defines a class: what a list of all classes, or of all options, needs."""
    for module in dict.fromkeys(module for modules in class_modules().values() for module in modules):
        import_module(module)


def import_named(words: Iterable[str]) -> None:
    """Imports what the words of a command name, in themselves or in the YAML files that they name; for help all."""
    words = list(words)
    if any(word == "--help" or word.partition("=")[0].endswith(".help") for word in words):
        import_all()
        return
    named = {name for text in _texts(words, Path(), set()) for name in re.findall(r"\w+", text)}
    for name in sorted(named & class_modules().keys()):
        for module in class_modules()[name]:
            import_module(module)


def _texts(words: Iterable[str], folder: Path, seen: set[Path]) -> Iterator[str]:
    """The words, and those of the YAML files among them."""
    for word in words:
        yield word
        value = word.partition("=")[2] if word.startswith("--") else word
        for path in {Path(value), folder / value} if value.endswith((".yaml", ".yml", ".json")) else ():
            if path.is_file() and path.resolve() not in seen:
                seen.add(path.resolve())
                try:
                    content = load_config(path)
                except (OSError, ValueError):
                    continue  # the parser says what is wrong with it
                yield from _texts(_strings(content), path.parent, seen)


def _strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from (*_strings(key), *_strings(value))
    elif isinstance(tree, list):
        for value in tree:
            yield from _strings(value)
