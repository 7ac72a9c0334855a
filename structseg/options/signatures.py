"""Parameters of classes, read from their source without importing them."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import structseg
from structseg.options.class_index import class_modules

# Modules outside the suite whose classes configurations may name without their path.
_OTHER_MODULES = ("torch.optim", "torch.optim.lr_scheduler", "pytorch_lightning.callbacks", "pytorch_lightning.loggers")
_MADE_LATER = {
    "OptimizerCallable": 1,
    "LRSchedulerCallable": 1,
}  # types whose class gets its first argument from the code


class Parameter(NamedTuple):
    """A parameter of a class.

    Attributes:
        type: source of its annotation; "" without one.
        default: source of its default; None where it is required.
        nested: the dataclass or default class of its value, where it has one: `(name, number of first parameters that
            the code passes)`.
    """

    type: str
    default: str | None
    nested: tuple[str, int] | None = None

    @property
    def given_later(self) -> int:
        """How many first arguments of the value's class are passed by the code: 1 for `Callable[[int], X]`."""
        node = ast.parse(self.type or "_", mode="eval").body
        for part in ast.walk(node):
            if isinstance(part, ast.Subscript) and ast.unparse(part.value) == "Callable":
                arguments = part.slice.elts[0] if isinstance(part.slice, ast.Tuple) else part.slice
                return len(arguments.elts) if isinstance(arguments, ast.List) else 0
        return next((count for name, count in _MADE_LATER.items() if name in self.type), 0)


class Definition(NamedTuple):
    """Where a class is defined: its module and its source."""

    module: str
    node: ast.ClassDef


def definition(name: str) -> Definition | None:
    """The definition of a class, given by its name or path; None where it is not found."""
    module, _, last = name.rpartition(".")
    places = (*class_modules().get(last, ()), *([module] if module else _OTHER_MODULES))
    return next((found for found in (_find(place, last) for place in places) if found is not None), None)


@cache
def parameters(name: str) -> dict[str, Parameter] | None:
    """The parameters of a class, with those of its bases where it passes `**kwargs` on; None where they are unknown."""
    found = definition(name)
    return None if found is None else _parameters(_resolution_order(found))


def descends(name: str, base: str) -> bool:
    """Whether a class has a base of that name, direct or indirect."""
    found = definition(name)
    return found is not None and _descends(found, base)


def _descends(found: Definition, base: str) -> bool:
    named = any(ast.unparse(node).rpartition(".")[2] == base for node in found.node.bases)
    return named or any(_descends(above, base) for above in _bases(found))


@cache
def _tree(module: str) -> ast.Module | None:
    top, *parts = module.split(".")
    spec = None if top == "structseg" else importlib.util.find_spec(top)
    for place in structseg.__path__ if top == "structseg" else (spec and spec.submodule_search_locations) or ():
        path = Path(place, *parts)
        for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if file.is_file():
                return ast.parse(file.read_bytes())
    return None


def _find(module: str, name: str, suite_only: bool = False) -> Definition | None:
    """The class of that name in a module, which may import it; with `suite_only` only one of the suite."""
    tree = None if suite_only and not module.startswith("structseg.") else _tree(module)
    for node in tree.body if tree else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            return Definition(module, node)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    above = module.rsplit(".", node.level - 1)[0] if node.level > 1 else module
                    return _find(f"{above}.{node.module}" if node.level else str(node.module), alias.name, suite_only)
    return None


def _resolution_order(found: Definition) -> list[Definition]:
    """The class and its bases in the order in which `super()` passes through them."""
    order = [found, *(above for base in _bases(found) for above in _resolution_order(base))]
    return [one for number, one in enumerate(order) if one not in order[number + 1 :]]


def _parameters(order: list[Definition]) -> dict[str, Parameter] | None:
    if not order:
        return None
    found, *bases = order
    made = next((f for f in found.node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
    if made is None:
        known = _parameters(bases) or {}
        fields = [(f.target.id, f.annotation, f.value) for f in found.node.body if _is_field(f)]  # type: ignore[attr-defined]
        decorated = any("dataclass" in ast.unparse(line) for line in found.node.decorator_list)
        if decorated:
            return {**known, **{name: _parameter(found, kind, default) for name, kind, default in fields}}
        return known or None
    arguments = made.args
    plain = [*arguments.posonlyargs, *arguments.args][1:]
    defaults = [*([None] * (len(plain) - len(arguments.defaults))), *arguments.defaults]
    pairs = [*zip(plain, defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    own = {arg.arg: _parameter(found, arg.annotation, default) for arg, default in pairs}
    if arguments.kwarg is None:
        return own
    for call in (node for node in ast.walk(made) if isinstance(node, ast.Call)):
        handed_on = any(word.arg is None and ast.unparse(word.value) == arguments.kwarg.arg for word in call.keywords)
        if handed_on and ast.unparse(call.func) == "super().__init__":
            above = _parameters(bases)
            if above is None:
                return None
            positional = sum(not isinstance(argument, ast.Starred) for argument in call.args)
            given = {*list(above)[:positional], *(word.arg for word in call.keywords)}
            return {**own, **{name: taken for name, taken in above.items() if name not in {*own, *given}}}
    return None


def _bases(found: Definition) -> Iterator[Definition]:
    """The bases that can be found, written as `Base`, or as `module.Base` with an imported module."""
    for node in found.node.bases:
        module, _, name = ast.unparse(node).rpartition(".")
        tree = _tree(found.module) if module else None
        for line in tree.body if tree else ():
            if isinstance(line, ast.ImportFrom) and any((a.asname or a.name) == module for a in line.names):
                yield from filter(None, [_find(f"{line.module}.{module}", name)])
        yield from filter(None, [None if module else _find(found.module, name)])


def _is_field(node: ast.stmt) -> bool:
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)


def _parameter(found: Definition, annotation: ast.expr | None, default: ast.expr | None) -> Parameter:
    made = Parameter(ast.unparse(annotation) if annotation else "", ast.unparse(default) if default else None)
    if isinstance(default, ast.Name) and _find(found.module, default.id):  # a class as the default
        return made._replace(nested=(f"{found.module}.{default.id}", made.given_later))
    for word in [node.id for node in ast.walk(annotation or ast.Pass()) if isinstance(node, ast.Name)]:
        nested = _find(found.module, word, suite_only=True)
        if nested and any("dataclass" in ast.unparse(line) for line in nested.node.decorator_list):
            return made._replace(nested=(f"{nested.module}.{word}", 0))
    return made


def class_help(name: str, prefix: str) -> list[str]:
    """Lines for each parameter of a class: option, type, default, description from the docstring."""
    found, known = definition(name), parameters(name)
    if found is None or known is None:
        return []
    descriptions = _descriptions(found)
    lines = []
    for key, (kind, default, _) in known.items():
        about = f" = {default}" if default is not None else ""
        lines += [
            f"  {prefix}.{key} ({kind or 'any'}{about})",
            *([f"      {descriptions[key]}"] if key in descriptions else []),
        ]
    return lines


def _descriptions(found: Definition) -> dict[str, str]:
    """The descriptions of parameters in the docstrings of a class and its bases."""
    descriptions: dict[str, str] = {}
    for node in _resolution_order(found):
        key, own = "", dict[str, str]()
        for line in (ast.get_docstring(node.node) or "").splitlines():
            text, indent = line.strip(), len(line) - len(line.lstrip())
            if indent == 4 and ": " in text:
                key, _, text = text.partition(": ")
                own[key] = text
            elif indent > 4 and key:
                own[key] += f" {text}"
            else:
                key = ""
        descriptions = {**own, **descriptions}
    return descriptions
