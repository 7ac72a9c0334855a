"""Pictures of a pipeline's rounds: the artefacts of an image, and the confounder sets next to the true one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from structseg.datamodules.label_spaces import LabelSpace
from structseg.datamodules.round_files import Confounders, check_folder, read_artefact_mask, read_cams, read_confounders
from structseg.datamodules.weak.datamodule import WeaklySupervisedDataModule
from structseg.lightning_modules.drawing.label_sheets import colorize, font_of, legend
from structseg.lightning_modules.metrics.confounder_set import ConfounderSet, class_shares
from structseg.messages import nearest
from structseg.pipelines.stages import round_and_arm

SUFFIXES = (".png", ".jpg", ".jpeg")
MAPS = {"relation_labels": "relation labels", "pseudo_masks": "pseudo-mask", "masks": "mask"}  # folder: title
_SIDE = 192  # the longer side of a panel, in pixels
_MAP_SIDE = 64  # of a confounder
_GAP, _LINE, _FONT = 6, 15, 11
_INK, _PAPER, _FAINT = (20, 20, 20), (255, 255, 255), (160, 160, 160)
_HEAT, _STRENGTH = "inferno", 0.7


class Cell(NamedTuple):
    """A picture with text above and below."""

    picture: Image.Image
    above: str = ""
    below: str = ""


def image_sheet(rounds: Sequence[Path], names: Sequence[str], data: WeaklySupervisedDataModule) -> Image.Image:
    """For each image a row with its true mask and a row for each round with its artefacts, above a legend.

    The activation map is the maximum over the tagged classes, from 0 (dark) to 1 (light), on the image in grey.

    Args:
        rounds: folders of the rounds.
        names: of training images.
        data: the datamodule of the images.

    Raises:
        FileNotFoundError: a round lacks the artefacts; the message says what to run.
        ValueError: no such image; the message has the nearest name.
    """
    known = list(data.entries("train"))
    for name in names:
        if name not in known:
            hint = nearest(name, known) or f"; the first of {len(known)} is {known[0]}"
            raise ValueError(f"there is no training image {name}{hint}")
    space = data.label_space
    rows: list[tuple[str, list[Cell]]] = []
    occurring: set[int] = set()
    for folder in rounds:
        for kind in ("cams", *MAPS):
            check_folder(folder / kind, (kind,), names, space)
    for name in names:
        image, truth, _ = data.read(name)
        size = _panel(image.size)
        panel = image.resize(size, Image.Resampling.NEAREST if size[0] > image.width else Image.Resampling.BILINEAR)
        labels = {} if truth is None else {"truth": truth}
        rows.append(("", [Cell(panel, name), *_label_cells(labels, size, space)]))
        for folder in rounds:
            labels |= {title: read_artefact_mask(folder / kind, name, space) for kind, title in MAPS.items()}
            heat = read_cams(folder / "cams", name, space).maps.max(0)
            maps = {title: labels[title] for title in MAPS.values()}
            row = [Cell(_laid_over(panel, heat), "activation map"), *_label_cells(maps, size, space)]
            rows.append(
                (round_title(folder), row if folder == rounds[0] else [cell._replace(above="") for cell in row])
            )
            occurring |= {int(label) for mask in labels.values() for label in np.unique(mask)}
    page = _page(rows)
    key = legend(sorted(occurring), space, page.width)
    whole = Image.new("RGB", (page.width, page.height + key.height), _PAPER)
    whole.paste(page)
    whole.paste(key, (0, page.height))
    return whole


def round_title(folder: Path) -> str:
    """The title of a round in two lines: `round 1` and `sum` for `.../round_1_sum`."""
    number, arm = round_and_arm(folder.name) or (0, "")
    return f"round {number}\n{arm}".strip()


def _panel(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of an image in the picture; a small image is magnified by a whole number."""
    longest = max(size)
    factor = _SIDE / longest if longest > _SIDE else _SIDE // longest
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _label_cells(maps: dict[str, NDArray[np.uint8]], size: tuple[int, int], space: LabelSpace) -> list[Cell]:
    panels = {title: Image.fromarray(mask).resize(size, Image.Resampling.NEAREST) for title, mask in maps.items()}
    return [Cell(Image.fromarray(colorize(np.asarray(mask), space)), title) for title, mask in panels.items()]


def _laid_over(image: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    """The image in grey, overlaid with the colours of a map (h, w) of 0..1."""
    spread = np.asarray(Image.fromarray(heat).resize(image.size, Image.Resampling.BILINEAR))
    shades = np.asarray(colormaps[_HEAT](spread))[..., :3]
    colours = Image.fromarray((255 * shades).round().astype(np.uint8))
    return Image.blend(image.convert("L").convert("RGB"), colours, _STRENGTH)


def confounder_sheet(rounds: Sequence[Path], data: WeaklySupervisedDataModule) -> Image.Image:
    """A row with the confounder set of each round, a column for each class, and a last row for the true masks.

    Each map is drawn from 0 (dark) to its own maximum, which is printed below it; a class without images has an empty
    box. The last column has the `correlation` with the true set.

    Args:
        rounds: folders of the rounds.
        data: the datamodule of the training images.

    Raises:
        FileNotFoundError: a round lacks its confounder set; the message says what to run.
        ValueError: a set has other classes, or an image has no true mask.
    """
    space = data.label_space
    sets = {round_title(folder): read_confounders(folder, space) for folder in rounds}
    truth = true_confounders(data, next(iter(sets.values())).maps.shape[1:])
    rows: list[tuple[str, list[Cell]]] = []
    for title, found in {**sets, "true\nmasks": truth}.items():
        counts = zip(found.classes, found.images.tolist(), strict=True)
        above = [""] * len(found.maps) if rows else [f"{name}\n{count} im." for name, count in counts]
        cells = [
            Cell(_map(mean), text, f"max {mean.max():.2f}") if count else Cell(_empty_box(), text)
            for mean, text, count in zip(found.maps, above, found.images, strict=True)
        ]
        if found is not truth:
            cells.append(
                Cell(_text(f"{correlation(found, truth):.3f}"), "" if rows else "correlation\nwith true masks")
            )
        rows.append((title, cells))
    return _page(rows)


def true_confounders(data: WeaklySupervisedDataModule, size: tuple[int, int] = (32, 32)) -> Confounders:
    """The confounder set of the true masks of all training images, averaged to `size`; ignored pixels have no class.

    Raises:
        ValueError: an image has no true mask or no tags.
    """
    space = data.label_space
    mean = ConfounderSet(space.classes, size)
    for name in data.names("train"):
        _, mask, tags = data.read(name)
        if mask is None or tags is None:
            raise ValueError(f"{name} has no true {'mask' if mask is None else 'tags'}; the true confounders need all")
        mean.update(class_shares(torch.from_numpy(mask), len(space), size), torch.from_numpy(tags))
    found = mean.compute()
    return Confounders(found.confounders.numpy(), found.images.numpy(), space.classes[1:])


def correlation(found: Confounders, truth: Confounders) -> float:
    """Pearson correlation over all pixels of the classes in the training images; nan where a set is constant.

    Raises:
        ValueError: the maps differ in size.
    """
    if found.maps.shape != truth.maps.shape:
        raise ValueError(
            f"confounders are {found.maps.shape}, the true ones {truth.maps.shape}; they cannot be compared"
        )
    present = truth.images > 0
    pair = np.stack([found.maps[present].ravel(), truth.maps[present].ravel()]).astype(np.float64)
    if not present.any() or (pair.std(1) == 0).any():
        return float("nan")
    return float(np.asarray(np.corrcoef(pair))[0, 1])


def _map(mean: NDArray[np.floating[Any]]) -> Image.Image:
    shares = np.asarray(mean / max(float(mean.max()), 1e-6))
    colours = np.asarray(colormaps["magma"](shares))[..., :3]
    pixels = Image.fromarray((255 * colours).round().astype(np.uint8))
    return pixels.resize((_MAP_SIDE, _MAP_SIDE), Image.Resampling.NEAREST)


def _empty_box() -> Image.Image:
    box = Image.new("RGB", (_MAP_SIDE, _MAP_SIDE), _PAPER)
    ImageDraw.Draw(box).rectangle((0, 0, _MAP_SIDE - 1, _MAP_SIDE - 1), outline=_FAINT)
    return box


def _text(text: str) -> Image.Image:
    page = Image.new("RGB", (_MAP_SIDE, _MAP_SIDE), _PAPER)
    ImageDraw.Draw(page).text((_MAP_SIDE / 2, _MAP_SIDE / 2), text, _INK, font_of(_FONT), anchor="mm")
    return page


def _page(rows: Sequence[tuple[str, Sequence[Cell]]]) -> Image.Image:
    """A page of rows of cells, aligned in columns, with the title of each row on the left."""
    font = font_of(_FONT)

    def wide(text: str) -> int:
        return max((round(font.getlength(line)) for line in text.split("\n")), default=0)

    left = max(wide(title) for title, _ in rows) + 2 * _GAP
    columns = [0] * max(len(cells) for _, cells in rows)
    for _, cells in rows:
        for i, cell in enumerate(cells):
            columns[i] = max(columns[i], cell.picture.width, wide(cell.above), wide(cell.below))
    heights = [
        (
            max(_lines(cell.above) for cell in cells),
            max(cell.picture.height for cell in cells),
            max(_lines(cell.below) for cell in cells),
        )
        for _, cells in rows
    ]
    size = (left + sum(width + _GAP for width in columns), sum(sum(parts) + _GAP for parts in heights) + _GAP)
    page = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(page)
    top = _GAP
    for (title, cells), (above, high, below) in zip(rows, heights, strict=True):
        draw.multiline_text((_GAP, top + above + high / 2), title, _INK, font, anchor="lm")
        at = left
        for cell, width in zip(cells, columns, strict=False):
            draw.multiline_text((at, top), cell.above, _INK, font)
            page.paste(cell.picture, (at, top + above))
            draw.multiline_text((at, top + above + high + 1), cell.below, _INK, font)
            at += width + _GAP
        top += above + high + below + _GAP
    return page


def _lines(text: str) -> int:
    """Height of a text in pixels."""
    return _LINE * len(text.splitlines())


def save_picture(page: Image.Image, path: Path) -> None:
    """Writes a PNG of at most 256 colours, or a JPEG, by the suffix of the path; makes its folder.

    Raises:
        ValueError: another suffix.
        OSError: the file cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"the picture is {path}; expected a name that ends in {', '.join(SUFFIXES)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".png":
        page.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    else:
        page.save(path, quality=85, subsampling=0, optimize=True)
