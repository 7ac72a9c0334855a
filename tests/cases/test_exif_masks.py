"""Masks are turned to fit their upright photographs in every data set, drawn on the stored or on the upright pixels."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from structseg.audit.check import check
from structseg.datamodules.images import MaskSizeError, fit_mask, image_size, mask_turn, read_image
from tests.data.every_set import SETS, make_set


def save(path: Path, image: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, quality=95)


@pytest.mark.parametrize("drawn_on", ["stored", "upright"])
@pytest.mark.parametrize("name", SETS)
def test_a_turned_photograph_keeps_its_mask(tmp_path: Path, name: str, drawn_on: str) -> None:
    make = make_set(name, tmp_path)
    before = make().dataset("test")[0]
    path = make().file_samples("test", [])[0].image
    image = read_image(path)
    save(path, image if drawn_on == "stored" else image.transpose(Image.Transpose.ROTATE_90), 6)
    after = make().dataset("test")[0]
    expected = np.rot90(before["mask"], -1) if drawn_on == "stored" else before["mask"]
    np.testing.assert_array_equal(after["mask"], expected)
    assert [text for kind, text in check(make()).faults if kind == "sizes"] == []


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_both_ways_of_drawing_by_every_orientation(tmp_path: Path, orientation: int, shape: tuple[int, int]) -> None:
    stored = np.arange(24, dtype=np.uint8).reshape(shape) * 10
    save(tmp_path / "a.png", Image.fromarray(stored), orientation)
    upright = np.asarray(read_image(tmp_path / "a.png"))[..., 0]
    assert image_size(tmp_path / "a.png") == upright.shape[::-1]
    np.testing.assert_array_equal(fit_mask(upright, tmp_path / "a.png", "m"), upright)
    if orientation >= 5:  # else both have one size, and the upright one is meant
        np.testing.assert_array_equal(fit_mask(stored, tmp_path / "a.png", "m"), upright)
    elif orientation > 1:
        assert mask_turn(tmp_path / "a.png", shape[::-1], "m") == 0


def test_masks_that_fit_neither_way_or_by_aspect_alone(tmp_path: Path) -> None:
    save(tmp_path / "a.png", Image.new("RGB", (60, 40)), 6)
    for size in ((40, 61), (30, 20), (0, 0)):
        with pytest.raises(MaskSizeError, match=rf"a.png is 40x60 but its mask m.png {size[0]}x{size[1]}; a mask must"):
            mask_turn(tmp_path / "a.png", size, "m.png")
    assert mask_turn(tmp_path / "a.png", (20, 30), "m.png", scaled=True) == 1
    assert mask_turn(tmp_path / "a.png", (30, 20), "m.png", scaled=True) == 6
    with pytest.raises(MaskSizeError, match="of another aspect"):
        mask_turn(tmp_path / "a.png", (30, 24), "m.png", scaled=True)


@pytest.mark.parametrize("name", SETS)
def test_masks_that_fit_both_ways_are_a_warning(tmp_path: Path, name: str) -> None:
    make = make_set(name, tmp_path)
    path = make().file_samples("test", [])[0].image
    save(path, read_image(path), 3)
    with pytest.warns(UserWarning, match=r"1 photographs, first \S+, are turned by EXIF and their masks fit both ways"):
        make().dataset("test")
    save(path, read_image(path), 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*EXIF")
        make().dataset("test")
