"""COCO's run-length codes against pycocotools' own encoder, and codes that do not fit their image."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from structseg.datamodules.coco.files import Instance, Picture, paint
from structseg.datamodules.label_spaces import COCO

DOG = COCO.classes.index("dog")


def painted(outline, size=(3, 4)):
    return paint(Picture("a.jpg", size, [Instance(DOG, False, outline)]))


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (40, 300), (300, 2)])
def test_packed_codes_are_decoded_as_pycocotools_packs_them(share, size):
    region = np.random.default_rng(size).random(size) < share
    code = coco_mask.encode(np.asfortranarray(region.astype(np.uint8)))
    found = painted({"size": list(size), "counts": code["counts"].decode()}, size)
    assert (found == np.where(region, DOG, 0)).all()


def test_a_code_worked_by_hand():
    # Columns of 3: 2 outside, 2 inside, 8 outside -> the last pixel of column 0 and the first of column 1.
    expected = np.zeros((3, 4))
    expected[2, 0] = expected[0, 1] = DOG
    assert (painted({"size": [3, 4], "counts": [2, 2, 8]}) == expected).all()


@pytest.mark.parametrize(
    "counts", [[2, 2, 7], [2, 2, 9], [-1, 13], [12, 10**15], [2.0, 10.0], "22:", "é", "P", "Q" * 99]
)
def test_counts_that_do_not_fill_the_image(counts):
    with pytest.raises(ValueError, match=r"a run-length code .*; copy the annotations again"):
        painted({"size": [3, 4], "counts": counts})


def test_polygons_may_leave_the_image_a_little():
    inside = painted([np.array([-1.0, -1, 5, -1, 5, 4, -1, 4])])
    assert (inside == DOG).all()
    for far in (1e9, -1e9, np.nan, np.inf):
        with pytest.raises(ValueError, match="a polygon far outside of the 4x3 pixels"):
            painted([np.array([0.0, 0, far, 0, 3, 3])])
