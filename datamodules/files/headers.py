"""Checks of a data set's files by names and headers: all faults at once, before anything is decoded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from structseg.datamodules.files.listing import FileSample
from structseg.datamodules.images import VOID, check_sizes, read_mask
from structseg.datamodules.label_spaces import LabelSpace


def check_headers(samples: Iterable[FileSample], faults: list[str]) -> list[str]:
    """Checks sizes, modes and palettes of samples by their headers, and adds a line to `faults` for each wrong file.

    A mask is decoded only if its palette mixes misplaced colours of the space with other colours.

    Returns:
        Warnings: what may be right, but should be looked at.
    """
    fit_both_ways, foreign, known_faults = [], [], set(faults)
    missing: dict[str, list[Path]] = {"photographs": [], "masks": []}
    samples = list(samples)
    for sample in samples:
        lines: list[str] = []
        lacking = [path for path in (sample.image, *sample.masks) if not path.is_file()]
        for path in lacking:
            missing["photographs" if path == sample.image else "masks"].append(path)
        if lacking:
            continue
        if check_sizes(sample.image, sample.masks, lines, sample.mask_size, sample.mask_size_may_differ):
            fit_both_ways.append(sample.name)
        for mask in sample.masks if sample.index_masks and not lines else ():
            try:
                if not _known_palette(mask, sample.space):
                    foreign.append(mask)
            except (OSError, ValueError) as error:
                lines.append(str(error))
        faults += [line for line in lines if line not in known_faults]
    for what, paths in missing.items():
        if paths:
            first = ", ".join(map(str, paths[:3])) + (", ..." if len(paths) > 3 else "")
            faults.append(f"{what} missing for {len(paths)} of {len(samples)} images: {first}; complete the folder")
    warnings = []
    if fit_both_ways:
        warnings.append(
            f"{len(fit_both_ways)} photographs, first {fit_both_ways[0]}, are turned by EXIF and their masks fit both "
            "ways; they are taken as drawn on the upright photograph"
        )
    if foreign:
        warnings.append(
            f"{len(foreign)} masks, first {foreign[0]}, have a palette without the classes' colours; their indices are "
            "taken for the classes"
        )
    return warnings


def _known_palette(path: Path, space: LabelSpace) -> bool:
    """Whether a mask has no palette, or one with colours of the classes.

    Raises:
        ValueError: it holds no 8-bit values, or its colours contradict its indices.
    """
    with Image.open(path) as image:
        mode, palette = image.mode, image.palette
        flat = b"" if palette is None or palette.mode != "RGB" else palette.getdata()[1]
    if mode not in ("L", "P", "1", "RGB", "RGBA"):
        raise ValueError(f"{path} has mode {mode}; a mask needs one 8-bit channel of class indices")
    if mode != "P":
        return True
    colours = [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat) - 2, 3)]
    known = {colour: index for index, colour in enumerate(space.palette)} | {VOID: 255}
    if len(set(colours)) < 2 or all(len(set(colour)) == 1 for colour in colours):  # grey levels do not identify classes
        return True
    of_class = [known.get(colour) for colour in colours]
    moved = any(found not in (None, index) for index, found in enumerate(of_class) if colours[index] != (0, 0, 0))
    if moved and None in of_class:
        read_mask(path, len(space), space.name, space.palette)
    return any(found for found in of_class)
