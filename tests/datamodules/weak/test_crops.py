import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from structseg.datamodules.batch import image_tensor
from structseg.datamodules.weak.crops import Crop, CropSettings

FILL = (10, 20, 30)


def waves(size: tuple[int, int]) -> Image.Image:
    """A smooth picture without symmetry."""
    y, x = (np.linspace(0, 1, side, endpoint=False) + 0.5 / side for side in size)
    red = 0.5 + 0.4 * np.sin(3 * x[None] + 1) * np.cos(2 * y[:, None])
    pixels = np.stack([red, np.broadcast_to(x[None], size), np.broadcast_to(y[:, None], size)], -1)
    return Image.fromarray((255 * pixels).round().astype(np.uint8))


def through(image: Image.Image, crop: Crop) -> torch.Tensor:
    """The whole image seen through a crop, as a module sees a map of the image."""
    whole = image_tensor(image)[None]
    grid = F.affine_grid(crop.affine()[None], [1, 3, *crop.window], align_corners=False)
    return F.grid_sample(whole, grid, align_corners=False)[0]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    ("resized", "top", "left"),
    [((80, 120), 0, 0), ((80, 120), 30, 50), ((90, 60), 20, -15), ((30, 40), -10, -20), ((64, 64), 0, 0)],
)
def test_the_affine_map_is_the_place_of_the_crop(resized: tuple[int, int], top: int, left: int, mirrored: bool) -> None:
    image = waves((40, 60))
    crop = Crop((64, 64), resized, top, left, mirrored)
    cropped, seen = image_tensor(crop.image(image, (0, 0, 0))), through(image, crop)
    inside = through(Image.new("RGB", image.size, (255, 255, 255)), crop)[0] == 1  # away from the edge
    assert inside.float().mean() > 0.2
    assert (cropped - seen)[:, inside].abs().max() < 0.012
    # Green is x: a window one pixel further to the right sees 1/w more of it, so a shift of that size would be seen.
    moved = image_tensor(crop._replace(left=left + 1).image(image, (0, 0, 0)))
    assert abs((cropped - seen)[1, inside].mean()) < 0.2 / resized[1]
    assert (moved - seen)[1, inside].mean() > 0.5 / resized[1] or left < 0


def test_affine_maps_by_hand() -> None:
    # The right half of an image, mirrored: its right edge is on the left, x = 1 at u = -1, x = 0 at u = 1.
    right = Crop((4, 4), (4, 8), 0, 4, True).affine()
    assert torch.equal(right, torch.tensor([[-0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]))
    # An image of 2x2 in the lower left corner of a window of 4x4: its middle at (-0.5, 0.5) of the window.
    small = Crop((4, 4), (2, 2), -2, 0).affine()
    assert torch.equal(small, torch.tensor([[2.0, 0.0, 1.0], [0.0, 2.0, -1.0]]))
    assert torch.equal(Crop((5, 7), (5, 7)).affine(), torch.eye(2, 3))


def test_pixels_outside_the_image_are_filled_and_ignored() -> None:
    image = Image.new("RGB", (2, 2), (200, 200, 200))
    crop = Crop((4, 4), (2, 2), -2, 0, mirrored=True)
    pixels = np.asarray(crop.image(image, FILL))
    mask = crop.mask(np.array([[1, 2], [3, 4]], dtype=np.uint8))
    assert mask.tolist() == [[255] * 4, [255] * 4, [255, 255, 2, 1], [255, 255, 4, 3]]
    assert (pixels[mask == 255] == FILL).all()
    assert (pixels[mask != 255] == 200).all()


def test_masks_of_any_size_are_cropped_as_their_image() -> None:
    mask = np.kron(np.array([[0, 1], [2, 3]], dtype=np.uint8), np.ones((20, 30), dtype=np.uint8))
    crop = Crop((16, 16), (32, 48), 8, 16)
    small = np.array([[0, 1], [2, 3]], dtype=np.uint8)  # the same picture at 2x2
    np.testing.assert_array_equal(crop.mask(mask), crop.mask(small))
    expected = np.kron(small, np.ones((8, 8), dtype=np.uint8))
    np.testing.assert_array_equal(crop.mask(mask), expected)


def test_without_ranges_the_whole_image_is_resized() -> None:
    image = waves((40, 60))
    crop = CropSettings().draw((40, 60), (32, 32), np.random.default_rng(0))
    assert torch.equal(crop.affine(), torch.eye(2, 3))
    np.testing.assert_array_equal(
        np.asarray(crop.image(image, FILL)), np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    )
    mirrored = CropSettings(flip=1).draw((40, 60), (32, 32), np.random.default_rng(0))
    np.testing.assert_array_equal(np.asarray(mirrored.image(image, FILL)), np.asarray(crop.image(image, FILL))[:, ::-1])


def test_long_sides_and_scales_are_drawn_from_their_ranges() -> None:
    rng = np.random.default_rng(0)
    crops = [CropSettings(long_side=(20, 80), flip=0.5).draw((30, 60), (48, 48), rng) for _ in range(600)]
    longest = [max(crop.resized) for crop in crops]
    assert (min(longest), max(longest)) == (20, 80)
    assert all(crop.resized[0] == round(crop.resized[1] / 2) for crop in crops)
    assert 0.42 < np.mean([crop.mirrored for crop in crops]) < 0.58
    for crop in crops:  # the window lies on the image, or the image in the window
        for offset, side in ((crop.top, crop.resized[0]), (crop.left, crop.resized[1])):
            assert min(0, side - 48) <= offset <= max(0, side - 48)
    assert {crop.left for crop in crops if crop.resized[1] == 80} >= {0, 32} or len({crop.left for crop in crops}) > 20
    crops = [CropSettings(scale=(0.5, 1.5)).draw((100, 100), (64, 64), rng) for _ in range(600)]
    assert (min(crop.resized[0] for crop in crops), max(crop.resized[0] for crop in crops)) == (50, 150)
    edges = {crop.top for crop in crops if crop.resized[0] < 64}
    assert max(edges) == 0
    assert min(edges) < 0
    assert CropSettings(scale=(0.001, 0.001)).draw((10, 10), (8, 8), rng).resized == (1, 1)


def test_wrong_settings_are_named_together() -> None:
    with pytest.raises(ValueError, match=r"long_side with scale.*long_side=\(9, 3\).*scale=\(0, 1\).*flip=2"):
        CropSettings(long_side=(9, 3), scale=(0, 1), flip=2)
