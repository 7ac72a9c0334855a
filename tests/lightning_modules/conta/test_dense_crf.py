"""DenseCRF against pydensecrf called as the published tools call it; CRFPool: order, bounded memory, deaths, no torch."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import astuple

import numpy as np
import pytest

from structseg.lightning_modules.conta import dense_crf
from structseg.lightning_modules.conta.dense_crf import CRFPool, DenseCRF, require_pydensecrf

pytest.importorskip("pydensecrf.densecrf", reason="the extra crf is not installed")

FAST = DenseCRF(2, 1, 3, 20, 5, 4)


def scene(height=20, width=30, seed=0):
    """A photograph (H, W, 3) of two flat halves with some noise, and its labels: 0 on the left, 2 on the right."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 20, (height, width, 3)).astype(np.uint8)
    image[:, width // 2 :] += 200
    labels = np.zeros((height, width), np.uint8)
    labels[:, width // 2 :] = 2
    return image, labels


def published(image, unary, positional, bilateral, iterations=10):
    from pydensecrf.densecrf import DenseCRF2D

    height, width = image.shape[:2]
    field = DenseCRF2D(width, height, len(unary))
    field.setUnaryEnergy(unary)
    field.addPairwiseGaussian(**positional)
    field.addPairwiseBilateral(rgbim=image, **bilateral)
    return np.array(field.inference(iterations)).reshape(len(unary), height, width)


def test_presets_are_the_published_numbers():
    assert astuple(DenseCRF.irnet()) == (10, 3, 3, 50, 5, 10)
    assert astuple(DenseCRF.deeplab()) == (10, 1, 3, 67, 3, 4)


def test_labels_are_those_of_irnets_call():
    from pydensecrf.utils import unary_from_labels

    image, _ = scene()
    labels = np.random.default_rng(1).integers(0, 3, image.shape[:2]).astype(np.uint8)
    unary = unary_from_labels(labels, 3, gt_prob=0.7, zero_unsure=False)
    expected = published(image, unary, {"sxy": 3, "compat": 3}, {"sxy": 50, "srgb": 5, "compat": 10}).argmax(0)
    found = DenseCRF.irnet().labels(image, labels, 3)
    assert found.dtype == np.uint8
    assert (found == expected).all()
    assert (found == DenseCRF.irnet().labels(image, labels, 3)).all()  # deterministic


def test_probabilities_are_those_of_deeplabs_call():
    from pydensecrf.utils import unary_from_softmax

    image, _ = scene()
    raw = np.random.default_rng(1).random((4, *image.shape[:2]), np.float32)
    raw[3] = 0  # clipped
    given = raw / raw.sum(0)
    positional, bilateral = {"sxy": 1, "compat": 3}, {"sxy": 67, "srgb": 3, "compat": 4}
    expected = published(image, np.ascontiguousarray(unary_from_softmax(given)), positional, bilateral)
    found = DenseCRF.deeplab().probabilities(image, given)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_wrong_pixels_are_put_right_and_the_border_follows_the_colours():
    image, truth = scene()
    labels = truth.copy()
    labels[5, 5], labels[10, 20] = 2, 0
    labels[:, 14] = 2  # one column too far
    assert (DenseCRF.irnet().labels(image, labels, 3) == truth).all()


def test_only_labels_that_occur_take_part():
    image, labels = scene()
    labels[3:5, 3:9] = 2
    few = FAST.labels(image, labels // 2, 2)
    assert (FAST.labels(image, labels, 21) == few * 2).all()
    assert (FAST.labels(image, labels, 3, confidence=0.501) != labels).any()
    assert (FAST.labels(image, labels, 3, confidence=1 - 1e-12) == labels).all()


def test_one_label_and_one_class_come_back_as_they_are():
    image, labels = scene(3, 4)
    one = np.full_like(labels, 7)
    assert (FAST.labels(image, one, 21) == one).all()
    ones = np.ones((1, 3, 4), np.float32)
    assert (FAST.probabilities(image, ones) == ones).all()


def test_a_single_pixel_and_read_only_arrays_pass():
    image, labels = scene(2, 1)
    labels[0] = 1
    image.flags.writeable = labels.flags.writeable = False
    assert FAST.labels(image, labels, 3).shape == (2, 1)
    assert FAST.labels(image[:1], labels[:1], 3).tolist() == [[1]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i, y: FAST.labels(i[:, :-1], y, 3), "resize one to the other"),
        (lambda i, y: FAST.labels(i / 255.0, y, 3), r"\(H, W, 3\) uint8 is needed"),
        (lambda i, y: FAST.labels(i[:0], y[:0], 3), r"\(0, 30, 3\)"),
        (lambda i, y: FAST.labels(i, y, 2), r"the labels hold 2, the classes are 0\.\.1"),
        (lambda i, y: FAST.labels(i, y, 3, 1.0), "confidence 1.0"),
        (lambda i, y: FAST.probabilities(i, np.zeros((2, 20, 30), np.float32)), "softmax"),
        (lambda i, y: FAST.probabilities(i, np.full((2, 20, 30), np.nan, np.float32)), "softmax"),
        (lambda i, y: DenseCRF(0, 1, 1, 1, 1, 1), "above 0"),
        (lambda i, y: DenseCRF(1, 1, 1, 1, -1, 1), "above 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*scene())


def test_a_missing_package_is_named_before_any_work(monkeypatch):
    monkeypatch.setattr(dense_crf.importlib.util, "find_spec", lambda name: None)
    for call in (require_pydensecrf, lambda: CRFPool(FAST, 2), lambda: FAST.labels(*scene(), 3)):
        with pytest.raises(ValueError, match=r"pip install 'structseg\[crf\]'") as error:
            call()
        assert "\n" not in str(error.value)


def jobs(count):
    for seed in range(count):
        image, labels = scene(8 + seed, 10, seed)
        labels[seed % 8, 2] = 2
        yield image, labels, 3


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_pool_gives_what_one_process_gives_in_order(workers):
    expected = [FAST.labels(*job) for job in jobs(7)]
    pairs = [(image, np.stack([labels == 0, labels == 2]).astype(np.float32)) for image, labels, _ in jobs(3)]
    with CRFPool(FAST, workers) as pool:
        processes = [worker.process for worker in pool._all]
        assert len(processes) == (2 if workers == 2 else 0)
        for found, wanted in zip(pool.labels(jobs(7)), expected, strict=True):
            assert (found == wanted).all()
        for found, (image, given) in zip(pool.probabilities(pairs), pairs, strict=True):
            assert (found == FAST.probabilities(image, given)).all()
        image, labels = pairs[0][0], expected[0]
        assert (pool.submit_labels(image, labels, 3, 0.9).result() == FAST.labels(image, labels, 3, 0.9)).all()
        assert (pool.submit_probabilities(*pairs[0]).result() == FAST.probabilities(*pairs[0])).all()
    assert all(process.poll() == 0 for process in processes)


def test_jobs_are_drawn_only_as_there_is_room():
    drawn = 0

    def counted():
        nonlocal drawn
        for job in jobs(30):
            drawn += 1
            yield job

    with CRFPool(FAST, 2) as pool:
        results = pool.labels(counted())
        next(results)
        assert drawn <= 5
        assert len(list(results)) == 29
    with CRFPool(FAST, 0) as pool:
        drawn = 0
        next(pool.labels(counted()))
        assert drawn == 1


def test_a_dead_worker_gives_one_line_and_no_hang():
    start = time.monotonic()
    with CRFPool(FAST, 2) as pool:
        list(pool.labels(jobs(3)))
        processes = [worker.process for worker in pool._all]
        processes[0].kill()
        with pytest.raises(ChildProcessError, match=r"status -9.*use fewer workers") as error:
            list(pool.labels(jobs(12)))
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 20
    assert [process.poll() for process in processes] == [-9, 0]


def test_a_fault_in_a_worker_is_told_here_and_the_pool_goes_on():
    image, labels = scene()
    with CRFPool(FAST, 2) as pool:
        with pytest.raises(ValueError, match="resize one to the other"):
            list(pool.labels([(image[:-1], labels, 3)]))
        assert (next(pool.labels([(image, labels, 3)])) == FAST.labels(image, labels, 3)).all()
    with pytest.raises(ValueError, match="the CRF pool is closed"):
        pool.submit_labels(image, labels, 3)


def test_an_error_of_the_caller_ends_the_workers():
    pool = CRFPool(FAST, 2)
    with pytest.raises(KeyError), pool:  # noqa: PT012  # the error has to come with work under way
        processes = [worker.process for worker in pool._all]
        pool.submit_labels(*scene(200, 200), 3)
        raise KeyError
    assert [process.poll() for process in processes] == [-9, -9]


def test_a_worker_starts_without_torch():
    run = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", dense_crf.__file__], input=b"", capture_output=True, timeout=60
    )
    assert run.returncode == 0
    assert b"numpy" in run.stderr
    assert b"torch" not in run.stderr
