import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from structseg.datamodules.batch import image_tensor
from structseg.datamodules.weak.crops import Cut, Views

FILL = (10, 20, 30)


def waves(size: tuple[int, int]) -> Image.Image:
    """A smooth picture without symmetry."""
    y, x = (np.linspace(0, 1, side, endpoint=False) + 0.5 / side for side in size)
    red = 0.5 + 0.4 * np.sin(3 * x[None] + 1) * np.cos(2 * y[:, None])
    pixels = np.stack([red, np.broadcast_to(x[None], size), np.broadcast_to(y[:, None], size)], -1)
    return Image.fromarray((255 * pixels).round().astype(np.uint8))


def through(image: Image.Image, cut: Cut) -> torch.Tensor:
    """The whole image seen through `view`, as a module sees a map of the image."""
    whole = image_tensor(image)[None]
    grid = F.affine_grid(cut.view()[None], [1, 3, *cut.window], align_corners=False)
    return F.grid_sample(whole, grid, align_corners=False)[0]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    ("resized", "top", "left"),
    [((80, 120), 0, 0), ((80, 120), 30, 50), ((90, 60), 20, -15), ((30, 40), -10, -20), ((64, 64), 0, 0)],
)
def test_the_view_is_where_the_crop_lies(resized: tuple[int, int], top: int, left: int, mirrored: bool) -> None:
    image = waves((40, 60))
    cut = Cut((64, 64), resized, top, left, mirrored)
    crop, seen = image_tensor(cut.image(image, (0, 0, 0))), through(image, cut)
    inside = through(Image.new("RGB", image.size, (255, 255, 255)), cut)[0] == 1  # away from the edge
    assert inside.float().mean() > 0.2
    assert (crop - seen)[:, inside].abs().max() < 0.012
    # Green is x: a window one pixel further to the right sees 1/w more of it, so a shift of that size would be seen.
    moved = image_tensor(cut._replace(left=left + 1).image(image, (0, 0, 0)))
    assert abs((crop - seen)[1, inside].mean()) < 0.2 / resized[1]
    assert (moved - seen)[1, inside].mean() > 0.5 / resized[1] or left < 0


def test_views_by_hand() -> None:
    # The right half of an image, mirrored: its right edge is on the left, x = 1 at u = -1, x = 0 at u = 1.
    right = Cut((4, 4), (4, 8), 0, 4, True).view()
    assert torch.equal(right, torch.tensor([[-0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]))
    # An image of 2x2 in the lower left corner of a window of 4x4: its middle at (-0.5, 0.5) of the window.
    small = Cut((4, 4), (2, 2), -2, 0).view()
    assert torch.equal(small, torch.tensor([[2.0, 0.0, 1.0], [0.0, 2.0, -1.0]]))
    assert torch.equal(Cut((5, 7), (5, 7)).view(), torch.eye(2, 3))


def test_pixels_beyond_the_image_are_filled_and_ignored() -> None:
    image = Image.new("RGB", (2, 2), (200, 200, 200))
    cut = Cut((4, 4), (2, 2), -2, 0, mirrored=True)
    pixels = np.asarray(cut.image(image, FILL))
    mask = cut.mask(np.array([[1, 2], [3, 4]], dtype=np.uint8))
    assert mask.tolist() == [[255] * 4, [255] * 4, [255, 255, 2, 1], [255, 255, 4, 3]]
    assert (pixels[mask == 255] == FILL).all()
    assert (pixels[mask != 255] == 200).all()


def test_masks_of_any_size_are_cut_as_their_image() -> None:
    mask = np.kron(np.array([[0, 1], [2, 3]], dtype=np.uint8), np.ones((20, 30), dtype=np.uint8))
    cut = Cut((16, 16), (32, 48), 8, 16)
    small = np.array([[0, 1], [2, 3]], dtype=np.uint8)  # the same picture at 2x2
    np.testing.assert_array_equal(cut.mask(mask), cut.mask(small))
    expected = np.kron(small, np.ones((8, 8), dtype=np.uint8))
    np.testing.assert_array_equal(cut.mask(mask), expected)


def test_off_is_the_whole_image_squeezed() -> None:
    image = waves((40, 60))
    cut = Views().cut((40, 60), (32, 32), np.random.default_rng(0))
    assert torch.equal(cut.view(), torch.eye(2, 3))
    np.testing.assert_array_equal(
        np.asarray(cut.image(image, FILL)), np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    )
    mirrored = Views(flip=1).cut((40, 60), (32, 32), np.random.default_rng(0))
    np.testing.assert_array_equal(np.asarray(mirrored.image(image, FILL)), np.asarray(cut.image(image, FILL))[:, ::-1])


def test_long_sides_and_scales_are_drawn_from_their_ranges() -> None:
    rng = np.random.default_rng(0)
    cuts = [Views(long_side=(20, 80), flip=0.5).cut((30, 60), (48, 48), rng) for _ in range(600)]
    longest = [max(cut.resized) for cut in cuts]
    assert (min(longest), max(longest)) == (20, 80)
    assert all(cut.resized[0] == round(cut.resized[1] / 2) for cut in cuts)
    assert 0.42 < np.mean([cut.mirrored for cut in cuts]) < 0.58
    for cut in cuts:  # the window lies on the image, or the image in the window
        for offset, side in ((cut.top, cut.resized[0]), (cut.left, cut.resized[1])):
            assert min(0, side - 48) <= offset <= max(0, side - 48)
    assert {cut.left for cut in cuts if cut.resized[1] == 80} >= {0, 32} or len({cut.left for cut in cuts}) > 20
    cuts = [Views(scale=(0.5, 1.5)).cut((100, 100), (64, 64), rng) for _ in range(600)]
    assert (min(cut.resized[0] for cut in cuts), max(cut.resized[0] for cut in cuts)) == (50, 150)
    edges = {cut.top for cut in cuts if cut.resized[0] < 64}
    assert max(edges) == 0
    assert min(edges) < 0
    assert Views(scale=(0.001, 0.001)).cut((10, 10), (8, 8), rng).resized == (1, 1)


def test_wrong_settings_are_named_together() -> None:
    with pytest.raises(ValueError, match=r"long_side with scale.*long_side=\(9, 3\).*scale=\(0, 1\).*flip=2"):
        Views(long_side=(9, 3), scale=(0, 1), flip=2)
