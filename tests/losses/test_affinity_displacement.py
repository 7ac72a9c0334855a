"""IRNet's loss: the published numbers, numbers by hand, ties, extremes, shapes, ranks."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from structseg.files import ROOT
from structseg.losses import AffinityDisplacementLoss, affinity_displacement_loss, affinity_paths

TERMS = ("total", "pos_aff", "neg_aff", "dp_fg", "dp_bg")


def maps(n: int = 2, h: int = 6, w: int = 9, dtype: torch.dtype = torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randn(n, 1, h, w, generator=generator, dtype=dtype) * 2
    displacement = torch.randn(n, 2, h, w, generator=generator, dtype=dtype) * 3
    labels = torch.randint(0, 3, (n, h, w), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return edges, displacement, labels


def by_pairs(edges: torch.Tensor, displacement: torch.Tensor, labels: torch.Tensor, radius: int, classes: int = 21):
    """The definition, one pair after another."""
    sums = {"bg": [], "fg": [], "neg": [], "dp_bg": [], "dp_fg": []}
    n, h, w = labels.shape
    for i in range(n):
        for y in range(h - radius + 1):
            for x in range(radius - 1, w - radius + 1):
                for (dy, dx), cells in affinity_paths(radius):
                    one, other = int(labels[i, y, x]), int(labels[i, y + dy, x + dx])
                    if not (0 <= one < classes and 0 <= other < classes):
                        continue
                    aff = 1 - torch.stack([edges[i, 0, y + a, x + b].sigmoid() for a, b in cells]).max()
                    difference = displacement[i, :, y, x] - displacement[i, :, y + dy, x + dx]
                    if one != other:
                        sums["neg"].append(-torch.log(1 + 1e-5 - aff))
                    elif one == 0:
                        sums["bg"].append(-torch.log(aff + 1e-5))
                        sums["dp_bg"].append(difference.abs().sum())
                    else:
                        sums["fg"].append(-torch.log(aff + 1e-5))
                        sums["dp_fg"].append((difference - torch.tensor([dy, dx])).abs().sum())
    mean = {k: sum(v) / (len(v) * (2 if k.startswith("dp") else 1) + 1e-5) for k, v in sums.items()}
    pos = (mean["bg"] + mean["fg"]) / 2
    total = (pos + mean["neg"]) / 2 + (mean["dp_fg"] + mean["dp_bg"]) / 2
    return total, pos, mean["neg"], mean["dp_fg"], mean["dp_bg"]


@pytest.mark.data
@pytest.mark.parametrize("radius", [5, 10])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_published_numbers(radius: int, dtype: torch.dtype, close: float, golden: Path) -> None:
    with np.load(golden / "irn_loss.npz") as file:
        known = {key.removeprefix(f"r{radius}_"): file[key] for key in file.files if key.startswith(f"r{radius}_")}
    edges = torch.tensor(known["edge_logits"], dtype=dtype, requires_grad=True)
    displacement = torch.tensor(known["dp"], dtype=dtype, requires_grad=True)
    loss = AffinityDisplacementLoss(radius)(edges, displacement, torch.tensor(known["label_reduced"]))
    for name, term in zip(TERMS, loss, strict=True):
        assert term.item() == pytest.approx(known[f"loss_{name}"].item(), rel=close), name
    grads = [("edge", name, edges) for name in ("pos_aff", "neg_aff", "total")]
    grads += [("dp", name, displacement) for name in ("dp_fg", "dp_bg", "total")]
    for kind, name, leaf in grads:
        (grad,) = torch.autograd.grad(loss[TERMS.index(name)], leaf, retain_graph=True)
        assert np.allclose(grad.numpy(), known[f"grad_{kind}_{name}"], rtol=0, atol=close), (kind, name)


@pytest.mark.parametrize("radius", [2, 3])
def test_against_the_definition(radius: int) -> None:
    edges, displacement, labels = (maps()[0].requires_grad_(), maps()[1].requires_grad_(), maps()[2])
    ours = affinity_displacement_loss(edges, displacement, labels, radius)
    reference = by_pairs(edges, displacement, labels, radius)
    for found, expected in zip(ours, reference, strict=True):
        assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    grads = (torch.autograd.grad(total, (edges, displacement)) for total in (ours.total, reference[0]))
    for found, expected in zip(*grads, strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-14)


def test_gradcheck() -> None:
    edges, displacement, labels = maps(1, 3, 5)
    leaves = edges.requires_grad_(), displacement.requires_grad_()
    assert torch.autograd.gradcheck(lambda e, d: affinity_displacement_loss(e, d, labels, 2).total, leaves)


def test_by_hand() -> None:
    """Radius 2: the only source, its right and its lower neighbour are an object, the diagonal ones background.

    The edge on the right is 3/4, also on the path to the right diagonal; all others are 1/2; displacements are 0.
    """
    labels = torch.tensor([[[0, 4, 4], [0, 4, 0]]])
    edges = torch.zeros(1, 1, 2, 3, dtype=torch.float64)
    edges[0, 0, 0, 2] = math.log(3)
    loss = affinity_displacement_loss(edges, torch.zeros(1, 2, 2, 3, dtype=torch.float64), labels, radius=2)
    assert loss.pos_affinity.item() == pytest.approx((math.log(4) + math.log(2)) / 4, abs=2e-5)
    assert loss.neg_affinity.item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2, abs=2e-5)
    assert loss.foreground_displacement.item() == pytest.approx(0.5, abs=1e-5)  # |1| + |1| over 2 channels of 2 pairs
    assert loss.background_displacement.item() == 0


def test_displacements_to_one_point_cost_nothing() -> None:
    """dp = the vector to the object's centre, with the paper's sign: dp(source) - dp(other) = the vector between them."""
    y, x = torch.meshgrid(torch.arange(10.0), torch.arange(19.0), indexing="ij")
    to_middle = torch.stack([4 - y, 9 - x])[None]
    labels = torch.full((1, 10, 19), 7)
    edges = torch.zeros(1, 1, 10, 19)
    assert affinity_displacement_loss(edges, to_middle, labels).foreground_displacement.item() == 0
    assert affinity_displacement_loss(edges, -to_middle, labels).foreground_displacement.item() > 1
    assert affinity_displacement_loss(edges, to_middle * 0, labels * 0).background_displacement.item() == 0


def test_only_one_of_equal_edges_has_a_gradient() -> None:
    edges = torch.zeros(1, 1, 5, 9, dtype=torch.float64, requires_grad=True)
    loss = affinity_displacement_loss(edges, torch.zeros(1, 2, 5, 9), torch.zeros(1, 5, 9, dtype=torch.long), radius=5)
    loss.pos_affinity.backward()
    assert edges.grad is not None
    # 34 pairs of -log(1 - s): a slope of 1/2 each, half of the mean, at one cell of each path and not at several.
    assert edges.grad.sum().item() == pytest.approx(0.25, rel=1e-4)
    shares = edges.grad * 34 / 0.25
    assert torch.allclose(shares, shares.round(), atol=1e-2)


@pytest.mark.parametrize("ignored", [255, 21, 40, -1])
def test_all_ignored(ignored: int) -> None:
    edges, displacement, labels = maps(dtype=torch.float32)
    edges.requires_grad_(), displacement.requires_grad_()
    loss = affinity_displacement_loss(edges, displacement, torch.full_like(labels, ignored), 3)
    loss.total.backward()
    assert [term.item() for term in loss] == [0] * 5
    assert (edges.grad == 0).all()
    assert (displacement.grad == 0).all()


def test_classes_and_types_of_labels() -> None:
    """Labels of `classes` and above are ignored like 255; any integer type is accepted."""
    edges, displacement, labels = maps()
    labels[labels == 2] = 20
    usual = affinity_displacement_loss(edges, displacement, labels, 3)
    fewer = affinity_displacement_loss(edges, displacement, labels, 3, classes=20)
    without = affinity_displacement_loss(edges, displacement, labels.masked_fill(labels == 20, 255), 3)
    assert fewer == without
    assert fewer.total != usual.total
    for dtype in (torch.uint8, torch.int32):
        assert affinity_displacement_loss(edges, displacement, labels.to(dtype), 3) == usual
    with pytest.raises(TypeError, match=r"labels are torch.float32"):
        affinity_displacement_loss(edges, displacement, labels.float(), 3)


def test_extreme_logits() -> None:
    """Edges of probability 1 within a class and 0 between classes cost -log 1e-5, with finite gradients."""
    _, displacement, labels = maps(dtype=torch.float32)
    for value in (1e4, -1e4, 30.0, -30.0):
        edges = torch.full((2, 1, 6, 9), value, requires_grad=True)
        loss = affinity_displacement_loss(edges, displacement, labels, 3)
        loss.total.backward()
        worst, best = (loss.pos_affinity, loss.neg_affinity)[:: 1 if value > 0 else -1]
        assert worst.item() == pytest.approx(-math.log(1e-5), rel=1e-3)
        assert best.item() == pytest.approx(0, abs=2e-5)
        assert torch.isfinite(edges.grad).all()


def test_float32_and_autocast() -> None:
    edges, displacement, labels = maps(dtype=torch.float32)
    single = affinity_displacement_loss(edges, displacement, labels, 3)
    double = affinity_displacement_loss(edges.double(), displacement.double(), labels, 3)
    with torch.autocast("cpu", torch.bfloat16):
        cast = affinity_displacement_loss(edges, displacement, labels, 3)
    half = affinity_displacement_loss(edges.bfloat16(), displacement.bfloat16(), labels, 3)
    assert cast == single
    assert half.total.dtype == torch.float32
    for one, two, three in zip(single, double, half, strict=True):
        assert one.item() == pytest.approx(two.item(), rel=1e-5)
        assert three.item() == pytest.approx(two.item(), rel=2e-2)


@pytest.mark.parametrize(
    ("edges", "displacement", "labels", "message"),
    [
        ((2, 6, 9), (2, 2, 6, 9), (2, 6, 9), r"edges \(2, 6, 9\), displacement \(2, 2, 6, 9\)"),
        ((2, 1, 6, 9), (2, 1, 6, 9), (2, 6, 9), r"\(N, 1, h, w\), \(N, 2, h, w\) and \(N, h, w\) are expected"),
        ((2, 1, 6, 9), (2, 2, 6, 9), (1, 6, 9), r"labels \(1, 6, 9\)"),
        ((2, 1, 6, 9), (2, 2, 6, 9), (2, 1, 6, 9), r"labels \(2, 1, 6, 9\)"),
        ((2, 1, 2, 9), (2, 2, 2, 9), (2, 2, 9), "2 maps of 2 x 9 hold no pair of radius 3; one or more of 3 x 5"),
        ((2, 1, 6, 4), (2, 2, 6, 4), (2, 6, 4), "hold no pair of radius 3"),
        ((0, 1, 6, 9), (0, 2, 6, 9), (0, 6, 9), "0 maps"),
    ],
)
def test_shapes(edges, displacement, labels, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        affinity_displacement_loss(
            torch.zeros(edges), torch.zeros(displacement), torch.zeros(labels, dtype=torch.long), 3
        )
    assert "\n" not in str(caught.value)


def test_settings() -> None:
    with pytest.raises(ValueError, match="radius=1 holds no neighbour"):
        AffinityDisplacementLoss(radius=1)
    for classes in (0, 256):
        with pytest.raises(ValueError, match=f"classes={classes}"):
            AffinityDisplacementLoss(classes=classes)


@pytest.mark.slow  # the profiler takes its time to start
def test_memory_does_not_grow_with_the_pairs() -> None:
    """The largest tensors alive at once are some maps: the index tables of radius 6 would be hundreds."""
    edges, displacement, labels = maps(2, 24, 24, torch.float32)
    leaf = edges.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        affinity_displacement_loss(leaf, displacement, labels, 6).total.backward()
    held, most = 0, 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert 0 < most < 40 * leaf.numel() * leaf.element_size()


RANK = """
import sys, torch, torch.distributed as dist
from structseg.losses import affinity_displacement_loss
rank, meeting, where = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=2)
edges, displacement, labels = torch.load(where, weights_only=True)
part = slice(0, 1) if rank == 0 else slice(1, 3)
edges, displacement = edges[part].requires_grad_(), displacement[part].requires_grad_()
loss = affinity_displacement_loss(edges, displacement, labels[part], 3, counts_over_ranks=True)
loss.total.backward()
torch.save([torch.stack(loss).detach(), edges.grad, displacement.grad], where + str(rank))
"""


@pytest.mark.slow
def test_counts_over_ranks(tmp_path: Path) -> None:
    """One and two images on two processes: the mean of their losses and gradients is that of three images at once."""
    edges, displacement, labels = maps(3)
    torch.save([edges, displacement, labels], tmp_path / "maps")
    arguments = [str(tmp_path / "meeting"), str(tmp_path / "maps")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), *arguments], cwd=ROOT, env=environment)
        for rank in (0, 1)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    (loss_0, *grads_0), (loss_1, *grads_1) = (
        torch.load(tmp_path / f"maps{rank}", weights_only=True) for rank in (0, 1)
    )
    edges.requires_grad_(), displacement.requires_grad_()
    whole = affinity_displacement_loss(edges, displacement, labels, 3)
    whole.total.backward()
    assert torch.allclose((loss_0 + loss_1) / 2, torch.stack(whole), rtol=1e-12)
    for leaf, one, other in zip((edges, displacement), grads_0, grads_1, strict=True):
        assert torch.allclose(torch.cat([one, other]) / 2, leaf.grad, rtol=0, atol=1e-15)


def test_a_single_process_needs_no_group() -> None:
    arguments = maps()
    assert affinity_displacement_loss(*arguments, 3, counts_over_ranks=True) == affinity_displacement_loss(
        *arguments, 3
    )


def test_one_step_lowers_it() -> None:
    """Gradient descent on a map with one square brings the loss near its minimum."""
    labels = F.pad(torch.ones(1, 8, 8, dtype=torch.long), (6, 6, 6, 6))
    edges, displacement = torch.zeros(1, 1, 20, 20, requires_grad=True), torch.zeros(1, 2, 20, 20, requires_grad=True)
    optimizer = torch.optim.Adam([edges, displacement], lr=0.3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = affinity_displacement_loss(edges, displacement, labels, 4)
        loss.total.backward()
        optimizer.step()
        losses.append(loss.total.item())
    assert losses[-1] < 0.4 * losses[0]
