"""Drawing label maps: colours, overlays, and sheets of image | truth | prediction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from structseg.datamodules.label_spaces import LabelSpace

Pixels = NDArray[np.uint8]
Labels = Tensor | NDArray[Any]

IGNORED = ((104, 104, 104), (152, 152, 152))  # the two greys of the checkerboard; in no palette of the suite
_CHECK = 4  # pixels of a square of it
_GAP = 8  # pixels between panels
_SWATCH = (12, 18)
_WRONG = (220, 30, 30)
_INK, _FAINT, _PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)


def colorize(mask: Labels, space: LabelSpace) -> Pixels:
    """The palette's colour of each pixel; ignored pixels become a grey checkerboard.

    Args:
        mask: (H, W) class indices, `space.ignore_index` where nothing is labelled; a tensor on any device or an array.
        space: the classes.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: the mask has other axes, or holds a value that is no class.
    """
    labels = _labels(mask, space)
    table = np.zeros((256, 3), np.uint8)
    table[: len(space)] = space.palette
    table[space.ignore_index] = IGNORED[0]
    colours: Pixels = table[labels]
    ignored = labels == space.ignore_index
    if ignored.any():
        rows, columns = np.nonzero(ignored)
        light = (rows // _CHECK + columns // _CHECK) % 2 == 1
        colours[rows[light], columns[light]] = IGNORED[1]
    return colours


def overlay(image: Pixels, mask: Labels, space: LabelSpace, alpha: float = 0.5) -> Pixels:
    """The image tinted with the palette; the background keeps the image's own colours.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W), as for `colorize`.
        space: the classes.
        alpha: strength of the tint, 0 (only the image) to 1 (only the palette).

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: image and mask differ in size, `alpha` is out of range, or as `colorize`.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; give 0 (only the image) to 1 (only the palette)")
    labels = _labels(mask, space)
    if image.shape != (*labels.shape, 3):
        raise ValueError(f"the image is {image.shape}, the mask {labels.shape}; resize one: (H, W, 3) and (H, W)")
    weight = np.where(labels == 0, 0, round(256 * alpha)).astype(np.uint16)[..., None]
    mixed = image * (256 - weight) + colorize(labels, space) * weight + 128
    return (mixed >> 8).astype(np.uint8)


def _labels(mask: Labels, space: LabelSpace) -> Pixels:
    labels = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if labels.ndim != 2:
        raise ValueError(f"the mask has shape {labels.shape}; expected (H, W) class indices")
    found = np.unique(labels)
    wrong = found[((found < 0) | (found >= len(space))) & (found != space.ignore_index)]
    if wrong.size:
        raise ValueError(
            f"the mask holds {wrong[0]}; {space.name} has classes 0..{len(space) - 1} and {space.ignore_index} = "
            "ignored; map the labels first"
        )
    return labels.astype(np.uint8)


class Example(NamedTuple):
    """One picture, ready to be drawn: everything at the displayed size (h, w).

    Attributes:
        image: (h, w, 3) uint8.
        truth: (h, w) uint8.
        prediction: (h, w) uint8.
        name: the caption.
        right: share of the labelled pixels that are right, 0..1, before any resizing; nan without labelled pixels.
    """

    image: Pixels
    truth: Pixels
    prediction: Pixels
    name: str
    right: float


def make_example(
    image: Tensor | Pixels, truth: Labels, prediction: Labels, space: LabelSpace, name: str = "", side: int = 320
) -> Example:
    """Resizes image and label maps to one size for display.

    Args:
        image: (3, H, W) float tensor in 0..1, where nan is drawn black, or (H, W, 3) uint8; of any size.
        truth: (h, w) class indices or the ignore index.
        prediction: (h, w) class indices.
        space: the classes.
        name: the caption.
        side: longest side of the drawing in pixels; smaller maps are magnified by a whole number.

    Raises:
        ValueError: truth and prediction differ in size, or hold a value that is no class.
    """
    labels, guess = _labels(truth, space), _labels(prediction, space)
    if labels.shape != guess.shape:
        raise ValueError(f"the truth is {labels.shape}, the prediction {guess.shape}; resize one to the other")
    counted = labels != space.ignore_index
    right = float((labels == guess)[counted].mean()) if counted.any() else float("nan")
    longest = max(labels.shape)
    factor = side / longest if longest > side else max(1, 256 // longest)
    height, width = (max(1, round(length * factor)) for length in labels.shape)
    small = [np.asarray(Image.fromarray(m).resize((width, height), Image.Resampling.NEAREST)) for m in (labels, guess)]
    resampling = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BILINEAR
    picture = Image.fromarray(as_pixels(image)).resize((width, height), resampling)
    return Example(np.asarray(picture), small[0], small[1], name, right)


def sheet(examples: Sequence[Example], space: LabelSpace) -> Image.Image:
    """Rows of image | truth | prediction, two side by side from the fourth on, over one legend.

    Raises:
        ValueError: no examples.
    """
    if not examples:
        raise ValueError("a sheet needs one example or more, got none")
    rows = [_row(example, space) for example in examples]
    columns = 1 if len(rows) < 4 else 2
    width = max(row.width for row in rows)
    found = np.unique(np.concatenate([np.concatenate([e.truth.ravel(), e.prediction.ravel()]) for e in examples]))
    key = legend([int(label) for label in found], space, columns * (width + 2 * _GAP))
    lines = [rows[start : start + columns] for start in range(0, len(rows), columns)]
    heights = [max(row.height for row in line) for line in lines]
    page = Image.new("RGB", (key.width, sum(heights) + key.height), _PAPER)
    top = 0
    for line, height in zip(lines, heights, strict=True):
        for column, row in enumerate(line):
            page.paste(row, (column * (width + 2 * _GAP) + _GAP, top))
        top += height
    page.paste(key, (0, top))
    return page


def error_tile(example: Example, space: LabelSpace) -> Image.Image:
    """Image and truth above, prediction and error below: wrong pixels in red, ignored ones as in the truth."""
    grey = example.image.mean(2, keepdims=True).repeat(3, 2) * 0.6 + 90
    counted = example.truth != space.ignore_index
    grey[counted & (example.truth != example.prediction)] = _WRONG
    grey[~counted] = colorize(example.truth, space)[~counted]
    panels = (example.image, colorize(example.truth, space), colorize(example.prediction, space), grey.astype(np.uint8))
    height, width = example.truth.shape
    page = Image.new("RGB", (2 * width + _GAP, 2 * height + _GAP), _PAPER)
    for i, pixels in enumerate(panels):
        page.paste(Image.fromarray(pixels), (i % 2 * (width + _GAP), i // 2 * (height + _GAP)))
    return page


def as_pixels(image: Tensor | Pixels) -> Pixels:
    """(H, W, 3) uint8 of an image (3, H, W) in 0..1, or of such pixels; nan is 0."""
    if isinstance(image, Tensor):
        values = image.detach().float().cpu().nan_to_num(0.0).clamp(0, 1)
        return (values * 255).round().byte().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(image)


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """The suite's font at a size in pixels."""
    package = find_spec("matplotlib")  # found, not imported, which would take half a second
    assert package is not None
    assert package.origin is not None
    # The font in matplotlib has far more letters than Pillow's own.
    return ImageFont.truetype(Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The end of a text, where file names differ, as far as it fits."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("…" + text) > width:
        text = text[1:]
    return "…" + text


def _row(example: Example, space: LabelSpace) -> Image.Image:
    height, width = example.truth.shape
    font, line = font_of(13), 20
    right = "" if np.isnan(example.right) else f"  {100 * example.right:.1f} % right"
    panels = (
        (example.name or "image", example.image),
        ("truth", colorize(example.truth, space)),
        ("prediction" + right, colorize(example.prediction, space)),
    )
    row = Image.new("RGB", (3 * width + 2 * _GAP, line + height + _GAP), _PAPER)
    draw = ImageDraw.Draw(row)
    for i, (caption, pixels) in enumerate(panels):
        left = i * (width + _GAP)
        draw.text((left, 3), _cut(caption, width, font), _INK, font)
        row.paste(Image.fromarray(pixels), (left, line))
    return row


def legend(labels: Sequence[int], space: LabelSpace, width: int) -> Image.Image:
    """The colours and names of some labels, in as many lines as a picture of `width` pixels needs."""
    font, line = font_of(12), 20
    names = ["ignored" if label == space.ignore_index else space.classes[label] for label in labels]
    left, top, places = _GAP, _GAP // 2, []
    for name in names:
        wide = _SWATCH[1] + 5 + round(font.getlength(name)) + 14
        if left > _GAP and left + wide > width:
            left, top = _GAP, top + line
        places.append((left, top))
        left += wide
    page = Image.new("RGB", (width, top + line + _GAP // 2), _PAPER)
    draw = ImageDraw.Draw(page)
    for label, name, (x, y) in zip(labels, names, places, strict=True):
        swatch = colorize(np.full(_SWATCH, label), space)
        page.paste(Image.fromarray(swatch), (x, y + 2))
        draw.rectangle((x - 1, y + 1, x + _SWATCH[1], y + 2 + _SWATCH[0]), outline=_FAINT)
        draw.text((x + _SWATCH[1] + 5, y), name, _INK, font)
    return page
