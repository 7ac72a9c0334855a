"""What the benchmarks measure with: CPU seconds, quartiles of interleaved steps, bytes alive at once."""

import time
from collections.abc import Callable, Mapping

import torch


def cpu_seconds(work: Callable[[], object], rounds: int = 5, each: int = 1) -> float:
    """CPU seconds of one call: the best of some rounds of `each` calls, so that others on the machine count little."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(each):
            work()
        times.append((time.process_time() - start) / each)
    return min(times)


def lower_quartiles(steps: Mapping[str, Callable[[], object]], rounds: int, warm: int = 1) -> dict[str, float]:
    """Milliseconds of each, run in turns, so that whatever else the machine does falls on all of them."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + warm):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_ >= warm:
                times[name].append(time.perf_counter() - start)
    return {name: 1e3 * sorted(values)[len(values) // 4] for name, values in times.items()}


def peak_bytes(step: Callable[[], object]) -> int:
    """Bytes of tensors alive at once, from the profiler's account of the allocator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    held, most = 0, 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
