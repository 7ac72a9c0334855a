import numpy as np
import pytest
import torch
import torch.nn.functional as F

from structseg.lightning_modules.conta.dense_crf import DenseCRF
from structseg.lightning_modules.conta.seeds import combine, seed_maps


def test_the_class_of_the_maximum_above_each_threshold():
    cams = np.array([[[0.9, 0.30, 0.20, 0.05, 0.0]], [[0.2, 0.31, 0.06, 0.04, 0.0]]], np.float32)
    strict, lenient = seed_maps(cams, (1, 5))
    assert strict.tolist() == [[1, 2, 0, 0, 0]]
    assert lenient.tolist() == [[1, 2, 1, 0, 0]]  # not above 0.05 is background
    assert strict.dtype == np.uint8


def test_maps_are_enlarged_as_torch_does():
    cams = np.random.default_rng(0).random((3, 7, 9)).astype(np.float32)
    large = F.interpolate(torch.from_numpy(cams)[None], (28, 35), mode="bilinear", align_corners=False)[0]
    value, best = large.max(0)
    for labels, threshold in zip(seed_maps(cams, (28, 35), 0.8, 0.5), (0.8, 0.5), strict=True):
        expected = torch.where(value > threshold, best + 1, 0).numpy()
        assert (labels == expected).mean() > 0.999  # a value at a threshold may differ by its last digit
        assert 0 < (labels > 0).mean() < 1


def test_combined_by_hand():
    strict = np.array([[0, 0, 1, 2, 2]], np.uint8)
    lenient = np.array([[0, 1, 1, 0, 1]], np.uint8)
    assert combine(strict, lenient).tolist() == [[0, 255, 1, 2, 2]]  # foreground whatever the lenient one says


def test_seeds_follow_the_image():
    """A bright square on dark ground; the maps are sure inside it, unsure around it, empty far from it."""
    image = np.full((40, 40, 3), 30, np.uint8)
    image[10:30, 10:30] = 220
    y, x = np.mgrid[:10, :10]
    blob = np.exp(-((y - 4.5) ** 2 + (x - 4.5) ** 2) / 4)
    cams = np.stack([np.zeros((10, 10)), blob / blob.max()]).astype(np.float32)
    strict, lenient = (DenseCRF.irnet().labels(image, one, 3) for one in seed_maps(cams, (40, 40)))
    labels = combine(strict, lenient)
    assert labels.shape == (40, 40)
    assert set(np.unique(labels)) <= {0, 2, 255}
    assert (labels[12:28, 12:28] == 2).mean() > 0.9
    assert (labels[:4] == 0).all()


def test_nothing_seen_is_background():
    assert [labels.tolist() for labels in seed_maps(np.zeros((2, 3, 4), np.float32), (2, 3))] == [[[0] * 3] * 2] * 2


@pytest.mark.parametrize(("foreground", "background"), [(0.1, 0.2), (0.3, 0.0), (1.5, 0.2), (float("nan"), 0.05)])
def test_thresholds_are_checked(foreground, background):
    with pytest.raises(ValueError, match="0 < background <= foreground <= 1"):
        seed_maps(np.zeros((1, 2, 2)), (2, 2), foreground, background)


@pytest.mark.parametrize("cams", [np.zeros((2, 2)), np.full((1, 2, 2), np.nan)])
def test_maps_are_checked(cams):
    with pytest.raises(ValueError, match="finite"):
        seed_maps(cams, (2, 2))
