"""Real label maps as layouts: the scenes' textures painted into the shapes and places of photographs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from structseg.datamodules.batch import Split
from structseg.datamodules.confounded_scenes.cooccurrence import base_probability, draw_ground
from structseg.datamodules.confounded_scenes.scene import Picture, SceneCanvas
from structseg.datamodules.confounded_scenes.textures import Coat, ground
from structseg.datamodules.drawing.dice import Dice
from structseg.datamodules.images import read_mask, resize_mask
from structseg.datamodules.label_spaces import VOC

_REGIONS = 8  # of a class, the largest, with different coats; the others share the last one's
_KEPT_BYTES = 128 << 20
_VOID = VOC.ignore_index


def choose_layouts(
    folder: Path, counts: Mapping[Split, int], lists: Mapping[Split, Path] | None = None, seed: int = 0
) -> dict[Split, list[str]]:
    """Draws different layouts for each split: names without suffix.

    Args:
        folder: of VOC-style masks, `NAME.png`.
        counts: number of layouts of each split.
        lists: for each split a file with one name per line; a split without one takes the rest of `train`'s. None: all
            splits draw from the folder.
        seed: of the choice.

    Raises:
        FileNotFoundError: no such folder or list.
        ValueError: too few layouts, a listed one without file, or one in the lists of two splits.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; give --data.layouts a folder of VOC-style masks (NAME.png)")
    there = sorted(path.stem for path in folder.glob("*.png"))
    pools: dict[Split, list[str]] = (
        {split: _read_list(file) for split, file in lists.items()} if lists else {"train": there}
    )
    for split, names in pools.items():
        missing = sorted(set(names) - set(there))
        if missing:
            raise ValueError(f"the list of {split} names {missing[0]} ({len(missing)} such), not in {folder}; mend it")
    chosen: dict[Split, list[str]] = {}
    left = {split: _shuffled(pool, seed) for split, pool in pools.items()}
    for split, count in counts.items():
        source: Split = split if split in left else "train"
        names = left.get(source, [])
        if len(names) < count:
            raise ValueError(f"{split}={count}, but {len(names)} layouts are left for it; ask for fewer or give a list")
        chosen[split], left[source] = names[:count], names[count:]
    taken: set[str] = set()
    for split, names in chosen.items():
        if taken & set(names):
            raise ValueError(f"layout {min(taken & set(names))} of {split} is in another split too; mend the lists")
        taken |= set(names)
    return chosen


def _read_list(file: Path) -> list[str]:
    if not file.is_file():
        raise FileNotFoundError(f"no list {file}; give --data.layout_lists a file with one name a line")
    return list(dict.fromkeys(file.read_text(encoding="utf-8").split()))


def _shuffled(names: list[str], seed: int) -> list[str]:
    return [names[index] for index in np.random.default_rng([seed, len(names)]).permutation(len(names))]


class PaintedLayouts:
    """Label maps painted with a texture for each class and a ground; the masks are exact and keep the void.

    The classes of an image are those of the layout. The ground depends on the class with most pixels, as by
    `draw_ground`.

    Args:
        folder: of VOC-style masks with indices 0..20 and 255.
        seed: of textures and grounds, 0 or more.
        size: (H, W) in pixels that layouts are resized to and painted at.
    """

    def __init__(self, folder: Path, seed: int = 0, size: tuple[int, int] = (96, 96)) -> None:
        self.folder, self.seed, self.size = folder, seed, size
        self._layouts: dict[str, NDArray[np.uint8]] = {}

    def layout(self, name: str) -> NDArray[np.uint8]:
        """(H, W) class indices of a layout at `size`, decoded once; raises as `images.read_mask`."""
        if name not in self._layouts:
            layout = resize_mask(read_mask(self.folder / f"{name}.png", len(VOC), VOC.name), self.size)
            if len(self._layouts) * layout.size >= _KEPT_BYTES:
                return layout
            self._layouts[name] = layout
        return self._layouts[name]

    def render(self, name: str, strength: float) -> Picture:
        """The painted layout; its picture depends on seed and name, not on the split."""
        base_probability(strength)
        layout = self.layout(name)
        dice = Dice(np.random.default_rng([self.seed, *name.encode()]))
        shapes = spread_over_void(layout)
        areas = np.bincount(shapes.ravel(), minlength=len(VOC))[1:]
        canvas = SceneCanvas(self.size)
        canvas.mask[...] = layout
        kind = draw_ground(dice, int(areas.argmax()) + 1, strength)
        canvas.image[...] = ground(kind, canvas.x, canvas.y, dice)
        for index in np.flatnonzero(areas):
            _paint_class(canvas, shapes == index + 1, int(index) + 1, dice)
        return canvas.finish(dice)


def spread_over_void(layout: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) indices without void, whose pixels get a neighbour's class, from the rim inwards, and 0 further inside."""
    grown = layout.copy()
    first, last = np.s_[:-1], np.s_[1:]
    for _ in range(max(2, max(layout.shape) // 32)):
        if not (grown == _VOID).any():
            break
        before = grown.copy()
        for old, new in ((before, grown), (before.T, grown.T)):
            np.copyto(new[last], old[first], where=new[last] == _VOID)
            np.copyto(new[first], old[last], where=new[first] == _VOID)
    grown[grown == _VOID] = 0
    return grown


def _paint_class(canvas: SceneCanvas, shape: NDArray[np.bool_], kind: int, dice: Dice) -> None:
    """Paints the regions of a class with different coats; a round third of each shows the full pattern."""
    regions, _ = ndimage.label(shape)
    areas = np.bincount(regions.ravel())
    areas[0] = 0
    boxes = ndimage.find_objects(regions)
    order = np.argsort(-areas, kind="stable")
    for rank, region in enumerate(order[: min(_REGIONS, len(boxes))]):
        box = boxes[region - 1]
        if rank == _REGIONS - 1:
            box, inside = np.s_[:, :], np.isin(regions, order[rank:]) & shape
        else:
            inside = regions[box] == region
        _paint_region(canvas, box, inside, kind, dice)


def _paint_region(
    canvas: SceneCanvas, box: tuple[slice, slice], inside: NDArray[np.bool_], kind: int, dice: Dice
) -> None:
    rows, columns = np.nonzero(inside)
    radius = math.sqrt(len(rows) / math.pi) * canvas.pixel
    x, y = canvas.x[box[1]], canvas.y[box[0]]
    # The nearest to the middle of three random points of the region: inside it, and varying.
    picks = [int(dice.uniform() * len(rows)) for _ in range(3)]
    middle = float(rows.mean()), float(columns.mean())
    at = min(picks, key=lambda i: (rows[i] - middle[0]) ** 2 + (columns[i] - middle[1]) ** 2)
    u, v = x - x[columns[at]], (y - y[rows[at]])[:, None]
    away = np.sqrt(u * u + v * v) - np.float32(0.62 * radius)
    share = np.clip(0.5 - away * np.float32(1.0 / canvas.pixel), 0.0, 1.0)
    cells = np.float32(1.0 / min(max(radius / 3.2, 0.08, 3.0 * canvas.pixel), 0.2))
    angle = dice.between(-0.4, 0.4)
    across, down = np.float32(cells * math.cos(angle)), np.float32(cells * math.sin(angle))
    colours = Coat(kind, dice).colours(u * across - v * down, u * down + v * across, share)
    np.copyto(canvas.image[:, box[0], box[1]], colours, where=inside)
