import math

import pytest
import torch

from structseg.datamodules.label_spaces import FACE_PARTS, STN
from structseg.lightning_modules.metrics.parts import PartMetrics
from structseg.lightning_modules.metrics.segmentation import SegmentationMetrics


def test_the_parts_are_those_of_the_label_space():
    assert {name: tuple(STN.classes[c] for c in classes) for name, classes in FACE_PARTS.items()} == {
        "left_brow": ("left_brow",),
        "right_brow": ("right_brow",),
        "left_eye": ("left_eye",),
        "right_eye": ("right_eye",),
        "nose": ("nose",),
        "mouth": ("upper_lip", "inner_mouth", "lower_lip"),
    }
    assert sorted(c for classes in FACE_PARTS.values() for c in classes) == list(range(1, len(STN.classes)))


def test_numbers_worked_by_hand():
    metric = PartMetrics(STN.classes, STN.ignore_index, STN.groups)
    # truth:  eye taken for the other eye, lip for lip, brow for eye, nose missed, background for nose, one right, ignored
    truth = torch.tensor([[[3, 6, 1, 5, 0, 5, 0, 255]]])
    guess = torch.tensor([[[4, 8, 3, 0, 5, 5, 0, 5]]])
    metric.update(guess, truth)
    scores = metric.compute()
    # Foreground: 4 pixels in both, 5 in the truth, 5 predicted.
    assert scores["published_overall_f1"].item() == pytest.approx(2 * 4 / (5 + 5))
    # Of named parts: eyes 1 of 1 and 2, brows 0 of 1 and 0, nose 1 of 2 and 2, mouth 1 of 1 and 1.
    assert scores["group_f1/overall"].item() == pytest.approx(2 * 3 / (5 + 5))
    assert scores["group_f1/eyes"].item() == pytest.approx(2 / 3)


def test_no_foreground_is_nan():
    metric = PartMetrics(STN.classes, STN.ignore_index, STN.groups)
    metric.update(torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(1, 2, 2, dtype=torch.int64))
    assert math.isnan(metric.compute()["published_overall_f1"])


def test_keys_are_the_base_keys_and_one_more():
    metric = PartMetrics(STN.classes, STN.ignore_index, STN.groups)
    base = SegmentationMetrics(STN.classes, STN.ignore_index, STN.groups)
    assert metric.metric_keys == (*base.metric_keys, "published_overall_f1")
    truth, guess = torch.randint(0, 9, (2, 3, 8, 8))
    for each in (metric, base):
        each.update(guess, truth)
    scores = metric.compute()
    assert set(scores) == set(metric.metric_keys)
    for key, value in base.compute().items():
        torch.testing.assert_close(scores[key], value, equal_nan=True)


def test_splitting_over_updates_changes_nothing():
    truth, guess = torch.randint(0, 9, (2, 4, 8, 8))
    whole, parts = PartMetrics(STN.classes), PartMetrics(STN.classes)
    whole.update(guess, truth)
    for i in range(4):
        parts.update(guess[i : i + 1], truth[i : i + 1])
    assert torch.equal(whole.compute()["published_overall_f1"], parts.compute()["published_overall_f1"])
    parts.reset()
    assert math.isnan(parts.compute()["published_overall_f1"])
