"""What pasting six windows of a face back costs, beside the published way: sampling them over the whole image."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from structseg.datamodules.label_spaces import STN
from structseg.lightning_modules.networks.icnn import ICNN
from structseg.lightning_modules.networks.spatial_transformer import (
    crop_parts,
    paste_labels,
    paste_parts,
    theta_from_centers,
)
from structseg.lightning_modules.stn.face_windows import window_probabilities
from structseg.lightning_modules.stn.padded_originals import pad_originals
from structseg.lightning_modules.stn.stn_icnn import STNiCNN
from tests.benchmarks.measure import lower_quartiles

_ROUNDS = 20
# brows, eyes, nose, mouth of a face that fills most of the image, as shares of its sides
_CENTERS = torch.tensor([[[0.36, 0.42], [0.64, 0.42], [0.37, 0.48], [0.63, 0.48], [0.5, 0.58], [0.5, 0.75]]])
_TO = torch.tensor([[-1, k, -1, -1] for k in range(1, 6)] + [[-1, 6, 7, 8]])
_CLASSES = 9


def _face(side: int, window: int, images: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    theta = theta_from_centers((_CENTERS * side).expand(images, -1, -1), (window, window), (side, side))
    random = torch.randn(images, 6, 4, window, window, generator=torch.Generator().manual_seed(0))
    return (3 * random).masked_fill(_TO[:, :, None, None] * torch.tensor([0, 1, 1, 1])[:, None, None] < 0, -9).softmax(
        2
    ), theta


def _published(parts: torch.Tensor, theta: torch.Tensor, side: int) -> torch.Tensor:
    """Each part's 2 or 4 channels sampled over the whole image, nearest, six times; the background is a product."""
    inverse = torch.zeros_like(theta)
    for axis in (0, 1):
        inverse[..., axis, axis] = 1 / theta[..., axis, axis]
        inverse[..., axis, 2] = -theta[..., axis, 2] / theta[..., axis, axis]
    background, foreground = torch.ones(len(parts), 1, side, side), []
    for part in range(6):
        channels = 4 if part == 5 else 2
        grid = F.affine_grid(inverse[:, part], [len(parts), channels, side, side], align_corners=True)
        maps = torch.cat((1 - parts[:, part, :1], parts[:, part, 1:channels]), 1)
        sampled = F.grid_sample(maps, grid, "nearest", "zeros", align_corners=True)
        background = background * (1 - sampled[:, :1])
        foreground.append(sampled[:, 1:])
    return torch.cat((background, *foreground), 1)


def _told(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f} ms" for name, value in found.items())


@pytest.mark.slow
@pytest.mark.parametrize("window", [81, 127])
def test_beside_sampling_the_whole_image(benchmark, capsys, window):
    side = 1024
    parts, theta = _face(side, window)
    image = torch.rand(1, 3, side, side)
    assert (
        _published(parts, theta, side)[:, 1:] - paste_parts(parts, theta, (side, side), _TO, "nearest")[:, 1:]
    ).abs().max() == 0
    steps = {
        "published": lambda: _published(parts, theta, side),
        "published, to labels": lambda: _published(parts, theta, side).argmax(1),
        "paste_parts": lambda: paste_parts(parts, theta, (side, side), _TO),
        "of which zeros": lambda: torch.zeros(1, _CLASSES, side, side),
        "paste_labels": lambda: paste_labels(parts, theta, (side, side), _TO),
        "crop_parts": lambda: crop_parts(image, theta, (window, window)),
    }
    benchmark.pedantic(steps["paste_labels"], rounds=3)
    found = lower_quartiles(steps, _ROUNDS)
    ratios = {
        "maps": found["published"] / found["paste_parts"],
        "labels": found["published, to labels"] / found["paste_labels"],
        "labels beside published maps": found["published"] / found["paste_labels"],
    }
    benchmark.extra_info.update(ratios)
    with capsys.disabled():
        print(f"\n  window {window}: {_told(found)}; times faster: " + str({k: round(v, 1) for k, v in ratios.items()}))


@pytest.mark.slow
def test_cost_follows_the_windows_not_the_image(benchmark, capsys):
    """Beside the zeros that are returned a large image costs what a small one does; larger windows cost more."""
    faces = {(side, window): _face(side, window) for side in (512, 1024, 2048) for window in (81, 127)}
    steps = {}
    for (side, window), (parts, theta) in faces.items():
        size = (side, side)
        steps[f"{window} in {side}"] = lambda p=parts, t=theta, s=size: paste_parts(p, t, s, _TO)
        steps[f"{window} in {side}, labels"] = lambda p=parts, t=theta, s=size: paste_labels(p, t, s, _TO)
    zeros = {side: (lambda s=side: torch.zeros(1, _CLASSES, s, s)) for side in (512, 1024, 2048)}
    benchmark.pedantic(steps["127 in 1024"], rounds=3)
    found, empty = lower_quartiles(steps, _ROUNDS), lower_quartiles(zeros, _ROUNDS)
    benchmark.extra_info.update(found)
    with capsys.disabled():
        print(f"\n  {_told(found)}; zeros alone: {_told(empty)}")


@pytest.mark.slow
def test_with_gradients(benchmark, capsys):
    """Forward and backward through maps, beside the published way: eight faces of 512 x 512."""
    side, window = 512, 81
    parts, theta = _face(side, window, images=8)

    def step(paste):
        def run() -> None:
            leaves = parts.detach().requires_grad_(), theta.detach().requires_grad_()
            out = paste(*leaves)
            out.backward(torch.ones(()).expand_as(out))

        return run

    steps = {
        "published": step(lambda p, t: _published(p, t, side)),
        "paste_parts": step(lambda p, t: paste_parts(p, t, (side, side), _TO)),
    }
    benchmark.pedantic(steps["paste_parts"], rounds=3)
    found = lower_quartiles(steps, _ROUNDS)
    with capsys.disabled():
        print(f"\n  {_told(found)}; {found['published'] / found['paste_parts']:.1f} times faster")


@pytest.mark.slow
@pytest.mark.parametrize(("window", "form", "images"), [(81, "published", 1), (81, "published", 8), (81, "paper", 1)])
def test_a_whole_face(benchmark, capsys, window, form, images):
    """From a photograph of 1024 x 1024 to its mask, beside the same networks with the published remapping."""
    side = 1024
    stn = STNiCNN(STN, "end_to_end", window=(window, window), network=partial(ICNN, form=form)).eval()
    small, photographs = torch.rand(images, 3, 128, 128), list(torch.rand(images, 3, side, side))
    batch = {"image": small, "original": photographs, "name": ["a"] * images}
    frame, sizes = pad_originals(batch, stn.window)
    size = (side, side)
    coarse = stn(small)
    theta = stn.found_theta(coarse, sizes, size)
    windows = window_probabilities(stn.label_windows(frame, theta))

    def published() -> None:
        found = stn.found_theta(stn(small), sizes, size)
        _published(window_probabilities(stn.label_windows(frame, found)), found, side).argmax(1)

    steps = {
        "with the published remapping": published,
        "whole": lambda: [one.classes() for one in stn.label(batch, [(side, side)] * images)],
        "coarse": lambda: stn(small),
        "localizer": lambda: stn.found_theta(coarse, sizes, size),
        "windows": lambda: window_probabilities(stn.label_windows(frame, theta)),
        "remapping": lambda: paste_labels(windows, theta, (side, side), stn.paste_to),
    }
    with torch.no_grad():
        benchmark.pedantic(steps["whole"], rounds=1)
        found = {name: value / images for name, value in lower_quartiles(steps, rounds=4).items()}
    benchmark.extra_info.update(found)
    with capsys.disabled():
        ratio = found["with the published remapping"] / found["whole"]
        print(f"\n  {form}, window {window}, batch {images}, a face: {_told(found)}; {ratio:.1f} times faster")
