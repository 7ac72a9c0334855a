"""Imports between the rooms point one way, and no files import each other in a circle."""

import ast
from pathlib import Path

import pytest

from structseg.files import ROOT

ROOMS = ("structseg", "lightning_modules", "datamodules", "losses")
LIGHTNING = ("pytorch_lightning", "lightning", "lightning_fabric")
GROUND = (
    "files",
    "freed_memory",
    "messages",
    "metric_names",
    "provenance",
    "tables",
    "torchvision_fallback",
    "yaml_files",
)
UPPER = ("options", "api", "tiles", "command", "prediction", "audit", "pipelines", "results", "cluster", "own_data")
# Modules of `datamodules` that `lightning_modules` may import: the classes, the batch, the files of a CONTA round.
FOR_MODULES = ("label_spaces", "batch", "round_files")


def module_name(file: str) -> str:
    parts = list(Path(file).with_suffix("").parts)
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "structseg" else ["structseg", *parts])


def imported(tree: ast.AST, file: str) -> set[str]:
    """Every module that a file imports, and every name that it takes from one: `structseg.losses.ConsensusLoss`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import; write the whole name"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def forbidden(file: str, name: str) -> bool:
    """Whether a file may not import that name."""
    first, *rest = name.split(".")
    room = file.split("/")[0]
    if room == "losses" or file.startswith("lightning_modules/networks/"):
        own = ("losses",) if room == "losses" else ("lightning_modules", "networks")
        inside = not rest or rest[: len(own)] == list(own[: len(rest)])
        return first in LIGHTNING or (first == "structseg" and not inside)
    if first != "structseg" or not rest:
        return False
    target = rest[0]
    if file.startswith("lightning_modules/metrics/"):
        below = rest[:2] in (["lightning_modules", "metrics"], ["lightning_modules", "networks"])
        return not (below or rest == ["lightning_modules"] or rest[:2] == ["datamodules", "label_spaces"])
    if room == "lightning_modules":
        return target in UPPER or (target == "datamodules" and len(rest) > 1 and rest[1] not in FOR_MODULES)
    if room == "datamodules":
        return target in (*UPPER, "lightning_modules", "losses")
    inner = file.split("/")[1].removesuffix(".py")
    if inner in GROUND:
        return target not in GROUND
    if inner == "options":
        return target in set(UPPER) - {"options"}
    if inner == "command":
        return target in ("prediction", "audit", "pipelines", "results", "cluster", "own_data")
    if inner in ("api", "tiles"):
        return target in set(UPPER) - {"options", "tiles", "command"}
    if inner == "pipelines":
        return target in ("audit", "results", "cluster", "own_data")
    return False


FILES = sorted(str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.py"))
IMPORTS = {file: imported(ast.parse((ROOT / file).read_text()), file) for file in FILES}


@pytest.mark.parametrize("file", FILES)
def test_imports_follow_the_arrows(file):
    wrong = sorted(name for name in IMPORTS[file] if forbidden(file, name))
    assert not wrong, f"{file} must not import {', '.join(wrong)}"


@pytest.mark.parametrize("file", FILES)
def test_no_module_imports_the_main_of_another(file):
    wrong = [name for name in IMPORTS[file] if name.startswith("structseg.") and name.endswith(".main.main")]
    wrong += [name for name in IMPORTS[file] if name.startswith("structseg.") and name.split(".")[-2:][-1] == "main"]
    allowed = file == "structseg/__main__.py" or not wrong
    assert allowed, f"{file} imports {', '.join(wrong)}; move what both need to a file of its own"


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(edges.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return found


def test_no_files_import_each_other_in_a_circle():
    names = {module_name(file): file for file in FILES if not file.endswith("__init__.py")}
    edges = {
        name: {other for other in IMPORTS[file] if other in names and other != name} for name, file in names.items()
    }
    assert circles(edges) == []


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}}) == []


@pytest.mark.parametrize(
    ("file", "name", "verdict"),
    [
        ("losses/a.py", "pytorch_lightning", True),
        ("losses/a.py", "structseg.datamodules.label_spaces", True),
        ("losses/a.py", "structseg.losses.b", False),
        ("datamodules/a.py", "structseg.lightning_modules.drawing.charts", True),
        ("datamodules/a.py", "structseg.options.parser", True),
        ("datamodules/a.py", "pytorch_lightning", False),
        ("lightning_modules/a.py", "structseg.datamodules.images", True),
        ("lightning_modules/a.py", "structseg.command.run_folder", True),
        ("lightning_modules/a.py", "structseg.datamodules.label_spaces.LabelSpace", False),
        ("lightning_modules/a.py", "structseg.losses.consensus", False),
        ("lightning_modules/networks/a.py", "structseg.lightning_modules.base", True),
        ("lightning_modules/networks/a.py", "structseg.lightning_modules.networks.b", False),
        ("lightning_modules/metrics/a.py", "structseg.lightning_modules.segmentation", True),
        ("lightning_modules/metrics/a.py", "structseg.datamodules.round_files", True),
        ("lightning_modules/metrics/a.py", "structseg.lightning_modules.metrics.parts", False),
        ("structseg/command/a.py", "structseg.pipelines.session", True),
        ("structseg/command/a.py", "structseg.lightning_modules.base", False),
        ("structseg/pipelines/a.py", "structseg.results.manifest", True),
        ("structseg/pipelines/a.py", "structseg.command.processes", False),
        ("structseg/results/a.py", "structseg.pipelines.session", False),
        ("structseg/messages.py", "structseg.options.parser", True),
        ("structseg/messages.py", "structseg.files", False),
    ],
)
def test_the_rule_itself(file, name, verdict):
    assert forbidden(file, name) is verdict
