import io

import numpy as np
import pytest
import torch
from PIL import Image

from structseg.lightning_modules.drawing.confounders import confounder_figure
from structseg.lightning_modules.metrics.confounder_set import ConfounderSet

CLASSES = ("background", "cat", "dog", "cow")


def query(*maps):
    """(4, 1, 2) probabilities from those of the foreground classes."""
    foreground = torch.tensor(maps)[:, None]
    return torch.cat([1 - foreground.sum(0, keepdim=True), foreground])


def test_the_mean_is_over_the_images_that_hold_the_class():
    metric = ConfounderSet(CLASSES, (1, 2))
    metric.update(query((0.5, 0.0), (0.25, 0.5), (0.0, 0.0)), torch.tensor([1.0, 1.0, 0.0]))
    metric.update(query((0.0, 1.0), (0.75, 0.0), (0.25, 0.0)), torch.tensor([1.0, 0.0, 0.0]))
    found = metric.compute()
    assert found.images.tolist() == [2, 1, 0]
    # cat of both images, dog of the first alone, although the second one's mask has some; no image holds a cow.
    assert found.confounders.tolist() == [[[0.25, 0.5]], [[0.25, 0.5]], [[0.0, 0.0]]]
    assert (found.confounders.dtype, found.images.dtype) == (torch.float32, torch.int64)


def test_no_digit_depends_on_the_order():
    samples = [torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
    found = []
    for order in (samples, samples[::-1]):
        metric = ConfounderSet(CLASSES)
        for probabilities in order:
            metric.update(probabilities, torch.ones(3))
        found.append(metric.compute().confounders)
    assert torch.equal(*found)
    assert torch.allclose(found[0], torch.stack(samples)[:, 1:].double().mean(0).float(), atol=1e-7)


@pytest.mark.parametrize(
    ("probabilities", "tags", "message"),
    [
        (torch.zeros(3, 1, 2), torch.zeros(3), "expected"),
        (torch.zeros(4, 2, 1), torch.zeros(3), "expected"),
        (torch.zeros(4, 1, 2), torch.zeros(4), "expected"),
        (torch.full((4, 1, 2), torch.nan), torch.zeros(3), "softmax"),
        (torch.full((4, 1, 2), 2.0), torch.zeros(3), "softmax"),
        (torch.zeros(4, 1, 2), torch.full((3,), 0.5), "tags"),
    ],
)
def test_what_does_not_fit_is_refused(probabilities, tags, message):
    metric = ConfounderSet(CLASSES, (1, 2))
    with pytest.raises(ValueError, match=message):
        metric.update(probabilities, tags)
    assert not metric.images.any()


def test_classes_and_size_are_checked():
    with pytest.raises(ValueError, match="background"):
        ConfounderSet(["background"])
    with pytest.raises(ValueError, match="background"):
        ConfounderSet(CLASSES, (0, 3))


def pixels(figure):
    file = io.BytesIO()
    figure.savefig(file, dpi=80, format="png")
    return len(file.getvalue()), np.asarray(Image.open(file).convert("RGB")).astype(int)


def test_the_picture_shows_each_map_from_dark_to_its_maximum():
    maps = np.zeros((2, 4, 4), np.float32)
    maps[0, :, 2:] = 0.1
    _, page = pixels(confounder_figure(maps, np.array([3, 0]), ["cat", "dog"]))
    left, right = page[:, : page.shape[1] // 2], page[:, page.shape[1] // 2 :]
    magma_low, magma_high = (0, 0, 4), (252, 253, 191)  # 0.1 is that map's brightest
    counts = [(np.abs(left - np.array(colour)).max(2) < 3).sum() for colour in (magma_low, magma_high)]
    assert min(counts) > 1000
    assert (np.abs(right - np.array(magma_low)).max(2) < 3).sum() < 500  # no image: an empty frame


def test_the_picture_of_eighty_classes_is_small():
    y, x = np.mgrid[:32, :32]
    smooth = np.stack([np.exp(-((x - 16) ** 2 + (y - 10 - i / 10) ** 2) / 80) for i in range(80)])
    size, _ = pixels(confounder_figure(smooth, np.full(80, 7), [f"class {i}" for i in range(80)]))
    assert size < 300_000


@pytest.mark.parametrize("count", [0, 1])
def test_the_picture_wants_one_of_each(count):
    with pytest.raises(ValueError, match="one of each"):
        confounder_figure(np.zeros((2, 3, 3)), np.zeros(2, int), ["cat"] * count)
