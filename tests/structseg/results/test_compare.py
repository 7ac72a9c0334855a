import re

import numpy as np
import pytest
import yaml

from structseg.results import command, compare
from structseg.results.compare import compare_rows
from structseg.results.files import images_path, read_runs, write_run
from tests.structseg.results.made import HEADER, ROW, image, row, run

NAMES = [f"{i:03d}" for i in range(60)]


@pytest.fixture(autouse=True)
def _fewer(monkeypatch):
    monkeypatch.setattr(compare, "RESAMPLES", 2000)


def measured(folder, name, tables=None, seed=0, metrics=0.5, **more):
    """A run and its images: `tables` has the lines of each test."""
    full = {test: [HEADER, *lines] for test, lines in tables.items()} if tables else None
    write_run(folder, run(name, seed, metrics, **more), full)


def tables(folder, first=None, second=None, **more):
    return compare_rows(first or row("a"), second or row("b"), read_runs(folder), folder, **more)


def bootstrap(folder, **more):
    found = [table for table in tables(folder, **more) if table.title.startswith("image bootstrap")]
    return {cells[0]: cells[1:] for cells in found[0].lines}


class TestBySeed:
    def test_values_by_hand(self, tmp_path):
        for name, values in (("a", (0.5, 0.6, 0.7)), ("b", (0.6, 0.5, 0.9))):
            for seed, value in enumerate(values):
                measured(tmp_path, name, seed=seed, metrics={"clean.miou": value, "x": 10 * value})
        measured(tmp_path, "b", seed=7, metrics=0.1)
        kept = {"also": ["x", "y"]}
        by_seed, others = tables(tmp_path, row(**kept), row("b", **kept))
        assert by_seed.title == "clean.miou: b minus a, by seed"
        assert by_seed.lines[0] == ("seed 0", "0.5000", "0.6000", "+0.1000", "EPYC, 2 cores, 2 threads")
        assert [line[3] for line in by_seed.lines] == ["+0.1000", "-0.1000", "+0.2000", "+0.0667"]
        assert (
            "95 % t interval over the 3 seeds: -0.3128 to +0.4461." in by_seed.notes
        )  # 0.0667 ± 4.303 x 0.1528 / sqrt(3)
        assert others.lines == [("x", "6.0000", "6.6667", "+0.6667 (-3.1279 to +4.4612)", "3")]
        assert "No interval over images: no seed has the images' scores of both rows." in by_seed.notes

    def test_one_or_two_seeds_have_no_interval(self, tmp_path):
        for seed in (0, 1):
            measured(tmp_path, "a", seed=seed, metrics=0.5)
            measured(tmp_path, "b", seed=seed, metrics=0.75)
        (two,) = tables(tmp_path)
        assert [line[3] for line in two.lines] == ["+0.2500"] * 3
        (one,) = tables(tmp_path, seeds=[1])
        assert [line[0] for line in one.lines] == ["seed 1"]
        for table in (one, two):
            assert table.notes[0] == "No interval with fewer than 3 seeds."

    def test_another_processor_is_refused_or_noted(self, tmp_path):
        for seed, name in ((0, "EPYC, 2 cores"), (1, "Xeon, 2 cores")):
            measured(tmp_path, "a", seed=seed)
            measured(tmp_path, "b", seed=seed, hardware=name)
        with pytest.raises(
            ValueError, match=r"a seed 1 was measured on EPYC, 2 cores, 2 threads, b seed 1 on Xeon"
        ) as error:
            tables(tmp_path)
        assert re.search("--seeds, or compare them anyway with --across", str(error.value))
        assert len(tables(tmp_path, seeds=[0])[0].lines) == 1
        (across,) = tables(tmp_path, across=True)
        assert [line[4] for line in across.lines[:2]] == [
            "EPYC, 2 cores, 2 threads",
            "EPYC, 2 cores, 2 threads | Xeon, 2 cores, 2 threads",
        ]
        assert across.notes[1].startswith("ACROSS PROCESSORS, seed 1")
        measured(tmp_path, "a", seed=1, hardware="Xeon, 2 cores")
        assert len(tables(tmp_path)[0].lines) == 3, "each seed has its own"

    def test_another_round_0_is_noted(self, tmp_path):
        kept = {"also": ["round_0.cams.cam_miou"]}
        for name, start in (("a", 0.3), ("b", 0.4), ("c", 0.3)):
            measured(tmp_path, name, metrics={"clean.miou": 0.5, "round_0.cams.cam_miou": start})
        note = "b seed 0 and a seed 0 have different rounds 0: other settings, code or hardware."
        assert note in tables(tmp_path, row(**kept), row("b", **kept))[0].notes
        for second in (row("c", **kept), row("b", stage="round_0_x/cams", **kept)):  # arms from round 0 on share none
            assert not [said for said in tables(tmp_path, row(**kept), second)[0].notes if "began" in said]

    def test_other_rounds_are_noted(self, tmp_path):
        for name in "abc":
            measured(tmp_path, name)
        two, one = row("a", stage="round_2_a/segmenter"), row("b", stage="round_1_b/segmenter")
        assert "a is tested after round 2, b after round 1." in tables(tmp_path, two, one)[0].notes
        for other in (row("c", stage="round_2_c/segmenter"), row("c")):
            assert not [note for note in tables(tmp_path, two, other)[0].notes if "is tested after" in note]


class TestOverImages:
    def test_scores_by_hand(self, tmp_path):
        """Two images: sums of pixels, not means of ratios; the errors are means."""
        lines = [image("x"), image("y", tp=(0, 0), fp=(0, 30), fn=(60, 40), error=4)]
        measured(tmp_path, "a", {"": lines})
        measured(tmp_path, "b", {"": [image("y", error="nan"), image("x", error=1)]})
        by = bootstrap(tmp_path)
        assert list(by) == ["miou", "iou/background", "iou/face", "component_error"]
        assert [float(by["iou/background"][i]) for i in (0, 1)] == pytest.approx([50 / 130, 100 / 140], abs=1e-4)
        assert [float(by["iou/face"][i]) for i in (0, 1)] == pytest.approx([30 / 120, 60 / 100], abs=1e-4)
        assert float(by["miou"][0]) == pytest.approx((50 / 130 + 30 / 120) / 2, abs=1e-4)
        assert by["component_error"][:3] == ("3.0000", "1.0000", "-2.0000")  # the image without one is left out

    def test_a_constant_difference_has_an_interval_of_no_width(self, tmp_path):
        errors = np.random.default_rng(1).integers(0, 9, 60)
        for name, more in (("a", 0), ("b", 3)):
            measured(tmp_path, name, {"": [image(each, error=e + more) for each, e in zip(NAMES, errors, strict=True)]})
        assert bootstrap(tmp_path)["component_error"][2:] == ("+3.0000", "+3.0000 to +3.0000")

    def test_the_interval_is_that_of_the_mean(self, tmp_path):
        """Differences of unit variance over 60 images: about ± 1.96 / sqrt(60) around their mean."""
        differences = np.random.default_rng(2).normal(0.1, 1, 60)
        differences = (differences - differences.mean()) / differences.std() + 0.1
        measured(tmp_path, "a", {"": [image(name, error=5) for name in NAMES]})
        other = [image(name, error=5 + float(d)) for name, d in zip(NAMES, differences, strict=True)]
        measured(tmp_path, "b", {"": other})
        found = bootstrap(tmp_path)["component_error"]
        low, high = map(float, found[3].split(" to "))
        assert (low, high) == pytest.approx((0.1 - 0.253, 0.1 + 0.253), abs=0.02)
        assert bootstrap(tmp_path)["component_error"] == found, "the seed is fixed"

    def test_a_class_without_pixels_is_left_out(self, tmp_path):
        for name in "ab":
            measured(tmp_path, name, {"": [image("x", tp=(50, 0), fp=(0, 0), fn=(50, 0))]})
        by = bootstrap(tmp_path)
        assert by["miou"][:2] == ("0.5000", "0.5000")
        assert set(by["iou/face"][:3]) | {by["iou/face"][3]} == {"nan", "+nan", "+nan to +nan"}

    def test_the_bootstrap_uses_one_seed_for_each_test(self, tmp_path):
        for seed, kept in ((0, "a"), (1, "ab"), (2, "ab")):
            for name in "ab":
                own = {"": [image("x", error=seed)], "round_1.masks": [image("z")]} if name in kept else None
                measured(tmp_path, name, own, seed)
        titles = [table.title for table in tables(tmp_path)[1:]]
        assert titles == [
            "image bootstrap inside seed 1: 1 images",
            "image bootstrap inside seed 1, round_1.masks: 1 images",
        ]
        assert bootstrap(tmp_path)["component_error"][0] == "1.0000"

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (
                [image("x"), image("z"), image("w")],
                r"same images: 1 only in a \(y, …\), 2 only in b \(w, …\)",
            ),
            ([image("x")], r"1 only in a \(y, …\), 0 only in b; nothing"),
            ([image("x"), image("x", error=3)], r"b\.0\.csv\.xz holds x twice"),
            ([image("x"), image("y", fn=(11, 10))], r"on other labels: 1 images \(y, …\) differ in background"),
            ([image("x"), image("y", tp=("?", 1))], r"b\.0\.csv\.xz is damaged"),
        ],
    )
    def test_what_cannot_be_paired_is_refused(self, tmp_path, lines, message):
        measured(tmp_path, "a", {"": [image("x"), image("y")]})
        measured(tmp_path, "b", {"": lines})
        with pytest.raises(ValueError, match=message) as error:
            tables(tmp_path)
        assert "\n" not in str(error.value)

    def test_other_classes(self, tmp_path):
        measured(tmp_path, "a", {"": [image("x")]})
        header = [name.replace("face", "hair") for name in HEADER]
        write_run(tmp_path, run("b"), {"": [header, image("x")]})
        with pytest.raises(ValueError, match="a has the classes background, face, b background, hair"):
            tables(tmp_path)


def test_rows_that_share_nothing_are_refused(tmp_path):
    measured(tmp_path, "a", seed=0)
    measured(tmp_path, "b", seed=1)
    for second, message in (
        (row("b"), r"no seed of both rows is measured \(a: 0; b: 1\)"),
        (row("c"), r"\(a: 0; c: nothing\)"),
    ):
        with pytest.raises(ValueError, match=message):
            tables(tmp_path, second=second)
    measured(tmp_path, "b", seed=0)
    for changes in ({"scored_on": "val"}, {"headline": "250.miou"}):
        with pytest.raises(
            ValueError, match=r"a is scored on test by clean.miou, b on .*; compare rows that share a test"
        ):
            tables(tmp_path, second=row("b", **changes))


def test_the_command(tmp_path, capsys):
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump({"a": ROW, "b": ROW}))
    for name in "ab":
        measured(tmp_path, name, {"": [image(each) for each in NAMES]})
    where = ["--manifest", str(tmp_path / "manifest.yaml")]
    command.main(["--compare", "a", "b", *where])
    text = capsys.readouterr().out
    assert text.startswith("clean.miou: b minus a, by seed\n")
    assert "image bootstrap inside seed 0: 60 images" in text
    with pytest.raises(ValueError, match="no row c"):
        command.main(["--compare", "a", "c", *where])
    images_path(tmp_path, "b", 0).unlink()
    command.main(["--compare", "a", "b", *where])
    assert "No interval over images" in capsys.readouterr().out
