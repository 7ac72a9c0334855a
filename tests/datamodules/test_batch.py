"""Labels shrunk by majority: by hand, in place, ties, and who can do it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from structseg.datamodules.batch import shrink_by_majority
from structseg.datamodules.confounded_scenes.datamodule import ConfoundedScenesDataModule
from structseg.datamodules.images import resize_mask
from structseg.datamodules.synthetic_faces.datamodule import SyntheticFacesDataModule


def test_by_hand() -> None:
    """Of 4 x 4: three 5s of four, a tie of 0 and 7 on both colours of the board, 255 like any other label."""
    labels = torch.tensor([[[5, 5, 0, 0], [5, 0, 7, 7], [0, 7, 255, 255], [7, 0, 255, 1]]])
    assert shrink_by_majority(labels, (2, 2)).tolist() == [[[5, 7], [7, 255]]]
    assert shrink_by_majority(labels.roll(2, 2), (2, 2)).tolist() == [[[0, 5], [255, 0]]], "0 and 7 once each"
    assert shrink_by_majority(torch.tensor([[[3], [4], [4]]]), (2, 1)).tolist() == [[[3], [4]]], "1 of 1.5 pixels"
    assert torch.equal(shrink_by_majority(labels, (4, 4)), labels)
    assert torch.equal(shrink_by_majority(labels, (8, 8)), labels.repeat_interleave(2, 1).repeat_interleave(2, 2))


@pytest.mark.parametrize("size", [(256, 256), (128, 200), (120, 250)])
def test_a_disc_stays_where_it_is(size: tuple[int, int]) -> None:
    """Its centre to 0.15 of an old pixel and its area to 1 %; by nearest it moves left and up by half a pixel."""
    y, x = np.mgrid[:512, :512]
    disc = ((y - 250.3) ** 2 + (x - 260.8) ** 2 < 90**2).astype(np.uint8)
    found = {}
    for by in ("majority", "nearest"):
        mask = resize_mask(disc, size, by)
        ratio = np.array([512 / side for side in size])
        found[by] = (np.argwhere(mask).mean(0) + 0.5) * ratio - 0.5
        assert mask.sum() * ratio.prod() == pytest.approx(disc.sum(), rel=0.01)
    assert found["majority"] == pytest.approx([250.3, 260.8], abs=0.15)
    if size == (256, 256):
        assert found["nearest"] == pytest.approx([249.8, 260.3], abs=0.1)


def test_the_option_reaches_the_masks_or_is_refused() -> None:
    faces = SyntheticFacesDataModule(train=1, val=1, test=1, size=(32, 32), mask_filter="majority")
    assert faces.dataset("train").mask_filter == "majority"  # type: ignore[attr-defined]
    with pytest.raises(
        ValueError, match="mask_filter=majority, which ConfoundedScenesDataModule does not support; leave it out"
    ):
        ConfoundedScenesDataModule(train=2, val=1, test=1, mask_filter="majority").dataset("train")
