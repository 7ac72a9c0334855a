import json
import math
from dataclasses import replace

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image

from structseg.files import write_result
from structseg.results import command as results
from structseg.results.by_round import by_round
from structseg.results.files import read_results, result_path
from structseg.results.manifest import Row
from structseg.results.plot import plot_rounds, plot_rows

BETA = "model.init_args.loss.init_args.beta"


def row(name):
    return Row(name, "A row.", "pyproject.toml", "synthetic", "miou", {"cpu": 1, "gpu": 1}, (0, 1, 2))


def measured(folder, name, beta, seed=0, miou=0.5, **more):
    config = {"model": {"init_args": {"loss": {"class_path": "Loss", "init_args": {"beta": beta}}}}}
    content = {"row": name, "seed": seed, "dirty": False, "hardware": "box", "wall_seconds": 1.0, "config": config}
    metrics = {"128": {"miou": miou, "all": {"f1": 0.5}}}
    write_result(result_path(folder, name, seed), {**content, "metrics": metrics, **more})


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they are saved."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **more: (figures.append(self), save(self, *args, **more))
    )
    return figures


def test_points_means_and_names(tmp_path, drawn):
    for name, beta, scores in (("b", 5, (0.6, 0.8)), ("a", 0.5, (0.5, 0.6)), ("c", 20, (0.4, 0.4))):
        for seed, score in enumerate(scores):
            measured(tmp_path, name, beta, seed, score)
    measured(tmp_path, "other", 7)
    out = tmp_path / "docs" / "x.png"
    plot_rows([row("b"), row("a"), row("c")], read_results(tmp_path), BETA, ["128.miou", "128.all.f1"], out)
    first, second = drawn[0].axes
    assert (first.get_xlabel(), first.get_ylabel()) == ("model.loss.beta", "128.miou")
    assert second.get_ylabel() == "128.all.f1"
    mean, *points = first.lines
    assert mean.get_xdata().tolist() == [0.5, 5, 20]
    assert mean.get_ydata() == pytest.approx([0.55, 0.7, 0.4])
    assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in points] == [
        ([0.5, 0.5], [0.5, 0.6]),
        ([5, 5], [0.6, 0.8]),
        ([20, 20], [0.4, 0.4]),
    ]
    with Image.open(out) as picture:
        assert picture.size == (1080, 420)
        assert np.asarray(picture.convert("L")).std() > 5  # something is drawn
    assert out.stat().st_size < 300_000


def test_validation_is_said_and_not_mixed_with_test(tmp_path, drawn):
    measured(tmp_path, "a", 1, scored_on="val")
    measured(tmp_path, "b", 2, scored_on="val")
    plot_rows([row("a"), row("b")], read_results(tmp_path), BETA, ["128.miou"], tmp_path / "x.png")
    assert drawn[0].axes[0].get_ylabel() == "128.miou (validation)"
    measured(tmp_path, "b", 2)
    with pytest.raises(ValueError, match="some rows are scored on validation images"):
        plot_rows([row("a"), row("b")], read_results(tmp_path), BETA, ["128.miou"], tmp_path / "x.png")


@pytest.mark.parametrize(
    ("names", "x", "y", "out", "message"),
    [
        ("ab", BETA, "128.miou", "x.jpg", r"--out is .*x.jpg; expected a file that ends in .png"),
        ("ac", BETA, "128.miou", "x.png", "a and c have the same model.*beta, 1"),
        ("a", BETA, "128.miou", "x.png", "beta is 1 in all results; give --x a setting"),
        ("az", BETA, "128.miou", "x.png", "z is not measured"),
        ("ab", BETA, "128.mious", "x.png", r"no metric 128.mious \(did you mean 128.miou\?\)"),
        ("ab", BETA[:-4] + "betta", "128.miou", "x.png", r"there is no betta \(did you mean beta\?\)"),
        ("ab", BETA + ".x", "128.miou", "x.png", "there is no x"),
        ("ab", "model.init_args.loss.class_path", "128.miou", "x.png", "class_path is 'Loss'; expected a number"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(tmp_path, names, x, y, out, message):
    for name, beta in (("a", 1), ("b", 2), ("c", 1)):
        measured(tmp_path, name, beta)
    with pytest.raises(ValueError, match=message) as error:
        plot_rows([row(name) for name in names], read_results(tmp_path), x, [y], tmp_path / out)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("x.*"))


def test_the_command(tmp_path, capsys):
    content = {"what": "x", "config": "pyproject.toml", "seeds": [0], "data": "synthetic", "headline": "128.miou"}
    content |= {"minutes": {"cpu": 1}}
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump({"a": content, "b": content}))
    measured(tmp_path, "a", 1)
    measured(tmp_path, "b", 2)
    out = tmp_path / "x.png"
    where = ["--manifest", str(tmp_path / "manifest.yaml")]
    results.main(["--plot", "a", "b", "--x", BETA, "--y", "128.miou", "--out", str(out), *where])
    assert capsys.readouterr().out.strip() == str(out)
    assert Image.open(out).size == (540, 420)


def rounds(folder, name, seed, *mious):
    metrics = {f"round_{number}": {"cams": {"miou": value}} for number, value in enumerate(mious)}
    measured(folder, name, 1, seed, metrics={**metrics, "miou": 0.1})


def test_over_the_rounds_of_each_row(tmp_path, drawn):
    rounds(tmp_path, "a", 0, 0.4, 0.5)
    rounds(tmp_path, "a", 1, 0.6, 0.5)
    rounds(tmp_path, "b", 0, 0.4, 0.2, 0.3)
    rounds(tmp_path, "b", 1, 0.2, 0.2, 0.3)
    rounds(tmp_path, "b", 2, 0.9, 0.9, 0.9)  # the others have no such seed
    plot_rounds(by_round([row("a"), row("b")], read_results(tmp_path), ["cams.miou"]), tmp_path / "x.png")
    (axes,) = drawn[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("round", "cams.miou")
    lines = [line for line in axes.lines if len(line.get_xdata()) > 1 and line.get_linestyle() == "-"]
    assert [(line.get_label(), line.get_xdata().tolist()) for line in lines] == [
        ("a", [0, 1]),
        ("b", [0, 1, 2]),
    ]
    assert [line.get_ydata().tolist() for line in lines] == [pytest.approx([0.5, 0.5]), pytest.approx([0.3, 0.2, 0.3])]
    points = [line for line in axes.lines if line.get_linestyle() == "None"]
    assert len({(x, y) for line in points for x, y in zip(*line.get_data(), strict=True)}) == 7, "no row hides another"
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    assert legend.get_title().get_text() == "mean, and each of the seeds 0, 1"
    for y, message in (
        ("cams.mio", r"no metric cams.mio in any round \(did you mean cams.miou\?\)"),
        ("miou", "no metric"),
    ):
        with pytest.raises(ValueError, match=message):
            by_round([row("a")], read_results(tmp_path), [y])
    with pytest.raises(ValueError, match=r"expected a file that ends in \.png"):
        plot_rounds(by_round([row("a")], read_results(tmp_path), ["cams.miou"]), tmp_path / "y.jpg")
    rounds(tmp_path, "c", 2, 0.4)
    with pytest.raises(ValueError, match="a, c have no seed in common"):
        by_round([row("a"), row("c")], read_results(tmp_path), ["cams.miou"])
    assert not list(tmp_path.glob("y.*"))


def test_the_command_over_rounds(tmp_path, capsys):
    content = {"what": "x", "config": "pyproject.toml", "seeds": [0], "data": "synthetic", "headline": "miou"}
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump({"a": {**content, "minutes": {"cpu": 1}}}))
    rounds(tmp_path, "a", 0, 0.4, 0.5)
    out = tmp_path / "x.png"
    where = ["--manifest", str(tmp_path / "manifest.yaml")]
    results.main(["--plot", "a", "--x", "round", "--y", "cams.miou", "--out", str(out), *where])
    assert capsys.readouterr().out.strip() == str(out)
    results.main(["--rounds", "a", "--y", "cams.miou", "--markdown", *where])
    table = capsys.readouterr().out.splitlines()
    assert table == [
        "**mean of seed 0**", "", "| metric | row | round 0 | round 1 |", "| --- | --- | ---: | ---: |",
        "| cams.miou | a | 0.400 | 0.500 |",
    ]  # fmt: skip
    results.main(["--rounds", "a", "--y", "cams.miou", *where])
    assert "0.500" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no metric cams.x"):  # the first --y counts too
        results.main(["--rounds", "a", "--y", "cams.x", "--y", "cams.miou", *where])
    with pytest.raises(SystemExit):
        results.main(["--plot", "a", "--x", BETA, "--out", str(out), *where])
    assert "--plot needs --y" in capsys.readouterr().err


def test_the_spread_over_seeds(tmp_path):
    rounds(tmp_path, "a", 0, 0.4, 0.5)
    rounds(tmp_path, "a", 1, 0.6)
    found = by_round([row("a")], read_results(tmp_path), ["cams.miou"])
    lines = found.table().markdown().splitlines()
    assert (lines[0], lines[-1]) == (
        "**mean ± sd of seed 0, 1**",
        "| cams.miou | a | 0.500 ± 0.141 | 0.500 (1 of 2) |",
    )


def test_what_a_seed_lacks_is_said(tmp_path):
    """A metric that is not finite is null in a result."""
    rounds(tmp_path, "a", 0, 0.4, math.nan, math.nan)
    rounds(tmp_path, "a", 1, 0.6, 0.5, math.nan)
    found = by_round([row("a")], read_results(tmp_path), ["cams.miou"]).table().markdown()
    assert found.endswith("| 0.500 ± 0.141 | 0.500 (1 of 2) |")


def test_another_round_0_is_said(tmp_path, drawn):
    """Arms of one pipeline share round 0 by seed; a row measured under other settings is no fair pair."""
    rounds(tmp_path, "a", 0, 0.4, 0.5)
    rounds(tmp_path, "a", 1, 0.3, 0.5)
    rounds(tmp_path, "b", 0, 0.4, 0.6)
    rounds(tmp_path, "b", 1, 0.2, 0.6)
    found = by_round([row("a"), row("b")], read_results(tmp_path), ["cams.miou"])
    said = "b.1 began with another round 0 than a.1: other settings, code or hardware"
    assert found.mismatch == said
    assert said in found.table().markdown()
    plot_rounds(found, tmp_path / "x.png")
    assert drawn[-1].get_suptitle() == said
    path = result_path(tmp_path, "b", 1)
    content = json.loads(path.read_text())
    content["metrics"]["round_0"] = {"cams": {"miou": 0.3}, "notices": 7}  # a count is no score
    write_result(path, content)
    assert by_round([row("a"), row("b")], read_results(tmp_path), ["cams.miou"]).mismatch == ""
    alone = by_round([row("a")], read_results(tmp_path), ["cams.miou"])  # seeds differ, as they should
    other = replace(row("b"), config="README.md")  # of another recipe, which shares nothing
    assert alone.mismatch == by_round([row("a"), other], read_results(tmp_path), ["cams.miou"]).mismatch == ""
