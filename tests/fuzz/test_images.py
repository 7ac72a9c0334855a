"""Damaged images and masks: every one is named in a line, or read as something whole."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from structseg.datamodules.images import check_image, image_size, read_image, read_mask
from structseg.datamodules.predict.inputs import predict_inputs
from tests.fuzz.harm import Damage, Lay, Wreck, cut, fault_of, flip, part_of, ruin, swap, template

FORMATS = ("png", "jpg", "bmp", "gif", "tif", "webp", "avif", "jp2", "ppm")


@cache
def whole(
    name: str, mode: str = "RGB", size: tuple[int, int] = (48, 64), frames: int = 1, exif: bytes | None = None
) -> bytes:
    """A good file, as bytes."""
    options: dict[str, object] = {} if exif is None else {"exif": exif}
    if frames > 1:
        options |= {"save_all": True, "append_images": [Image.new("RGB", size)] * (frames - 1)}
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format=Image.registered_extensions()[f".{name}"], **options)
    return file.getvalue()


def lay(name: str, content: Callable[[], bytes]) -> Lay:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content())
        return folder / name

    return write


def spoilt(suffix: str, wreck: Wreck) -> Lay:
    return lay(f"a.{suffix}", lambda: wreck(whole(suffix)))


def read(path: Path) -> None:
    """An image that can be read has colours; what the quick check refuses, cannot be read."""
    image = read_image(path)
    assert image.mode == "RGB"
    assert min(image.size) > 0
    check_image(path)


def read_label(path: Path) -> None:
    mask = read_mask(path, 4, "parts")
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 1, 2, 3, 255}


def predict(path: Path) -> None:
    for file in predict_inputs([str(path)], path.parent / "out").files.values():
        read_image(file)


def zeros(count: int) -> bytes:
    """So many zeros deflated, a thousandth of them, without having them in memory."""
    deflate = zlib.compressobj(9, wbits=-15)
    block = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    deflate = zlib.compressobj(9, wbits=-15)
    rest = deflate.compress(bytes(count % (1 << 20))) + deflate.flush()
    return b"\x78\xda" + block * (count >> 20) + rest + struct.pack(">HH", count % 65521, 1)


def png(
    width: int, height: int, bits: int, colour: int, *more: tuple[bytes, bytes], data: bytes | None = None
) -> bytes:
    """A PNG of zeros with any header; `more` are chunks before the pixels."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    if data is None:
        data = zeros(height * (1 + (width * channels * bits + 7) // 8))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def jpeg_of(width: int, height: int) -> bytes:
    """A small JPEG that says it is of another size."""
    content = bytearray(whole("jpg"))
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def gif_of(width: int, height: int) -> bytes:
    content = bytearray(whole("gif"))
    content[6:10] = struct.pack("<HH", width, height)
    at = content.index(b",\0\0\0\0", 10)
    content[at + 5 : at + 9] = struct.pack("<HH", width, height)
    return bytes(content)


def webp_of(width: int, height: int) -> bytes:
    content = bytearray(whole("webp"))
    assert content[12:16] == b"VP8 "
    content[26:30] = struct.pack("<HH", width, height)
    return bytes(content)


def bmp_of(width: int, height: int, bits: int = 24) -> bytes:
    content = bytearray(whole("bmp"))
    content[18:26] = struct.pack("<ii", width, height)
    content[28:30] = struct.pack("<H", bits)
    return bytes(content)


def tiff(tags: dict[int, tuple[int, int, int]], tail: bytes = b"", next_ifd: int = 0) -> bytes:
    """A little-endian TIFF of one directory: tag -> (type, count, value)."""
    entries = b"".join(struct.pack("<HHII", tag, *value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", next_ifd) + tail


def grey_tiff(width: int, height: int, **changed: tuple[int, int, int]) -> bytes:
    tags = {
        256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 200),
        277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, width * height % 2**32),
    }  # fmt: skip
    tags |= {int(tag.removeprefix("t")): value for tag, value in changed.items()}
    return tiff(tags, bytes(300))


def _exif(content: bytes) -> bytes:
    return whole("jpg", exif=b"Exif\0\0" + content)


LARGE = "more than|bomb|cannot be decoded|is no image"
BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "60000x60000 grey PNG of a few KB": ("a.png", lambda: png(60000, 60000, 1, 0)),
    "60000x60000 PNG without pixels": ("a.png", lambda: png(60000, 60000, 8, 2, data=b"")),
    "2^31 PNG": ("a.png", lambda: png(2**31 - 1, 2**31 - 1, 8, 2, data=b"")),
    "13000x13000 PNG, below Pillow's limit": ("a.png", lambda: png(13000, 13000, 8, 2)),
    "13000x13000 PNG with alpha": ("a.png", lambda: png(13000, 13000, 8, 6)),
    "13000x13000 PNG of 16 bits": ("a.png", lambda: png(13000, 13000, 16, 0)),
    "13000x13000 WebP": ("a.webp", lambda: webp_of(13000, 13000)),
    "65500x65500 JPEG": ("a.jpg", lambda: jpeg_of(65500, 65500)),
    "13000x13000 JPEG": ("a.jpg", lambda: jpeg_of(13000, 13000)),
    "65535x65535 GIF": ("a.gif", lambda: gif_of(65535, 65535)),
    "13000x13000 GIF": ("a.gif", lambda: gif_of(13000, 13000)),
    "2^31 BMP": ("a.bmp", lambda: bmp_of(2**31 - 1, 2**31 - 1)),
    "13000x13000 BMP": ("a.bmp", lambda: bmp_of(13000, 13000)),
    "100000x100000 PPM": ("a.ppm", lambda: b"P6 100000 100000 255\n" + bytes(300)),
    "PPM of 10^30 columns": ("a.ppm", lambda: b"P6 " + b"9" * 30 + b" 2 255\n" + bytes(300)),
    "65535x65535 TIFF": ("a.tif", lambda: grey_tiff(65535, 65535)),
    "13000x13000 TIFF of floats": (
        "a.tif", lambda: grey_tiff(13000, 13000, t258=(3, 1, 32), t339=(3, 1, 3)),
    ),
    "TIFF of 2^32 - 1 columns": ("a.tif", lambda: grey_tiff(2**32 - 1, 1)),
    "PNG with a text that unpacks to 1 GB": (
        "a.png", lambda: png(4, 4, 8, 2, (b"zTXt", b"Comment\0\0" + zeros(10**9))),
    ),
    "PNG with a profile that unpacks to 1 GB": (
        "a.png", lambda: png(4, 4, 8, 2, (b"iCCP", b"Profile\0\0" + zeros(10**9))),
    ),
}  # fmt: skip


WRONG: dict[str, tuple[str, Callable[[], bytes]]] = {
    "PNG without columns": ("a.png", lambda: png(0, 5, 8, 2)),
    "PNG of 3 bits": ("a.png", lambda: png(5, 5, 3, 0)),
    "PNG of colour type 9": ("a.png", lambda: png(5, 5, 8, 9)),
    "PNG with too few pixels": ("a.png", lambda: png(50, 50, 8, 2, data=zlib.compress(bytes(40)))),
    "PNG whose pixels are no stream": ("a.png", lambda: png(5, 5, 8, 2, data=b"not deflated")),
    "PNG whose chunk is of 2 GB": ("a.png", lambda: swap(b"\0\0\0\rIHDR", b"\x7f\xff\xff\xffIHDR")(whole("png"))),
    "PNG with a wrong checksum of its header": ("a.png", lambda: whole("png")[:29] + b"\0\0\0\0" + whole("png")[33:]),
    "PNG without an end": ("a.png", lambda: whole("png")[:-12]),
    "BMP without columns": ("a.bmp", lambda: bmp_of(0, 5)),
    "BMP of 7 bits": ("a.bmp", lambda: bmp_of(5, 5, 7)),
    "BMP of more rows than it has": ("a.bmp", lambda: bmp_of(48, 640)),
    "JPEG without columns": ("a.jpg", lambda: jpeg_of(0, 64)),
    "TIFF of 2 samples of 9 bits": ("a.tif", lambda: grey_tiff(8, 8, t277=(3, 1, 2), t258=(3, 1, 9))),
    "TIFF with pixels beyond its end": ("a.tif", lambda: grey_tiff(8, 8, t273=(4, 1, 10**9))),
    "TIFF with unknown compression": ("a.tif", lambda: grey_tiff(8, 8, t259=(3, 1, 54321))),
    "TIFF whose directory is nowhere": ("a.tif", lambda: b"II*\0" + struct.pack("<I", 10**9)),
    "TIFF without rows": ("a.tif", lambda: grey_tiff(8, 0)),
    "GIF without a frame": ("a.gif", lambda: whole("gif")[:13] + b";"),
    "PPM of words": ("a.ppm", lambda: b"P6 eight eight 255\n" + bytes(300)),
    "PPM of negative size": ("a.ppm", lambda: b"P6 -4 -4 255\n" + bytes(300)),
    "PPM without a maximum": ("a.ppm", lambda: b"P6 4 4"),
    "PostScript named PNG": ("a.png", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"),
    "ICO named PNG": ("a.png", lambda: whole("ico")),
    "TGA named JPEG": ("a.jpg", lambda: whole("tga")),
    "PCX named PNG": ("a.png", lambda: whole("pcx")),
    "PDF named JPEG": ("a.jpg", lambda: b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n"),
    "SVG named PNG": ("a.png", lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'),
    "an ELF program named PNG": ("a.png", lambda: b"\x7fELF\2\1\1" + bytes(500)),
    "a zip named PNG": ("a.png", lambda: b"PK\3\4" + bytes(500)),
    "a shell script named JPEG": ("a.jpg", lambda: b"#!/bin/sh\ntouch ran\n"),
}  # fmt: skip

# Odd, and yet whole: read, or refused in a line.
BORNE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "JPEG named PNG": ("a.png", lambda: whole("jpg")),
    "PNG named JPEG": ("a.jpg", lambda: whole("png")),
    "animated GIF": ("a.gif", lambda: whole("gif", frames=2)),
    "animated PNG": ("a.png", lambda: whole("png", frames=2)),
    "PNG with bytes behind its end": ("a.png", lambda: whole("png") + NULLS),
    "JPEG with bytes behind its end": ("a.jpg", lambda: whole("jpg") + NULLS),
    "EXIF of noise": ("a.jpg", lambda: _exif(NULLS[:3] + b"\xff\x13\x37" * 60)),
    "EXIF cut off": ("a.jpg", lambda: _exif(b"MM\0*\0\0\0\x08\0\x09")),
    "EXIF turned by 99": ("a.jpg", lambda: _exif(b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x63\0\0\0\0\0\0")),
    "EXIF turned by a text": ("a.jpg", lambda: _exif(b"MM\0*\0\0\0\x08\0\1\x01\x12\0\2\0\0\0\4abc\0\0\0\0\0")),
    "EXIF whose directory is its own next": ("a.jpg", lambda: _exif(b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\x08")),
    "EXIF tag of 2^31 values": ("a.jpg", lambda: _exif(b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\x7f\xff\xff\xff\0\6\0\0\0\0\0\0")),
    "JPEG without its tables": ("a.jpg", lambda: swap(b"\xff\xc4", b"\xff\xfe")(whole("jpg"))),
    "TIFF whose tag counts 2^31 values": ("a.tif", lambda: grey_tiff(8, 8, t258=(3, 2**31, 100))),
    "CMYK JPEG": ("a.jpg", lambda: whole("jpg", "CMYK")),
    "1-bit PNG": ("a.png", lambda: whole("png", "1")),
    "float TIFF of nan": ("a.tif", lambda: grey_tiff(2, 2, t258=(3, 1, 32), t339=(3, 1, 3))[:-100] + struct.pack("<f", float("nan")) * 25),
    "BMP upside down": ("a.bmp", lambda: bmp_of(48, -64)),
    "PNG of one pixel": ("a.png", lambda: png(1, 1, 8, 2)),
    "PNG of one row of 100,000": ("a.png", lambda: png(100_000, 1, 8, 2)),
}  # fmt: skip
NULLS = bytes(64)

MASKS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "colours": ("a.png", lambda: whole("png", "RGB")),
    "colours and alpha": ("a.png", lambda: whole("png", "RGBA")),
    "grey and alpha": ("a.png", lambda: whole("png", "LA")),
    "16 bits": ("a.png", lambda: png(8, 8, 16, 0)),
    "32 bits": ("a.tif", lambda: grey_tiff(2, 2, t258=(3, 1, 32))),
    "floats": ("a.tif", lambda: grey_tiff(2, 2, t258=(3, 1, 32), t339=(3, 1, 3))),
    "CMYK": ("a.jpg", lambda: whole("jpg", "CMYK")),
    "lossy": ("a.jpg", lambda: whole("jpg", "L")),
    "indices beyond": ("a.png", lambda: whole("png", "L")),
    "palette indices beyond": ("a.png", lambda: whole("png", "P")),
}

FILES = template("images", lambda folder: [(folder / f"a.{name}").write_bytes(whole(name)) for name in FORMATS])


def _folder_of_broken(folder: Path) -> Path:
    for index in range(30):
        (folder / f"{index}.jpg").write_bytes(cut(0.4)(whole("jpg")))
    (folder / "é 日本 \N{PILE OF POO}.png").write_bytes(b"")
    return folder


CASES: list[Damage] = [
    *(
        damage
        for name in FORMATS
        for damage in ruin(
            name, lambda folder, name=name: FILES(folder) / f"a.{name}", f"a.{name}", read, odd=name == "png"
        )
    ),
    *(Damage(f"png: flipped bytes {n}", spoilt("png", flip(n, 1)), read, r"a\.png") for n in range(30)),
    *(
        Damage(f"{name}: flipped bytes {n}", spoilt(name, flip(n, 6, 150)), read, rf"a\.{name}", bears=True)
        for name in FORMATS
        for n in range(3)
    ),
    *(
        Damage(f"image: {name}", lay(file, make), read, rf"{file}.*({LARGE})", bears="unpacks" in name)
        for name, (file, make) in BOMBS.items()
    ),
    *(Damage(f"image: {name}", lay(file, make), read, file) for name, (file, make) in WRONG.items()),
    *(Damage(f"image: {name}", lay(file, make), read, file, bears=True) for name, (file, make) in BORNE.items()),
    *(Damage(f"mask: {name}", lay(file, make), read_label, rf"{file} (has mode|holds class)") for name, (file, make) in MASKS.items()),
    *(Damage(f"mask: flipped bytes {n}", lay("a.png", lambda n=n: flip(n, 1)(whole("png", "L"))), read_label, r"a\.png") for n in range(100, 110)),
    Damage("size: 60000x60000 PNG", lay("a.png", lambda: png(60000, 60000, 8, 2, data=b"")), image_size, r"a\.png"),
    Damage("size: text", lay("a.png", lambda: b"text"), image_size, r"a\.png"),
    Damage("predict: a folder of broken images", _folder_of_broken, predict, r"0\.jpg cannot be decoded"),
    Damage("predict: an empty folder", lambda folder: folder, predict, "holds no images"),
    Damage("predict: a folder of links in a ring", lambda folder: _ring(folder), predict, "holds no images"),
]  # fmt: skip


def _ring(folder: Path) -> Path:
    (folder / "a").mkdir()
    (folder / "a" / "b.png").symlink_to(folder)
    (folder / "a" / "c").symlink_to(folder, target_is_directory=True)
    return folder


@pytest.mark.parametrize("case", part_of(CASES))
def test_damaged_images(case: Damage, tmp_path: Path) -> None:
    assert fault_of(case, tmp_path) is None
