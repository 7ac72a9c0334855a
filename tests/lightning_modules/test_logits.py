"""Classes one by one against the whole, pixel by pixel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from structseg.lightning_modules.logits import classes_at


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (400, 301), (16, 12), (3, 64)])
@pytest.mark.parametrize("classes", [1, 2, 19])
def test_equals_the_argmax_of_the_whole(size: tuple[int, int], classes: int) -> None:
    logits = torch.randn(2, classes, 16, 12, generator=torch.Generator().manual_seed(0)) * 5
    whole = F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)
    found = classes_at(logits, size)
    assert found.dtype == torch.uint8
    assert torch.equal(found.long(), whole)


def test_by_hand() -> None:
    # Class 0 falls from 3 to 0, class 1 is 1 throughout: at width 4 class 0 has 3, 2.25, 0.75, 0.
    logits = torch.tensor([[[[3.0, 0.0]], [[1.0, 1.0]]]])
    assert classes_at(logits, (1, 4)).tolist() == [[[0, 0, 1, 1]]]


def test_ties_and_nan() -> None:
    assert classes_at(torch.zeros(1, 5, 2, 2), (3, 3)).max() == 0
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor([[2.0, nan, 3.0], [nan, nan, nan], [-inf, -1e30, -inf]])
    assert classes_at(logits[..., None, None], (1, 1)).flatten().tolist() == [2, 0, 1]


def test_all_256_classes_and_half_precision() -> None:
    logits = torch.eye(256)[:, :, None, None].bfloat16()
    assert classes_at(logits, (2, 2))[:, 1, 1].tolist() == list(range(256))


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 0, 4, 4), (1, 257, 4, 4)])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(N, K, H, W\) with K from 1 to 256"):
        classes_at(torch.zeros(shape), (2, 2))
