"""What a training step on a CPU takes when freed memory stays with the process, beside one when it goes back each time."""

import json
import subprocess
import sys

import pytest

from tests.structseg.test_freed_memory import plain_environment

_STEPS = """
import json, resource, sys, time, torch
from torch import nn
from structseg.freed_memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
torch.set_num_threads(1)
network = nn.Sequential(
    nn.Conv2d(3, 96, 3, 2, 1), nn.BatchNorm2d(96), nn.ReLU6(),
    nn.Conv2d(96, 96, 3, 1, 1, groups=96), nn.BatchNorm2d(96), nn.ReLU6(), nn.Conv2d(96, 24, 1),
)
images = torch.rand(16, 3, 160, 160)
seconds = []
for _ in range(6):
    start = time.perf_counter()
    network(images).square().mean().backward()
    seconds.append(time.perf_counter() - start)
print(json.dumps([kept, min(seconds), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


@pytest.mark.slow
def test_a_training_step_beside_one_that_has_its_memory_cleared(benchmark, capsys) -> None:
    def step(what: str) -> tuple[bool | None, float, float]:
        run = [sys.executable, "-c", _STEPS, what]
        return tuple(
            json.loads(subprocess.run(run, env=plain_environment(), capture_output=True, text=True, check=True).stdout)
        )

    kept, ours, memory = benchmark.pedantic(step, args=("keep",))
    if not kept:
        pytest.skip("another C library than glibc")
    _, peer, least = step("leave")
    report = {"ms": 1e3 * ours, "cleared ms": 1e3 * peer, "ratio": ours / peer, "MiB": memory, "cleared MiB": least}
    benchmark.extra_info.update(report)
    with capsys.disabled():
        print("\n  " + ", ".join(f"{name} {value:.2f}" for name, value in report.items()))
    assert memory < 2 * least
