import numpy as np
import pytest
import torch

from structseg.datamodules.label_spaces import FASSEG, PARTS, SPACES
from structseg.lightning_modules.drawing.label_sheets import IGNORED, colorize, make_example, overlay, sheet

BLUE, GREEN, RED = PARTS.palette


def triptych(*given):
    return sheet([make_example(*given)], given[3])


def test_colorize_draws_the_palette_and_a_checkerboard_where_nothing_is_labelled():
    mask = np.zeros((8, 12), np.uint8)
    mask[0, :2] = (1, 2)
    mask[:, 4:] = 255
    drawn = colorize(mask, PARTS)
    assert drawn.dtype == np.uint8
    assert drawn.shape == (8, 12, 3)
    assert drawn[0, :3].tolist() == [list(GREEN), list(RED), list(BLUE)]
    # squares of four pixels: columns 4..7 of rows 0..3 are odd, so light
    assert (drawn[:4, 4:8] == IGNORED[1]).all()
    assert (drawn[4:, 4:8] == IGNORED[0]).all()
    assert (drawn[:4, 8:] == IGNORED[0]).all()


def test_colorize_takes_tensors():
    mask = torch.tensor([[0, 1], [2, 255]])
    assert (colorize(mask, PARTS) == colorize(mask.numpy(), PARTS)).all()


@pytest.mark.parametrize("space", SPACES.values(), ids=str)
def test_no_class_looks_ignored(space):
    assert not set(IGNORED) & set(space.palette)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((2, 2), 3), "the mask holds 3; parts has classes 0..2 and 255 = ignored"),
        (np.full((2, 2), -1), "the mask holds -1"),
        (np.full((2, 2), 257), "the mask holds 257"),
        (np.zeros((1, 2, 2), int), r"shape \(1, 2, 2\); expected \(H, W\)"),
    ],
)
def test_colorize_refuses_what_is_no_mask(mask, message):
    with pytest.raises(ValueError, match=message):
        colorize(mask, PARTS)


def test_overlay_mixes_the_image_and_the_palette_but_for_the_background():
    image = np.full((1, 3, 3), 101, np.uint8)
    mask = np.array([[0, 1, 2]])
    # 0.25 · 255 + 0.75 · 101 = 139.5, and 0.75 · 101 = 75.75
    assert overlay(image, mask, PARTS, 0.25)[0].tolist() == [[101, 101, 101], [76, 140, 76], [140, 76, 76]]
    assert overlay(image, mask, PARTS, 0.0).tolist() == image.tolist()
    assert overlay(image, mask, PARTS, 1.0)[0].tolist() == [[101] * 3, list(GREEN), list(RED)]
    assert overlay(np.full((1, 3, 3), 255, np.uint8), mask, PARTS, 1 / 256).max() == 255


def test_overlay_refuses_other_sizes_and_strengths():
    image = np.zeros((4, 6, 3), np.uint8)
    with pytest.raises(ValueError, match=r"the image is \(4, 6, 3\), the mask \(6, 4\)"):
        overlay(image, np.zeros((6, 4), int), PARTS)
    with pytest.raises(ValueError, match=r"alpha is 1.5"):
        overlay(image, np.zeros((4, 6), int), PARTS, 1.5)


def test_large_maps_shrink_to_the_side_and_the_image_follows_the_mask():
    truth = torch.zeros(640, 480, dtype=torch.int64)
    truth[:, 240:] = 2
    example = make_example(torch.rand(3, 64, 64), truth, truth, PARTS, "a")
    assert example.image.shape == (320, 240, 3)
    assert example.truth.shape == example.prediction.shape == (320, 240)
    assert (example.truth[:, :120] == 0).all()
    assert (example.truth[:, 120:] == 2).all()


def test_small_maps_are_magnified_by_a_whole_number():
    truth = torch.randint(0, 3, (32, 20))
    example = make_example(torch.rand(3, 32, 20), truth, truth, PARTS)
    assert example.truth.shape == (256, 160)
    assert (example.truth == truth.numpy().repeat(8, 0).repeat(8, 1)).all()


def test_ignored_pixels_are_neither_right_nor_wrong():
    truth = torch.tensor([[0, 1, 2, 255]])
    assert make_example(torch.rand(3, 1, 4), truth, torch.tensor([[0, 1, 1, 1]]), PARTS).right == pytest.approx(2 / 3)
    nothing = make_example(torch.rand(3, 1, 4), torch.full((1, 4), 255), torch.zeros(1, 4, dtype=int), PARTS)
    assert np.isnan(nothing.right)
    assert sheet([nothing], PARTS).width == 8 + 3 * 256 + 2 * 8 + 8


def test_an_image_of_nan_is_black():
    image = torch.tensor([float("nan"), float("inf"), -3.0]).view(3, 1, 1).expand(3, 4, 4)
    mask = torch.zeros(4, 4, dtype=torch.int64)
    assert make_example(image, mask, mask, PARTS).image[0, 0].tolist() == [0, 255, 0]


def test_truth_and_prediction_have_one_size():
    with pytest.raises(ValueError, match=r"the truth is \(4, 4\), the prediction \(4, 5\)"):
        make_example(torch.rand(3, 4, 4), torch.zeros(4, 4), torch.zeros(4, 5), PARTS)


def test_a_triptych_shows_image_truth_and_prediction_side_by_side():
    image = np.full((64, 64, 3), 200, np.uint8)
    truth, prediction = np.full((64, 64), 1), np.full((64, 64), 2)
    truth[:8, :8] = 255
    page = np.asarray(triptych(image, truth, prediction, PARTS, "name"))
    # three panels of 256 pixels, 8 pixels apart and from the border, below a line of 20
    assert page.shape[1] == 8 + 3 * 256 + 2 * 8 + 8
    assert (page[20 : 20 + 256, 8 : 8 + 256] == 200).all()
    assert (page[20 : 20 + 256, 272 : 272 + 256] == colorize(truth.repeat(4, 0).repeat(4, 1), PARTS)).all()
    assert (page[20 : 20 + 256, 536 : 536 + 256] == RED).all()


def test_the_legend_names_the_classes_that_occur():
    image = np.full((64, 64, 3), 200, np.uint8)
    legend = np.asarray(triptych(image, np.full((64, 64), 1), np.full((64, 64), 3), FASSEG))[284:]
    counts = [int((legend == colour).all(-1).sum()) for colour in FASSEG.palette]
    # a swatch is 12 by 18 pixels, its frame drawn over the last row and column
    assert [count > 150 for count in counts] == [False, True, False, True, False, False]
    assert counts[0] == counts[2] == counts[4] == counts[5] == 0


def test_a_sheet_has_two_columns_from_the_fourth_picture_on():
    def page(count):
        mask = np.zeros((256, 256), int)
        return sheet([make_example(torch.rand(3, 8, 8), mask, mask, PARTS, str(i)) for i in range(count)], PARTS).size

    assert page(3)[0] == 800
    assert page(4)[0] == 1600
    assert page(4)[1] == page(2)[1]
    with pytest.raises(ValueError, match="one example or more"):
        sheet([], PARTS)


def test_a_name_that_is_too_long_keeps_its_end():
    mask = np.zeros((200, 100), int)
    image = np.zeros((200, 100, 3), np.uint8)
    long = triptych(image, mask, mask, PARTS, "a" * 500 + "_the_end")
    same = triptych(image, mask, mask, PARTS, "b" * 500 + "_the_end")
    other = triptych(image, mask, mask, PARTS, "a" * 500 + "_the_eve")
    assert long.size == same.size
    assert long.tobytes() != other.tobytes()
