"""Fixtures of all tests: real data and reference vectors where available, and a temporary home folder."""

import os
import signal

import structseg  # noqa: F401  # isort: skip  # before torch: its threads, and torchvision's operators

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers and their children are the threads
# Sets malloc to its defaults, so that a fit does not keep freed memory: a worker would stay at the peak of its largest
# test.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(32 << 20))
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(64 << 20))

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
os.environ.setdefault("WANDB_MODE", "disabled")  # a test of it sets it
os.environ.setdefault("WANDB_SILENT", "true")

_LOADERS = [
    (made, name, getattr(made, name))
    for made in (DataLoader, BatchSampler)
    for name in ("__init__", "__setattr__", "__delattr__")
]

_KINDS = ("fuzz", "cluster")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-of", choices=_KINDS, help="run all the tests of a kind, of which a part is run otherwise")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what only `make fuzz` and `make cluster` run; the cluster, which waits most, comes first."""
    left_out = {kind for kind in _KINDS if kind != config.getoption("all_of")}
    skipped = [item for item in items if any(item.get_closest_marker(kind) for kind in left_out)]
    config.hook.pytest_deselected(items=skipped)
    kept = set(items) - set(skipped)
    items[:] = sorted((item for item in items if item in kept), key=lambda item: not item.get_closest_marker("slurm"))


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


_SIGNALS = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}


@pytest.fixture(autouse=True)
def _plain_signals() -> Iterator[None]:
    """A handler that a fit leaves behind holds its trainer, and the handlers before it: all fits of a worker."""
    yield
    for number, own in _SIGNALS.items():
        if signal.getsignal(number) is not own:
            signal.signal(number, own)


@pytest.fixture(autouse=True)
def _plain_loaders() -> Iterator[None]:
    """Lightning patches these classes while loaders are made, and leaves them so where that raises: others would fail."""
    yield
    for made, name, own in _LOADERS:
        if getattr(made, name) is not own:
            setattr(made, name, own)
