"""IRNet's pairs of pixels, and the cells of the map between the two."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple


class AffinityPath(NamedTuple):
    """The straight path from a source pixel to one of its neighbours.

    Attributes:
        direction: (dy, dx) of the neighbour, in pixels from the source.
        cells: (dy, dx) of all cells of the path, in pixels from the source: the neighbour first, the source last.
    """

    direction: tuple[int, int]
    cells: tuple[tuple[int, int], ...]


@lru_cache
def affinity_paths(radius: int) -> tuple[AffinityPath, ...]:
    """The paths to all neighbours nearer than `radius` in half of the disc, so that each pair of pixels occurs once.

    Directions are (0, 1 .. radius - 1), and (dy, dx) with dy >= 1 and dy^2 + dx^2 < radius^2. A path holds the cells
    (a, b) of the box between its two ends that are nearer than one pixel to the line through them, by falling
    |a| + |b|. Paths are sorted by their number of cells.

    Source: Ahn, Cho, Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019,
    section 4.1, and the published code.

    Args:
        radius: in pixels, 2 or more. 5 has 34 paths of 242 cells in all, 10 has 152 of 2,134.

    Raises:
        ValueError: a radius without neighbours.

    Example:
        >>> [path.direction for path in affinity_paths(2)]
        [(0, 1), (1, 0), (1, -1), (1, 1)]
        >>> affinity_paths(2)[2].cells
        ((1, -1), (0, -1), (1, 0), (0, 0))
    """
    if radius < 2:
        raise ValueError(f"affinity paths: radius={radius} holds no neighbour; 2 or more")
    directions = [(0, dx) for dx in range(1, radius)]
    directions += [
        (dy, dx) for dy in range(1, radius) for dx in range(1 - radius, radius) if dy * dy + dx * dx < radius**2
    ]
    paths = (AffinityPath(direction, _cells(*direction)) for direction in directions)
    return tuple(sorted(paths, key=lambda path: len(path.cells)))


def _cells(dy: int, dx: int) -> tuple[tuple[int, int], ...]:
    box = ((a, b) for a in range(dy + 1) for b in range(min(dx, 0), max(dx, 0) + 1))
    # |dy b - dx a| over the length of the direction is the distance to the line: in integers nothing is rounded.
    near = (cell for cell in box if (dy * cell[1] - dx * cell[0]) ** 2 < dy * dy + dx * dx)
    return tuple(sorted(near, key=lambda cell: -cell[0] - abs(cell[1])))
