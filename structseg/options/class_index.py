"""Finds the modules of classes that a configuration names without their path, so that only these are imported."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import structseg
from structseg.messages import UsageError
from structseg.options.config_files import load_config

_ROOMS = ("losses", "datamodules", "lightning_modules")
_PATH = re.compile(rf"(?<![\w.])(structseg\.)?({'|'.join(_ROOMS)}|experiments)(\.\w+)+")
_CLASS = re.compile(r"^class ([A-Za-z]\w*)", re.MULTILINE)


def _folder(room: str) -> Path:
    """The folder of a room: beside the package in a checkout, inside it in a wheel."""
    places = [Path(base).resolve() / room for base in structseg.__path__]
    return next((place for place in places if place.is_dir()), places[0])


@cache
def class_modules() -> dict[str, tuple[str, ...]]:
    """The modules that define a class, by the name of the class; found without importing them."""
    modules: dict[str, tuple[str, ...]] = {}
    for room in _ROOMS:
        folder = _folder(room)
        for file in sorted(folder.rglob("*.py")):
            module = ".".join(["structseg", room, *file.relative_to(folder).with_suffix("").parts])
            for name in _CLASS.findall(file.read_text(encoding="utf-8")):
                modules[name] = (*modules.get(name, ()), module.removesuffix(".__init__"))
    return modules


def import_all() -> None:
    """Imports every module that defines a class, for help that lists all classes or options."""
    for module in dict.fromkeys(module for modules in class_modules().values() for module in modules):
        import_module(module)


def import_named(words: Iterable[str]) -> None:
    """Imports the classes named by the arguments of a command and by the YAML files among them; for help all."""
    words = list(words)
    if any(word == "--help" or word.partition("=")[0].endswith(".help") for word in words):
        import_all()
        return
    texts = list(_texts(words, Path(), set()))
    refuse_moved(texts)
    named = {name for text in texts for name in re.findall(r"\w+", text)}
    for name in sorted(named & class_modules().keys()):
        for module in class_modules()[name]:
            import_module(module)


def refuse_moved(tree: Any, where: str = "") -> None:
    """Refuses paths of classes that have moved to another module.

    Args:
        tree: a configuration, or a list of arguments.
        where: start of the message.

    Raises:
        UsageError: a class has moved; the message has the new path.
    """
    for text in strings(tree):
        for found in _PATH.finditer(text):
            old = found[0]
            module, _, name = old.rpartition(".")
            now = class_modules().get(name, ())
            if now and module not in now and not _is_there(module, name):
                raise UsageError(f"{where}{old} is now {now[0]}.{name}; write that, or {name} alone")


def _is_there(module: str, name: str) -> bool:
    """Whether a module has that name; it may be the user's own, in a folder that is called like one of the suite."""
    root = importlib.util.find_spec(module.partition(".")[0])
    if root is None or (not module.startswith("structseg") and str(_folder(root.name)) in map(str, _places(root))):
        return False
    try:
        return hasattr(import_module(module), name)
    except ImportError:
        return False


def _places(spec: ModuleSpec) -> list[Path]:
    return [Path(place).resolve() for place in spec.submodule_search_locations or ()]


def _texts(words: Iterable[str], folder: Path, seen: set[Path]) -> Iterator[str]:
    """The arguments, and the strings of the YAML files among them."""
    for word in words:
        yield word
        value = word.partition("=")[2] if word.startswith("--") else word
        for path in {Path(value), folder / value} if value.endswith((".yaml", ".yml", ".json")) else ():
            if path.is_file() and path.resolve() not in seen:
                seen.add(path.resolve())
                try:
                    content = load_config(path)
                except (OSError, ValueError):
                    continue  # the parser reports the error
                yield from _texts(strings(content), path.parent, seen)


def strings(tree: Any) -> Iterator[str]:
    """Every string in nested lists and mappings, keys included."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from (*strings(key), *strings(value))
    elif isinstance(tree, list):
        for value in tree:
            yield from strings(value)
