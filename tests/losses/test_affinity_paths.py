"""The paths between pixels: against the published code, by hand, and their properties."""

from pathlib import Path

import numpy as np
import pytest

from structseg.losses import affinity_paths


@pytest.mark.data
@pytest.mark.parametrize("radius", [5, 10])
def test_the_published_paths(radius: int, golden: Path) -> None:
    """Directions, lengths, cells and order; and the flat indices that the published code makes of them."""
    with np.load(golden / f"irn_paths_r{radius}.npz") as known:
        paths = affinity_paths(radius)
        assert np.array_equal([path.direction for path in paths], known["dst"])
        assert np.array_equal([len(path.cells) for path in paths], known["path_len"])
        cells = np.array([cell for path in paths for cell in path.cells])
        assert np.array_equal(cells, known["path_cells"])
        flat = known["src_indices"] + cells @ [[known["map_size"][1]], [1]]
        assert np.array_equal(flat, known["path_indices"])


def test_by_hand() -> None:
    paths = {path.direction: path.cells for path in affinity_paths(3)}
    assert set(paths) == {(0, 1), (0, 2), *((dy, dx) for dy in (1, 2) for dx in range(-2, 3))}
    assert paths[0, 2] == ((0, 2), (0, 1), (0, 0))
    assert paths[2, -1] == ((2, -1), (1, -1), (2, 0), (0, -1), (1, 0), (0, 0))


@pytest.mark.parametrize("radius", [2, 3, 7, 13])
def test_half_a_disc(radius: int) -> None:
    """The directions and their opposites are the disc without its centre."""
    directions = [path.direction for path in affinity_paths(radius)]
    both = {*directions, *((-dy, -dx) for dy, dx in directions)}
    span = range(-radius, radius + 1)
    assert len(both) == 2 * len(directions)
    assert both == {(y, x) for y in span for x in span if 0 < y * y + x * x < radius**2}
    for path in affinity_paths(radius):
        assert path.cells[0] == path.direction
        assert path.cells[-1] == (0, 0)
        assert len(set(path.cells)) == len(path.cells)


@pytest.mark.parametrize("radius", [1, 0, -3])
def test_no_neighbour(radius: int) -> None:
    with pytest.raises(ValueError, match=f"radius={radius} holds no neighbour"):
        affinity_paths(radius)
