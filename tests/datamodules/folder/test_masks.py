"""Masks of every form are read alike, and no value becomes another class unnoticed."""

import numpy as np
import pytest
from PIL import Image

from structseg.datamodules.folder.masks import MaskReader, read_pair_mask
from structseg.datamodules.folder.pairs import Pair
from structseg.datamodules.label_spaces import CELEBAMASK_HQ
from tests.data.folder import CLASSES, COLOURS, mask_of

MASK = mask_of(0)
PALETTE = [tuple(map(int, colour)) for colour in COLOURS]
BY_INDEX = MaskReader({0: 0, 1: 1, 2: 2}, CLASSES, PALETTE)
BY_COLOUR = MaskReader({colour: index for index, colour in enumerate(PALETTE)}, CLASSES)
BINARY = MaskReader({0: 0, 255: 1}, CLASSES[:2])
WITH_IGNORE = MaskReader({0: 0, 1: 1, 2: 2, 255: 255}, CLASSES)


def palette_image(mask, palette=PALETTE):
    image = Image.fromarray(mask)
    image.putpalette([value for colour in palette for value in colour])
    return image


def repacked(mask, palette, order):
    """As an optimiser writes it: `order[i]` is the old index of the new index i."""
    return palette_image(np.argsort(order)[mask].astype(np.uint8), [palette[i] for i in order])


def wide(mask):
    return Image.fromarray(mask.astype(np.uint16))


def bits(image, path):
    """A palette file of 1, 2 or 4 bits."""
    image.save(path, bits=2)


@pytest.mark.parametrize(
    ("reader", "image"),
    [
        (BY_INDEX, Image.fromarray(MASK)),
        (BY_INDEX, palette_image(MASK)),
        (BY_INDEX, palette_image(MASK, [(9, 9, 9), (1, 2, 3), (4, 5, 6)])),  # colours of nothing
        (BY_INDEX, palette_image(MASK, [(0, 0, 0)] * 256)),
        (BY_INDEX, palette_image(MASK, [(i, i, i) for i in range(256)])),
        (BY_INDEX, palette_image(2 - MASK, [(2, 2, 2), (1, 1, 1), (0, 0, 0)])),  # grey, packed
        (BY_INDEX, repacked(MASK, PALETTE, [2, 0, 1])),
        (BY_INDEX, Image.fromarray(np.stack([MASK] * 3, -1))),  # indices in three channels
        (BY_INDEX, wide(MASK)),
        (BY_INDEX, Image.fromarray(MASK.astype(np.int32))),
        (BY_INDEX, Image.fromarray(np.stack([MASK, np.full_like(MASK, 255)], -1), "LA")),
        (BY_COLOUR, palette_image(MASK)),
        (BY_COLOUR, repacked(MASK, PALETTE, [1, 2, 0])),
        (BY_COLOUR, Image.fromarray(COLOURS[MASK])),
        (BY_COLOUR, Image.fromarray(np.dstack([COLOURS[MASK], np.where(MASK, 255, 0).astype(np.uint8)]))),  # with alpha
        (MaskReader({0: 0, PALETTE[1]: 1, 2: 2}, CLASSES, PALETTE), palette_image(MASK)),  # by colour or by value
        (MaskReader({0: 0, 300: 1, 65535: 2}, CLASSES), wide(np.array([0, 300, 65535])[MASK])),
        (MaskReader({0: 0, 7: 1, 8: 1, 9: 2}, CLASSES), Image.fromarray(np.array([0, 8, 9], np.uint8)[MASK])),
    ],
)  # fmt: skip
def test_every_form_gives_the_same_map(reader, image, tmp_path):
    image.save(tmp_path / ("a.tif" if image.mode == "I" else "a.png"))
    (path,) = tmp_path.iterdir()
    assert reader(path).dtype == np.uint8
    np.testing.assert_array_equal(reader(path), MASK)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "I;16"])
def test_0_and_255_for_two_classes(mode, tmp_path):
    covered = np.where(MASK, 255, 0).astype(np.uint8)
    image = {
        "L": lambda: Image.fromarray(covered),
        "1": lambda: Image.fromarray(covered).convert("1"),
        "P": lambda: palette_image((MASK > 0).astype(np.uint8), [(0, 0, 0), (255, 255, 255)]),
        "RGB": lambda: Image.fromarray(np.stack([covered] * 3, -1)),
        "I;16": lambda: wide(covered),
    }[mode]()
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(BINARY(tmp_path / "a.png"), MASK > 0)
    if mode in ("1", "P"):  # the same file, where classes are numbered
        np.testing.assert_array_equal(MaskReader({0: 0, 1: 1}, CLASSES[:2])(tmp_path / "a.png"), MASK > 0)
        with pytest.raises(ValueError, match=r"1 may be left_disc or, as the grey level 255 .* ignored; save the mask"):
            WITH_IGNORE(tmp_path / "a.png")


def with_pixel(image, value):
    pixels = np.array(image)
    pixels[3, 4] = pixels[3, 5] = value
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("reader", "image", "message"),
    [
        (BY_INDEX, with_pixel(Image.fromarray(MASK), 9), r"has 9 in 2 pixels, .*\(0 background, 1 left_disc, 2 right_box\)"),
        (BY_INDEX, with_pixel(Image.fromarray(MASK), 255), "has 255 in 2 pixels"),
        (BY_INDEX, with_pixel(wide(MASK), 1000), "has 1000 in 2 pixels"),
        (BY_INDEX, Image.fromarray(np.where(MASK, -1, 0).astype(np.int32)), "has -1 in"),
        (BY_INDEX, Image.fromarray(MASK / np.float32(2)), "holds fractions"),
        (BY_INDEX, palette_image(np.where(MASK == 2, 5, MASK).astype(np.uint8), [(7, 7, i) for i in range(9)]), r"has 5 \(coloured \(7, 7, 5\)\)"),
        (BY_INDEX, palette_image(MASK, [PALETTE[1], PALETTE[0], (5, 5, 5)]), "index 0 is background, but its colour .* is that of left_disc"),
        (BY_COLOUR, with_pixel(Image.fromarray(COLOURS[MASK]), (1, 2, 3)), r"has \(1, 2, 3\) in 2 pixels"),
        (BY_COLOUR, palette_image(MASK, [PALETTE[0], PALETTE[1], (1, 2, 3)]), r"\(coloured \(1, 2, 3\)\)"),
        (BY_COLOUR, Image.fromarray(MASK), "has 0 in"),
        (BY_INDEX, Image.fromarray(COLOURS[MASK] + np.uint8(1)), r"has \(1, 1, 1\) in"),
    ],
)  # fmt: skip
def test_a_value_that_no_class_has_is_an_error(reader, image, message, tmp_path):
    path = tmp_path / ("a.tif" if image.mode in ("I", "F") else "a.png")
    image.save(path)
    with pytest.raises(ValueError, match=message) as error:
        reader(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_lossy_masks(tmp_path):
    far = np.array([0, 120, 255], np.uint8)[MASK]
    Image.fromarray(far).save(tmp_path / "a.jpg", quality=90)
    values = {0: 0, 120: 1, 255: 2}
    with pytest.raises(ValueError, match=r"a\.jpg is JPEG, .*--data\.jpeg_masks nearest"):
        MaskReader(values, CLASSES)(tmp_path / "a.jpg")
    found = MaskReader(values, CLASSES, jpeg="nearest")(tmp_path / "a.jpg")
    assert (found == MASK).mean() > 0.97
    Image.fromarray(MASK).save(tmp_path / "b.jpg")
    with pytest.raises(ValueError, match=r"lies 1 from another class's"):
        MaskReader({0: 0, 1: 1, 2: 2}, CLASSES, jpeg="nearest")(tmp_path / "b.jpg")
    Image.fromarray(np.full_like(MASK, 60)).save(tmp_path / "c.jpg")
    with pytest.raises(ValueError, match=r"1280 of its pixels \(100%\) are near no class's value"):
        MaskReader(values, CLASSES, jpeg="nearest")(tmp_path / "c.jpg")
    Image.fromarray(far).save(tmp_path / "d.webp", lossless=True)
    grey = MaskReader(values, CLASSES)
    np.testing.assert_array_equal(grey(tmp_path / "d.webp"), MASK)
    Image.fromarray(far).save(tmp_path / "e.webp")
    with pytest.raises(ValueError, match="is WEBP"):
        grey(tmp_path / "e.webp")


def test_16_bit_colours_are_refused(tmp_path):
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + struct.pack(">6H", 0, 0, 1, 0, 0, 2) for _ in range(2))
    head = struct.pack(">2I5B", 2, 2, 16, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    with pytest.raises(ValueError, match="colours of 16 bits"):
        BY_COLOUR(tmp_path / "a.png")


STORED = np.arange(6, dtype=np.uint8).reshape(2, 3) % 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_a_mask_is_turned_with_its_photograph_where_only_that_fits(orientation, square, turned, tmp_path):
    """`turned`: the mask is drawn on the upright photograph."""
    from structseg.datamodules.images import read_image

    stored = np.arange(9, dtype=np.uint8).reshape(3, 3) % 3 if square else STORED
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored * 50).save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(read_image(tmp_path / "a.png"))[..., 0] // 50
    Image.fromarray(upright if turned else stored).save(tmp_path / "m.png")
    found = read_pair_mask(Pair("a", tmp_path / "a.png", tmp_path / "m.png"), BY_INDEX)
    alike = upright.shape == stored.shape  # then the mask is taken as it is
    np.testing.assert_array_equal(found, stored if alike and not turned else upright)


@pytest.mark.data
@pytest.mark.slow
def test_six_encodings_of_celebamask_hq(shared_data, tmp_path):
    """The 200 test masks as indices, palette, packed palette, colours and 16 bits; and 0/255 of one class."""
    import json

    home = shared_data / "celebamask_hq_mini"
    names = json.loads((home / "split_622.json").read_text())["test"]
    palette, classes = list(CELEBAMASK_HQ.palette), CELEBAMASK_HQ.classes
    named = MaskReader({i: i for i in range(19)}, classes, palette)
    coloured = MaskReader({c: i for i, c in enumerate(palette)}, classes)
    random = np.random.default_rng(0)
    for name in names:
        mask = np.asarray(Image.open(home / "masks" / f"{name}.png"))
        colours = np.array(palette, np.uint8)[mask]
        forms = [
            Image.fromarray(mask),
            palette_image(mask, palette),
            repacked(mask, palette, random.permutation(19).tolist()),
            Image.fromarray(colours),
            wide(mask),
        ]
        for reader, form in [
            (named, 0),
            (named, 1),
            (named, 2),
            (named, 3),
            (named, 4),
            (coloured, 1),
            (coloured, 2),
            (coloured, 3),
        ]:
            forms[form].save(tmp_path / "m.png", compress_level=1)
            assert np.array_equal(reader(tmp_path / "m.png"), mask), (name, form)
        Image.fromarray(np.where(mask == 13, 255, 0).astype(np.uint8)).save(tmp_path / "m.png", compress_level=1)
        assert np.array_equal(BINARY(tmp_path / "m.png"), mask == 13)


def test_readers_can_be_pickled():
    import pickle

    BY_COLOUR._colour_table  # noqa: B018
    assert len(pickle.dumps(BY_COLOUR)) < 2000
