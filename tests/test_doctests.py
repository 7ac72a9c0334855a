"""The examples in the docstrings."""

import doctest
from importlib import import_module

import pytest

from structseg.files import ROOT
from tests.test_arrows import module_name

ROOMS = ("losses", "datamodules", "lightning_modules", "structseg")
MODULES = [
    module_name(str(path.relative_to(ROOT)))
    for room in ROOMS
    for path in sorted((ROOT / room).rglob("*.py"))
    if ">>>" in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_right(name):
    found = doctest.testmod(import_module(name))
    assert found.attempted > 0
    assert found.failed == 0
