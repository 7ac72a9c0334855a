"""MultiScaleCrossEntropy: by hand, labels resized as by Pillow, extremes."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from structseg.losses.multi_scale import MultiScaleCrossEntropy, multi_scale_cross_entropy, resized_labels


def logits_of(probabilities):
    """(1, 2, h, w) logits whose softmax gives class 1 these probabilities."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([(1 - p).log(), p.log()])[None]


def test_by_hand():
    target = torch.tensor([[[0, 1, 1, 255], [0, 1, 1, 255]]])  # 2 rows, 4 columns
    full = logits_of([[0.1, 0.9, 0.8, 0.5], [0.2, 0.5, 0.7, 0.5]])
    half = logits_of([[0.6, 0.3]])  # one row of two: the labels under the centres are 1 and 255
    on_full = -sum(math.log(p) for p in (0.9, 0.9, 0.8, 0.8, 0.5, 0.7)) / 6
    assert float(multi_scale_cross_entropy([full], target)) == pytest.approx(on_full, abs=1e-12)
    both = multi_scale_cross_entropy([full, half], target)
    assert float(both) == pytest.approx(on_full - math.log(0.6), abs=1e-12)
    assert torch.equal(MultiScaleCrossEntropy()([full, half], target), both)
    assert torch.equal(MultiScaleCrossEntropy()(full, target), multi_scale_cross_entropy([full], target))


@pytest.mark.parametrize("size", [(4, 9), (7, 3), (21, 31), (20, 30), (80, 90)])
def test_labels_are_resized_as_by_pillow(size):
    labels = torch.randint(0, 256, (2, 20, 30), generator=torch.Generator().manual_seed(0))
    found = resized_labels(labels, size)
    assert found.dtype == torch.int64
    for one, truth in zip(found, labels, strict=True):
        expected = Image.fromarray(truth.numpy().astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)
        assert np.array_equal(one.numpy(), np.asarray(expected))


def test_where_nothing_counts_the_loss_is_zero_and_so_is_its_gradient():
    logits = torch.randn(1, 3, 4, 5, requires_grad=True)
    loss = multi_scale_cross_entropy(logits, torch.full((1, 8, 10), 255))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_low_precision_is_summed_in_float32():
    logits = torch.randn(1, 3, 16, 16).bfloat16()
    assert multi_scale_cross_entropy(logits, torch.zeros(1, 16, 16, dtype=torch.long)).dtype == torch.float32


@pytest.mark.parametrize("logits", [[], [torch.zeros(2, 3, 4, 4)], [torch.zeros(3, 4, 4)]])
def test_other_shapes(logits):
    with pytest.raises(ValueError, match=r"expected \(N, K, h, w\) and \(N, H, W\)"):
        multi_scale_cross_entropy(logits, torch.zeros(1, 4, 4, dtype=torch.long))
