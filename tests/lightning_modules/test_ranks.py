"""Several processes learn, and count, what one does with the whole batch: every method and every loss."""

import json
import math

import pytest
import torch

from structseg.datamodules.samplers import EpochSampler, EvaluationSampler
from structseg.lightning_modules.metrics.tag_scores import TagScores
from tests.data.ranks import CASES, start

METHODS = ("cross_entropy", "consensus", "stn_end_to_end", "classifier", "relation", "segmenter")


@pytest.fixture(scope="module")
def fits(tmp_path_factory):
    """8 steps of each case, a validation each epoch with one image, a test with five: in one process and in two."""
    folder = tmp_path_factory.mktemp("fits")
    start(folder / "1", 1, "fit")
    start(folder / "2", 2, "fit")
    return folder


@pytest.fixture(scope="module")
def tests(tmp_path_factory):
    """Five validation and two test images, without a fit: in one process and in three."""
    folder = tmp_path_factory.mktemp("tests")
    start(folder / "1", 1, "test", *METHODS)
    start(folder / "3", 3, "test", *METHODS)
    return folder


def _same_scores(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if key == "confusion":
            assert value == other[key]
        else:
            assert other[key] == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), key


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_does_with_the_whole_batch(fits, name):
    one, two = (torch.load(fits / world / f"{name}.pt", weights_only=True) for world in "12")
    one_run, two_run = (json.loads((fits / world / f"{name}.json").read_text()) for world in "12")
    assert one_run["moved"] > 1e-4  # 1000 times what is allowed
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-6
    _same_scores(one_run["scores"], two_run["scores"])
    assert "confusion" in one_run["scores"] or name in ("classifier", "relation")


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_three_processes_count_two_images(tests, name):
    """One of them has none, and the others do not wait for it."""
    one, three = (json.loads((tests / world / f"{name}.json").read_text())["scores"] for world in "13")
    _same_scores(one, three)
    assert math.isfinite(one["test/loss"])


@pytest.mark.parametrize(("images", "world"), [(5, 2), (5, 3), (2, 3), (0, 2), (6, 3)])
def test_an_evaluation_takes_each_image_once(images, world):
    samplers = [EvaluationSampler(range(images), world, rank) for rank in range(world)]
    assert sorted(index for sampler in samplers for index in sampler) == list(range(images))
    assert [list(sampler) for sampler in samplers] == [list(range(rank, images, world)) for rank in range(world)]
    assert all(len(sampler) == max(1, len(list(sampler))) for sampler in samplers)  # see there


def test_a_step_of_two_processes_sees_the_images_of_one_step_of_one():
    one = list(EpochSampler(range(8), 1, 0, seed=3))
    two = [list(EpochSampler(range(8), 2, rank, seed=3)) for rank in range(2)]
    for step in range(2):
        whole, halves = one[4 * step : 4 * step + 4], [half[2 * step : 2 * step + 2] for half in two]
        assert sorted(whole) == sorted(halves[0] + halves[1])


def test_a_training_set_that_the_processes_do_not_divide_repeats_its_first_image():
    """Each process has to take the same number of steps; one process sees this image once."""
    one = list(EpochSampler(range(5), 1, 0, seed=3))
    both = [index for rank in range(2) for index in EpochSampler(range(5), 2, rank, seed=3)]
    assert sorted(both) == sorted([*one, one[0]])


def test_tag_scores_of_a_process_without_images_have_the_form_of_the_others():
    metric = TagScores(("cat", "dog"))
    assert metric.scores[0].shape == metric.tags[0].shape == (0, 2)
    assert metric.tags[0].dtype == torch.bool
    metric.update(torch.tensor([[0.9, 0.1]]), torch.tensor([[1.0, 0.0]]))
    assert float(metric.compute()["map"]) == 1
    metric.reset()
    assert metric.scores[0].shape == (0, 2)
    assert math.isnan(metric.compute()["map"])
