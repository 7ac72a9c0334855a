import pytest
import torch
import torch.nn.functional as F

from structseg.lightning_modules.metrics.cam_thresholds import THRESHOLDS, CAMThresholds
from structseg.lightning_modules.metrics.segmentation import SegmentationMetrics

CLASSES = ("background", "cat", "dog")


def sample(seed, size, shape=(5, 7)):
    generator = torch.Generator().manual_seed(seed)
    cams = torch.rand(2, *shape, generator=generator)
    # Values that lie on thresholds: 0.25 is no number of float32's own hundredths by accident alone.
    cams = torch.where(torch.rand(cams.shape, generator=generator) < 0.5, (cams * 100).round() / 100, cams)
    truth = torch.randint(0, 3, size, generator=generator)
    truth[torch.rand(size, generator=generator) < 0.1] = 255
    return cams, truth


def by_brute_force(samples, threshold):
    metric = SegmentationMetrics(CLASSES)
    for cams, truth in samples:
        large = F.interpolate(cams[None], truth.shape, mode="bilinear", align_corners=False)[0]
        value, best = large.max(0)
        metric.update(torch.where(value < threshold, 0, best + 1)[None], truth[None])
    return metric.compute()


@pytest.mark.parametrize("size", [(5, 7), (20, 28)])
def test_every_threshold_is_what_a_loop_over_thresholds_finds(size):
    samples = [sample(seed, size) for seed in range(3)]
    metric = CAMThresholds(CLASSES)
    for cams, truth in samples:
        metric.update(cams, truth)
    scores = metric.compute()
    expected = [by_brute_force(samples, torch.tensor(threshold)) for threshold in THRESHOLDS]
    curve = torch.stack([found["miou"] for found in expected])
    assert torch.equal(scores["curve"], curve)
    best = expected[int(curve.argmax())]
    assert scores["miou"] == curve.max()
    assert scores["threshold"] == torch.tensor(THRESHOLDS[int(curve.argmax())])
    for name in CLASSES:
        assert scores[f"iou/{name}"] == best[f"iou/{name}"]


def test_by_hand():
    """Cat from 0.2 on, dog from 0.6 on; of the thresholds 0.31 to 0.60 all are best, the lowest is given."""
    cams = torch.tensor([[[0.2, 0.3, 0.9, 0.1]], [[0.1, 0.1, 0.2, 0.6]]])
    truth = torch.tensor([[0, 0, 1, 2]])
    metric = CAMThresholds(CLASSES)
    metric.update(cams, truth)
    scores = metric.compute()
    assert [float(scores[key]) for key in ("miou", "iou/background", "iou/cat", "iou/dog")] == [1, 1, 1, 1]
    assert float(scores["threshold"]) == pytest.approx(0.31)
    # 0.20: both background pixels are cat (1 of 3), dog is right, background is never predicted (0 of 2).
    assert float(scores["curve"][19]) == pytest.approx((0 + 1 / 3 + 1) / 3)
    # 0.25: one of them is: background 1 of 2, cat 1 of 2.
    assert float(scores["curve"][24]) == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    # 0.95: all is background: 2 of 4.
    assert float(scores["curve"][94]) == pytest.approx((2 / 4 + 0 + 0) / 3)
    assert scores["confusion"].tolist() == [[2, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert set(metric.metric_keys) | {"curve", "confusion"} == set(scores)


def test_empty_maps_are_background_and_absent_classes_are_left_out():
    metric = CAMThresholds(CLASSES)
    metric.update(torch.zeros(2, 1, 1), torch.tensor([[0, 0, 1, 255]]))
    scores = metric.compute()
    assert float(scores["miou"]) == pytest.approx((2 / 3 + 0) / 2)  # no dog anywhere
    assert scores["iou/dog"].isnan()
    assert float(scores["threshold"]) == pytest.approx(0.01)


def test_images_add_up_and_reset_forgets():
    one, other = sample(1, (5, 7)), sample(2, (5, 7))
    together = CAMThresholds(CLASSES)
    together.update(*one)
    together.update(*other)
    apart = CAMThresholds(CLASSES)
    apart.update(*one)
    first = apart.counts.clone()
    apart.reset()
    apart.update(*other)
    assert torch.equal(together.counts, first + apart.counts)


def test_nothing_counted_is_nan():
    metric = CAMThresholds(CLASSES)
    metric.update(torch.ones(2, 2, 2), torch.full((2, 2), 255))
    scores = metric.compute()
    assert not scores.pop("confusion").any()
    assert all(value.isnan().all() for value in scores.values())


@pytest.mark.parametrize(
    ("cams", "truth", "error", "message"),
    [
        (torch.zeros(3, 2, 2), torch.zeros(2, 2, dtype=torch.int64), ValueError, r"\(3, 2, 2\).*expected \(2, h, w\)"),
        (torch.zeros(2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64), ValueError, "expected"),
        (torch.zeros(2, 2, 2), torch.full((2, 2), 3), ValueError, "truth holds 3, but there are 3 classes"),
        (torch.zeros(2, 2, 2), torch.zeros(2, 2), TypeError, "float32"),
        (torch.full((2, 2, 2), torch.nan), torch.zeros(2, 2, dtype=torch.int64), ValueError, "nan"),
    ],
)
def test_what_does_not_fit_is_refused(cams, truth, error, message):
    metric = CAMThresholds(CLASSES)
    with pytest.raises(error, match=message):
        metric.update(cams, truth)
    assert not metric.counts.any()


def test_classes_are_checked():
    with pytest.raises(ValueError, match="background and one class or more"):
        CAMThresholds(["background"])
