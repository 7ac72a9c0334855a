"""The random walk: published numbers, an explicit matrix, what a walk must keep, extremes, sizes, labels."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from structseg.lightning_modules.conta.random_walk import _chebyshev_weights, random_walk, walk_labels, walk_scores
from structseg.losses import affinity_paths


def maps(n: int = 2, k: int = 3, h: int = 7, w: int = 9, dtype: torch.dtype = torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    cams = torch.rand(n, k, h, w, generator=generator, dtype=dtype)
    return cams, torch.rand(n, h, w, generator=generator, dtype=dtype) ** 3


def transitions(edge: np.ndarray, radius: int, beta: float) -> sparse.csr_array:
    """T by its definition, one pair after another."""
    h, w = edge.shape
    affinity = sparse.lil_array(np.eye(h * w))
    for y in range(h):
        for x in range(w):
            for (dy, dx), cells in affinity_paths(radius):
                if y + dy < h and 0 <= x + dx < w:
                    value = (1 - max(edge[y + a, x + b] for a, b in cells)) ** beta
                    i, j = y * w + x, (y + dy) * w + x + dx
                    affinity[i, j] = affinity[j, i] = value
    affinity = affinity.tocsr()
    return affinity / affinity.sum(0)[None]


def explicit(cams: torch.Tensor, edges: torch.Tensor, radius: int, beta: float, steps: int) -> torch.Tensor:
    out = []
    for cam, edge in zip(cams.numpy(), edges.numpy(), strict=True):
        matrix = transitions(edge, radius, beta)
        flat = (cam * (1 - edge)).reshape(len(cam), -1)
        for _ in range(steps):
            flat = flat @ matrix
        out.append(flat.reshape(cam.shape))
    return torch.from_numpy(np.stack(out))


@pytest.mark.data
@pytest.mark.parametrize(("key", "log2_steps"), [("rw", 8), ("rw_8steps", 3), ("rw_1step", 0)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_the_published_numbers(key: str, log2_steps: int, dtype: torch.dtype, close: float, golden: Path) -> None:
    with np.load(golden / "irn_random_walk.npz") as known:
        cams, edges = torch.tensor(known["cam"], dtype=dtype)[None], torch.tensor(known["edge"], dtype=dtype)[None]
        walk = random_walk(cams, edges, int(known["radius"]), float(known["beta"]), log2_steps)
        assert walk.dtype == dtype
        assert np.allclose(walk[0].numpy(), known[key], rtol=0, atol=close)


@pytest.mark.data
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_published_labels(dtype: torch.dtype, golden: Path) -> None:
    with np.load(golden / "irn_random_walk.npz") as known:
        cams, edges = torch.tensor(known["cam"], dtype=dtype)[None], torch.tensor(known["edge"], dtype=dtype)[None]
        h, w = known["upsampled_size"].tolist()
        labels = walk_labels(random_walk(cams, edges)[0], (h, w), float(known["bg_threshold"]))
        assert labels.dtype == torch.uint8
        assert np.array_equal(labels.numpy(), known["label_after_upsample"])


@pytest.mark.parametrize(
    ("radius", "beta", "log2_steps"), [(2, 1.0, 0), (3, 4.0, 1), (5, 10.0, 4), (5, 10.0, 8), (4, 2.5, 9)]
)
def test_against_the_explicit_matrix(radius: int, beta: float, log2_steps: int) -> None:
    cams, edges = maps()
    walk = random_walk(cams, edges, radius, beta, log2_steps)
    assert torch.allclose(walk, explicit(cams, edges, radius, beta, 2**log2_steps), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 6), (6, 1), (2, 3), (3, 20), (20, 2)])
def test_maps_smaller_than_the_radius(h: int, w: int) -> None:
    cams, edges = maps(1, 2, h, w)
    assert torch.allclose(random_walk(cams, edges), explicit(cams, edges, 5, 10.0, 256), rtol=0, atol=1e-12)


def test_by_hand() -> None:
    """Three pixels in a row, an edge of 1/2 in the middle, beta 1: affinities 1/2, column sums 2, one step."""
    cams = torch.tensor([[[[1.0, 0.0, 0.0]]]], dtype=torch.float64)
    edges = torch.tensor([[[0.0, 0.5, 0.0]]], dtype=torch.float64)
    walk = random_walk(cams, edges, radius=2, beta=1.0, log2_steps=0)
    # with radius 2 only neighbours are paired: sums 1.5, 2, 1.5
    assert torch.allclose(walk, torch.tensor([[[[1 / 1.5, 0.5 / 2, 0.0]]]], dtype=torch.float64))
    walk = random_walk(cams, edges, radius=3, beta=1.0, log2_steps=0)
    assert torch.allclose(walk, torch.tensor([[[[1 / 2, 0.5 / 2, 0.5 / 2]]]], dtype=torch.float64))


def test_edges_of_one_are_walls() -> None:
    """A map on the left of a wall never gets to the right of it, and levels out on its own side."""
    cams, edges = torch.zeros(1, 1, 8, 13), torch.zeros(1, 8, 13)
    cams[0, 0, 2, 1] = 1
    edges[0, :, 6] = 1
    walk = random_walk(cams, edges, log2_steps=12)[0, 0]
    assert (walk[:, 6:].abs() < 1e-12).all()
    assert (walk[:, :6] > 0.005).all()
    assert walk[:, :6].std() < 1e-3 * walk[:, :6].mean()


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(2, 6), st.floats(0.5, 20), st.integers(0, 9),
    st.integers(0, 1000), st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_what_a_walk_keeps(
    h: int, w: int, radius: int, beta: float, log2_steps: int, seed: int, dtype: torch.dtype
) -> None:
    """Constants, the range of each map, its mean weighted by the column sums, linearity, and the image's sides."""
    cams, edges = maps(1, 2, h, w, dtype, seed)
    edges = edges * 0.99
    close = 1e-4 if dtype == torch.float32 else 1e-10

    def walk(cams: torch.Tensor) -> torch.Tensor:
        return random_walk(cams, edges, radius, beta, log2_steps)

    clear = (1 - edges)[:, None]
    level = walk(0.37 / clear)
    assert torch.allclose(level, torch.full_like(level, 0.37), rtol=close)
    start, end = cams * clear, walk(cams)
    assert (end.amin((2, 3)) >= start.amin((2, 3))).all()
    assert (end.amax((2, 3)) <= start.amax((2, 3))).all()
    sums = explicit_sums(edges[0].double().numpy(), radius, beta)
    assert torch.allclose((end[0].double() * sums).sum((1, 2)), (start[0].double() * sums).sum((1, 2)), rtol=close)
    assert torch.allclose(walk(cams.sum(1, keepdim=True)), end.sum(1, keepdim=True), rtol=0, atol=close)
    mirrored = random_walk(cams.flip(3), edges.flip(2), radius, beta, log2_steps).flip(3)
    assert torch.allclose(mirrored, end, rtol=0, atol=close)


def explicit_sums(edge: np.ndarray, radius: int, beta: float) -> torch.Tensor:
    """The column sums of affinities^beta, (H, W): 1 / the diagonal of T, as the matrix has 1 there before it is divided."""
    return torch.from_numpy(1 / transitions(edge, radius, beta).diagonal().reshape(edge.shape))


def test_a_batch_is_its_images() -> None:
    """Each image walks by its own edges; classes that an image lacks stay 0, wherever they stand."""
    cams, edges = maps(3, 5, 6, 5)
    cams[0, [0, 3]] = 0
    cams[1, [0, 1, 2, 4]] = 0
    cams[2] = 0
    together = random_walk(cams, edges)
    for i in range(3):
        assert torch.allclose(together[i : i + 1], random_walk(cams[i : i + 1], edges[i : i + 1]), rtol=0, atol=1e-14)
        for k in range(5):
            alone = random_walk(cams[i : i + 1, k : k + 1], edges[i : i + 1])
            assert torch.allclose(together[i, k], alone[0, 0], rtol=0, atol=1e-14)
            assert together[i, k].any() == cams[i, k].any()


def test_nothing_comes_of_nothing() -> None:
    edges = maps(2)[1]
    for classes in (0, 4):
        walk = random_walk(torch.zeros(2, classes, 7, 9, dtype=torch.float64), edges)
        assert walk.shape == (2, classes, 7, 9)
        assert (walk == 0).all()
    assert (walk_labels(walk[0], (28, 35)) == 0).all()
    assert (walk_labels(torch.zeros(0, 7, 9), (28, 35)) == 0).all()
    full = random_walk(torch.ones(1, 1, 7, 9), torch.ones(1, 7, 9))
    assert (full == 0).all()


@pytest.mark.parametrize("power", [1.0, 4.0])
def test_float32(power: float) -> None:
    """Within 1e-5 of float64, on a map of the usual size with regions."""
    cams, coarse = maps(1, 2, 60, 70, seed=3)[0], torch.rand(1, 1, 9, 11, generator=torch.Generator().manual_seed(1))
    edges = torch.nn.functional.interpolate(coarse.double(), (60, 70), mode="bilinear")[:, 0] ** power
    double, single = random_walk(cams, edges), random_walk(cams.float(), edges.float())
    assert (single - double).abs().max() < 1e-5 * double.max()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(random_walk(cams.float(), edges.float()), single)
    half = random_walk(cams.bfloat16(), edges.bfloat16())
    assert half.dtype == torch.float32


def test_arguments_are_left_alone() -> None:
    cams, edges = maps(1)
    before = cams.clone(), edges.clone()
    walk = random_walk(cams.requires_grad_(), edges)
    walk_labels(walk[0], (28, 36))
    assert torch.equal(cams, before[0])
    assert torch.equal(edges, before[1])
    assert not walk.requires_grad


@pytest.mark.parametrize("steps", [2, 8, 64, 256, 1024])
@pytest.mark.parametrize("error", [1e-6, 1e-13])
def test_chebyshev_weights(steps: int, error: float) -> None:
    """They sum to x^steps on -1..1, to 1 at 1, and are exact binomials where none is left out."""
    weights = _chebyshev_weights(steps, error)
    x = np.linspace(-1, 1, 2001)
    assert np.abs(np.polynomial.chebyshev.chebval(x, weights) - x**steps).max() < max(2 * error, 1e-14)
    assert sum(weights) == pytest.approx(1, abs=1e-15)
    assert weights[2] == pytest.approx(2 * math.comb(steps, steps // 2 - 1) / 2**steps, rel=3 * error)
    assert len(weights) - 1 == steps if steps <= 8 else len(weights) <= 1 + (2 * steps * math.log(2 / error)) ** 0.5


def test_labels_by_hand() -> None:
    """Two pixels, 5 of 8 columns: bilinear weights 1, 1, 7/8, 5/8, 3/8; the maximum is over all maps."""
    walk = torch.tensor([[[4.0, 0.0]], [[0.0, 2.0]]])
    # map 0: 4, 4, 3.5, 2.5, 1.5, .5; map 1: 0, 0, .25, .75, 1.25, 1.75, 2, 2. Background: 0.4 * 4 = 1.6.
    assert walk_labels(walk, (1, 8), 0.4).tolist() == [[1, 1, 1, 1, 0, 2, 2, 2]]
    assert walk_labels(walk, (1, 5), 0.0).tolist() == [[1, 1, 1, 1, 1]]
    assert walk_labels(walk, (1, 8), 0.5).tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]  # 2 of 4 is not above a half
    assert walk_labels(walk, (1, 8), 1.0).tolist() == [[0] * 8]
    assert walk_labels(torch.ones(2, 1, 2), (4, 8)).unique().tolist() == [1]
    scores, objects = walk_scores(walk, (1, 8))
    assert scores.tolist() == [[1, 1, 0.875, 0.625, 0.375, 0.4375, 0.5, 0.5]]
    assert objects.tolist() == [[1, 1, 1, 1, 1, 2, 2, 2]]
    scores, objects = walk_scores(torch.zeros(2, 1, 2), (4, 8))
    assert not scores.any()
    assert not objects.any()


@pytest.mark.parametrize("size", [(4, 36), (33, 36), (28, 37), (28, 32)])
def test_labels_of_another_size(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"walk \(3, 7, 9\) and size"):
        walk_labels(torch.zeros(3, 7, 9), size)


def test_labels_refuse_nan() -> None:
    with pytest.raises(ValueError, match="nan or infinity"):
        walk_labels(torch.full((1, 1, 1), torch.nan), (4, 4))
    with pytest.raises(ValueError, match="background=nan"):
        walk_labels(torch.zeros(1, 1, 1), (4, 4), math.nan)
    with pytest.raises(ValueError, match="K <= 254"):
        walk_labels(torch.zeros(255, 1, 1), (4, 4))


@pytest.mark.parametrize(
    ("cams", "edges", "message"),
    [((2, 7, 9), (2, 7, 9), "do not fit"), ((2, 3, 7, 9), (2, 9, 7), r"edges \(2, 9, 7\)"), ((1, 3, 7, 9), (2, 7, 9), "do not fit"),
     ((1, 3, 0, 9), (1, 0, 9), "at least one pixel")],
)  # fmt: skip
def test_shapes(cams: tuple[int, ...], edges: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_walk(torch.zeros(cams), torch.zeros(edges))


def test_values() -> None:
    cams, edges = maps()
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="after the sigmoid"):
            random_walk(cams, edges.clone().index_fill_(0, torch.tensor(0), wrong))
    with pytest.raises(ValueError, match="activation maps hold nan"):
        random_walk(cams * math.inf, edges)
    for name, value in (("beta", 0.0), ("beta", math.inf), ("log2_steps", -1), ("log2_steps", 31), ("radius", 1)):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            random_walk(cams, edges, **{name: value})
