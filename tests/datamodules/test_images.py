"""Images of every mode against pixels worked by hand, and errors for files that are not images."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from structseg.datamodules.batch import Sample, collate
from structseg.datamodules.images import check_image, image_size, open_image, read_image, read_mask, to_rgb

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def pixels(path: Path) -> list[tuple[int, ...]]:
    """The first row."""
    return [tuple(map(int, pixel)) for pixel in np.asarray(read_image(path))[0]]


def row(mode: str, *values: object) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return image


def png16(path: Path, colour_type: int, *samples: int, transparent: bytes = b"") -> Path:
    """One row of 16-bit samples; Pillow writes no 16-bit colour itself."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", len(samples) // channels, 1, 16, colour_type, 0, 0, 0)
    data = zlib.compress(b"\0" + struct.pack(f">{len(samples)}H", *samples))
    transparency = chunk(b"tRNS", transparent) if transparent else b""
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + transparency + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
    return path


def _palette(*colours: tuple[int, int, int]) -> Image.Image:
    image = row("P", *range(len(colours)))
    image.putpalette([value for colour in colours for value in colour])
    return image


# Over white: 128/255 of 100 and 127/255 of 255 make 177.2; 64/255 of 0 and 191/255 of 255 make 191.
PILLOW: dict[str, tuple[str, Image.Image, dict[str, object], list[tuple[int, int, int]]]] = {
    "1": ("a.png", row("1", 0, 255), {}, [BLACK, WHITE]),
    "L": ("a.png", row("L", 0, 7, 255), {}, [BLACK, (7, 7, 7), WHITE]),
    "L, one value transparent": ("a.png", row("L", 9, 8), {"transparency": 9}, [WHITE, (8, 8, 8)]),
    "LA": ("a.png", row("LA", (100, 0), (100, 128), (100, 255)), {}, [WHITE, (177,) * 3, (100,) * 3]),
    "P": ("a.png", _palette(RED, (1, 2, 3), BLUE), {}, [RED, (1, 2, 3), BLUE]),
    "P, one index transparent": ("a.png", _palette(RED, (1, 2, 3)), {"transparency": 1}, [RED, WHITE]),
    "P, alpha an index": ("a.png", _palette(BLACK, BLACK), {"transparency": bytes([64, 255])}, [(191,) * 3, BLACK]),
    "P, GIF": ("a.gif", _palette(RED, GREEN), {"transparency": 0}, [WHITE, GREEN]),
    "RGB": ("a.bmp", row("RGB", (1, 2, 3)), {}, [(1, 2, 3)]),
    "RGB, one colour transparent": ("a.png", row("RGB", RED, BLUE), {"transparency": RED}, [WHITE, BLUE]),
    "RGBA": ("a.png", row("RGBA", (0, 0, 0, 64), (9, 9, 9, 255), (9, 9, 9, 0)), {}, [(191,) * 3, (9, 9, 9), WHITE]),
    "RGBA, WebP": ("a.webp", row("RGBA", (0, 255, 0, 255), (0, 255, 0, 0)), {"lossless": True}, [GREEN, WHITE]),
    "CMYK": ("a.tif", row("CMYK", (0, 255, 255, 0), (0, 0, 0, 0), (0, 0, 0, 255)), {}, [RED, WHITE, BLACK]),
    "YCbCr": ("a.tif", row("YCbCr", (255, 128, 128), (0, 128, 128)), {}, [WHITE, BLACK]),
    # CIE L*a*b* to sRGB by hand: L 100 and 0 are (255,) * 3 and (0,) * 3; the tables of littlecms miss them by one.
    "LAB": ("a.tif", row("LAB", (255, 128, 128), (0, 128, 128)), {}, [(254, 255, 254), (1, 0, 1)]),
    "I": ("a.tif", row("I", 0, 65535, 32896, -5), {}, [BLACK, WHITE, (128,) * 3, BLACK]),
    "I, beyond 16 bits": ("a.tif", row("I", 0, 1_000_000, 200_000), {}, [BLACK, WHITE, (51,) * 3]),
    "F, 0..1": ("a.tif", row("F", 0.0, 1.02, 0.2, -0.5), {}, [BLACK, WHITE, (51,) * 3, BLACK]),
    "F, 0..255": ("a.tif", row("F", 0.0, 255.0, 51.2), {}, [BLACK, WHITE, (51,) * 3]),
    "F, 0..65535": ("a.tif", row("F", 0.0, 65535.0, 257.0), {}, [BLACK, WHITE, (1,) * 3]),
    "F, not all numbers": ("a.tif", row("F", float("nan"), float("inf"), 1.0), {}, [BLACK, WHITE, WHITE]),
    "F, black": ("a.tif", row("F", 0.0, 0.0), {}, [BLACK, BLACK]),
    "PPM": ("a.ppm", row("RGB", (5, 6, 7)), {}, [(5, 6, 7)]),
}


@pytest.mark.parametrize("case", PILLOW)
def test_every_mode_becomes_the_same_rgb(case: str, tmp_path: Path) -> None:
    name, image, options, expected = PILLOW[case]
    image.save(tmp_path / name, **options)
    assert pixels(tmp_path / name) == expected
    check_image(tmp_path / name)


WIDE: dict[str, tuple[Callable[[Path], object], list[tuple[int, int, int]]]] = {
    # 300 / 257 = 1.17; of colour Pillow keeps the upper byte: 0x1234 -> 0x12.
    "grey PNG": (lambda f: png16(f, 0, 0, 300, 65535), [BLACK, (1, 1, 1), WHITE]),
    "grey PNG, one value transparent": (lambda f: png16(f, 0, 300, 0, transparent=b"\1\x2c"), [WHITE, BLACK]),
    "grey and alpha PNG": (lambda f: png16(f, 4, 0, 0, 0, 65535), [WHITE, BLACK]),
    "RGB PNG": (lambda f: png16(f, 2, 0, 0x1234, 65535), [(0, 0x12, 255)]),
    "RGBA PNG": (lambda f: png16(f, 6, 0, 0x1234, 65535, 65535, 0, 0, 0, 0), [(0, 0x12, 255), WHITE]),
    "grey TIFF": (lambda f: tifffile.imwrite(f, np.uint16([[0, 32896, 65535]])), [BLACK, (128,) * 3, WHITE]),
    "grey TIFF, big-endian": (
        lambda f: tifffile.imwrite(f, np.uint16([[0, 257, 65535]]), byteorder=">"),
        [BLACK, (1, 1, 1), WHITE],
    ),
    "grey TIFF, 0 is white": (
        lambda f: tifffile.imwrite(f, np.uint16([[0, 65535]]), photometric="miniswhite"),
        [WHITE, BLACK],
    ),
    "grey TIFF, 0 is white, 8 bits": (
        lambda f: tifffile.imwrite(f, np.uint8([[0, 255]]), photometric="miniswhite"),
        [WHITE, BLACK],
    ),
    "RGB TIFF": (
        lambda f: tifffile.imwrite(f, np.uint16([[[0, 0x1234, 65535]] * 2] * 2), photometric="rgb"),
        [(0, 0x12, 255)] * 2,
    ),
    "PGM, 10 bits": (lambda f: f.write_bytes(b"P5 2 1 1023\n\0\0\3\xff"), [BLACK, WHITE]),
}


@pytest.mark.parametrize("case", WIDE)
def test_more_than_eight_bits(case: str, tmp_path: Path) -> None:
    write, expected = WIDE[case]
    file = tmp_path / ("a.tif" if "TIFF" in case else "a.png" if "PNG" in case else "a.pgm")
    write(file)
    assert pixels(file) == expected
    check_image(file)


def test_planes_that_pillow_would_misread_are_refused(tmp_path: Path) -> None:
    planes = np.arange(3 * 4 * 5, dtype=np.uint16).reshape(3, 4, 5)
    tifffile.imwrite(tmp_path / "wide.tif", planes, photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "eight.tif", planes.astype(np.uint8), photometric="rgb", planarconfig="separate")
    for read in (open_image, check_image):
        with pytest.raises(ValueError, match=r"wide\.tif cannot be decoded .16-bit TIFF in separate planes"):
            read(tmp_path / "wide.tif")
    assert (np.asarray(read_image(tmp_path / "eight.tif")) == np.moveaxis(planes, 0, -1)).all()


@pytest.mark.parametrize(
    ("colour", "mode"), [((0, 255, 255, 0), "CMYK"), ((250, 4, 3), "RGB"), (200, "L")], ids=["CMYK", "YCbCr", "grey"]
)
def test_jpeg(colour: object, mode: str, tmp_path: Path) -> None:
    Image.new(mode, (17, 9), colour).save(tmp_path / "a.jpg", quality=100, subsampling=0)
    expected = {"CMYK": RED, "RGB": (250, 4, 3), "L": (200, 200, 200)}[mode]
    read = np.asarray(read_image(tmp_path / "a.jpg")).astype(int)
    assert read.shape == (9, 17, 3)
    assert np.abs(read - expected).max() <= 1


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(("suffix", "kind"), [("png", np.uint8), ("tif", np.uint8), ("png", np.uint16)])
def test_exif_orientation(orientation: int, suffix: str, kind: type, tmp_path: Path) -> None:
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    image = Image.fromarray(stored.astype(kind) * (257 if kind is np.uint16 else 1))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{suffix}", exif=exif)
    read = np.asarray(read_image(tmp_path / f"a.{suffix}"))
    assert read.tolist() == np.repeat(TURNS[orientation](stored)[..., None], 3, 2).tolist()


def test_a_telephones_portrait(tmp_path: Path) -> None:
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:, :16] = RED  # the left of the sensor, with 6 the top of the picture
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    read = np.asarray(read_image(tmp_path / "a.jpg"))
    assert read.shape == (32, 16, 3)
    assert (read[:15, :, 0] > 250).all()
    assert (read[17:] < 5).all()


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage!", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\0\0\0", b"II*\0"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_no_orientation(exif: bytes, tmp_path: Path) -> None:
    Image.new("RGB", (8, 4), RED).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (8, 4)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_many_frames_the_first(suffix: str, tmp_path: Path) -> None:
    first, second = Image.new("RGB", (4, 2), RED), Image.new("RGB", (4, 2), BLUE)
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second], lossless=True)
    assert pixels(tmp_path / f"a.{suffix}") == [RED] * 4


def test_the_opened_image_keeps_its_mode(tmp_path: Path) -> None:
    _palette(RED, BLUE).save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")
    assert image.mode == "P"
    assert np.asarray(image).tolist() == [[0, 1]]
    assert to_rgb(image).mode == "RGB"


def _good(suffix: str) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))


@pytest.mark.parametrize("read", [open_image, read_image, check_image])
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tif", "webp", "avif", "ppm", "jp2"])
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.02])
@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_a_truncated_image_is_named_in_one_line(
    read: Callable[[Path], object], suffix: str, kept: float, tmp_path: Path
) -> None:
    file = tmp_path / f"half.{suffix}"
    _good(suffix).save(file)
    read(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match=rf"half\.{suffix} (cannot be decoded|is no image)") as error:
        read(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", [open_image, read_image, check_image])
def test_files_that_are_no_image(read: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("a list of things to do\n")
    with pytest.raises(ValueError, match=r"empty\.png is empty .0 bytes.; copy it again"):
        read(tmp_path / "empty.png")
    with pytest.raises(ValueError, match=r"text\.png is no image that Pillow can read"):
        read(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError, match=r"no image at .*gone\.png; check the path"):
        read(tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError, match="no image at"):
        read(tmp_path)


@pytest.mark.parametrize("read", [open_image, read_image, check_image])
def test_more_pixels_than_are_decoded(
    read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (3000, 2001)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3_000_000)
    with pytest.raises(ValueError, match=r"a\.png has more than 6 million pixels; scale it down"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tif", "webp", "avif", "jp2"])
@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_are_read_or_named(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{suffix}"
    _good(suffix).resize((16, 12)).save(file)
    whole = file.read_bytes()
    random = np.random.default_rng(0)
    messages = []
    for _ in range(60):
        damaged = bytearray(whole)
        for place in random.integers(0, min(len(whole), 200), 4):
            damaged[place] = random.integers(0, 256)
        file.write_bytes(damaged)
        for read in (check_image, read_image):
            try:
                read(file)
            except ValueError as error:
                messages.append(str(error))
    assert messages
    for message in messages:
        assert message.startswith(str(file))
        assert "\n" not in message


def _sample(height: int, width: int, value: int) -> Sample:
    return {
        "image": torch.zeros(3, 2, 2),
        "original": torch.zeros(3, height, width),
        "mask": torch.full((height, width), value),
        "name": f"{height}x{width}",
    }


def test_masks_of_originals_are_padded_right_and_below_to_the_largest() -> None:
    batch = collate([_sample(1, 3, 4), _sample(2, 2, 5)])
    assert batch["mask"].tolist() == [[[4, 4, 4], [255, 255, 255]], [[5, 5, 255], [5, 5, 255]]]
    assert batch["mask"].dtype == torch.int64
    assert [original.shape[1:] for original in batch["original"]] == [(1, 3), (2, 2)]
    assert batch["image"].shape == (2, 3, 2, 2)
    assert batch["name"] == ["1x3", "2x2"]


def test_masks_without_originals_must_be_of_one_size() -> None:
    samples = [_sample(1, 3, 4), _sample(2, 2, 5)]
    for sample in samples:
        del sample["original"]
    with pytest.raises(ValueError, match=r"mask of 2x2 has shape \(2, 2\), that of 1x3 \(1, 3\)"):
        collate(samples)


PALETTE = ((0, 0, 0), (128, 0, 0), (0, 128, 0))


def palette_file(path: Path, mask: list[list[int]], colours: list[tuple[int, int, int]]) -> Path:
    image = Image.fromarray(np.array(mask, dtype=np.uint8))
    image.putpalette([value for colour in colours for value in colour])
    image.save(path)
    return path


def test_colours_of_a_palette_decide(tmp_path: Path) -> None:
    """A packed palette has the classes' colours in another order."""
    packed = palette_file(tmp_path / "a.png", [[0, 1, 2, 3]], [(0, 128, 0), (0, 0, 0), (224, 224, 192), (128, 0, 0)])
    with pytest.raises(ValueError, match="holds class 3"):
        read_mask(packed, 3, "own")
    assert read_mask(packed, 3, "own", PALETTE).tolist() == [[2, 0, 255, 1]]
    plain = palette_file(tmp_path / "b.png", [[0, 1, 2]], [(0, 0, 0), (7, 7, 7), (8, 8, 8)])
    assert read_mask(plain, 3, "own", PALETTE).tolist() == [[0, 1, 2]]
    black = palette_file(tmp_path / "c.png", [[0, 1, 2]], [(0, 0, 0)] * 3)
    assert read_mask(black, 3, "own", PALETTE).tolist() == [[0, 1, 2]]
    mixed = palette_file(tmp_path / "d.png", [[0, 1, 2]], [(0, 128, 0), (7, 7, 7), (8, 8, 8)])
    with pytest.raises(
        ValueError, match=r"d\.png: index 0 has the colour of class 2, but other colours belong to no class"
    ):
        read_mask(mixed, 3, "own", PALETTE)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_the_size_from_the_header_is_that_of_the_upright_image(orientation: int, suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (5, 3)).save(tmp_path / f"a.{suffix}", exif=exif)
    assert image_size(tmp_path / f"a.{suffix}") == read_image(tmp_path / f"a.{suffix}").size


def test_exif_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (5, 3)).save(tmp_path / "a.png", exif=exif)
    content = (tmp_path / "a.png").read_bytes()
    at = content.index(b"eXIf") - 4
    chunk = content[at : at + 12 + int.from_bytes(content[at : at + 4])]
    end = content.index(b"IEND") - 4
    (tmp_path / "b.png").write_bytes(content[:at] + content[at + len(chunk) : end] + chunk + content[end:])
    assert image_size(tmp_path / "b.png") == read_image(tmp_path / "b.png").size == (3, 5)
