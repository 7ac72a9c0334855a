import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from torchmetrics.utilities.data import dim_zero_sum

from structseg.lightning_modules.metrics.structure import (
    BoundaryF1,
    ComponentError,
    SuperpixelAccuracy,
    boundary_f1,
    component_errors,
    superpixel_hits,
)

MAPS = arrays(np.int64, st.tuples(st.just(2), st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 3))


def picture(text):
    """A map from rows of digits, as a batch of one; 9 is ignored."""
    rows = [[255 if digit == "9" else int(digit) for digit in line] for line in text.split()]
    return torch.tensor(rows)[None]


def components(labels):
    """Of a map, by another route: scipy on each class."""
    return sum(ndimage.label(labels == c, np.ones((3, 3)))[1] for c in np.unique(labels) if c)


def square(size, top, left, side, label=1):
    labels = torch.zeros(1, size, size, dtype=torch.int64)
    labels[0, top : top + side, left : left + side] = label
    return labels


def values(metric):
    return {key: float(value) for key, value in metric.compute().items()}


class TestComponents:
    @pytest.mark.parametrize(
        ("text", "count"),
        [
            ("100 010 001", 1),  # corners touch
            ("110 112 002", 2),  # two values that touch are two
            ("111 101 111", 1),  # a ring; the background inside is not counted
            ("010 202 010", 4),  # corners of different values touch; what is of one value lies two apart
            ("101 000 101", 4),
            ("000 000", 0),
            ("1", 1),
        ],
    )
    def test_by_hand(self, text, count):
        labels = picture(text)
        errors, relative = component_errors(torch.zeros_like(labels), labels)
        assert errors.tolist() == [count]
        assert relative.tolist() == [1.0 if count else 0.0]

    def test_too_many_and_too_few_count_alike(self):
        truth = torch.cat([picture("101 000 101"), picture("101 000 101")])
        guess = torch.cat([picture("111 000 111"), picture("121 000 121")])
        errors, relative = component_errors(guess, truth)
        assert errors.tolist() == [2, 2]  # |4 - 2|, |4 - 6|
        assert relative.tolist() == [0.5, 0.5]

    def test_ignored_pixels_are_taken_out_of_both(self):
        truth, guess = picture("191 191"), picture("111 111")
        assert component_errors(guess, truth)[0].tolist() == [0]  # cut in two, as the truth is
        assert component_errors(guess, picture("999 111"))[0].tolist() == [0]

    @settings(max_examples=60, deadline=None)
    @given(MAPS, MAPS)
    def test_against_scipy(self, truth, guess):
        if truth.shape != guess.shape:
            guess = np.roll(truth, 1, 2)
        expected = [abs(components(t) - components(g)) for t, g in zip(truth, guess, strict=True)]
        errors, relative = component_errors(torch.from_numpy(guess), torch.from_numpy(truth))
        assert errors.tolist() == expected
        shares = [e / max(components(t), 1) for e, t in zip(expected, truth, strict=True)]
        assert relative.tolist() == pytest.approx(shares)

    def test_means_over_images(self):
        metric = ComponentError()
        assert all(math.isnan(value) for value in values(metric).values())
        metric.update(picture("111"), picture("101"))  # 1 too few of 2
        metric.update(picture("111 000").expand(3, 2, 3), picture("111 000").expand(3, 2, 3))
        assert values(metric) == {"component_error": 0.25, "component_error_relative": 0.125}
        metric.reset()
        assert math.isnan(values(metric)["component_error"])


class TestBoundary:
    @pytest.mark.parametrize("shift", [0, 1, 2, 3])
    def test_a_square_that_is_shifted(self, shift):
        """20 of 40 pixels a side: 76 boundary pixels; shifted by d to the right beyond the tolerance, rows stay right."""
        truth, guess = square(40, 10, 10, 20), square(40, 10, 10 + shift, 20)
        near = boundary_f1(guess, truth, 2, tolerance=3.01 / math.hypot(40, 40))
        assert near.tolist() == [[1, 1]]
        exact = boundary_f1(guess, truth, 2, tolerance=0.0)[0, 1]
        # rows: 2 (20 - d) pixels on top of each other; columns: none, unless one falls on the other's corner
        matched = 76 if not shift else 2 * (20 - shift)
        assert float(exact) == pytest.approx(matched / 76)

    def test_precision_and_recall_by_hand(self):
        """Truth: columns 0-1 of class 1; the prediction has a further pixel of it, far away."""
        truth = picture("1100000 1100000 1100000")
        guess = picture("1100000 1100001 1100000")
        # class 1: boundary column 1 (3 pixels), predicted 4; precision 3/4, recall 1
        # class 0: column 2 (3 pixels), predicted also the 3 neighbours of the speck: precision 3/6, recall 1
        assert boundary_f1(guess, truth, 2, tolerance=0.0).tolist() == [pytest.approx([2 / 3, 6 / 7])]
        assert boundary_f1(truth, guess, 2, tolerance=0.0).tolist() == [pytest.approx([2 / 3, 6 / 7])]

    @pytest.mark.parametrize(("fraction", "expected"), [(0.0099, 0.0), (0.0101, 1.0)])
    def test_the_tolerance_grows_with_the_diagonal(self, fraction, expected):
        """60 x 80 has a diagonal of 100: one pixel is 0.01 of it."""
        truth, guess = torch.zeros(2, 1, 60, 80, dtype=torch.int64)
        truth[:, :, 40:], guess[:, :, 41:] = 1, 1
        assert boundary_f1(guess, truth, 2, tolerance=fraction).tolist() == [[expected, expected]]
        wide = [torch.zeros(1, 120, 160, dtype=torch.int64) for _ in range(2)]
        wide[0][:, :, 80:], wide[1][:, :, 82:] = 1, 1
        assert boundary_f1(wide[1], wide[0], 2, tolerance=fraction).tolist() == [[expected, expected]]

    def test_absent_missed_invented_and_filled(self):
        scores = boundary_f1(picture("0011"), picture("0022"), 4, tolerance=0.0)[0].tolist()
        assert scores[:3] == [1.0, 0.0, 0.0]
        assert math.isnan(scores[3])
        assert boundary_f1(picture("000"), picture("000"), 2)[0, 0] == 1  # it fills the image
        assert boundary_f1(picture("000"), picture("111"), 2).tolist() == [[0, 0]]
        assert boundary_f1(picture("000"), picture("001"), 2).tolist() == [[0, 0]]

    def test_ignored_pixels_make_no_boundary(self):
        truth = picture("00911 00911")
        assert boundary_f1(picture("00111 00111"), truth, 2).tolist() == [[1, 1]]  # none in the truth, none counted
        assert boundary_f1(picture("00111 00111"), picture("99999 99999"), 2).isnan().all()
        spoilt = picture("00911 00911 00111")  # one boundary, in the last row
        assert boundary_f1(picture("00211 00211 00111"), spoilt, 3, tolerance=0.0)[0, :2].tolist() == [1, 1]

    def test_means_over_images_and_classes(self):
        metric = BoundaryF1(["background", "face", "hair"], tolerance=0.0)
        assert metric.metric_keys == tuple(values(metric))
        assert all(math.isnan(value) for value in values(metric).values())
        metric.update(picture("0011"), picture("0011"))  # background 1, face 1, hair absent
        metric.update(picture("0011"), picture("0022"))  # background 1, face 0, hair 0
        metric.update(picture("0011"), picture("9999"))  # nothing counts
        assert values(metric) == pytest.approx(
            {
                "mean_boundary_f1": (1 + 1 / 3) / 2,
                "boundary_f1/background": 1,
                "boundary_f1/face": 0.5,
                "boundary_f1/hair": 0,
            }
        )

    @settings(max_examples=30, deadline=None)
    @given(MAPS, st.sampled_from([0.0, 0.15, 0.4]))
    def test_against_distances_of_all_pairs(self, truth, tolerance):
        """By brute force: every boundary pixel against every other."""
        guess = np.roll(truth, 1, 1)[:, ::-1].copy()
        _, height, width = truth.shape

        def points(labels, c):
            around = np.pad(labels, 1, constant_values=-1)
            return [
                (y, x)
                for y in range(height)
                for x in range(width)
                if labels[y, x] == c
                and any(around[y + 1 + dy, x + 1 + dx] not in (-1, c) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)))
            ]

        def share(some, others):
            radius = tolerance * math.hypot(height, width) + 1e-9
            return sum(any(math.dist(a, b) <= radius for b in others) for a in some) / len(some)

        found = boundary_f1(torch.from_numpy(guess), torch.from_numpy(truth), 4, tolerance=tolerance)
        for i in range(2):
            for c in range(4):
                held = [(labels[i] == c).any() for labels in (truth, guess)]
                one, other = (points(labels[i], c) for labels in (truth, guess))
                if not any(held):
                    assert found[i, c].isnan()
                elif one and other:
                    p, r = share(other, one), share(one, other)
                    assert float(found[i, c]) == pytest.approx(2 * p * r / (p + r) if p + r else 0.0)
                else:
                    assert float(found[i, c]) == (all(held) and not one and not other)


class TestSuperpixels:
    def test_majorities_by_hand(self):
        ids = picture("7778 7788")
        truth = picture("1102 1122")  # 7: four ones and a nought; 8: twos
        guess = picture("1101 0122")
        # 7 holds 1 1 0 1 1 in the truth, 1 1 0 0 1 in the prediction: both 1; 8 holds 2 2 2 and 1 2 2: both 2
        assert superpixel_hits(guess, truth, ids).tolist() == [[2, 2]]
        assert superpixel_hits(picture("0001 0011"), truth, ids).tolist() == [[0, 2]]
        # a tie is the lowest class, in both
        assert superpixel_hits(picture("01"), picture("00"), picture("33")).tolist() == [[1, 1]]
        assert superpixel_hits(picture("01"), picture("11"), picture("33")).tolist() == [[0, 1]]

    def test_ignored_pixels_have_no_say(self):
        ids, truth, guess = picture("1112"), picture("9919"), picture("0010")
        assert superpixel_hits(guess, truth, ids).tolist() == [[1, 1]]
        assert superpixel_hits(guess, picture("9999"), ids).tolist() == [[0, 0]]

    def test_share_over_the_data_set_and_not_over_images(self):
        metric = SuperpixelAccuracy()
        assert math.isnan(values(metric)["superpixel_accuracy"])
        metric.update(picture("0000"), picture("0001"), picture("0123"))  # 3 of 4
        metric.update(picture("0000"), picture("1111"), picture("0000"))  # 0 of 1
        assert values(metric) == {"superpixel_accuracy": pytest.approx(0.6)}

    def test_ids_of_two_images_are_apart(self):
        both = torch.cat([picture("01"), picture("10")])
        ids = picture("55").expand(2, 1, 2)
        assert superpixel_hits(both, torch.cat([picture("00"), picture("11")]), ids).tolist() == [[1, 1], [0, 1]]


CASES = [
    (lambda: ComponentError(), 2),
    (lambda: BoundaryF1(["a", "b", "c"], tolerance=0.1), 2),
    (lambda: SuperpixelAccuracy(), 3),
]


@pytest.mark.parametrize(("make", "maps"), CASES)
def test_states_of_two_processes_sum_to_one(make, maps):
    random = np.random.default_rng(0)
    batches = [torch.from_numpy(random.integers(0, 3, (5, 7, 6))) for _ in range(maps)]
    whole, one, other = make(), make(), make()
    whole.update(*batches)
    one.update(*(labels[:2] for labels in batches))
    other.update(*(labels[2:] for labels in batches))
    assert set(one._reductions.values()) == {dim_zero_sum}
    for state in one._defaults:  # what torchmetrics does with them over processes
        setattr(one, state, getattr(one, state) + getattr(other, state))
    assert values(one) == pytest.approx(values(whole))
    assert tuple(values(one)) == tuple(whole.metric_keys)


@pytest.mark.parametrize(("make", "maps"), CASES)
def test_wrong_maps_are_one_line(make, maps):
    good = torch.zeros(2, 4, 4, dtype=torch.int64)
    rest = [good] * (maps - 1)
    with pytest.raises(ValueError, match=r"prediction is \(2, 4, 3\) and target is \(2, 4, 4\).*expected \(N, H, W\)"):
        make().update(good[..., :3], *rest)
    with pytest.raises(ValueError, match=r"expected \(N, H, W\)"):
        make().update(*(labels[0] for labels in [good, *rest]))
    with pytest.raises(TypeError, match=r"prediction is torch.float32; expected integers"):
        make().update(good.float(), *rest)


@pytest.mark.parametrize(("make", "maps"), CASES)
def test_other_integers_and_an_empty_batch(make, maps):
    labels = picture("0011 0022")
    expected, metric = make(), make()
    expected.update(*[labels] * maps)
    metric.update(*[labels.to(torch.uint8)] * maps)
    metric.update(*[labels[:0]] * maps)
    assert values(metric) == pytest.approx(values(expected), nan_ok=True)


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="tolerance is -1"):
        BoundaryF1(["a"], tolerance=-1)
    with pytest.raises(ValueError, match="tolerance is nan"):
        BoundaryF1(["a"], tolerance=math.nan)
    with pytest.raises(ValueError, match="give names"):
        BoundaryF1([])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.gpu
@pytest.mark.parametrize(("make", "maps"), CASES)
def test_on_an_accelerator(make, maps):
    labels = picture("0011 0022")
    here, there = make(), make().to("cuda")
    here.update(*[labels] * maps)
    there.update(*[labels.cuda()] * maps)
    assert values(there) == pytest.approx(values(here), nan_ok=True)
