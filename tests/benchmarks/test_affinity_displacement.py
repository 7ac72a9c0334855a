"""What IRNet's loss costs forward and backward, beside the same loss over index tables: time and memory."""

from collections.abc import Callable

import pytest
import torch

from structseg.losses import affinity_displacement_loss, affinity_paths
from tests.benchmarks.measure import cpu_seconds, peak_bytes

_SHAPE = (4, 80, 80)
_ROUNDS = 3


def _batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    n, h, w = _SHAPE
    labels = torch.randint(0, 3, (n, h // 10, w // 10), generator=generator)
    labels = labels.repeat_interleave(10, 1).repeat_interleave(10, 2)
    edges, displacement = torch.randn(n, 1, h, w, generator=generator), torch.randn(n, 2, h, w, generator=generator)
    return edges, displacement, labels


def _by_tables(edges: torch.Tensor, displacement: torch.Tensor, labels: torch.Tensor, radius: int = 10) -> torch.Tensor:
    """Every cell of every path of every source gathered by its number, as published."""
    h, w = labels.shape[1:]
    place = torch.arange(h * w).view(h, w)
    sources = place[: h - radius + 1, radius - 1 : w - radius + 1].flatten()
    paths = affinity_paths(radius)
    flat, flat_displacement, flat_labels = edges.flatten(1).sigmoid(), displacement.flatten(2), labels.flatten(1)
    affinity = []
    for _, cells in paths:
        table = torch.stack([sources + a * w + b for a, b in cells])
        affinity.append(1 - flat[:, table].amax(1))
    aff = torch.stack(affinity, 1)
    others = torch.stack([sources + dy * w + dx for (dy, dx), _ in paths])
    one, other = flat_labels[:, None, sources], flat_labels[:, others]
    bg, fg = ((one == other) & (one == 0)).float(), ((one == other) & (one > 0)).float()
    neg = 1 - bg - fg
    way = torch.tensor([path.direction for path in paths]).T[None, :, :, None]
    apart = flat_displacement[:, :, None, sources] - flat_displacement[:, :, others]
    pos_log, neg_log = -(aff + 1e-5).log(), -(1 + 1e-5 - aff).log()
    pos = sum((kind * pos_log).sum() / (kind.sum() + 1e-5) for kind in (bg, fg)) / 2
    dp_fg = (fg[:, None] * (apart - way).abs()).sum() / (2 * fg.sum() + 1e-5)
    dp_bg = (bg[:, None] * apart.abs()).sum() / (2 * bg.sum() + 1e-5)
    return (pos + (neg * neg_log).sum() / (neg.sum() + 1e-5)) / 2 + (dp_fg + dp_bg) / 2


def _step(loss: Callable[..., torch.Tensor]) -> Callable[[], torch.Tensor]:
    edges, displacement, labels = _batch()

    def run() -> torch.Tensor:
        leaves = edges.clone().requires_grad_(), displacement.clone().requires_grad_()
        total = loss(*leaves, labels)
        total.backward()
        return total.detach()

    return run


@pytest.mark.slow
def test_beside_index_tables(benchmark, capsys) -> None:
    ours, peer = _step(lambda *batch: affinity_displacement_loss(*batch).total), _step(_by_tables)
    assert ours().item() == pytest.approx(peer().item(), rel=1e-4)
    benchmark.pedantic(ours, rounds=_ROUNDS)
    times, peaks = (
        (cpu_seconds(ours, _ROUNDS), cpu_seconds(peer, _ROUNDS)),
        (
            peak_bytes(ours) / 2**20,
            peak_bytes(peer) / 2**20,
        ),
    )
    report = {
        "CPU s": round(times[0], 3),
        "tables s": round(times[1], 3),
        "time ratio": round(times[0] / times[1], 3),
        "peak MiB": round(peaks[0], 1),
        "tables MiB": round(peaks[1]),
        "memory ratio": round(peaks[0] / peaks[1], 4),
    }
    benchmark.extra_info.update(report)
    with capsys.disabled():
        print(f"\n  {', '.join(f'{name} {value}' for name, value in report.items())}")
    assert peaks[0] < 0.1 * peaks[1]
