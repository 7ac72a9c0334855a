import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchmetrics.functional.classification as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from structseg.lightning_modules.metrics import segmentation
from structseg.lightning_modules.metrics.segmentation import SegmentationMetrics

CLASSES = ("background", "face", "hair")


def _from_matrix(matrix: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """A (1, 1, pixels) prediction and target with this confusion matrix."""
    pairs = [(t, p) for t, row in enumerate(matrix) for p, count in enumerate(row) for _ in range(count)]
    target, preds = torch.tensor(pairs).T
    return preds.view(1, 1, -1), target.view(1, 1, -1)


def _scores(matrix: list[list[int]], **arguments) -> dict[str, float]:
    metric = SegmentationMetrics([f"c{i}" for i in range(len(matrix))], **arguments)
    metric.update(*_from_matrix(matrix))
    return {key: float(value) for key, value in metric.compute().items()}


def _random(seed: int, shape: tuple[int, ...], classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    preds = torch.randint(classes, shape, generator=generator)
    target = torch.randint(classes, shape, generator=generator)
    return preds, target.masked_fill(torch.rand(shape, generator=generator) < 0.2, 255)


def test_three_classes_by_hand():
    # Rows truth, columns prediction.   TP  FP  FN
    matrix = [
        [5, 1, 0],  #              5   2   1
        [2, 3, 1],  #              3   1   3
        [0, 0, 8],
    ]  # fmt: skip    8   1   0
    scores = _scores(matrix)
    iou, f1 = [5 / 8, 3 / 7, 8 / 9], [10 / 13, 6 / 10, 16 / 17]
    precision, recall = [5 / 7, 3 / 4, 8 / 9], [5 / 6, 1 / 2, 1.0]
    expected = {"pixel_accuracy": 16 / 20, "miou": sum(iou) / 3, "mean_f1": sum(f1) / 3, "absent_classes": 0}
    expected |= {"mean_precision": sum(precision) / 3, "mean_recall": sum(recall) / 3}
    for key, values in (("iou", iou), ("f1", f1), ("precision", precision), ("recall", recall)):
        expected |= {f"{key}/c{i}": value for i, value in enumerate(values)}
    assert scores == pytest.approx(expected)


def test_confusion_has_truth_in_rows():
    matrix = [[5, 1, 0], [2, 3, 1], [0, 0, 8]]
    metric = SegmentationMetrics(CLASSES)
    metric.update(*_from_matrix(matrix))
    assert metric.confusion.dtype == torch.int64
    assert metric.confusion.tolist() == matrix


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_torchmetrics_where_all_classes_occur(seed):
    preds, target = _random(seed, (3, 20, 30), 4)
    target = torch.where(target == 3, 1, target)  # unequal shares
    target[0, 0, 0] = 3
    metric = SegmentationMetrics("abcd")
    metric.update(preds, target)
    scores = metric.compute()
    settings = {"num_classes": 4, "ignore_index": 255}
    functions = {
        "iou": reference.multiclass_jaccard_index,
        "f1": reference.multiclass_f1_score,
        "precision": reference.multiclass_precision,
        "recall": reference.multiclass_recall,
    }
    for key, function in functions.items():
        expected = function(preds, target, average="none", **settings)
        torch.testing.assert_close(torch.stack([scores[f"{key}/{name}"] for name in "abcd"]), expected)
        mean = function(preds, target, average="macro", **settings)
        torch.testing.assert_close(scores["miou" if key == "iou" else f"mean_{key}"], mean)
    accuracy = reference.multiclass_accuracy(preds, target, average="micro", **settings)
    torch.testing.assert_close(scores["pixel_accuracy"], accuracy)


def test_absent_class_is_nan_counted_and_left_out_of_the_means():
    scores = _scores([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert scores["absent_classes"] == 1
    assert all(math.isnan(scores[f"{key}/c2"]) for key in ("iou", "f1", "precision", "recall"))
    assert scores["miou"] == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert scores["mean_precision"] == pytest.approx((1 + 4 / 5) / 2)


def test_class_never_predicted_and_class_never_true_are_zero():
    scores = _scores([[2, 0, 1], [3, 0, 0], [0, 0, 0]])  # c1 only in the truth, c2 only in the prediction
    for name in ("c1", "c2"):
        assert [scores[f"{key}/{name}"] for key in ("iou", "f1", "precision", "recall")] == [0, 0, 0, 0]
    assert scores["absent_classes"] == 0
    assert scores["mean_precision"] == pytest.approx((2 / 5) / 3)
    assert scores["mean_recall"] == pytest.approx((2 / 3) / 3)


@pytest.mark.parametrize("ignored", [255, -1])
def test_ignored_pixels_count_nowhere(ignored):
    metric = SegmentationMetrics(CLASSES, ignore_index=ignored)
    metric.update(torch.tensor([[[0, 1, 2, 2]]]), torch.tensor([[[0, ignored, 2, ignored]]]))
    assert metric.confusion.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("target", [None, torch.full((2, 3, 3), 255), torch.zeros(0, 3, 3, dtype=torch.int64)])
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_a_counted_pixel_everything_is_nan(target):
    metric = SegmentationMetrics(CLASSES, groups={"head": (1, 2)})
    if target is not None:
        metric.update(torch.zeros_like(target), target)
    scores = metric.compute()
    assert scores.pop("absent_classes") == 3
    assert all(value.isnan() for value in scores.values())


def test_logits_count_as_their_largest():
    generator = torch.Generator().manual_seed(0)
    logits, (_, target) = torch.randn(2, 3, 5, 7, generator=generator), _random(0, (2, 5, 7), 3)
    by_logits, by_index = SegmentationMetrics(CLASSES), SegmentationMetrics(CLASSES)
    by_logits.update(logits, target)
    by_index.update(logits.argmax(1), target)
    assert torch.equal(by_logits.confusion, by_index.confusion)
    by_index.update(logits.argmax(1).to(torch.uint8), target.to(torch.uint8))
    assert torch.equal(2 * by_logits.confusion, by_index.confusion)


def test_group_is_one_region_and_overall_pools_the_groups():
    #          c1 and c2 are often taken for each other, which costs the group nothing
    matrix = [[7, 1, 0, 0], [0, 2, 3, 1], [1, 4, 5, 0], [0, 0, 0, 6]]
    scores = _scores(matrix, groups={"mouth": (1, 2), "nose": (3,)})
    # mouth: TP 14, FP 1, FN 2; nose: TP 6, FP 1, FN 0
    assert scores["group_iou/mouth"] == pytest.approx(14 / 17)
    assert scores["group_f1/mouth"] == pytest.approx(28 / 31)
    assert scores["group_iou/nose"] == pytest.approx(scores["iou/c3"]) == pytest.approx(6 / 7)
    assert scores["group_f1/nose"] == pytest.approx(12 / 13)
    assert scores["group_f1/overall"] == pytest.approx(40 / 44)


def test_keys_are_known_before_any_data():
    for groups in (None, {"head": (1, 2)}):
        metric = SegmentationMetrics(CLASSES, groups=groups)
        keys = metric.metric_keys
        metric.update(torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(1, 2, 2, dtype=torch.int64))
        assert tuple(metric.compute()) == keys
        assert len(set(keys)) == len(keys) == 6 + 4 * 3 + (3 if groups else 0)
        assert all(value.ndim == 0 and value.dtype == torch.float32 for value in metric.compute().values())


def test_merged_states_equal_one():
    preds, target = _random(3, (5, 8, 8), 3)
    whole, first, second = (SegmentationMetrics(CLASSES) for _ in range(3))
    whole.update(preds, target)
    first.update(preds[:2], target[:2])
    second.update(preds[2:], target[2:])
    first.merge_state(second)
    assert torch.equal(first.confusion, whole.confusion)
    whole.reset()
    assert whole.confusion.sum() == 0


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_order_and_batches_change_nothing(data):
    count = data.draw(st.integers(1, 6))
    preds, target = _random(data.draw(st.integers(0, 999)), (count, 3, 4), 3)
    order = data.draw(st.permutations(range(count)))
    cuts = data.draw(st.lists(st.integers(0, count), max_size=3).map(sorted))
    whole, parts = SegmentationMetrics(CLASSES), SegmentationMetrics(CLASSES)
    whole.update(preds, target)
    for start, end in zip([0, *cuts], [*cuts, count], strict=True):
        chosen = list(order)[start:end]
        parts.update(preds[chosen], target[chosen])
    assert torch.equal(whole.confusion, parts.confusion)
    expected = whole.compute()
    for key, value in parts.compute().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0, equal_nan=True)


def test_counting_in_pieces_changes_nothing(monkeypatch):
    preds, target = _random(4, (2, 9, 11), 3)
    whole, pieces = SegmentationMetrics(CLASSES), SegmentationMetrics(CLASSES)
    whole.update(preds, target)
    monkeypatch.setattr(segmentation, "_CHUNK", 17)
    pieces.update(preds, target)
    assert torch.equal(whole.confusion, pieces.confusion)


@pytest.mark.parametrize(
    ("pred", "truth", "message"),
    [
        (0, 3, r"^target holds 3, but there are 3 classes \(0\.\.2, ignored: 255\); map .* background, …, hair"),
        (0, -1, r"^target holds -1,"),
        (7, 0, r"^preds holds 7,"),
        (-2, 0, r"^preds holds -2,"),
        (0, 2**40, r"^target holds 1099511627776,"),
    ],
)
def test_foreign_values_are_named_and_not_counted(pred, truth, message):
    metric = SegmentationMetrics(CLASSES)
    with pytest.raises(ValueError, match=message):
        metric.update(torch.tensor([[[0, pred]]]), torch.tensor([[[0, truth]]]))
    assert metric.confusion.sum() == 0


def test_foreign_prediction_on_an_ignored_pixel_is_no_fault():
    metric = SegmentationMetrics(CLASSES)
    metric.update(torch.tensor([[[1, 255]]]), torch.tensor([[[1, 255]]]))
    assert metric.confusion.sum() == 1


@pytest.mark.parametrize(
    ("preds", "target"),
    [
        (torch.zeros(1, 4, 5, 5), torch.zeros(1, 5, 5).long()),
        (torch.zeros(1, 3, 5, 5), torch.zeros(1, 10, 10).long()),
        (torch.zeros(2, 5, 5).long(), torch.zeros(1, 5, 5).long()),
        (torch.zeros(5, 5).long(), torch.zeros(5, 5).long()),
    ],
)
def test_refuses_shapes_that_do_not_fit(preds, target):
    with pytest.raises(ValueError, match=r"expected \(N, H, W\) or \(N, 3, H, W\) and \(N, H, W\)"):
        SegmentationMetrics(CLASSES).update(preds, target)


@pytest.mark.parametrize(
    ("preds", "target"),
    [
        (torch.zeros(1, 3, 5, 5).long(), torch.zeros(1, 5, 5).long()),
        (torch.zeros(1, 5, 5), torch.zeros(1, 5, 5).long()),
        (torch.zeros(1, 3, 5, 5), torch.zeros(1, 5, 5)),
    ],
)
def test_refuses_wrong_kinds_of_numbers(preds, target):
    with pytest.raises(TypeError, match="expected integers"):
        SegmentationMetrics(CLASSES).update(preds, target)


@pytest.mark.parametrize("classes", [(), ("a", "b", "a")])
def test_refuses_missing_or_repeated_names(classes):
    with pytest.raises(ValueError, match="one name each, none twice"):
        SegmentationMetrics(classes)


@pytest.mark.parametrize("groups", [{"x": (3,)}, {"x": ()}, {"x": (1, 1)}, {"overall": (1,)}])
def test_refuses_groups_that_cannot_be(groups):
    with pytest.raises(ValueError, match=r"group \w+ holds classes .* distinct indices 0\.\.2"):
        SegmentationMetrics(CLASSES, groups=groups)


_RANK = """
import json, sys
import torch, torch.distributed as dist
from structseg.lightning_modules.metrics.segmentation import SegmentationMetrics
rank, meeting, samples, out = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=2)
metric = SegmentationMetrics(["background", "face", "hair"], groups={"head": (1, 2)})
preds, target = torch.load(samples)
for i in range(len(preds))[: 1] if rank == 0 else range(len(preds))[1:]:   # one sample against four
    metric.update(preds[i : i + 1], target[i : i + 1])
scores = {key: float(value) for key, value in metric.compute().items()}
with open(f"{out}.{rank}", "w") as file:
    json.dump(scores, file)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_with_uneven_shares_equal_one(tmp_path):
    preds, target = _random(5, (5, 6, 7), 3)
    torch.save((preds, target), tmp_path / "samples.pt")
    arguments = [str(tmp_path / name) for name in ("meeting", "samples.pt", "scores")]
    root = Path(__file__).parents[3]
    ranks = [subprocess.Popen([sys.executable, "-c", _RANK, str(r), *arguments], cwd=root) for r in range(2)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    whole = SegmentationMetrics(CLASSES, groups={"head": (1, 2)})
    whole.update(preds, target)
    expected = {key: float(value) for key, value in whole.compute().items()}
    for rank in range(2):
        assert json.loads((tmp_path / f"scores.{rank}").read_text()) == expected
