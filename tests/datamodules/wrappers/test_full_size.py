import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from structseg.datamodules.base import SegmentationDataModule
from structseg.datamodules.label_spaces import CELEBAMASK_HQ, HELEN, STN
from structseg.datamodules.synthetic_faces.datamodule import SyntheticFacesDataModule
from structseg.datamodules.wrappers.full_size import Originals, originals_problems, sample_with_original
from structseg.datamodules.wrappers.occluders import Occluders
from structseg.options.parser import StructsegParser


def photograph(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize(
    ("max_side", "size", "kept"),
    [
        (None, (3000, 2000), (3000, 2000)),
        (200, (200, 100), (200, 100)),
        (50, (100, 200), (25, 50)),
        (100, (301, 200), (100, 66)),  # 66.4
        (20, (1000, 10), (20, 1)),  # 0.2
    ],
)
def test_photographs_keep_their_aspect(max_side, size, kept):
    assert Originals(max_side).size_of(size) == kept


def test_masks_follow_their_photographs():
    classes = np.array([[1, 2], [3, 255]], np.uint8)
    large, mask = Originals().shrink(photograph(4, 4), classes)
    assert large.size == (4, 4)
    np.testing.assert_array_equal(mask, classes.repeat(2, 0).repeat(2, 1))  # a published mask is half of its image
    small, mask = Originals(max_side=2).shrink(photograph(4, 4), classes)
    np.testing.assert_array_equal(small, photograph(4, 4).resize((2, 2), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(mask, classes)
    small, mask = Originals(max_side=1).shrink(photograph(4, 4), classes, native_mask=True)
    assert small.size == (1, 1)
    np.testing.assert_array_equal(mask, classes)


def test_the_image_is_the_resized_original():
    original, mask = photograph(30, 20), np.full((30, 20), 255, np.uint8)
    sample = sample_with_original(original, mask, (8, 8), "a")
    assert {key: tuple(value.shape) for key, value in sample.items() if key != "name"} == {
        "image": (3, 8, 8), "original": (3, 30, 20), "mask": (30, 20),
    }  # fmt: skip
    assert sample["name"] == "a"
    assert torch.equal((sample["original"] * 255).byte(), torch.from_numpy(np.array(original)).permute(2, 0, 1))
    squeezed = np.asarray(original.resize((8, 8), Image.Resampling.BILINEAR), np.float32) / np.float32(255)
    np.testing.assert_array_equal(sample["image"], squeezed.transpose(2, 0, 1))
    assert sample["mask"].dtype == torch.int64


def test_wrong_settings_are_named_together():
    with pytest.raises(ValueError, match=r"^originals: max_side=0 .*hide_parts=7 \(0 to 6\)$"):
        Originals(max_side=0, hide_parts=7)
    with pytest.raises(ValueError, match=r"hide_parts=-1 \(0 to 6\)"):
        Originals(hide_parts=-1)


def test_incompatible_settings_are_named():
    assert originals_problems(None, CELEBAMASK_HQ, "labels", Occluders()) == []
    assert originals_problems(Originals(hide_parts=6), HELEN, None) == []
    assert originals_problems(Originals(hide_parts=1), STN, None) == []
    wrong = originals_problems(Originals(hide_parts=2), CELEBAMASK_HQ, "labels", Occluders())
    assert [words.split()[0] for words in wrong] == ["blobs=labels", "occluders", "originals.hide_parts=2"]
    assert wrong[2].endswith("with label_space=celebamask_hq (stn or helen is needed: it has no left_brow)")


def test_parts_can_be_hidden_on_the_command_line_after_a_configuration(tmp_path):
    settings = {"train": 1, "val": 1, "test": 1, "label_space": "stn", "originals": {"max_side": 64}, "repeats": 5}
    faces = f"{SyntheticFacesDataModule.__module__}.SyntheticFacesDataModule"
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"data": {"class_path": faces, "init_args": settings}}))
    parser = StructsegParser()
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(SegmentationDataModule, "data")
    args = ["--config", str(tmp_path / "a.yaml"), "--data.originals.hide_parts", "2", "--data.repeats", "3"]
    data = parser.instantiate_classes(parser.parse_args(args)).data
    assert data.originals == Originals(max_side=64, hide_parts=2)
    assert data.repeats == 3
