"""What the consensus loss costs, beside cross-entropy on the same tensors: time, growth with the blobs, memory."""

import cc3d
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from structseg.losses import consensus_loss
from tests.benchmarks.measure import lower_quartiles, peak_bytes

_ROUNDS = 60
_SHAPE = (16, 3, 128, 128)


def _smooth_labels(n: int, c: int, h: int, w: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    fields = rng.normal(size=(n, c, h, w))
    return np.stack([np.stack([gaussian_filter(f, 14) for f in image]).argmax(0) for image in fields])


def _components(labels: np.ndarray) -> torch.Tensor:
    found = [cc3d.connected_components(image.astype(np.uint8) + 1, connectivity=4) for image in labels]
    return torch.from_numpy(np.stack(found).astype(np.int64)) - 1


def _cells(labels: torch.Tensor, side: int) -> torch.Tensor:
    """A grid of squares cut by the labels, dense in each image."""
    h, w = labels.shape[1:]
    grid = (torch.arange(h)[:, None] // side) * (w // side + 1) + torch.arange(w)[None] // side
    return torch.stack([torch.unique(grid * 3 + image, return_inverse=True)[1] for image in labels])


def _number(blobs: torch.Tensor) -> int:
    return int((blobs.flatten(1).amax(1) + 1).sum())


def _step(loss, logits: torch.Tensor):
    def run() -> None:
        leaf = logits.detach().requires_grad_()
        loss(leaf).backward()

    return run


@pytest.mark.slow
def test_beside_cross_entropy(benchmark, capsys):
    labels = _smooth_labels(_SHAPE[0], *_SHAPE[1:])
    target, blobs = torch.from_numpy(labels), _components(labels)
    logits = torch.randn(_SHAPE, generator=torch.Generator().manual_seed(0))
    whole, many = torch.zeros_like(target), _cells(target, 5)
    ignored = target.clone()
    ignored[:, :8] = 255
    steps = {
        "cross-entropy": _step(lambda x: F.cross_entropy(x, target), logits),
        "components": _step(lambda x: consensus_loss(x, target, blobs), logits),
        "labels": _step(lambda x: consensus_loss(x, target), logits),
        "ignored pixels": _step(lambda x: consensus_loss(x, ignored, blobs), logits),
        "one blob an image": _step(lambda x: consensus_loss(x, whole, whole), logits),
        f"{_number(many)} blobs": _step(lambda x: consensus_loss(x, target, many), logits),
    }
    benchmark.pedantic(steps["components"], rounds=3)
    found = lower_quartiles(steps, _ROUNDS, warm=5)
    ratios = {name: round(value / found["cross-entropy"], 2) for name, value in found.items()}
    benchmark.extra_info.update(ratios)
    with capsys.disabled():
        print(f"\n  {_number(blobs)} components; cross-entropy {found['cross-entropy']:.2f} ms; times of it: {ratios}")


@pytest.mark.slow
def test_memory_beside_the_logits(capsys):
    """The largest tensors alive at once, from the profiler's account of the allocator."""
    labels = _smooth_labels(_SHAPE[0], *_SHAPE[1:])
    target, blobs = torch.from_numpy(labels), _components(labels)
    logits = torch.randn(_SHAPE, requires_grad=True)
    most = peak_bytes(lambda: consensus_loss(logits, target, blobs).backward())
    ratio = most / (logits.numel() * logits.element_size())
    with capsys.disabled():
        print(f"\n  peak {ratio:.2f} times the logits")
    assert 1 < ratio < 4
