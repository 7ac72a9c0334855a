import numpy as np
import pytest
import torch
from PIL import Image

from structseg.datamodules.files.decoded import DecodedDataset
from structseg.datamodules.wrappers.full_size import Originals


class Grey(DecodedDataset):
    """Three grey photographs of 20 x 16 whose label is their number; it counts how often each is decoded."""

    def __init__(self, **settings):
        super().__init__("abc", (10, 10), **settings)
        self.reads = []

    def photograph(self, index):
        self.reads.append(index)
        return Image.new("RGB", (16, 20), (40 * index,) * 3)

    def label(self, index):
        return np.full((20, 16), index, np.uint8)


@pytest.mark.parametrize(
    ("settings", "bytes_each", "shape"),
    [
        ({}, 3 * 100 + 100, (10, 10)),
        ({"native_mask": True}, 3 * 100 + 320, (20, 16)),
        ({"originals": Originals()}, 4 * 320, (20, 16)),
        ({"originals": Originals(10)}, 4 * 80, (10, 8)),
    ],
)
def test_samples_are_decoded_once_as_far_as_memory_goes(settings, bytes_each, shape):
    data = Grey(**settings, memory_bytes=3 * bytes_each - 1)
    first = [data[i] for i in range(3)]
    assert [sample["mask"].shape for sample in first] == [shape] * 3
    assert [sample["name"] for sample in first] == list("abc")
    kept = first[1]["image"].clone()
    for key in ("image", "mask"):
        first[1][key].zero_()  # changes of a sample do not reach the memory
    again = [data[i] for i in range(3)]
    assert data.reads == [0, 1, 2, 2], "the third does not fit, and is decoded again"
    assert torch.equal(again[1]["image"], kept)
    assert (again[1]["mask"] == 1).all()
    assert torch.equal(again[2]["mask"], first[2]["mask"])
    assert data.memory_left == bytes_each - 1
