"""What the random walk costs, beside 256 plain products with the same matrix in scipy.sparse; growth with the pixels."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import sparse

from structseg.lightning_modules.conta.random_walk import random_walk
from structseg.losses import affinity_paths
from tests.benchmarks.measure import cpu_seconds, peak_bytes

_ROUNDS = 5


def _scene(h: int, w: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three maps that are high in a part of the image, and edges around patches of a tenth of it."""
    generator = torch.Generator().manual_seed(0)
    cams = torch.zeros(1, 3, h, w)
    cams[..., h // 3 : h // 2, w // 3 : w // 2] = torch.rand(h // 2 - h // 3, w // 2 - w // 3, generator=generator)
    coarse = torch.rand(1, 1, 10, 13, generator=generator) ** 2
    return cams, F.interpolate(coarse, (h, w), mode="bilinear")[:, 0]


def _sparse_walk(cams: torch.Tensor, edges: torch.Tensor, steps: int = 256) -> np.ndarray:
    cam, edge = cams[0].numpy(), edges[0].numpy()
    h, w = edge.shape
    place, rows, columns, values = np.arange(h * w).reshape(h, w), [], [], []
    for (dy, dx), cells in affinity_paths(5):
        high, left, wide = h - dy, max(0, -dx), w - abs(dx)
        path = [edge[a : a + high, left + b : left + b + wide] for a, b in cells]
        rows.append(place[:high, left : left + wide].ravel())
        columns.append(place[dy : dy + high, left + dx : left + dx + wide].ravel())
        values.append(((1 - np.maximum.reduce(path)) ** 10).ravel())
    upper = sparse.coo_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(h * w, h * w)
    ).tocsr()
    affinity = upper + upper.T + sparse.eye_array(h * w, dtype=np.float32)
    matrix = (sparse.diags_array(1 / affinity.sum(0)) @ affinity).tocsr().astype(np.float32)
    flat = (cam * (1 - edge)).reshape(len(cam), -1).T.copy()
    for _ in range(steps):
        flat = matrix @ flat
    return flat.T.reshape(cam.shape)


@pytest.mark.slow
def test_beside_plain_sparse_products(benchmark, capsys) -> None:
    cams, edges = _scene(94, 125)
    walk = benchmark.pedantic(random_walk, args=(cams, edges), rounds=_ROUNDS)
    assert np.allclose(walk[0].numpy(), _sparse_walk(cams, edges), rtol=0, atol=1e-3 * float(walk.max()))
    ours, peer = (
        cpu_seconds(lambda: random_walk(cams, edges), _ROUNDS),
        cpu_seconds(lambda: _sparse_walk(cams, edges), 2),
    )
    cams, edges = _scene(297, 395)
    tenfold = cpu_seconds(lambda: random_walk(cams, edges), 2)
    report = {
        "CPU s at 94x125": round(ours, 3),
        "256 sparse products s": round(peer, 3),
        "ratio": round(ours / peer, 3),
        "10 times the pixels": round(tenfold / ours, 1),
    }
    benchmark.extra_info.update(report)
    with capsys.disabled():
        print(f"\n  {', '.join(f'{name} {value}' for name, value in report.items())}")


@pytest.mark.slow
def test_memory_of_a_photograph(capsys) -> None:
    """Three maps of a quarter of the size, by the allocator's account, in maps of float32: proportional to pixels."""
    peaks = []
    for h, w in ((60, 80), (190, 250)):
        cams, edges = _scene(h, w)
        few = partial(random_walk, cams, edges, log2_steps=4)  # terms of the sum, so that its buffers are there
        peaks.append(peak_bytes(few) / (4 * h * w))
    with capsys.disabled():
        print(f"\n  peak {peaks[0]:.0f} and {peaks[1]:.0f} maps; 750 x 1000: {peaks[1] * 4 * 750e3 / 2**20:.0f} MiB")
    assert max(peaks) < 100
