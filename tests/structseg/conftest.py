import sys

import pytest

from tests.data.tiny import config_text


@pytest.fixture(autouse=True)
def _quiet_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["structseg"])


@pytest.fixture
def tiny_config(tmp_path):
    """A configuration of the real command line on rectangles made in memory, with dropout, augmentation, a schedule."""
    path = tmp_path / "tiny.yaml"
    path.write_text(config_text())
    return path
