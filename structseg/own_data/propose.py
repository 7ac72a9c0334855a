"""The `dataset.yaml` that `structseg init` proposes for a folder of images and masks."""

from __future__ import annotations

import csv
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from structseg.datamodules.folder.layout import find_layout
from structseg.datamodules.folder.masks import grey_depth, lossy, wide_colours
from structseg.datamodules.folder.pairs import Pair, check_pairs, find_pairs, grouped_split
from structseg.datamodules.images import check_end, image_size, open_image
from structseg.messages import counted

_MOST = 254  # values of one mask; with more it is a photograph, or was smoothed
_VOID = (224, 224, 192)  # VOC's colour of unlabelled pixels
_SIDE = 256  # images are resized to about as many pixels as a square of this side
_GROUPS = (r"^(.+)/", r"^([^/_-]+)[_-]", r"^(.+)[_-][^_-]+$")  # parts of a name that a group of images may share
_LOSSY_MASKS = "save masks as PNG, or write the file yourself, with jpeg_masks: nearest and values far apart"
_SEEDS = 10  # of splits that are tried, so that each class has a training image
_COLOURS = 1 << 24  # added to a colour, to tell it from a grey value


class MaskContent(NamedTuple):
    """The values of a mask.

    Attributes:
        fault: why the mask cannot be used, or "".
        coloured: whether its values are colours.
        values: number of pixels of each grey value, index, or colour (red + 256 green + 65536 blue); those of a palette
            in the order of its indices.
        size: (height, width) of the photograph.
        indices: the palette's index of each value; empty without a palette of colours.
    """

    fault: str
    coloured: bool
    values: dict[int, int]
    size: tuple[int, int]
    indices: Sequence[int] = ()


def propose(home: Path, workers: int) -> tuple[dict[str, Any], list[str], list[str]]:
    """A `dataset.yaml` for a folder, the assumptions made for it, and the faults of the folder.

    Raises:
        ValueError: the folder has nothing to train on; the message says what is missing.
    """
    tree, faults = find_layout(home), list[str]()
    named = ("train", "val", "test")
    parts: dict[str, Any] = {split: tree[split] for split in named if split in tree} or {"": tree}
    report = [f"{name + ': ' if name else ''}{_place(part)}" for name, part in parts.items()]
    pairs = {name: find_pairs(home / part["images"], part.get("masks"), home, faults) for name, part in parts.items()}
    every = [pair for found in pairs.values() for pair in found]
    check_pairs(every, faults)
    if "tags" in tree:
        classes, present = _classes_of_tags(home, tree["tags"], every)
        sizes = _sizes(every, faults)
        report.append(f"no masks: tags from {tree['tags']}, for structseg pipeline own/conta")
    else:
        if not every:
            raise ValueError(f"{home}: no image has a mask; {faults[0]}" if faults else f"{home}: no pairs")
        classes, sizes, present = _classes_of_masks(home, every, workers, tree, report, faults)
    tree["classes"] = classes
    names = [entry if isinstance(entry, str) else entry["name"] for entry in classes]
    if flips := _flip_pairs(names):
        tree["flip_pairs"] = flips
        report.append(f"a flip exchanges {', '.join(' and '.join(pair) for pair in flips)}")
    classes_of = dict(zip(every, present, strict=True))
    if "" in parts:
        tree["split"] = _split(classes_of, report)
        shares: Mapping[Any, Sequence[Pair]] = grouped_split(every, **{"group": None, **tree["split"]})
    else:
        shares = pairs
    train = len(shares["train"])
    how = "split" if "" in parts else "split as the folders"
    report.append(f"{how}: " + ", ".join(f"{len(part)} {name}" for name, part in shares.items()))
    for split, part in shares.items():
        lacking = _lacking(part, classes_of)
        if part and (absent := [name for name in names if name in lacking]):
            report.append(f"no {split} image has {', '.join(absent)}; correct split in the file")
    height, width = (statistics.median(axis) for axis in zip(*sizes, strict=True))
    scale = min(1.0, _SIDE / sqrt(height * width))
    tree["size"] = [max(32, 32 * round(side * scale / 32)) for side in (height, width)]
    tree["batch_size"] = next((b for b in (8, 4, 2) if train >= 2 * b and train % b != 1), 2 if train != 1 else 1)
    tree["mean"] = tree["std"] = [0.5, 0.5, 0.5]
    report.append(
        f"images of {min(s[0] for s in sizes)}x{min(s[1] for s in sizes)} to {max(s[0] for s in sizes)}x"
        f"{max(s[1] for s in sizes)} (height x width): size {tree['size']}, batch_size {tree['batch_size']}; mean and "
        "std as the packaged weights expect"
    )
    report.append("of photographs only the header and the end of the file were read; structseg check reads all of them")
    return tree, report, faults


def _place(part: Mapping[str, str]) -> str:
    return f"images in {part['images']}, " + (f"masks in {part['masks']}" if "masks" in part else "no masks")


def read_mask_content(pair: Pair) -> MaskContent:
    """Reads the photograph's header and the mask of a pair; a file that cannot be used is a fault, not an error."""
    path = pair.mask
    assert path is not None
    try:
        size = _size(pair)
        mask = open_image(path)
        if lossy(path, mask):
            return MaskContent(f"{path} is {mask.format}, which changes values; {_LOSSY_MASKS}", False, {}, size)
        if wide_colours(path, mask):
            return MaskContent(f"{path} has colours of 16 bits a channel; save the mask with 8", False, {}, size)
        coloured, values = _values(path, mask)
        indices = [i for i, n in enumerate(mask.histogram()) if n] if coloured and mask.mode == "P" else []
    except (OSError, ValueError) as error:
        return MaskContent(str(error), False, {}, (0, 0))
    if not values:
        fault = f"{path} holds more than {_MOST} values; is it a photograph, or was it smoothed?"
        return MaskContent(fault, False, {}, size)
    return MaskContent("", coloured, values, size, indices)


def _values(path: Path, mask: Any) -> tuple[bool, dict[int, int]]:
    """Whether a mask is coloured, and the number of pixels of each value; empty where there are too many values."""
    if mask.mode in ("F",) or mask.mode.startswith("I"):
        import numpy as np

        levels, times = np.unique(np.asarray(mask), return_counts=True)
        few = len(levels) <= _MOST
        return False, dict(zip(levels.astype(int).tolist(), times.tolist(), strict=True)) if few else {}
    if mask.mode in ("1", "L"):
        step = 255 // ((1 << grey_depth(path)) - 1) if grey_depth(path) < 8 else 1
        counts = mask.convert("L").histogram()
        return False, {value if step == 255 else value // step: n for value, n in enumerate(counts) if n}
    if mask.mode == "P":
        flat = mask.getpalette("RGB") or []
        counts = {index: count for index, count in enumerate(mask.histogram()) if count}
        colours = {i: tuple(flat[3 * i : 3 * i + 3]) for i in counts}
        if len(set(colours.values())) < len(colours) or not all(
            colours.values()
        ):  # a palette that does not tell the indices apart
            return False, counts
        if all(len(set(c)) == 1 for c in colours.values()) and set(colours.values()) != {(0, 0, 0)}:
            return False, {colours[i][0]: count for i, count in counts.items()}
        return True, {r | g << 8 | b << 16: counts[i] for i, (r, g, b) in colours.items()}
    rgb = (mask if mask.mode == "RGB" else mask.convert("RGBA")).getcolors(_MOST) or []
    values: dict[int, int] = {}
    for count, (red, green, blue, *_) in rgb:
        values[red | green << 8 | blue << 16] = values.get(red | green << 8 | blue << 16, 0) + count
    if values and all(v & 255 == v >> 8 & 255 == v >> 16 for v in values) and max(values) > 0:  # grey in three channels
        return False, {value & 255: count for value, count in values.items()}
    return True, values


def _mask_contents(pairs: Sequence[Pair], workers: int) -> Iterator[MaskContent]:
    if workers == 1 or len(pairs) < 64:
        yield from map(read_mask_content, pairs)
        return
    with ProcessPoolExecutor(workers) as pool:
        step = 64 * workers * 4  # limits how many results are in memory
        for start in range(0, len(pairs), step):
            yield from pool.map(read_mask_content, pairs[start : start + step], chunksize=64)


def _classes_of_masks(
    home: Path, pairs: Sequence[Pair], workers: int, tree: dict[str, Any], report: list[str], faults: list[str]
) -> tuple[list[Any], list[tuple[int, int]], list[frozenset[str]]]:
    pixels, images, first = Counter[int](), Counter[int](), dict[int, Path]()
    sizes, empty = list[tuple[int, int]](), 0
    values_of, indices = list[frozenset[int]](), dict[int, set[int]]()
    for pair, content in zip(pairs, _mask_contents(pairs, workers), strict=True):
        present = {v + _COLOURS * content.coloured: n for v, n in content.values.items()}
        values_of.append(frozenset(present))
        if content.fault:
            if content.fault not in faults:
                faults.append(content.fault)
            continue
        sizes.append(content.size)
        for value, index in zip(present, content.indices or (-1 for _ in present), strict=True):
            indices.setdefault(value, set()).add(index)
        empty += len(present) == 1
        for value, count in present.items():
            pixels[value] += count
            images[value] += 1
            if pair.mask is not None:
                first.setdefault(value, pair.mask)
        if len(pixels) > 4 * _MOST:
            raise ValueError(
                f"the masks hold more than {4 * _MOST} values, {_shown(value)} in {pair.mask} among them; a mask needs "
                "one value a class: were they smoothed, or are they photographs?"
            )
    if len(pixels) < 2:
        what = f"nothing but {_shown(next(iter(pixels)))}" if pixels else "nothing that can be read"
        why = f" ({faults[0]})" if faults else ""
        raise ValueError(f"the masks of {home} hold {what}{why}; 2 classes or more are needed")
    both = (
        0 in pixels and _COLOURS in pixels
    )  # black both as a grey value and as a colour, as masks that are all black have it
    if both:
        kept, other = (_COLOURS, 0) if max(pixels) > _COLOURS else (0, _COLOURS)
        for counter in (pixels, images):
            counter[kept] += counter.pop(other)
    # The indices of palettes order the classes if they are the same in all masks.
    fixed = all(len(own) == 1 and -1 not in own for own in indices.values())
    values = sorted(pixels)
    ignored = [v for v in values if v == _COLOURS + _pack(_VOID) or (v == 255 and len(values) > 2 and values[-2] < 128)]
    for value in ignored:
        report.append(f"{_shown(value)} is ignored, as it usually marks pixels that are not labelled")
        values.remove(value)
        tree["ignore"] = [_plain(value)]
    if fixed:
        values.sort(key=lambda value: min(indices[value]))
    zero = values[0] if fixed and min(indices[values[0]]) == 0 else None
    background = next((v for v in (0, _COLOURS, zero) if v in values), max(values, key=lambda v: pixels[v]))
    values = [background, *(v for v in values if v != background)]
    names, source = _names(home, values)
    report.append(f"{len(values)} classes, named {source}:")
    if fixed or max(values) > _COLOURS:
        order = "the palettes' indices" if fixed else "their colours (blue, then green, then red)"
        report.append(f"  in the order of {order}; reorder them in dataset.yaml if another order is wanted")
    if background not in (0, _COLOURS, zero):
        report.append(f"  {_shown(background)} is the background, as it has the most pixels")
    total = sum(pixels.values())
    classes: list[Any] = []
    for index, (name, value) in enumerate(zip(names, values, strict=True)):
        report.append(
            f"  {name}: {_shown(value)}, {pixels[value] / total:.1%} of the pixels, in {counted(images[value], 'mask')}"
        )
        rare = pixels[value] < 1e-5 * total and images[value] <= max(1, len(pairs) // 100)
        if rare:
            report.append(f"    that is very little: a mistake? first in {first.get(value)}")
        plain = value < _COLOURS and value == index
        entry = {"name": name, "rgb" if value >= _COLOURS else "values": [_plain(value)]}
        classes.append(name if plain else entry | ({"values": [0]} if both and value == _COLOURS else {}))
    if empty:
        report.append(f"{empty} {'mask holds' if empty == 1 else 'masks hold'} only one value")
    name_of = dict(zip(values, names, strict=True))
    if both:
        name_of[other] = name_of[kept]
    return classes, sizes, [frozenset(name_of[v] for v in own if v in name_of) for own in values_of]


def _pack(colour: tuple[int, int, int]) -> int:
    return colour[0] | colour[1] << 8 | colour[2] << 16


def _plain(value: int) -> int | list[int]:
    """A grey value, or the colour that a number stands for."""
    return value if value < _COLOURS else [value & 255, value >> 8 & 255, value >> 16 & 255]


def _shown(value: int) -> str:
    return f"value {value}" if value < _COLOURS else f"colour {_plain(value)}"


def _names(home: Path, values: Sequence[int]) -> tuple[list[str], str]:
    """A name for each value, from `labelmap.txt` or `classes.txt` or else made of its number; and their source."""
    default = ["background", "foreground"] if len(values) == 2 and values[1] == 255 else ["background"]
    default += [f"class_{v if v < _COLOURS else i}" for i, v in enumerate(values) if i >= len(default)]
    for file in (home / "labelmap.txt", home / "classes.txt", home / "labels.txt"):
        if not file.is_file():
            continue
        lines = [line.strip() for line in file.read_text("utf-8-sig", errors="replace").splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        coloured = [re.match(r"(.+?):(\d+),(\d+),(\d+):", line) for line in lines]
        by_value = {_COLOURS + _pack((int(m[2]), int(m[3]), int(m[4]))): m[1] for m in coloured if m} or dict(
            enumerate(lines)
        )
        names = [by_value.get(value, "") for value in values]
        if all(names) and len(set(names)) == len(names):
            return names, f"as {file.name} says"
    return default, "by their values; name them in the file"


def _classes_of_tags(home: Path, tags: str, pairs: Sequence[Pair]) -> tuple[list[Any], list[frozenset[str]]]:
    """The classes, and those of each image."""
    if tags == "folders":
        present = [frozenset({Path(pair.name).parent.name} - {"", "background"}) for pair in pairs]
        classes = frozenset[str]().union(*present)
    else:
        with (home / tags).open(encoding="utf-8-sig", newline="") as file:
            cells = {row.get("name") or "": row.get("classes") or "" for row in csv.DictReader(file)}
        own = {
            name: frozenset(tag.strip() for tag in (cell.split(";") if ";" in cell else cell.split())) - {""}
            for name, cell in cells.items()
        }
        classes = frozenset[str]().union(*own.values())
        own |= {name.rpartition(".")[0]: tags for name, tags in own.items() if "." in name}
        present = [own.get(pair.name, own.get(pair.image.stem, frozenset())) for pair in pairs]
    if not classes:
        raise ValueError(f"{home / tags} names no class; its header is name,classes")
    return ["background", *sorted(classes)], present


def _flip_pairs(names: Sequence[str]) -> list[list[str]]:
    """Pairs of classes whose names differ only by left and right."""
    pairs = []
    for name in names:
        for left, right in (("left", "right"), ("Left", "Right"), ("LEFT", "RIGHT"), ("l", "r"), ("L", "R")):
            before = r"(?<![A-Za-z])" if left.islower() else r"(?<![A-Z])"
            edge = before + ("{}(?![a-z])" if len(left) > 1 else "{}(?=[_-])|(?<=[_-]){}$")
            other = re.sub(edge.format(left, left), right, name)
            if other != name and other in names and [name, other] not in pairs:
                pairs.append([name, other])
    return pairs


def _lacking(part: Sequence[Pair], classes_of: Mapping[Pair, frozenset[str]]) -> frozenset[str]:
    """The classes that no image of a part has."""
    return frozenset[str]().union(*classes_of.values()).difference(*(classes_of[pair] for pair in part))


def _split(classes_of: Mapping[Pair, frozenset[str]], report: list[str]) -> dict[str, Any]:
    """A random split, of whole groups where the names of the images show groups, that leaves each class to train on.

    Groups that are the classes themselves are not kept whole.
    """
    pairs, shares = list(classes_of), {"val": 0.15, "test": 0.15}
    if len(pairs) < 8:
        few = "image is" if len(pairs) == 1 else "images are"
        report.append(f"{len(pairs)} {few} too few to hold any out; all are trained on")
        return {"seed": 0, "val": 0, "test": 0}
    best: tuple[int, dict[str, Any], str] | None = None
    for pattern in (*_GROUPS, None):
        group_of = {p: m[1] if pattern and (m := re.search(pattern, p.name)) else p.name for p in pairs}
        groups = Counter(group_of.values())
        note = ""
        if pattern:
            kinds = {(group, classes_of[pair]) for pair, group in group_of.items()}
            is_class = len(kinds) == len(groups) == len(set(classes_of.values()))
            if is_class or not 5 <= len(groups) <= 0.6 * len(pairs) or max(groups.values()) > 0.4 * len(pairs):
                continue
            largest = ", ".join(name for name, _ in groups.most_common(3))
            note = f"{len(groups)} groups by the names ({largest}, ...), each on one side of the split only"
        for seed in range(_SEEDS):
            split: dict[str, Any] = {"seed": seed, **shares} | ({"group": pattern} if pattern else {})
            try:
                lacking = len(_lacking(grouped_split(pairs, **{"group": None, **split})["train"], classes_of))
            except ValueError:
                break
            if best is None or lacking < best[0]:
                best = lacking, split, note
            if not lacking:
                break
        if best and not best[0]:
            break
    assert best is not None  # 8 images without groups can be split
    if best[2]:
        report.append(best[2])
    return best[1]


def _size(pair: Pair) -> tuple[int, int]:
    """(height, width) of the upright photograph; raises as `open_image`, also where the end of the file is missing."""
    width, height = image_size(pair.image)
    check_end(pair.image)
    return height, width


def _sizes(pairs: Sequence[Pair], faults: list[str]) -> list[tuple[int, int]]:
    """The sizes of the photographs that can be read; the others are faults."""
    sizes = []
    for pair in pairs:
        try:
            sizes.append(_size(pair))
        except (OSError, ValueError) as error:
            faults += [str(error)] * (str(error) not in faults)
    if not sizes:
        raise ValueError(f"no photograph can be read; {faults[0]}")
    return sizes


def as_yaml(tree: Mapping[str, Any]) -> str:
    """The text of the file, with a line for each class."""

    def flow(value: Any) -> str:
        text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
        return text.removesuffix("\n...\n").strip()

    lines = ["# Written by structseg init. Names and values are yours to correct; docs/own_data.md has every key."]
    for key, value in tree.items():
        if key != "classes":
            lines.append(f"{key}: {flow(value)}")
            continue
        lines += ["classes:  # the position is the index; 0 is the background", *(f"  - {flow(e)}" for e in value)]
    return "\n".join(lines) + "\n"
