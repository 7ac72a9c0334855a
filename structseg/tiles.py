"""Images much larger than those of the training, labelled tile by tile at their own resolution."""

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
    """`PixelScores` of overlapping tiles, whose logits are averaged, each weighed by the distance to its tile's border.

    Worked out anew by each call, band by band from the top: beside the result it takes about 12 K bytes a pixel of a
    band as high as a tile and as wide as the image.

    Attributes:
        logits_of: gives the logits (N, K, H, W) of some tiles.
        image: RGB, larger than a tile.
        tile: (h, w) of a tile; one as large as the image where it is larger.
        overlap: of two neighbours, as a share of a tile, at least.
        batch_size: tiles a call of `logits_of`.
    """

    logits_of: Callable[[list[Image.Image]], Tensor]
    image: Image.Image
    tile: Size
    overlap: float
    batch_size: int

    def classes(self) -> Tensor:
        """(h, w) uint8."""
        return torch.cat([band.argmax(0).to(torch.uint8) for band in self._logits()])

    def probabilities(self) -> Iterator[Tensor]:
        """The rows that are done with each row of tiles."""
        return (band.softmax(0) for band in self._logits())

    def _logits(self) -> Iterator[Tensor]:
        height, width = min(self.tile[0], self.image.height), min(self.tile[1], self.image.width)
        tops = tile_starts(self.image.height, height, self.overlap)
        lefts = tile_starts(self.image.width, width, self.overlap)
        weight = _ramp(height)[:, None] * _ramp(width)
        total: Tensor | None = None
        for top, following in pairwise([*tops, self.image.height]):
            for start in range(0, len(lefts), self.batch_size):
                some = lefts[start : start + self.batch_size]
                tiles = [self.image.crop((left, top, left + width, top + height)) for left in some]
                for left, logits in zip(some, self.logits_of(tiles), strict=True):
                    if total is None:  # the last channel is the weights' sum
                        total = logits.new_zeros(len(logits) + 1, height, self.image.width)
                        weight = weight.to(logits)
                    total[:-1, :, left : left + width] += weight * resize_logits(logits[None], (height, width))[0]
                    total[-1, :, left : left + width] += weight
            assert total is not None
            done = following - top
            yield total[:-1, :done] / total[-1, :done]
            total = torch.cat([total[:, done:], torch.zeros_like(total[:, :done])], 1)


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin along a side: as few as overlap by that share of a tile or more, evenly spread.

    >>> tile_starts(100, 40, 0.25), tile_starts(40, 40, 0.25)
    ([0, 30, 60], [0])
    """
    steps = math.ceil((length - tile) / max(1, tile - math.ceil(overlap * tile)))
    return [round(step * (length - tile) / steps) for step in range(steps + 1)] if steps else [0]


def _ramp(length: int) -> Tensor:
    """1, 2, ... and back to 1."""
    up = torch.arange(1, length + 1)
    return torch.minimum(up, up.flip(0))
