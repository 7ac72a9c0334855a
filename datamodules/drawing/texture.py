"""Noise in picture and head coordinates, the same at every size: backgrounds, cloth, strands of hair."""

from __future__ import annotations

import numpy as np

from structseg.datamodules.drawing.geometry import Array


def noise(canvas_x: Array, canvas_y: Array, numbers: Array, frequency: float) -> Array:
    """(H, W) smooth noise in 0..1, from `numbers` (n, n), n a power of two, on a grid of `frequency` cells per unit."""
    mask = len(numbers) - 1
    rows, row_share = _cells(canvas_y, frequency)
    columns, column_share = _cells(canvas_x, frequency)
    upper, lower = numbers[rows & mask], numbers[(rows + 1) & mask]
    lines = upper + (lower - upper) * row_share[:, None]
    left, right = lines.take(columns & mask, 1), lines.take((columns + 1) & mask, 1)
    right -= left
    right *= column_share
    right += left
    return right


def _cells(t: Array, frequency: float) -> tuple[np.ndarray, Array]:
    scaled = t * np.float32(frequency) + np.float32(64.0)
    cell = np.floor(scaled).astype(np.intp)
    share = scaled - cell
    return cell, share * share * (3.0 - 2.0 * share)


class Strands:
    """Noise along a line, for threads side by side.

    Args:
        coarse: (n,) numbers in 0..1, for the locks.
        fine: (m,) numbers in 0..1, m a multiple of n, for the threads.
    """

    _ENTRIES = 2048

    def __init__(self, coarse: Array, fine: Array) -> None:
        self._table = 0.6 * _stretch(coarse, self._ENTRIES) + 0.4 * _stretch(fine, self._ENTRIES)

    def __call__(self, t: Array) -> Array:
        """Noise in 0..1 at t; it repeats with period 1."""
        index = (t * np.float32(self._ENTRIES)).astype(np.intp)
        index &= self._ENTRIES - 1
        return self._table.take(index)


def _stretch(numbers: Array, length: int) -> Array:
    share = np.arange(length // len(numbers), dtype=np.float32) * np.float32(len(numbers) / length)
    share = share * share * (3.0 - 2.0 * share)
    following = np.concatenate((numbers[1:], numbers[:1]))
    return (numbers[:, None] + (following - numbers)[:, None] * share).ravel()
