import math
import statistics

import pytest
import scipy.stats
import yaml

from structseg.results.claims import Claim, judge, load_claims
from structseg.results.inference import Paired, paired, t_interval
from tests.structseg.results.made import row, run


def claim(**more):
    return Claim(**{"claim": "c", "row": "a", "control": "b", "metric": "clean.miou", "better": "more", **more})


def found(*differences):
    return Paired(dict(enumerate(differences)), dict.fromkeys(range(len(differences)), 0.0))


def test_the_interval_by_hand_and_as_scipy_has_it():
    """-0.0701, -0.1057, -0.1154: mean -0.0971, sd 0.02385, t 4.3027: ± 0.0592."""
    values = [-0.0701, -0.1057, -0.1154]
    assert t_interval(values) == pytest.approx((-0.1563, -0.0378), abs=1e-4)
    for size in (3, 5, 11):
        some = [math.sin(7 * i) for i in range(size)]
        expected = scipy.stats.ttest_1samp(some, 0).confidence_interval(0.95)
        assert t_interval(some) == pytest.approx(tuple(expected))
    assert t_interval(values[:2]) is None
    assert t_interval([*values, math.nan]) is None
    assert found(*values).text() == "-0.097 (-0.156 to -0.038)"
    assert found(0.1, -0.25).text() == "+0.100, -0.250", "two seeds: the values alone"
    assert (found(0.125).text(), found().text()) == ("+0.125", "-")


def test_differences_are_paired_by_seed_on_one_processor():
    mine = [run("a", seed, 0.1 * seed) for seed in (0, 1, 2, 3)]
    others = [run("b", 1, 0.5), run("b", 2, 0.25, hardware="Xeon, 2 cores"), run("b", 3, {"other": 1.0}), run("b", 7)]
    pairs = paired(mine, others, "clean.miou")
    assert pairs.differences == {1: pytest.approx(-0.4)}
    assert pairs.left_out == (2,)
    both = paired(mine, others, "clean.miou", across=True)
    assert both.differences == pytest.approx({1: -0.4, 2: -0.05})
    assert paired(mine, others, "clean.miou", "other").differences == {3: pytest.approx(-0.7)}
    assert paired(mine, 0.25, "clean.miou").differences == pytest.approx({0: -0.25, 1: -0.15, 2: -0.05, 3: 0.05})
    threads = paired([run("a", 0, threads=1)], [run("b", 0, threads=2)], "clean.miou")
    assert threads.left_out == (0,), "another number of threads sums in another order"


@pytest.mark.parametrize(
    ("differences", "more", "verdict"),
    [
        ((0.01, 0.011, 0.012), {}, "holds"),
        ((0.01, 0.011, 0.012), {"better": "less"}, "does not hold"),
        ((-0.01, -0.011, -0.012), {"better": "less"}, "holds"),
        ((-0.01, -0.011, -0.012), {}, "does not hold"),
        ((0.01, -0.01, 0.02), {}, "not decided"),
        ((0.1, 0.1), {}, "not decided"),
        ((), {}, "not decided"),
        ((-0.001, -0.0012, -0.0011), {"allowed_loss": 0.005}, "holds"),
        ((-0.03, -0.031, -0.03), {"allowed_loss": 0.005}, "does not hold"),
        ((-0.004, -0.006, -0.005), {"allowed_loss": 0.005}, "not decided"),
        ((0.002, -0.002, 0.001), {"smallest_gain": 0.02}, "does not hold"),
        ((0.03, 0.01, -0.01), {"smallest_gain": 0.02}, "not decided"),
        ((0.001, 0.0011, 0.0012), {"smallest_gain": 0.02}, "holds"),
        ((0.002, -0.002, 0.001), {"smallest_gain": 0.02, "better": "less"}, "does not hold"),
        ((0.1, 0.2, math.nan), {}, "not decided"),
    ],
)
def test_the_verdict_follows_the_rule(differences, more, verdict):
    assert claim(**more).verdict(found(*differences)) == verdict


def test_claims_are_judged_by_their_runs():
    rows = {name: row(name, config=f"experiments/{name[0]}/x.yaml") for name in ("a", "a2", "a3", "a4", "b")}
    values = {"a": (0.5, 0.6, 0.8), "a2": (0.4, 0.4, 0.5), "a3": (0.1, 0.3, 0.3), "a4": (0.1, 0.2, 0.1)}
    runs = [run(name, seed, value) for name, own in values.items() for seed, value in enumerate(own)]
    runs += [run("a2", 9, 0.9), run("b", 0)]
    claims = [
        claim(control="a2"),
        claim(row="b", control="", target=0.75),
        claim(row="a", row_less="a2", control="a3", control_less="a4"),
    ]
    one, dose, target = judge(claims, rows, runs)
    assert [item.method for item in (one, dose, target)] == ["a", "a", "b"], "the claims of a method together"
    assert list(one.paired.differences.values()) == pytest.approx([0.1, 0.2, 0.3])
    assert one.cells[2:] == ("0.633", one.paired.text(), "3", "not decided")
    assert one.paired.text().startswith(f"+{statistics.fmean([0.1, 0.2, 0.3]):.3f} (")
    assert list(dose.paired.differences.values()) == pytest.approx([0.1 - 0, 0.2 - 0.1, 0.3 - 0.2])
    assert dose.by_seed[:2] == ("(a - a2) - (a3 - a4), clean.miou", "+0.100, +0.100, +0.100")
    assert target.by_seed == ("b - 0.75, clean.miou", "-0.250", "no interval of 1")
    assert judge(claims[:1], rows, [])[0].cells == ("c", "-", "-", "-", "0", "not decided")


def test_all_faults_of_the_file_are_listed(tmp_path):
    rows = {"a": row(), "b": row("b", also=["x"])}
    path = tmp_path / "claims.yaml"
    assert load_claims(path, rows) == []
    good = {"claim": "c", "row": "a", "control": "b", "metric": "clean.miou", "better": "less"}
    path.write_text(yaml.safe_dump([good, {**good, "control_metric": "x"}]))
    assert load_claims(path, rows)[0] == claim(better="less")
    for changes, message in (
        ({"row": "aa"}, r"claim 2: no row aa in the manifest"),
        ({"better": "most"}, "better is 'most', not more or less"),
        ({"metric": "clean.miu"}, r"a does not keep clean.miu \(did you mean clean.miou\?\)"),
        ({"control_metric": "y"}, "b does not keep y"),
        ({"target": 1.0}, "it needs either a control or a target"),
        ({"published": 0.91}, "published is 0.91, not a string"),
        ({"allowed_loss": "x"}, "allowed_loss is 'x', not a number"),
        ({"contrl": "b"}, r"unknown key contrl \(did you mean control\?\)"),
    ):
        path.write_text(yaml.safe_dump([good, {**good, **changes}, "x", {"claim": "c"}]))
        with pytest.raises(ValueError, match=message) as error:
            load_claims(path, rows)
        assert "claim 3: holds 'x', not keys" in str(error.value)
        assert "claim 4: no row; claim 4: no metric; claim 4: no better" in str(error.value)
        assert "\n" not in str(error.value)
    path.write_text("a: b")
    with pytest.raises(ValueError, match="holds no list of claims"):
        load_claims(path, rows)
