"""What every test may use: the real data and reference vectors, where they are, and a home of its own."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: several workers share the cores

from structseg import torchvision_fallback  # noqa: F401  # isort: skip  before anything that imports torchvision

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader

from structseg.command.freed_memory import keep_freed_memory

keep_freed_memory()  # as the command does
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers are the threads
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

_LOADERS = [
    (made, name, getattr(made, name))
    for made in (DataLoader, BatchSampler)
    for name in ("__init__", "__setattr__", "__delattr__")
]

_SHARED = Path(os.environ.get("STRUCTSEG_SHARED", Path(__file__).parents[2] / "shared"))


def _folder(name: str) -> Path:
    folder = _SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no folder {name} beside the repository; set STRUCTSEG_SHARED to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; the test is skipped where it is missing."""
    return _folder("data")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference vectors; the test is skipped where it is missing."""
    return _folder("golden")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRUCTSEG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _plain_loaders() -> Iterator[None]:
    """Lightning patches these classes while loaders are made, and leaves them so where that raises: others would fail."""
    yield
    for made, name, own in _LOADERS:
        if getattr(made, name) is not own:
            setattr(made, name, own)
