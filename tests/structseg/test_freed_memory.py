"""The effect of keeping freed memory, counted in pages that the kernel clears."""

import os
import subprocess
import sys

import pytest

import structseg.command.lightning
from structseg.command.lightning import run

_PAGES = """
import resource, sys, torch
from structseg.freed_memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def tensors():
    for _ in range(10): torch.ones(2**24)  # 64 MiB
tensors()
before = faults()
tensors()
print(kept, (faults() - before) * resource.getpagesize() / 2**26)
"""


def plain_environment() -> dict[str, str]:
    """This process's, without what sets malloc up."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRE"))}


def _tensors_cleared(what: str, **more: str) -> tuple[str, float]:
    """What `keep_freed_memory` returned, and how many of ten tensors' pages were handed out anew."""
    run, own = [sys.executable, "-c", _PAGES, what], {**plain_environment(), **more}
    kept, cleared = subprocess.run(run, env=own, capture_output=True, text=True, check=True).stdout.split()
    return kept, float(cleared)


@pytest.mark.slow
def test_the_memory_of_a_freed_tensor_serves_the_next() -> None:
    kept, cleared = _tensors_cleared("keep")
    if kept == "False":
        pytest.skip("another C library than glibc")
    assert cleared < 0.5
    assert _tensors_cleared("leave")[1] == pytest.approx(10, abs=0.5)  # what it is without


@pytest.mark.slow
@pytest.mark.parametrize("own", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_the_users_settings_of_malloc_are_kept(own) -> None:
    kept, cleared = _tensors_cleared("keep", **{own: "131072" if own.startswith("M") else "glibc.malloc.check=0"})
    assert kept == "False"
    assert cleared == pytest.approx(10, abs=0.5)


@pytest.mark.parametrize(("more", "kept"), [([], True), (["--memory", "return"], False)])
def test_a_fit_on_a_cpu_keeps_it_and_says_so(tiny_config, tmp_path, monkeypatch, capsys, more, kept) -> None:
    monkeypatch.setattr(structseg.command.lightning, "keep_freed_memory", lambda: True)
    said: list[str] = []
    monkeypatch.setattr(structseg.command.lightning, "rank_zero_info", said.append)
    run(["fit", "--config", str(tiny_config), "--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu",
         "--runs_dir", str(tmp_path), *more])  # fmt: skip
    assert sum("--memory return" in line for line in said) == kept
