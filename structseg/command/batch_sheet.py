"""A picture of an augmented batch with its labels, as the network will see it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from structseg.datamodules.base import SegmentationDataModule
from structseg.datamodules.batch import Batch, Split, collate
from structseg.datamodules.images import resize_mask
from structseg.datamodules.label_spaces import LabelSpace
from structseg.lightning_modules.drawing.label_sheets import colorize, legend, overlay

_GAP = 6


def save_batch(
    datamodule: SegmentationDataModule, out: Path, split: Split = "train", count: int = 16, draw: int | None = 0
) -> int:
    """Draws a batch with its labels to a PNG.

    Args:
        datamodule: the data.
        out: path of the picture.
        split: which images.
        count: how many images at most.
        draw: number of the random augmentation; None: no augmentation.

    Returns:
        The number of images drawn.

    Raises:
        OSError: the picture could not be written.
    """
    samples = datamodule.dataset(split)
    batch = collate([samples[i] for i in range(min(count, len(samples)))])  # type: ignore[arg-type]
    if split == "train" and draw is not None:
        batch = datamodule.augment(batch, [draw])
    try:
        draw_batch(batch, datamodule.label_space).save(out)
    except (OSError, ValueError) as error:
        raise OSError(
            f"{out} could not be written ({error}); give --out the path of a PNG in a folder that exists"
        ) from None
    return len(batch["image"])


def draw_batch(batch: Batch, space: LabelSpace) -> Image.Image:
    """The picture of a batch: image, overlay, labels and blobs of each sample, two samples a row, above a legend.

    Labels or blobs that the batch does not have are left out.
    """
    cells = []
    for i, image in enumerate(batch["image"]):
        pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        parts = [pixels]
        if "mask" in batch:
            mask = batch["mask"][i].numpy().astype(np.uint8)
            if "original" in batch:  # then the mask has the original's size
                height, width = batch["original"][i].shape[-2:]
                mask = resize_mask(mask[:height, :width], (image.shape[-2], image.shape[-1]))
            parts += [overlay(pixels, mask, space), colorize(mask, space)]
        if "blobs" in batch:
            parts.append(_blob_colours(batch["blobs"][i].numpy()))
        cells.append(np.concatenate(parts, 1))
    height, width = cells[0].shape[:2]
    columns = 2 if len(cells) > 1 else 1
    rows = -(-len(cells) // columns)
    occurring = [int(label) for label in batch["mask"].unique()] if "mask" in batch else []
    key = legend(occurring, space, columns * (width + _GAP))
    page = Image.new("RGB", (key.width, rows * (height + _GAP) + key.height), (255, 255, 255))
    for number, cell in enumerate(cells):
        at = ((number % columns) * (width + _GAP), (number // columns) * (height + _GAP))
        page.paste(Image.fromarray(cell), at)
    page.paste(key, (0, rows * (height + _GAP)))
    return page


def _blob_colours(blobs: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: a colour for each id, the same in every picture."""
    colours: NDArray[np.uint8] = np.random.default_rng(0).integers(40, 255, (int(blobs.max()) + 1, 3), dtype=np.uint8)
    return colours[blobs]
