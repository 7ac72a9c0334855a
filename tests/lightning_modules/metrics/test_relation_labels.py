import pytest
import torch

from structseg.lightning_modules.metrics.relation_labels import RelationLabelScores

CLASSES = ("background", "cat", "dog")


def test_by_hand():
    truth = torch.tensor([[0, 0, 1, 1, 2], [2, 2, 0, 255, 255]])
    labels = torch.tensor([[0, 1, 1, 255, 1], [0, 255, 1, 1, 255]])
    metric = RelationLabelScores(CLASSES)
    metric.update(labels, truth)
    scores = {key: float(value) for key, value in metric.compute().items()}
    # 8 pixels count; labelled are 6 of them, 2 right (a background, a cat); labelled cat are 4, 1 right;
    # truly foreground are 5, of which 3 are labelled, 1 rightly.
    assert scores == pytest.approx(
        {
            "precision": 2 / 6,
            "foreground_precision": 1 / 4,
            "coverage": 6 / 8,
            "foreground_coverage": 3 / 5,
            "foreground_recall": 1 / 5,
        }
    )
    assert tuple(scores) == metric.metric_keys


def test_two_images_are_pooled():
    metric = RelationLabelScores(CLASSES)
    metric.update(torch.tensor([[1, 1, 1]]), torch.tensor([[1, 1, 1]]))
    metric.update(torch.tensor([[2]]), torch.tensor([[1]]))
    assert float(metric.compute()["precision"]) == 0.75
    metric.reset()
    metric.update(torch.tensor([[2]]), torch.tensor([[1]]))
    assert float(metric.compute()["precision"]) == 0


def test_nothing_labelled_has_no_precision():
    metric = RelationLabelScores(CLASSES)
    metric.update(torch.full((2, 2), 255, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.uint8))
    scores = metric.compute()
    assert scores["precision"].isnan()
    assert scores["foreground_coverage"].isnan()
    assert float(scores["coverage"]) == 0


@pytest.mark.parametrize(
    ("labels", "truth", "error", "message"),
    [
        (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64), ValueError, "resize"),
        (torch.full((1, 1), 3), torch.zeros(1, 1, dtype=torch.int64), ValueError, "labels holds 3"),
        (torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1), 3), ValueError, "truth holds 3"),
        (torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64), TypeError, "float32"),
    ],
)
def test_what_does_not_fit_is_refused(labels, truth, error, message):
    metric = RelationLabelScores(CLASSES)
    with pytest.raises(error, match=message):
        metric.update(labels, truth)
    assert not metric.confusion.any()


def test_an_open_pixel_is_not_a_class_of_the_space():
    """Index 3 is where open pixels are counted; a label 3 must not pass for one."""
    with pytest.raises(ValueError, match="labels holds 3"):
        RelationLabelScores(CLASSES).update(torch.tensor([[3]]), torch.tensor([[0]]))
