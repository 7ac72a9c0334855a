import math

import pytest
import torch

from structseg.lightning_modules.metrics.windows import WindowError

PARTS = ("left_brow", "right_brow", "left_eye", "right_eye", "nose", "mouth")


def _theta(centers, window, size):
    """Windows (h, w) at centres (x, y) of an image (H, W), as the transformer makes them."""
    (h, w), (height, width) = window, size
    rows = [
        [[(w - 1) / (width - 1), 0, -1 + 2 * x / (width - 1)], [0, (h - 1) / (height - 1), -1 + 2 * y / (height - 1)]]
        for x, y in centers
    ]
    return torch.tensor(rows)[None]


def _nose(mask, center, window):
    """Scores of a nose alone."""
    metric = WindowError({"nose": (5,)})
    metric.update(_theta([center], window, mask.shape), mask[None])
    return {key: value.item() for key, value in metric.compute().items()}


def test_distance_and_share_worked_by_hand():
    mask = torch.zeros(12, 20, dtype=torch.int64)
    mask[2:5, 4:11] = 5  # 3 x 7 pixels about (7, 3)
    scores = _nose(mask, (10, 7), (5, 3))  # columns 9 to 11, rows 5 to 9
    assert scores["center_error"] == pytest.approx(5, abs=1e-5)
    assert scores["inside"] == 0
    scores = _nose(mask, (10, 4), (5, 3))  # columns 9 to 11, rows 2 to 6: columns 9 and 10 of the nose
    assert scores["center_error"] == pytest.approx(math.sqrt(10), abs=1e-5)
    assert scores["inside"] == pytest.approx(6 / 21)
    assert scores["part_inside/nose"] == scores["inside"]
    assert scores["absent_parts"] == 0


@pytest.mark.parametrize(("x", "held"), [(7, 3), (7.4, 3), (7.6, 3), (7.5, 4), (1, 3), (0, 2), (-1, 1), (-2, 0)])
def test_half_a_pixel_beyond_the_samples_is_inside(x, held):
    # A row of ten pixels under a window of three.
    assert _nose(torch.full((2, 10), 5), (x, 0), (1, 3))["inside"] == pytest.approx(held / 20)


def test_a_zoomed_window_holds_what_lies_between_its_first_and_last_sample():
    mask = torch.full((2, 21), 5)
    theta = _theta([(10, 0)], (1, 5), mask.shape)
    held = []
    for zoom in (1.0, 1.5, 2.0):
        metric = WindowError({"nose": (5,)})
        metric.update(theta * torch.tensor([[zoom, 1, 1], [1, zoom, 1]]), mask[None])
        held.append(round(metric.compute()["inside"].item() * 42))
    assert held == [5, 7, 9]


def test_the_mouths_centre_is_the_mean_of_its_present_lips_centres():
    mask = torch.zeros(1, 9, 11, dtype=torch.int64)
    mask[0, 2, 0:9] = 6  # about (4, 2)
    mask[0, 6, 6:7] = 8  # at (6, 6)
    metric = WindowError()
    metric.update(_theta(6 * [(5, 4)], (3, 3), (9, 11)), mask)
    scores = metric.compute()
    assert scores["part_center_error/mouth"].item() == pytest.approx(0, abs=1e-5)
    mask[0, 4, 8] = 7  # about (8, 4): the mean is (6, 4)
    metric.reset()
    metric.update(_theta(6 * [(5, 4)], (3, 3), (9, 11)), mask)
    scores = metric.compute()
    assert scores["part_center_error/mouth"].item() == pytest.approx(1, abs=1e-5)
    assert scores["part_inside/mouth"].item() == 0
    assert scores["absent_parts"].item() == 5


def test_absent_parts_are_left_out_and_counted():
    mask = torch.zeros(2, 8, 8, dtype=torch.int64)
    mask[0, 2, 3], mask[0, 5, 5], mask[1, 5, 1] = 1, 5, 5
    metric = WindowError()
    centers = [(3, 4), *4 * [(5, 5)], (0, 0)]
    metric.update(_theta(centers, (3, 3), (8, 8)).expand(2, -1, -1, -1), mask)
    scores = {key: value.item() for key, value in metric.compute().items()}
    assert tuple(scores) == metric.metric_keys
    assert scores["absent_parts"] == 9
    assert scores["part_center_error/left_brow"] == pytest.approx(2, abs=1e-5)
    assert scores["part_center_error/nose"] == pytest.approx((0 + 4) / 2, abs=1e-5)
    assert scores["center_error"] == pytest.approx((2 + 0 + 4) / 3, abs=1e-5)
    assert (scores["part_inside/left_brow"], scores["part_inside/nose"]) == (0, 0.5)
    assert scores["inside"] == pytest.approx(1 / 3)
    for name in ("right_brow", "left_eye", "right_eye", "mouth"):
        assert math.isnan(scores[f"part_center_error/{name}"])
        assert math.isnan(scores[f"part_inside/{name}"])


def test_inside_is_pooled_over_pixels():
    mask = torch.zeros(2, 9, 9, dtype=torch.int64)
    mask[0, 4, 4], mask[1, 4, 0:7] = 5, 5
    metric = WindowError({"nose": (5,)})
    metric.update(_theta([(4, 4)], (3, 3), (9, 9)).expand(2, -1, -1, -1), mask)
    assert metric.compute()["inside"].item() == pytest.approx((1 + 3) / (1 + 7))


def test_two_sizes_in_one_batch_and_ignored_pixels():
    large, small = torch.zeros(20, 30, dtype=torch.int64), torch.zeros(10, 12, dtype=torch.int64)
    large[3:8, 10:15], small[1:6, 2:7] = 5, 5  # about (12, 5) and (4, 3)
    small[1:6, 6] = 255  # then about (3.5, 3)
    alone = [_nose(large, (15, 9), (5, 5)), _nose(small, (3.5, 4), (5, 5))]
    assert [scores["center_error"] for scores in alone] == pytest.approx([5, 1], abs=1e-5)
    assert [scores["inside"] for scores in alone] == pytest.approx([2 / 25, 4 / 5])
    padded = torch.full((20, 30), 255)
    padded[:10, :12] = small
    theta = torch.cat([_theta([center], (5, 5), (20, 30)) for center in ((15, 9), (3.5, 4))])
    metric = WindowError({"nose": (5,)})
    metric.update(theta, torch.stack((large, padded)))
    scores = metric.compute()
    assert scores["center_error"].item() == pytest.approx(3, abs=1e-5)
    assert scores["inside"].item() == pytest.approx((2 + 16) / (25 + 20))


def test_splitting_over_updates_changes_nothing():
    masks = torch.randint(0, 9, (4, 16, 12))
    masks[torch.rand(masks.shape) < 0.9] = 0
    theta = torch.cat([_theta(12 * torch.rand(6, 2), (5, 7), (16, 12)) for _ in range(4)])
    whole, parts = WindowError(), WindowError()
    whole.update(theta, masks)
    for i in (3, 1, 0, 2):
        parts.update(theta[i : i + 1], masks[i : i + 1])
    for key, value in whole.compute().items():
        assert torch.equal(value, parts.compute()[key]), key
    assert all(reduce is torch.sum or reduce.__name__ == "dim_zero_sum" for reduce in whole._reductions.values())


def test_before_any_image():
    scores = WindowError().compute()
    assert scores.pop("absent_parts").item() == 0
    assert all(value.isnan() for value in scores.values())
    assert len(scores) == 2 + 2 * len(PARTS)


def test_bad_input_is_named_and_not_counted():
    metric = WindowError()
    theta, mask = torch.zeros(2, 6, 2, 3), torch.zeros(2, 8, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"theta is \(2, 5, 2, 3\) and mask \(2, 8, 8\); expected \(N, 6, 2, 3\)"):
        metric.update(theta[:, :5], mask)
    with pytest.raises(ValueError, match=r"theta is \(1, 6, 2, 3\) and mask"):
        metric.update(theta[:1], mask)
    with pytest.raises(ValueError, match="theta holds nan or infinity"):
        metric.update(theta / 0, mask)
    with pytest.raises(TypeError, match=r"mask is torch\.float32; expected integer"):
        metric.update(theta, mask.float())
    assert metric.images == 0
    with pytest.raises(ValueError, match="give one name or more"):
        WindowError({"nose": ()})
