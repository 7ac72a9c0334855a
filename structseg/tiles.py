"""Labels images that are much larger than the training images, tile by tile at their own resolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from structseg.lightning_modules.inference import Size
from structseg.lightning_modules.logits import resize_logits


class TiledScores(NamedTuple):
    """`PixelScores` of overlapping tiles: the mean of their logits, weighted by the distance to the tile's border.

    Each call computes them again, band by band from the top: beside the result this takes about 12 K bytes for each
    pixel of a band as high as a tile and as wide as the image.

    Attributes:
        logits_of: computes the logits (N, K, H, W) of a list of tiles.
        image: RGB, larger than a tile.
        tile: (h, w) of a tile in pixels; at most the size of the image is used.
        overlap: of two neighbours, at least, as a share of a tile.
        batch_size: tiles in each call of `logits_of`.
    """

    logits_of: Callable[[list[Image.Image]], Tensor]
    image: Image.Image
    tile: Size
    overlap: float
    batch_size: int

    def classes(self) -> Tensor:
        """The class of each pixel, (h, w) uint8."""
        return torch.cat([band.argmax(0).to(torch.uint8) for band in self._logits()])

    def probabilities(self) -> Iterator[Tensor]:
        """Probabilities (K, rows, w), in bands of the rows that each row of tiles completes."""
        return (band.softmax(0) for band in self._logits())

    def _logits(self) -> Iterator[Tensor]:
        height, width = min(self.tile[0], self.image.height), min(self.tile[1], self.image.width)
        tops = tile_starts(self.image.height, height, self.overlap)
        lefts = tile_starts(self.image.width, width, self.overlap)
        weight = _ramp(height)[:, None] * _ramp(width)
        total: Tensor | None = None
        for top, following in pairwise([*tops, self.image.height]):
            for start in range(0, len(lefts), self.batch_size):
                batch = lefts[start : start + self.batch_size]
                tiles = [self.image.crop((left, top, left + width, top + height)) for left in batch]
                for left, logits in zip(batch, self.logits_of(tiles), strict=True):
                    if total is None:  # the last channel holds the sum of the weights
                        total = logits.new_zeros(len(logits) + 1, height, self.image.width)
                        weight = weight.to(logits)
                    total[:-1, :, left : left + width] += weight * resize_logits(logits[None], (height, width))[0]
                    total[-1, :, left : left + width] += weight
            assert total is not None
            done = following - top
            yield total[:-1, :done] / total[-1, :done]
            total = torch.cat([total[:, done:], torch.zeros_like(total[:, :done])], 1)


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """The starts of tiles along a side: the fewest, evenly spaced, that overlap by at least that share of a tile.

    >>> tile_starts(100, 40, 0.25), tile_starts(40, 40, 0.25)
    ([0, 30, 60], [0])
    """
    steps = math.ceil((length - tile) / max(1, tile - math.ceil(overlap * tile)))
    return [round(step * (length - tile) / steps) for step in range(steps + 1)] if steps else [0]


def _ramp(length: int) -> Tensor:
    """(length,) weights that rise from 1 to the middle and fall back to 1."""
    up = torch.arange(1, length + 1)
    return torch.minimum(up, up.flip(0))
