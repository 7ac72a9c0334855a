"""FaultMetrics: faults by cause, worked by hand from a confusion matrix."""

import math

import pytest
import torch

from structseg.lightning_modules.metrics.faults import FaultMetrics
from structseg.lightning_modules.metrics.segmentation import SegmentationMetrics

CLASSES = ("background", "horse", "person", "dog")
# Rows truth, columns prediction: no two sums are equal, so that an exchanged axis shows.
MATRIX = [
    [50, 3, 5, 0],
    [2, 20, 7, 0],
    [1, 4, 30, 0],
    [0, 0, 0, 0],
]


def scores(matrix=MATRIX, **settings):
    metric = FaultMetrics(CLASSES, **settings)
    cells = [(t, p) for t, row in enumerate(matrix) for p, count in enumerate(row) for _ in range(count)]
    if cells:
        target, preds = torch.tensor(cells).T
        metric.update(preds.view(1, 1, -1), target.view(1, 1, -1))
    values = metric.compute()
    assert set(values) == set(metric.metric_keys)
    assert len(metric.metric_keys) == len(set(metric.metric_keys))
    return {key: float(value) for key, value in values.items()}


def test_faults_by_hand():
    found = scores()
    horse, person = 3 + 20 + 4, 5 + 7 + 30  # predicted
    assert found["fp_object/horse"] == pytest.approx(4 / horse)
    assert found["fp_background/horse"] == pytest.approx(3 / horse)
    assert found["fp_object/person"] == pytest.approx(7 / person)
    assert found["fp_background/person"] == pytest.approx(5 / person)
    assert found["miss/horse"] == pytest.approx(2 / 29)
    assert found["miss/person"] == pytest.approx(1 / 35)
    assert found["swap/horse"] == pytest.approx(7 / 29)
    assert found["swap/person"] == pytest.approx(4 / 35)


def test_a_class_that_does_not_occur_is_nan_and_left_out_of_the_means():
    found = scores()
    assert all(math.isnan(found[f"{fault}/dog"]) for fault in ("fp_object", "fp_background", "miss", "swap"))
    assert found["mean_fp_object"] == pytest.approx((4 / 27 + 7 / 42) / 2)
    assert found["mean_fp_background"] == pytest.approx((3 / 27 + 5 / 42) / 2)
    assert found["mean_miss"] == pytest.approx((2 / 29 + 1 / 35) / 2)
    assert found["mean_swap"] == pytest.approx((7 / 29 + 4 / 35) / 2)
    # Predicted but not there: its false positives count, what it could miss does not.
    only_predicted = [row[:] for row in MATRIX]
    only_predicted[1][3] = 6
    found = scores(only_predicted)
    assert found["fp_object/dog"] == 1
    assert found["fp_background/dog"] == 0
    assert math.isnan(found["miss/dog"])
    assert found["swap/horse"] == pytest.approx(13 / 35)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_before_any_pixel_all_is_nan():
    found = scores([], pairs=[("horse", "person")])
    assert all(math.isnan(value) for key, value in found.items() if key != "absent_classes")


def test_pairs_have_a_direction():
    found = scores(pairs=[("horse", "person"), ("person", "horse"), ("background", "dog")])
    assert found["on/horse/person"] == pytest.approx(4 / 27)
    assert found["goes_to/horse/person"] == pytest.approx(7 / 29)
    assert found["on/person/horse"] == pytest.approx(7 / 42)
    assert found["goes_to/person/horse"] == pytest.approx(4 / 35)
    assert found["goes_to/background/dog"] == 0


def test_the_shares_of_a_class_make_a_whole():
    found = scores()
    for name in ("horse", "person"):
        assert found[f"precision/{name}"] + found[f"fp_object/{name}"] + found[
            f"fp_background/{name}"
        ] == pytest.approx(1)
        assert found[f"recall/{name}"] + found[f"miss/{name}"] + found[f"swap/{name}"] == pytest.approx(1)


def test_the_parents_values_stay():
    metric = SegmentationMetrics(CLASSES)
    metric.confusion += torch.tensor(MATRIX)
    metric._update_count = 1
    expected = {key: float(value) for key, value in metric.compute().items()}
    assert {key: scores()[key] for key in expected} == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("pairs", [[("horse", "cow")], [("dog", "dog")], [("dog", "horse"), ("dog", "horse")]])
def test_pairs_that_make_no_sense(pairs):
    with pytest.raises(ValueError, match=r"pair dog|horse / .* is not two of background, horse, person, dog"):
        FaultMetrics(CLASSES, pairs=pairs)
