"""torchmetrics whose parts are loaded at first use, as SciPy's and scikit-image's are.

The package imports every metric at once, and with them SciPy, torchvision and its models, which takes longer than
loading Lightning. Nothing is hidden: each name is there, and the module that defines it is imported when the name is
asked for. Imported by the command before Lightning, which imports torchmetrics.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

_PACKAGE = "torchmetrics"


def _is_part(node: ast.stmt) -> bool:
    """Whether a line of the package imports one of its parts."""
    return isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_PACKAGE) and node.names[0].name != "*"


def make_lazy() -> None:
    """Puts the package in place with its own lines but those that import its parts; unless it is loaded already."""
    spec = None if _PACKAGE in sys.modules else importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        return
    body = ast.parse(Path(spec.origin).read_text()).body
    parts = [node for node in body if _is_part(node)]
    scipy = [node for node in body if isinstance(node, ast.If) and "scipy" in ast.dump(node.test)]
    names = {alias.asname or alias.name: (node.module, alias.name) for node in parts for alias in node.names}  # type: ignore[attr-defined]
    module = importlib.util.module_from_spec(spec)

    def find(name: str) -> Any:
        source, own = names.get(name, (_PACKAGE, name))
        if source != _PACKAGE:
            value = getattr(import_module(source), own)
        elif name.startswith("_") or importlib.util.find_spec(f"{_PACKAGE}.{own}") is None:
            raise AttributeError(f"module {_PACKAGE!r} has no attribute {name!r}")
        else:
            value = import_module(f"{_PACKAGE}.{own}")
        setattr(module, name, value)
        return value

    sys.modules[_PACKAGE] = module
    own_lines = ast.Module([node for node in body if node not in (*parts, *scipy)], [])
    exec(compile(own_lines, spec.origin, "exec"), module.__dict__)
    module.__dict__.update(__getattr__=find, __dir__=lambda: sorted({*vars(module), *names}))
    import_module(f"{_PACKAGE}.utilities")  # first, as the package does: its modules import each other in a circle


make_lazy()
