"""`structseg show CONFIG`: what the network will see, before a minute is spent on training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from structseg.command.configs import parse_data
from structseg.command.parser import StructsegParser
from structseg.datamodules.base import SegmentationDataModule
from structseg.datamodules.batch import Batch, collate
from structseg.datamodules.images import resize_mask
from structseg.datamodules.label_spaces import LabelSpace
from structseg.lightning_modules.drawing.label_sheets import colorize, legend, overlay

_GAP = 6


def main(args: list[str]) -> None:
    """Draws an augmented training batch with its labels to a PNG and prints its path.

    Raises:
        FileNotFoundError: no such configuration, or no data.
        ValueError: the configuration has no data.
    """
    parser = StructsegParser(prog="structseg show", description="Draw an augmented batch with its labels to a PNG.")
    parser.add_argument("--out", type=str, default="show.png", help="where the picture goes")
    parser.add_argument("--split", type=str, default="train", choices=["train", "val", "test"])
    parser.add_argument("--count", type=int, default=16, help="images")
    parser.add_argument("--plain", action="store_true", help="without augmentation")
    parser.add_argument("--draw", type=int, default=0, help="another number, another draw of the augmentation")
    config = parse_data(parser, args, "show")
    datamodule: SegmentationDataModule = parser.instantiate_classes(config).data
    if config.count < 1:
        raise ValueError(f"--count is {config.count}; at least 1 image is drawn")
    samples = datamodule.dataset(config.split)
    batch = collate([samples[i] for i in range(min(config.count, len(samples)))])  # type: ignore[arg-type]
    if config.split == "train" and not config.plain:
        batch = datamodule.augment(batch, [config.draw])
    out = Path(config.out)
    try:
        draw_batch(batch, datamodule.label_space).save(out)
    except (OSError, ValueError) as error:
        raise OSError(
            f"{out} could not be written ({error}); give --out the path of a PNG in a folder that exists"
        ) from None
    print(f"{len(batch['image'])} images with their labels: {out}")


def draw_batch(batch: Batch, space: LabelSpace) -> Image.Image:
    """Each image | its labels laid over it | its labels alone | its blobs, two samples a row, over a legend.

    What the batch does not hold is left out: the labels of unlabelled images, the blobs where none are made.
    """
    cells = []
    for i, image in enumerate(batch["image"]):
        pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        parts = [pixels]
        if "mask" in batch:
            mask = batch["mask"][i].numpy().astype(np.uint8)
            if "original" in batch:  # the labels are of its size
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
    """(H, W, 3): a colour an id, the same in every picture."""
    colours: NDArray[np.uint8] = np.random.default_rng(0).integers(40, 255, (int(blobs.max()) + 1, 3), dtype=np.uint8)
    return colours[blobs]
