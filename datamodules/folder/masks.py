"""Reading masks of many kinds as class maps: indices, palettes, colours, 16 bits, 0 and 255; nothing is guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE

from structseg.datamodules.folder.pairs import Pair
from structseg.datamodules.images import fit_mask, open_image, stored_size, upright

Value = int | tuple[int, int, int]
JPEGMasks = Literal["refuse", "nearest"]

IGNORE = 255
_LOSSY = ("JPEG", "JPEG2000", "AVIF")
_NEAR = 40  # grey levels: largest deviation from a class's value in each channel of a lossy mask
_APART = 32  # grey levels: smallest distance between values of a lossy mask
_FAR_PIXELS = 0.01  # share of pixels of a lossy mask that may deviate more, at edges


class MaskReader:
    """Reads masks as maps of class indices.

    Args:
        values: class index (255: ignored) of each mask value: a grey level or palette index, or a colour.
        names: names of the classes, for messages.
        colours: (r, g, b) that each class is drawn in, to recognise palettes.
        jpeg: `nearest` reads lossy masks by the nearest value if nearly all pixels are near one; `refuse` raises.
    """

    def __init__(
        self,
        values: Mapping[Value, int],
        names: Sequence[str],
        colours: Sequence[tuple[int, int, int]] = (),
        jpeg: JPEGMasks = "refuse",
    ) -> None:
        self.values, self.names, self.jpeg = dict(values), tuple(names), jpeg
        self.greys = {value: index for value, index in values.items() if isinstance(value, int)}
        self.stated = {value: index for value, index in values.items() if not isinstance(value, int)}
        greys = {(v, v, v): index for v, index in self.greys.items() if v < 256 and self.stated}
        self.colours = {**greys, **{colour: index for index, colour in enumerate(colours)}, **self.stated}

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the tables, which are large and made again when needed."""
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}

    @cached_property
    def _grey_table(self) -> NDArray[np.uint16]:
        """(65536,): class + 1 of each value; 0: no class."""
        table = np.zeros(1 << 16, dtype=np.uint16)
        for value, index in self.greys.items():
            table[value] = index + 1
        return table

    @cached_property
    def _colour_table(self) -> NDArray[np.uint16]:
        """(2^24,): class + 1 of each colour; 0: no class."""
        # Only the pages that are written take memory.
        table = np.zeros(1 << 24, dtype=np.uint16)
        for (red, green, blue), index in self.colours.items():
            table[red | green << 8 | blue << 16] = index + 1
        return table

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        """The class map of a mask as stored, (H, W) uint8, 255 where ignored.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is damaged or lossy, or has a value of no class: the message has file, value, number of
                pixels, and the classes' values.
        """
        return self._classes(path, open_image(path))

    def _classes(self, path: Path, image: Image.Image) -> NDArray[np.uint8]:
        if lossy(path, image):
            return self._nearest(path, image)
        if wide_colours(path, image):
            raise ValueError(f"{path} has colours of 16 bits a channel; save the mask with 8")
        if image.mode == "P":
            return self._palette(path, image)
        if image.mode not in ("1", "L", "LA", "La", "F") and not image.mode.startswith("I"):
            return self._coloured(path, image)
        image = image.getchannel(0) if image.mode in ("LA", "La") else image
        depth = grey_depth(path)
        if depth >= 8 or image.mode not in ("L", "1"):
            return self._grey(path, np.asarray(image))
        step = 255 // ((1 << depth) - 1)  # samples of 1, 2 or 4 bits: indices, or an optimiser's form of 0 to 255
        levels = np.asarray(image.convert("L"))
        return self._either(path, levels, levels // step, strict=True)

    def _grey(self, path: Path, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        if pixels.dtype.kind == "f" and not np.array_equal(pixels, np.rint(pixels)):
            raise ValueError(f"{path} holds fractions; a mask needs whole numbers: save the indices")
        if pixels.dtype == np.uint8 and self._plain > pixels.max():
            return pixels
        if pixels.dtype not in (np.uint8, np.uint16):
            outside = pixels[(pixels < 0) | (pixels > 65535)]
            if len(outside):
                self._refuse(path, int(outside[0]), int((pixels == outside[0]).sum()))
            pixels = pixels.astype(np.uint16)
        return self._looked_up(path, pixels, self._grey_table)

    @cached_property
    def _plain(self) -> int:
        """The first value from 0 on that is not its own class index."""
        return next(value for value in range(257) if self.greys.get(value) != value)

    def _looked_up(self, path: Path, pixels: NDArray[Any], table: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """(H, W) values or (H, W, 3) colours by the table, once for each run of equal pixels: a mask has few."""
        channels, flat = (3 if pixels.ndim == 3 else 1), pixels.ravel()
        changes = np.flatnonzero(flat[channels:] != flat[:-channels]) // channels + 1
        starts = np.concatenate([[0], changes[np.diff(changes, prepend=0) > 0]])
        lengths = np.diff(starts, append=flat.size // channels)
        values = (
            flat.reshape(-1, channels)[starts].astype(np.uint32) @ np.array([1, 1 << 8, 1 << 16], np.uint32)[:channels]
        )
        classes = table.take(values)
        if not classes.all():
            wrong = int(values[classes == 0][0])
            colour = (wrong & 255, wrong >> 8 & 255, wrong >> 16)
            self._refuse(path, colour if channels == 3 else wrong, int(lengths[values == wrong].sum()))
        return np.repeat((classes - 1).astype(np.uint8), lengths).reshape(pixels.shape[:2])

    def _either(
        self, path: Path, levels: NDArray[np.uint8], indices: NDArray[np.uint8], strict: bool
    ) -> NDArray[np.uint8]:
        """Reads a mask as grey levels if all are classes' values, else as indices; raises where it could be both."""
        pairs = np.unique(np.stack([levels.ravel(), indices.ravel()]), axis=1).T.tolist()
        if not all(level in self.greys for level, _ in pairs):
            return self._grey(path, indices)
        for level, index in pairs:
            other = all(i in self.greys for _, i in pairs) and self.greys[index] != self.greys[level]
            if other and (strict or self.greys[level] == IGNORE):
                raise ValueError(
                    f"{path}: {index} may be {self._name(self.greys[index])} or, as the grey level {level} that it is "
                    f"shown in, {self._name(self.greys[level])}; save the mask as grey with 8 bits"
                )
        return self._grey(path, levels)

    def _palette(self, path: Path, image: Image.Image) -> NDArray[np.uint8]:
        """Reads a palette mask by its colours if they are the classes' in any order, else by indices or grey levels."""
        pixels = np.asarray(image)
        flat = image.getpalette("RGB") or []
        palette = dict(enumerate(zip(flat[::3], flat[1::3], flat[2::3])))  # noqa: B905
        if all(self.colours.get(palette.get(i, (-1, -1, -1))) == i for i in range(int(pixels.max()) + 1)):
            return pixels  # colours and indices say the same
        counts = image.histogram()
        used = [i for i, count in enumerate(counts) if count]
        found = {i: palette[i] for i in used if i in palette}
        distinct = len(set(found.values())) == len(used)  # unlike in a palette that is all black
        by_colour = {i: self.colours[colour] for i, colour in found.items() if distinct and colour in self.colours}
        if len(by_colour) < len(used):
            greys = distinct and all(r == g == b for r, g, b in found.values())
            if greys and not self.stated:  # a grey image with its levels in a palette
                levels = np.array([palette.get(i, (0,))[0] for i in range(256)], np.uint8)
                return self._either(path, levels.take(pixels), pixels, strict=False)
            for i in used:
                if i not in by_colour and i not in self.greys:
                    self._refuse(path, f"{i} (coloured {found[i]})" if i in found else i, counts[i])
                if self.greys.get(i, by_colour.get(i)) != by_colour.get(i, self.greys.get(i)):
                    raise ValueError(
                        f"{path}: index {i} is {self._name(self.greys[i])}, but its colour {found[i]} is that of "
                        f"{self._name(by_colour[i])}, and other colours are no class's; give each class its rgb"
                    )
        table = np.zeros(256, dtype=np.uint8)
        table[used] = [by_colour[i] if i in by_colour else self.greys[i] for i in used]
        return pixels if (table[used] == used).all() else table.take(pixels)

    def _coloured(self, path: Path, image: Image.Image) -> NDArray[np.uint8]:
        if image.mode == "RGBA":
            image = Image.merge("RGB", image.split()[:3])  # transparent pixels keep their colours
        pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
        if not self.stated and (pixels == pixels[..., :1]).all():
            return self._grey(path, np.ascontiguousarray(pixels[..., 0]))
        return self._looked_up(path, pixels, self._colour_table)

    def _nearest(self, path: Path, image: Image.Image) -> NDArray[np.uint8]:
        kind = f"{path} is {image.format}, which does not keep values exactly"
        if self.jpeg != "nearest":
            raise ValueError(
                f"{kind}; save masks as PNG, or give --data.jpeg_masks nearest if their values lie far apart"
            )
        coloured = image.mode not in ("L", "1", "I;16", "I") and bool(self.stated)
        known: dict[Any, int] = dict(self.stated) if coloured else {(value,): i for value, i in self.greys.items()}
        pixels = np.asarray(image.convert("RGB" if coloured else "L"), dtype=np.int16)
        pixels = pixels if coloured else pixels[..., None]
        best, classes = np.full(pixels.shape[:2], 999, np.int16), np.zeros(pixels.shape[:2], np.uint8)
        for value, index in known.items():
            near = min((max(abs(a - b) for a, b in zip(value, o)) for o in known if o != value), default=255)  # noqa: B905
            if near < _APART:
                raise ValueError(f"{kind}, and {value} lies {near} from another class's; save masks as PNG")
            distance = np.abs(pixels - np.array(value, dtype=np.int16)).max(-1)
            classes[distance < best] = index
            best = np.minimum(best, distance)
        far = best > _NEAR
        if far.mean() > _FAR_PIXELS:
            raise ValueError(
                f"{kind}, and {int(far.sum())} of its pixels ({far.mean():.0%}) are near no class's value "
                f"({self._listing()}); save masks as PNG"
            )
        return classes

    def _name(self, index: int) -> str:
        return "ignored" if index == IGNORE else self.names[index]

    def _listing(self) -> str:
        """The values of the classes, for messages."""
        found = [f"{value} {self._name(index)}" for value, index in self.values.items()]
        return ", ".join(found[:12]) + (f", and {len(found) - 12} more" if len(found) > 12 else "")

    def _refuse(self, path: Path, value: object, count: int) -> None:
        raise ValueError(
            f"mask {path} has {value} in {count} pixels, which is no class's value ({self._listing()}); give it to a "
            "class or to ignore, or mend the mask"
        )


def lossy(path: Path, image: Image.Image) -> bool:
    """Whether a file's format changes values."""
    if image.format == "WEBP":
        with path.open("rb") as file:
            return b"VP8L" not in file.read(4096)
    return image.format in _LOSSY


def grey_depth(path: Path) -> int:
    """Bits per sample of a PNG; 8 for other files."""
    with path.open("rb") as file:
        head = file.read(25)
    return head[24] if head[:4] == b"\x89PNG" and len(head) == 25 else 8


def wide_colours(path: Path, image: Image.Image) -> bool:
    """Whether a colour image has more than 8 bits per channel, of which Pillow keeps the upper 8."""
    if image.mode not in ("RGB", "RGBA"):
        return False
    bits = getattr(image, "tag_v2", {}).get(BITSPERSAMPLE, (8,))
    return grey_depth(path) > 8 or max(bits if isinstance(bits, tuple) else (bits,)) > 8


def read_pair_mask(pair: Pair, read: MaskReader) -> NDArray[np.uint8]:
    """The class map of a pair, (H, W) of its upright photograph.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: as `MaskReader`, or the mask fits neither way.
    """
    assert pair.mask is not None
    classes = read(pair.mask)
    own = stored_size(pair.mask)[1]
    if own != 1:
        classes = np.asarray(upright(Image.fromarray(classes), own))
    return fit_mask(classes, pair.image, str(pair.mask))
