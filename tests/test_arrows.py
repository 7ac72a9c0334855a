"""Arrows between the rooms point one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("losses", "datamodules", "lightning_modules", "experiments")
LIGHTNING = ("pytorch_lightning", "lightning", "lightning_fabric")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import; write the room's name"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def forbidden(file: str, name: str) -> bool:
    """Whether a file of a room may not import that name."""
    room = name.split(".")[0]
    if file.startswith(("losses/", "lightning_modules/networks/")):
        own = file.rsplit("/", 1)[0].replace("/", ".")
        return room in LIGHTNING or (room in ROOMS and not name.startswith(own))
    if file.startswith("datamodules/"):
        return room in ("lightning_modules", "experiments", "losses")
    if file.startswith("lightning_modules/"):
        return room == "experiments" or (room == "datamodules" and not name.startswith("datamodules.label_spaces"))
    return False


FILES = sorted(str(p.relative_to(ROOT)) for room in ROOMS for p in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_imports_follow_the_arrows(file):
    # `from datamodules import label_spaces` names the room too; the room itself is judged by what is taken from it
    wrong = sorted(name for name in imports(ROOT / file) if "." in name and forbidden(file, name))
    wrong += sorted(n for n in imports(ROOT / file) if n in LIGHTNING and forbidden(file, n))
    assert not wrong, f"{file} must not import {', '.join(wrong)}"


@pytest.mark.parametrize(
    ("file", "name", "verdict"),
    [
        ("losses/a.py", "pytorch_lightning", True),
        ("losses/a.py", "datamodules.label_spaces", True),
        ("losses/a.py", "losses.b", False),
        ("datamodules/a.py", "lightning_modules.pictures", True),
        ("datamodules/a.py", "pytorch_lightning", False),
        ("lightning_modules/a.py", "datamodules.samples", True),
        ("lightning_modules/a.py", "datamodules.label_spaces.LabelSpace", False),
        ("lightning_modules/networks/a.py", "lightning_modules.base", True),
        ("lightning_modules/networks/a.py", "lightning_modules.networks.b", False),
        ("experiments/a.py", "lightning_modules.base", False),
    ],
)
def test_the_rule_itself(file, name, verdict):
    assert forbidden(file, name) is verdict
