"""Reading and writing the pixels of samples: images of any mode, masks, and errors that name the file."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, PLANAR_CONFIGURATION, TiffImageFile

if TYPE_CHECKING:
    from structseg.datamodules.batch import MaskFilter

Number = TypeVar("Number", np.uint8, np.int32)

VOID = (224, 224, 192)  # the colour of 255 in masks of PASCAL VOC

IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
_HEIF_SUFFIXES = (".heic", ".heif")

# Only these: Pillow also reads formats that start a program (PostScript) or are recognised by a few bytes (TGA, PCX).
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF")
# Larger images with more pixels per byte are decompression bombs: photographs have 20 at most, label maps about 100.
_BOMB_PIXELS, _BOMB_PIXELS_A_BYTE = 40_000_000, 200
# A single comment of a PNG may have 64 MiB, as all together may: some tools keep their whole project there.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation

# All that Pillow's readers were seen to raise on damaged files.
_DECODING_ERRORS = (
    ArithmeticError, EOFError, LookupError, MemoryError, OSError, RuntimeError, SyntaxError, TypeError, ValueError,
    struct.error, zlib.error,
)  # fmt: skip


@cache
def _formats(heif: bool) -> tuple[str, ...]:
    """Pillow's names of the formats to read; ValueError where HEIF is asked for and its extra is not installed."""
    if not heif:
        return _FORMATS
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise ValueError("HEIC needs pillow-heif, which is not installed; pip install 'structseg[heic]'") from None
    register_heif_opener()
    return (*_FORMATS, "HEIF")


def formats_of(path: Path) -> tuple[str, ...]:
    """Pillow's names of the formats that a file of this name may have; ValueError for HEIC without its extra."""
    try:
        return _formats(path.suffix.lower() in _HEIF_SUFFIXES)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _what_it_is(path: Path) -> str:
    """What a file is that Pillow does not recognise, and what to do, for an error message."""
    with path.open("rb") as file:
        head = file.read(200).lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the image; run git lfs pull where it comes from"
    if head.startswith((b"<!doctype html", b"<html")):
        return "is a web page, which a server sent in place of the image; fetch it again"
    return "is no image that Pillow can read; copy it again or remove it"


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns what Pillow raises into one line with the file's name."""
    if not path.is_file():
        raise FileNotFoundError(f"no image at {path}; check the path")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes); copy it again")
    try:
        yield
    except UnidentifiedImageError:
        raise ValueError(f"{path} {_what_it_is(path)}") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(f"{path} has more than {limit} million pixels; scale it down or cut it up") from None
    except _DECODING_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be decoded ({reason}); copy it again or remove it") from None


@contextmanager
def _header(file: BinaryIO, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """An image of which only the header is read; ValueError for a decompression bomb."""
    with Image.open(file, formats=formats) as image:
        pixels, size = image.width * image.height, os.fstat(file.fileno()).st_size
        if pixels > max(_BOMB_PIXELS, _BOMB_PIXELS_A_BYTE * size):
            raise ValueError(f"{pixels // 10**6} million pixels in {size} bytes, a decompression bomb")
        yield image


def _verify_png(file: BinaryIO) -> None:
    """Raises ValueError for a PNG with a wrong checksum or no end: Pillow's `verify` in a tenth of its time."""
    here = file.tell()
    file.seek(8)
    content = memoryview(file.read())
    file.seek(here)
    at = 0
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4])
        if zlib.crc32(content[at + 4 : end]) != int.from_bytes(content[end : end + 4]):
            raise ValueError(f"broken PNG file (bad checksum in {bytes(content[at + 4 : at + 8])!r})")
        if content[at + 4 : at + 8] == b"IEND":
            return
        at = end + 4
    raise ValueError("broken PNG file (it has no end)")


def check_end(path: Path) -> None:
    """Decodes an image only if the end of its file is not one of its format; raises as `open_image`."""
    with path.open("rb") as file:
        head, size = file.read(12), os.fstat(file.fileno()).st_size
        file.seek(max(0, size - 4096))
        tail = file.read()
    whole = (
        b"\xff\xd9" in tail if head.startswith(b"\xff\xd8")
        else b"IEND" in tail[-16:] if head.startswith(b"\x89PNG")
        else size >= int.from_bytes(head[4:8], "little") + 8 if head.startswith(b"RIFF")
        else tail.rstrip(b"\0").endswith(b";") if head.startswith(b"GIF8")
        else True
    )  # fmt: skip
    if not whole:
        open_image(path)


def _refuse_planes(image: Image.Image) -> None:
    # Pillow takes the low bytes of such a file for pixels, without a warning.
    if isinstance(image, TiffImageFile) and image.info.get("compression") == "raw":
        bits = image.tag_v2.get(BITSPERSAMPLE)
        wide = isinstance(bits, tuple) and len(bits) > 1 and max(bits) > 8
        if wide and image.tag_v2.get(PLANAR_CONFIGURATION) == 2:
            raise ValueError("16-bit TIFF in separate planes; save it with interleaved channels")


def open_image(path: Path) -> Image.Image:
    """The decoded image in its own mode; the first of several frames or pages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is empty, truncated or no image; the message names it.
    """
    # From a path, Pillow maps an uncompressed TIFF into memory, and garbles it if its orientation is not upright.
    formats = formats_of(path)
    with _naming(path), path.open("rb") as file, _header(file, formats) as image:
        if image.format == "PNG":  # the decoder ignores checksums
            _verify_png(file)
        _refuse_planes(image)
        image.load()
        if image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(PHOTOMETRIC_INTERPRETATION) == 0:
            return Image.fromarray(65535 - np.asarray(image, dtype=np.uint16))  # 0 is white; Pillow inverts 8 bits only
        return image


def open_mask(path: Path) -> Image.Image:
    """As `open_image`, turned upright by the file's EXIF orientation."""
    image = open_image(path)
    return ImageOps.exif_transpose(image) if _orientation(image.getexif()) > 1 else image


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels of the upright image, as `read_image` gives it, from the file's header.

    Raises as `open_image`.
    """
    size, orientation = stored_size(path)
    return (size[1], size[0]) if orientation >= 5 else size


def stored_size(path: Path) -> tuple[tuple[int, int], int]:
    """(width, height) as stored, and the EXIF orientation (1 to 8), from the header; raises as `open_image`."""
    try:
        with path.open("rb") as file, Image.open(file, formats=formats_of(path)) as image:
            # Pillow decodes a whole PNG to look for EXIF behind its pixels, where it rarely is.
            late = image.format == "PNG" and _ends_with_more(file)
            return image.size, _orientation(image.getexif() if late else Image.Image.getexif(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        whole = open_image(path)  # says in one line what is wrong with the file
        return whole.size, _orientation(whole.getexif())


def _orientation(exif: Image.Exif) -> int:
    value = exif.get(ExifTags.Base.Orientation, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _ends_with_more(file: BinaryIO) -> bool:
    """Whether a PNG has other chunks than its end after its pixels."""
    here, at = file.tell(), 8
    chunk = b""
    while chunk != b"IEND":
        file.seek(at)
        head = file.read(8)
        if len(head) < 8 or (chunk == b"IDAT" and head[4:] not in (b"IDAT", b"IEND")):
            file.seek(here)
            return len(head) == 8
        at, chunk = at + 12 + int.from_bytes(head[:4]), head[4:]
    file.seek(here)
    return False


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """An image stored with this EXIF orientation, turned upright."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


class MaskSizeError(ValueError):
    """A mask has another size than its photograph."""


def mask_turn(
    image: Path,
    mask: tuple[int, int],
    what: str,
    scaled: bool = False,
    stored: tuple[tuple[int, int], int] | None = None,
) -> int:
    """The EXIF orientation by which to turn a mask so that it fits its upright photograph; 1 leaves it as it is.

    A mask of the upright size is taken as drawn on the upright photograph; one that only fits the photograph as it is
    stored, as drawn on that. If it fits both ways and EXIF turns the photograph, the result is 0: as it is.

    Args:
        image: the photograph.
        mask: (width, height) of the mask.
        what: the mask's file, for the message.
        scaled: whether only the aspect ratios need to agree, up to the rounding of the smaller image.
        stored: the result of `stored_size` for the photograph, if it is known.

    Raises:
        MaskSizeError: the mask fits neither way.
        FileNotFoundError, ValueError: as `open_image`.
    """

    def fits(width: int, height: int) -> bool:
        apart = abs(width * mask[1] - mask[0] * height)
        return mask == (width, height) or (scaled and apart < max(height, mask[1]))

    (width, height), orientation = stored_size(image) if stored is None else stored
    upright_size = (height, width) if orientation >= 5 else (width, height)
    if fits(*upright_size):
        return 0 if orientation > 1 and fits(width, height) else 1
    if fits(width, height):
        return orientation
    aspect = ", of another aspect" if scaled else ""
    raise MaskSizeError(
        f"{image} is {upright_size[0]}x{upright_size[1]} but its mask {what} {mask[0]}x{mask[1]}{aspect}; a mask must "
        "be of the same crop: mend or remove the pair"
    )


def fit_mask(mask: NDArray[Any], image: Path, what: str, scaled: bool = False) -> NDArray[Any]:
    """A mask (h, w) or (h, w, 3) turned to fit its upright photograph; arguments and errors as of `mask_turn`."""
    turn = mask_turn(image, (mask.shape[1], mask.shape[0]), what, scaled)
    return mask if turn <= 1 else np.asarray(upright(Image.fromarray(mask), turn))


def check_sizes(
    image: Path,
    masks: Sequence[Path],
    faults: list[str],
    mask_size: tuple[int, int] | None = None,
    scaled: bool = False,
) -> bool:
    """Compares the sizes of masks with their photograph, and adds a line to `faults` for each wrong file.

    Args:
        image: the photograph.
        masks: its masks, of one size.
        faults: the list of faults.
        mask_size: (width, height) of a mask that has no file of its own.
        scaled: as for `mask_turn`.

    Returns:
        Whether EXIF turns the photograph and the mask fits both ways.
    """
    either = False
    first: tuple[int, int] | None = None
    try:
        if mask_size is None and not masks:
            image_size(image)
        elif mask_size is not None:
            either = mask_turn(image, mask_size, "in the annotations", scaled) == 0
    except (OSError, ValueError) as error:
        faults.append(str(error))
        return False
    for mask in masks:
        try:
            size = image_size(mask)
            if first is None:
                first = size
                either = mask_turn(image, size, str(mask), scaled) == 0
            elif size != first:
                faults.append(
                    f"{mask} is {size[0]}x{size[1]} but {masks[0].name} {first[0]}x{first[1]}; the masks of an image "
                    "are of one size: copy them again"
                )
        except (OSError, ValueError) as error:
            if str(error) not in faults[-1:]:
                faults.append(str(error))
    return either


def check_image(path: Path) -> None:
    """Raises as `open_image`, but faster: decodes a JPEG at an eighth of its size, verifies a PNG's checksums."""
    formats = formats_of(path)
    with _naming(path), path.open("rb") as file, _header(file, formats) as image:
        if image.format == "PNG":
            _verify_png(file)
            return
        _refuse_planes(image)
        image.draft("RGB", (1, 1))
        image.load()


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as upright 8-bit RGB: EXIF rotation applied, alpha laid on white, more than 8 bits scaled to 8.

    Integers are taken as 0..65535 and floats as 0..1, 0..255 or 0..65535, the first range that holds the maximum (by a
    tenth more at most); larger values are scaled by their maximum. Negative values and nan become black. Of 16-bit
    colour images Pillow reads the upper 8 bits. Colour profiles are not applied.
    """
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # `exif_transpose` would copy an upright image
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _wide_grey(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy an RGB image


def _wide_grey(image: Image.Image) -> Image.Image:
    """The 8-bit version of an image with more than 8 bits per pixel."""
    values = np.array(image, dtype=np.float64)
    peak = float(values.max(where=np.isfinite(values), initial=0.0))
    ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    top = next((top for top in ranges if peak <= 1.1 * top), peak)
    if "transparency" in image.info:
        values[values == image.info["transparency"]] = top
    np.nan_to_num(values, copy=False)
    np.clip(values, 0, top, out=values)
    values *= 255.0 / top
    return Image.fromarray(np.rint(values, out=values).astype(np.uint8))


def read_image(path: Path) -> Image.Image:
    """The image as upright 8-bit RGB; raises as `open_image`."""
    image = open_image(path)
    with _naming(path):
        return to_rgb(image)


def read_mask(path: Path, classes: int, space: str, palette: Sequence[tuple[int, int, int]] = ()) -> NDArray[np.uint8]:
    """An index mask, (H, W) uint8 in 0..classes-1 or 255, turned upright by its own EXIF orientation.

    Args:
        path: of the file.
        classes: number of classes of the label space.
        space: its name, for messages.
        palette: its colours. If a palette file has only these (and `VOID`, for 255), they decide instead of the
            indices, which an optimiser may have renumbered; an RGB file must have only these.

    Raises:
        ValueError: not one channel of indices, an index that the label space does not have, or a colour of another
            class than the index; the message names it.
    """
    image = open_mask(path)
    if image.mode in ("RGB", "RGBA") and palette:
        return _of_colours(path, image, palette, space)
    if image.mode not in ("L", "P", "1"):
        raise ValueError(f"{path} has mode {image.mode}; a mask needs one 8-bit channel of class indices")
    mask = np.asarray(image, dtype=np.uint8)
    if image.mode == "P" and palette:
        mask = _by_colours(path, image, mask, [*palette, *[None] * (255 - len(palette)), VOID])
    highest = int(mask.max())
    if highest == 255:
        highest = int(mask.max(where=mask != 255, initial=0))
    if highest >= classes:
        found = np.unique(mask)  # slow, hence only for the message
        wrong = found[(found >= classes) & (found != 255)]
        raise ValueError(f"mask {path} holds class {wrong[0]}; {space} has classes 0..{classes - 1}; map or mend it")
    return mask


def _of_colours(
    path: Path, image: Image.Image, palette: Sequence[tuple[int, int, int]], space: str
) -> NDArray[np.uint8]:
    """The class indices of the colours of an RGB file."""
    packed = np.asarray(image.convert("RGB")).astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    found, inverse = np.unique(packed, return_inverse=True)
    known = {(r << 16) + (g << 8) + b: i for i, (r, g, b) in [*enumerate(palette), (255, VOID)]}
    wrong = next((int(value) for value in found if int(value) not in known), None)
    if wrong is not None:
        colour = (wrong >> 16, wrong >> 8 & 255, wrong & 255)
        raise ValueError(
            f"{path} has mode {image.mode} and colour {colour}, which no class of {space} has; a mask needs one 8-bit "
            "channel of class indices, or only the classes' colours"
        )
    return np.array([known[int(value)] for value in found], dtype=np.uint8)[inverse].reshape(packed.shape)


def _by_colours(
    path: Path, image: Image.Image, mask: NDArray[np.uint8], known: Sequence[tuple[int, int, int] | None]
) -> NDArray[np.uint8]:
    """The class indices of the colours of a palette file if all of them are known, else its own indices."""
    flat = image.getpalette("RGB") or []
    used = [index for index, count in enumerate(image.histogram()) if count]
    colours = [(flat[3 * i], flat[3 * i + 1], flat[3 * i + 2]) if 3 * i + 2 < len(flat) else None for i in used]
    if len(set(colours)) < len(used):  # such colours do not identify classes
        return mask
    table, found = np.arange(256, dtype=np.uint8), [known.index(c) if c in known and c else None for c in colours]
    wrong = [(i, f) for i, f in zip(used, found, strict=True) if f not in (i, None)]
    if wrong and None in found:
        raise ValueError(
            f"{path}: index {wrong[0][0]} has the colour of class {wrong[0][1]}, but other colours belong to no class; "
            "save the indices as they are, or all in the classes' colours"
        )
    if not wrong:
        return mask
    table[used] = np.array(found, dtype=np.uint8)
    return table.take(mask)


def resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image resized to (H, W), aspect not kept, bilinear with antialiasing."""
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def resize_mask(mask: NDArray[Number], size: tuple[int, ...], by: MaskFilter = "nearest") -> NDArray[Number]:
    """An index mask or superpixel numbers, uint8 or int32, resized to (H, W) by the nearest pixel or by majority."""
    height, width = size
    if mask.shape == (height, width):
        return mask
    if by == "majority":
        from structseg.datamodules.batch import mask_tensor, shrink_by_majority  # here, as it loads torch

        return shrink_by_majority(mask_tensor(mask)[None], (height, width))[0].numpy().astype(mask.dtype)
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
