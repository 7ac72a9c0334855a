import math
import re

import numpy as np
import pytest
import yaml

from structseg.files import write_result
from structseg.lightning_modules.callbacks.image_scores import image_columns
from structseg.results import command as results
from structseg.results import compare
from structseg.results.compare import compare_rows
from structseg.results.files import images_path, read_results, result_path, write_images
from structseg.results.manifest import Row

CLASSES = ("background", "face")
HEADER = image_columns(CLASSES)


def row(name, seeds=(0, 1, 2), **more):
    return Row(name, "A row.", "pyproject.toml", "synthetic", "miou", {"cpu": 1, "gpu": 1}, seeds, **more)


def measured(folder, name, tables, seed=0, **more):
    """A result and its images: `tables` has the lines of each test."""
    path = result_path(folder, name, seed)
    digest = write_images(images_path(path), {test: [HEADER, *lines] for test, lines in tables.items()})
    content = {"row": name, "seed": seed, "dirty": False, "hardware": "box", "wall_seconds": 1.0, "images": digest}
    write_result(path, {**content, "metrics": {}, **more})
    return path


def line(name, tp=(50, 30), fp=(10, 10), fn=(10, 10), error=2, relative=0.5, f1=0.5):
    return [name, *map(str, (*tp, *fp, *fn, error, relative, f1))]


def lines_of(comparison):
    return {found.metric: found for found in comparison.lines}


@pytest.fixture(autouse=True)
def _fewer(monkeypatch):
    monkeypatch.setattr(compare, "RESAMPLES", 2000)


NAMES = [f"{i:03d}" for i in range(60)]


def test_dataset_scores_by_hand(tmp_path):
    """Two images: sums of pixels, not means of ratios; the errors and F1 are means."""
    measured(
        tmp_path, "a", {"": [line("x"), line("y", tp=(0, 0), fp=(0, 30), fn=(60, 40), error=4, relative=1, f1=0.1)]}
    )
    measured(tmp_path, "b", {"": [line("y", f1="nan", error=0, relative=0), line("x", error=1, relative=0.25)]})
    (found,) = compare_rows(row("a"), row("b"), read_results(tmp_path))
    assert (found.rows, found.test, found.seeds, found.images) == (("a", "b"), "", (0,), 2)
    by = lines_of(found)
    assert list(by) == [
        "miou",
        "iou/background",
        "iou/face",
        "component_error",
        "component_error_relative",
        "boundary_f1",
    ]
    assert by["iou/background"].means == pytest.approx((50 / 130, 100 / 140))
    assert by["iou/face"].means == pytest.approx((30 / 120, 60 / 100))
    assert by["miou"].means == pytest.approx(((50 / 130 + 30 / 120) / 2, (100 / 140 + 60 / 100) / 2))
    assert by["component_error"].means == (3, 0.5)
    assert by["component_error_relative"].means == (0.75, 0.125)
    assert by["boundary_f1"].means == pytest.approx((0.3, 0.5))  # the image without one is left out
    assert by["miou"].better == (0, 0.5)  # x is even
    assert by["component_error"].better == (0, 1)  # less is better
    assert by["boundary_f1"].better == (0, 0)


def test_a_constant_difference_has_an_interval_of_no_width(tmp_path):
    random = np.random.default_rng(1)
    errors = random.integers(0, 9, 60)
    measured(tmp_path, "a", {"": [line(name, error=e, f1=0.25) for name, e in zip(NAMES, errors, strict=True)]})
    measured(tmp_path, "b", {"": [line(name, error=e + 3, f1=0.75) for name, e in zip(NAMES, errors, strict=True)]})
    by = lines_of(compare_rows(row("a"), row("b"), read_results(tmp_path))[0])
    assert by["component_error"].interval == pytest.approx((3, 3))  # paired: that images differ does not widen it
    assert by["boundary_f1"].interval == pytest.approx((0.5, 0.5))
    assert by["component_error"].excludes_zero
    assert by["component_error"].better == (1, 0)
    assert by["boundary_f1"].better == (0, 1)
    assert by["component_error"].cells()[6] == f"{3 / errors.mean():+.1%}"
    assert by["boundary_f1"].cells()[3:7] == ("+0.5000", "+0.5000 to +0.5000", "yes", "")


def test_the_interval_is_that_of_the_mean(tmp_path):
    """Differences of unit variance over 60 images: about ± 1.96 / sqrt(60) around their mean."""
    differences = np.random.default_rng(2).normal(0.1, 1, 60)
    differences = (differences - differences.mean()) / differences.std() + 0.1
    measured(tmp_path, "a", {"": [line(name, relative=5) for name in NAMES]})
    measured(
        tmp_path, "b", {"": [line(name, relative=5 + float(d)) for name, d in zip(NAMES, differences, strict=True)]}
    )
    found = lines_of(compare_rows(row("a"), row("b"), read_results(tmp_path))[0])["component_error_relative"]
    assert found.difference == pytest.approx(0.1)
    assert found.interval == pytest.approx((0.1 - 0.253, 0.1 + 0.253), abs=0.02)
    assert not found.excludes_zero
    again = lines_of(compare_rows(row("a"), row("b"), read_results(tmp_path))[0])["component_error_relative"]
    assert again == found  # the seed is fixed


def test_equal_rows_differ_by_nothing(tmp_path):
    lines = [line(name, tp=(i, 2 * i), error=i % 5) for i, name in enumerate(NAMES)]
    for name in "ab":
        measured(tmp_path, name, {"": lines})
    (found,) = compare_rows(row("a"), row("b"), read_results(tmp_path))
    for each in found.lines:
        assert (each.difference, each.interval, each.better, each.excludes_zero) == (0, (0, 0), (0, 0), False)


def test_seeds_are_averaged_and_only_common_ones_count(tmp_path):
    for name, values in (("a", {0: 1, 1: 3, 2: 90}), ("b", {0: 5, 1: 9, 7: 90})):
        for seed, value in values.items():
            measured(tmp_path, name, {"": [line("x", error=value), line("y", error=value)]}, seed)
    (found,) = compare_rows(row("a"), row("b", (0, 1, 7)), read_results(tmp_path))
    assert found.seeds == (0, 1)
    assert lines_of(found)["component_error"].means == (2, 7)


def test_iou_is_of_each_seed_before_the_mean(tmp_path):
    for seed, tp, fn in ((0, (10, 10), (100, 10)), (1, (100, 10), (10, 10))):
        measured(tmp_path, "a", {"": [line("x", tp=tp, fn=fn)]}, seed)
    (found,) = compare_rows(row("a"), row("a"), read_results(tmp_path))
    assert lines_of(found)["iou/background"].means[0] == pytest.approx((10 / 120 + 100 / 120) / 2)


def test_another_round_0_is_said(tmp_path):
    for name, start in (("a", 0.3), ("b", 0.4), ("c", 0.3)):
        measured(tmp_path, name, {"": [line(i) for i in NAMES]}, metrics={"round_0": {"cams": {"cam_miou": start}}})
    (found,) = compare_rows(row("a"), row("b"), read_results(tmp_path))
    assert "b.0 began with another round 0 than a.0: other settings, code or hardware." in found.table().markdown()
    assert "began" not in compare_rows(row("a"), row("c"), read_results(tmp_path))[0].table().markdown()


def test_tests_after_other_rounds_are_said(tmp_path):
    for name in "abc":
        measured(
            tmp_path, name, {test: [line(i, error=len(name + test)) for i in NAMES] for test in ("", "round_1.masks")}
        )
    two, one = row("a", stage="round_2_a/segmenter"), row("b", stage="round_1_b/segmenter")
    tests = compare_rows(two, one, read_results(tmp_path))
    assert ["a is tested after round 2, b after round 1." in found.table().markdown() for found in tests] == [
        True,
        False,
    ]
    for other in (row("c", stage="round_2_c/segmenter"), row("c")):
        assert "is tested after" not in compare_rows(two, other, read_results(tmp_path))[0].table().markdown()


def test_other_truth_is_not_paired(tmp_path):
    measured(tmp_path, "a", {"": [line("x"), line("y")]})
    measured(tmp_path, "b", {"": [line("x"), line("y", fn=(11, 10))]})
    with pytest.raises(ValueError, match=r"a and b were scored on other labels: 1 images \(y, …\) differ"):
        compare_rows(row("a"), row("b"), read_results(tmp_path))


def test_a_class_that_is_nowhere_is_left_out(tmp_path):
    for name in "ab":
        measured(
            tmp_path,
            name,
            {"": [line("x", tp=(50, 0), fp=(0, 0), fn=(50, 0)), line("y", tp=(0, 0), fp=(0, 0), fn=(0, 0))]},
        )
    by = lines_of(compare_rows(row("a"), row("b"), read_results(tmp_path))[0])
    assert by["miou"].means == (0.5, 0.5)
    assert math.isnan(by["iou/face"].means[0])
    assert all(map(math.isnan, by["iou/face"].interval))
    assert by["iou/face"].cells()[5] == "no"


def test_each_common_test_has_its_block(tmp_path):
    measured(tmp_path, "a", {"128": [line("x", error=1)], "250": [line("x", error=2)], "only": [line("z")]})
    measured(tmp_path, "b", {"250": [line("x", error=4)], "128": [line("x", error=3)]})
    found = compare_rows(row("a"), row("b"), read_results(tmp_path))
    assert [(each.test, lines_of(each)["component_error"].means) for each in found] == [
        ("128", (1, 3)),
        ("250", (2, 4)),
    ]


def test_what_two_rows_share_is_named_and_not_shown(tmp_path):
    """Round 0 of two arms of a pipeline."""
    shared, own = "round_0.masks", "round_1.masks"
    for name, error in (("a", 1), ("b", 2)):
        measured(tmp_path, name, {shared: [line("x", f1="nan")], own: [line("x", error=error)]})
    (found,) = compare_rows(row("a"), row("b"), read_results(tmp_path))
    assert (found.test, found.alike) == (own, (shared,))
    assert found.table().markdown().startswith("**a and b, round_1.masks**")
    assert found.table().markdown().endswith("Each image the same in both: round_0.masks.")
    both = compare_rows(row("a"), row("a"), read_results(tmp_path))
    assert [(each.test, each.alike) for each in both] == [(shared, ()), (own, ())], "something is to be shown"


class TestRefused:
    def refuse(self, tmp_path, message, first=None, second=None):
        with pytest.raises(ValueError, match=message) as error:
            compare_rows(first or row("a"), second or row("b"), read_results(tmp_path))
        assert "\n" not in str(error.value)

    def test_other_images(self, tmp_path):
        measured(tmp_path, "a", {"": [line("x"), line("y")]})
        measured(tmp_path, "b", {"": [line("x"), line("z"), line("w")]})
        self.refuse(
            tmp_path, r"a and b were not scored on the same images: 1 in a alone \(y, …\), 2 in b alone \(w, …\)"
        )

    def test_fewer_images(self, tmp_path):
        measured(tmp_path, "a", {"": [line("x"), line("y")]})
        measured(tmp_path, "b", {"": [line("x")]})
        self.refuse(tmp_path, r"1 in a alone \(y, …\), 0 in b alone; nothing")
        self.refuse(tmp_path, r"0 in b alone, 1 in a alone \(y, …\); nothing", row("b"), row("a"))

    def test_other_images_with_another_seed(self, tmp_path):
        for name in "ab":
            measured(tmp_path, name, {"": [line("x")]}, 0)
            measured(tmp_path, name, {"": [line("y")]}, 1)
        self.refuse(tmp_path, r"a\.0\.json and .*a\.1\.json were not scored on the same images")

    def test_an_image_twice(self, tmp_path):
        for name in "ab":
            measured(tmp_path, name, {"": [line("x"), line("x", error=3)]})
        self.refuse(tmp_path, r"a\.0\.images\.csv\.gz holds x twice")

    def test_no_common_seed(self, tmp_path):
        measured(tmp_path, "a", {"": [line("x")]}, 0)
        measured(tmp_path, "b", {"": [line("x")]}, 1)
        self.refuse(tmp_path, r"no seed of both rows is measured \(a: 0; b: 1\)")
        self.refuse(tmp_path, r"\(a: 0; c: none\)", second=row("c"))

    def test_no_common_test(self, tmp_path):
        measured(tmp_path, "a", {"128": [line("x")]})
        measured(tmp_path, "b", {"250": [line("x")]})
        self.refuse(tmp_path, "a is scored on test 128, b on test 250")

    def test_validation_against_test(self, tmp_path):
        for name in "ab":
            measured(tmp_path, name, {"": [line("x")]})
        self.refuse(tmp_path, "a is scored on val, b on test", first=row("a", scored_on="val"))

    def test_results_from_before_there_were_scores_of_images(self, tmp_path):
        for name in "ab":
            measured(tmp_path, name, {"": [line("x")]})
        images_path(result_path(tmp_path, "b", 0)).unlink()
        self.refuse(tmp_path, r"b\.0\.json has no scores .* `structseg results --run b --seeds 0 --again`")

    def test_images_of_another_measurement(self, tmp_path):
        for name in "ab":
            measured(tmp_path, name, {"": [line("x")]})
        write_images(images_path(result_path(tmp_path, "b", 0)), {"": [HEADER, line("x", error=0)]})
        self.refuse(tmp_path, r"b\.0\.images\.csv\.gz does not belong to .*b\.0\.json")

    def test_other_classes(self, tmp_path):
        measured(tmp_path, "a", {"": [line("x")]})
        path = result_path(tmp_path, "b", 0)
        digest = write_images(images_path(path), {"": [image_columns(("background", "hair")), line("x")]})
        content = {"row": "b", "seed": 0, "dirty": False, "hardware": "x", "wall_seconds": 1.0, "metrics": {}}
        write_result(path, {**content, "images": digest})
        self.refuse(tmp_path, "a has the classes background, face, b background, hair")


@pytest.fixture
def shipped(tmp_path):
    """Two rows with two tests on disk, and the options that find them."""
    common = {"what": "x", "config": "pyproject.toml", "seeds": [0], "data": "synthetic", "headline": "128.miou"}
    common |= {"minutes": {"cpu": 1, "gpu": 1}, "tests": {"128": [], "250": ["--data.score_at", "native"]}}
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump({"a": common, "b": common}))
    for name, error in (("a", 4), ("b", 3)):
        measured(tmp_path, name, {test: [line(i, error=error) for i in NAMES] for test in ("128", "250")})
    return ["--manifest", str(tmp_path / "manifest.yaml")]


def test_markdown(shipped, capsys):
    results.main(["--compare", "a", "b", "--markdown", *shipped])
    text = capsys.readouterr().out
    assert text.count("**a and b, test 128**") == text.count("**a and b, test 250**") == 1
    assert "| metric | a | b | difference | 95 % interval | excludes 0 | relative | a better | b better |" in text
    assert "| component_error | 4.0000 | 3.0000 | -1.0000 | -1.0000 to -1.0000 | yes | -25.0% | 0.0% | 100.0% |" in text
    assert "60 images; means over the seeds 0." in text


def test_terminal(shipped, capsys):
    results.main(["--compare", "a", "b", *shipped])
    text = capsys.readouterr().out
    assert text.count("component_error_relative") == 2
    assert re.search(r"a and b, test 250", text)
    with pytest.raises(ValueError, match="no row c"):
        results.main(["--compare", "a", "c", *shipped])
