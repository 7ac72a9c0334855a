import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from structseg.datamodules.fasseg import labels as fasseg_labels
from structseg.datamodules.fasseg.labels import decode_fasseg, decode_published, resize_published
from structseg.datamodules.label_spaces import FASSEG
from tests.data.fasseg import face_classes, palette_image, photograph, smoothed

BACKGROUND, SKIN, HAIR, EYES, NOSE, MOUTH = range(6)
COLOURS = np.array(FASSEG.palette, dtype=np.uint8)


def halves(
    left: int, right: int, height: int = 9, width: int = 9, middle: tuple[int, int, int] | None = None
) -> np.ndarray:
    """Two classes side by side, with one column of another colour between them at width // 2."""
    rgb = np.empty((height, width, 3), dtype=np.uint8)
    rgb[:, : width // 2] = COLOURS[left]
    rgb[:, width // 2 :] = COLOURS[right]
    if middle is not None:
        rgb[:, width // 2] = middle
    return rgb


@pytest.mark.data
def test_reference_counts_are_met_to_the_pixel(golden: Path, shared_data: Path) -> None:
    reference = json.loads((golden / "fasseg_class_counts.json").read_text())
    assert tuple(reference["class_order"]) == FASSEG.classes
    for file in reference["files"]:
        rgb = np.asarray(Image.open(shared_data / "fasseg" / file["file"]).convert("RGB"))
        classes = decode_fasseg(rgb)
        assert np.bincount(classes.ravel(), minlength=6).tolist() == file["counts"], file["file"]

        # The share of each step, from the inside.
        exact, sure = fasseg_labels._exact(rgb), fasseg_labels._sure(rgb)
        mixed = sure.copy()
        fasseg_labels._mixtures(rgb, mixed, sure != 255)
        assert (exact == 255).sum() == file["not_exact_pixels"], file["file"]
        assert {
            "exact": (exact != 255).sum(),
            "close": (sure != 255).sum() - (exact != 255).sum(),
            "mixture": (mixed != 255).sum() - (sure != 255).sum(),
            "spatial": (mixed == 255).sum(),
            "speck": (fasseg_labels._fill(mixed) != classes).sum(),
        } == file["step_pixels"], file["file"]


@pytest.mark.data
def test_published_decoding_loses_the_stated_share(shared_data: Path) -> None:
    # Stated for the 20 training labels of V2 at 256x256: 4.2 % match nothing, 3.5 to 5.5 % in a file.
    shares = []
    for path in (shared_data / "fasseg" / "V2" / "Train_Labels").glob("*.png"):
        resized = resize_published(np.asarray(Image.open(path).convert("RGB")), (256, 256))
        shares.append((resized[..., None, :] != COLOURS).any(-1).all(-1).mean())
    assert len(shares) == 20
    assert np.mean(shares) == pytest.approx(0.042, abs=0.0005)
    assert (min(shares), max(shares)) == (pytest.approx(0.035, abs=0.0005), pytest.approx(0.055, abs=0.0006))


@pytest.mark.parametrize("index", range(6))
def test_one_colour_is_one_class(index: int) -> None:
    rgb = np.broadcast_to(COLOURS[index], (7, 5, 3))
    np.testing.assert_array_equal(decode_fasseg(rgb), np.full((7, 5), index))


@pytest.mark.parametrize("index", range(6))
def test_single_pixel(index: int) -> None:
    assert decode_fasseg(COLOURS[index].reshape(1, 1, 3)).tolist() == [[index]]


def test_images_below_the_speck_limit_are_left_as_they_are() -> None:
    # 4 x 4 pixels are a speck altogether: nothing would be left to fill from.
    rgb = halves(SKIN, HAIR, 4, 4)
    np.testing.assert_array_equal(decode_fasseg(rgb), [[1, 1, 2, 2]] * 4)


@pytest.mark.parametrize("size", [(40, 32), (48, 36), (64, 64)])
def test_made_faces_come_back(size: tuple[int, int]) -> None:
    classes = face_classes(size, seed=3)
    painted = smoothed(palette_image(classes), seed=3)
    assert (painted != palette_image(classes)).any(2).sum() > 20
    np.testing.assert_array_equal(decode_fasseg(painted), classes)


def test_distance_45_is_sure_and_more_is_not() -> None:
    # Beside mouth alone nothing is a mixture, so what is not sure is filled with mouth.
    for blue, expected in ((27, HAIR), (28, MOUTH)):  # squared distance to hair 36^2 + blue^2: 2025, and 2080
        rgb = np.tile(COLOURS[MOUTH], (20, 20, 1))
        rgb[:3, :6] = (127, 36, blue)
        assert (decode_fasseg(rgb)[:3, :6] == expected).all()


def test_mixtures_are_within_45_of_the_line() -> None:
    # (191, 127, 0) is half-way between hair and skin, to half a unit; blue is the distance from the line. Beyond 45 the
    # pixel is open, and hair and skin are equally near: skin.
    for blue, expected in ((44, HAIR), (46, SKIN)):
        assert (decode_fasseg(halves(HAIR, SKIN, middle=(191, 127, blue)))[:, 4] == expected).all()


@pytest.mark.parametrize(
    ("left", "right", "middle", "expected"),
    [
        # The half-way colours of the table, where the nearest palette colour is a third class or a tie. At exactly
        # half-way (2d = L, marked =) the lower class wins.
        (EYES, SKIN, (127, 127, 127), EYES),
        (EYES, SKIN, (128, 128, 127), SKIN),
        (NOSE, BACKGROUND, (127, 127, 127), BACKGROUND),
        (NOSE, BACKGROUND, (127, 128, 128), NOSE),
        (MOUTH, BACKGROUND, (127, 127, 0), BACKGROUND),  # =
        (MOUTH, BACKGROUND, (127, 128, 0), MOUTH),
        (NOSE, SKIN, (127, 255, 127), SKIN),  # =
        (NOSE, SKIN, (127, 255, 128), NOSE),
        (HAIR, SKIN, (191, 127, 0), HAIR),
        (HAIR, SKIN, (192, 128, 0), SKIN),
        (HAIR, SKIN, (143, 32, 0), HAIR),  # the commonest mixture of V3: an eighth of the way
    ],
)
def test_mixtures_take_a_class_of_their_border(
    left: int, right: int, middle: tuple[int, int, int], expected: int
) -> None:
    rgb = halves(left, right, middle=middle)
    assert (decode_fasseg(rgb)[:, 4] == expected).all()
    assert (decode_fasseg(rgb[:, ::-1])[:, 4] == expected).all()


def test_colours_beyond_both_ends_are_no_mixtures() -> None:
    # (60, 0, 0) lies on the line from background to hair, 67 beyond hair: open, and both are equally near.
    assert (decode_fasseg(halves(HAIR, BACKGROUND, middle=(60, 0, 0)))[:, 4] == BACKGROUND).all()


def test_a_mixture_looks_two_pixels_far_and_no_further() -> None:
    # A band of one mixture between hair and skin. Both columns of a band of two see both classes.
    colour = (160, 64, 0)  # a quarter of the way from hair to skin: hair, wherever both are seen
    narrow = halves(HAIR, SKIN, 9, 31)
    narrow[:, 14:16] = colour
    assert decode_fasseg(narrow)[0, 14:16].tolist() == [HAIR, HAIR]
    # In a band of three only the middle does. The right one sees skin alone, stays open, and has the middle's hair at
    # its left and skin at its right, both one pixel off: skin is the lower index.
    middle = halves(HAIR, SKIN, 9, 31)
    middle[:, 14:17] = colour
    assert decode_fasseg(middle)[0, 14:17].tolist() == [HAIR, HAIR, SKIN]
    # In a band of five none does.
    wide = halves(HAIR, SKIN, 9, 31)
    wide[:, 13:18] = colour
    # Column 15 is three from either side: a tie, and skin is the lower index. 16 and 17 are nearer to skin.
    assert decode_fasseg(wide)[0, 13:18].tolist() == [HAIR, HAIR, SKIN, SKIN, SKIN]


def test_a_colour_off_the_line_is_filled_by_distance() -> None:
    # White lies 127 and more from every line between hair and skin: open, and it takes the side that is nearer.
    rgb = halves(HAIR, SKIN, 9, 21)
    rgb[4, 8] = rgb[4, 11] = (255, 255, 255)
    classes = decode_fasseg(rgb)
    assert classes[4, 8] == HAIR
    assert classes[4, 11] == SKIN


def test_lone_open_pixel_takes_what_is_around_it() -> None:
    rgb = halves(MOUTH, MOUTH)
    rgb[4, 4] = (90, 90, 90)
    assert (decode_fasseg(rgb) == MOUTH).all()


@pytest.mark.parametrize("reverse", [False, True])
def test_equally_near_classes_give_the_lowest(reverse: bool) -> None:
    # A column of black with hair at one side and eyes at the other, both one pixel off.
    rgb = halves(EYES, HAIR, 9, 9, middle=(0, 60, 0))
    rgb = rgb[:, ::-1] if reverse else rgb
    assert (decode_fasseg(rgb)[:, 4] == HAIR).all()


def test_ties_over_a_slant_count_as_ties() -> None:
    # The middle of the white square is 5 pixels from its rims. (0, 5), (3, 4) and (4, 3) are equally far: the only sure
    # skin stands at (3, 4) and hair at (0, 5), everything nearer is white.
    rgb = np.tile(np.array([255, 255, 255], dtype=np.uint8), (41, 41, 1))
    y, x = np.mgrid[-20:21, -20:21]
    squared = y * y + x * x
    rgb[squared >= 25] = COLOURS[HAIR]
    rgb[(squared >= 25) & (y >= 3) & (x >= 4)] = COLOURS[SKIN]
    classes = decode_fasseg(rgb)
    assert rgb[20 + 3, 20 + 4].tolist() == COLOURS[SKIN].tolist()
    assert classes[20, 20] == SKIN
    # By brute force, over all open pixels.
    decided = np.argwhere(squared >= 25)
    for row, column in np.argwhere(squared < 25):
        distance = ((decided - (row, column)) ** 2).sum(1)
        near = decided[distance == distance.min()]
        lowest = min(SKIN if (rgb[r, c] == COLOURS[SKIN]).all() else HAIR for r, c in near)
        assert classes[row, column] == lowest, (row, column)


@pytest.mark.parametrize(("pixels", "kept"), [(16, False), (17, True)])
def test_specks_up_to_16_pixels_go(pixels: int, kept: bool) -> None:
    rgb = np.tile(COLOURS[SKIN], (20, 20, 1))
    rgb[5, 2:18] = COLOURS[EYES]  # 16 in a row
    rgb[6, 18] = COLOURS[EYES] if pixels == 17 else COLOURS[SKIN]  # the 17th touches by a corner
    assert (decode_fasseg(rgb) == EYES).sum() == (17 if kept else 0)


def test_specks_are_filled_from_what_stays() -> None:
    # An eye and a mouth speck side by side: neither may grow into the other's place.
    rgb = np.tile(COLOURS[SKIN], (20, 20, 1))
    rgb[8:11, 6:9] = COLOURS[EYES]
    rgb[8:11, 9:12] = COLOURS[MOUTH]
    assert (decode_fasseg(rgb) == SKIN).all()


def test_photographs_and_index_masks_are_refused() -> None:
    classes = face_classes((48, 36))
    with pytest.raises(ValueError, match=r"not a FASSEG label image: \d+% of the pixels.*not the photograph$"):
        decode_fasseg(photograph(classes))
    with pytest.raises(ValueError, match="not a FASSEG label image: 100%"):
        decode_fasseg(np.repeat(classes[..., None], 3, axis=2))


def test_a_fifth_of_open_pixels_is_the_limit() -> None:
    rgb = np.tile(COLOURS[SKIN], (10, 10, 1))
    rgb[:2] = (90, 90, 90)
    assert (decode_fasseg(rgb) == SKIN).all()
    rgb[2, 0] = (90, 90, 90)
    with pytest.raises(ValueError, match="not a FASSEG label image: 21%"):
        decode_fasseg(rgb)


@pytest.mark.parametrize("decode", [decode_fasseg, decode_published])
def test_wrong_arrays_are_named(decode) -> None:
    with pytest.raises(TypeError, match="dtype float64; expected uint8"):
        decode(np.zeros((4, 4, 3)))
    for shape in ((4, 4), (4, 4, 4), (3, 4, 5, 3), (0, 4, 3)):
        with pytest.raises(ValueError, match=r"expected \(H, W, 3\) with at least one pixel"):
            decode(np.zeros(shape, dtype=np.uint8))


def test_published_takes_exact_matches_only() -> None:
    rgb = palette_image(np.arange(6, dtype=np.uint8).reshape(1, 6))
    assert decode_published(rgb).tolist() == [[0, 1, 2, 3, 4, 5]]
    rgb[0, 1:, 0] ^= 1
    assert decode_published(rgb).tolist() == [[0, 0, 0, 0, 0, 0]]


def test_published_resize_mixes_colours() -> None:
    # From 8 to 4 pixels each new pixel lies between two old ones; weights of OpenCV's filter there, A = -0.75:
    # (-0.09375, 0.59375, 0.59375, -0.09375). Rows of (255, 0, 0) x 4 and (0, 0, 255) x 4, joined by 0, 0.
    row = np.array([[255, 0, 0]] * 3 + [[0, 0, 0]] * 2 + [[0, 0, 255]] * 3, dtype=np.uint8)
    rgb = np.tile(row, (8, 1, 1))
    mixed = resize_published(rgb, (4, 4))
    assert mixed.shape == (4, 4, 3)
    # Pixel 1 sees columns 1 to 4: red, red, black, black: (-0.09375 + 0.59375) * 255 = 127.5, rounded to even.
    assert mixed[0, :, 0].tolist() == [255, 128, 0, 0]
    assert mixed[0, :, 2].tolist() == [0, 0, 128, 255]
    assert decode_published(mixed)[0].tolist() == [BACKGROUND, BACKGROUND, BACKGROUND, EYES]
