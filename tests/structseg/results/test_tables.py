import math
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from structseg.files import ROOT
from structseg.results import command
from structseg.results.claims import CLAIMS, Claim, judge, load_claims
from structseg.results.command import with_block
from structseg.results.dots import dot_plot
from structseg.results.files import IMAGES, METRICS, RUNS, images_path, read_images, read_runs, write_run
from structseg.results.manifest import MANIFEST, Recipes, load_manifest
from structseg.results.table import (
    STALE,
    WIDTH,
    claims_table,
    details,
    method_table,
    page,
    readme_lines,
    rows_of_method,
    stale_seeds,
)
from tests.structseg.results.made import manifest, row, run

FOLDER = MANIFEST.parent


@pytest.fixture(scope="module")
def shipped():
    rows, runs = load_manifest(stages=False), read_runs(FOLDER)
    return rows, runs, judge(load_claims(FOLDER / CLAIMS, rows), rows, runs)


class TestShipped:
    """What the repository keeps."""

    def test_every_file_belongs_to_a_row(self, shipped):
        rows, runs, _ = shipped
        assert {(each.row, each.seed) for each in runs} <= {(name, seed) for name in rows for seed in rows[name].seeds}
        measured = {f"{each.row}.{each.seed}.csv.xz": each for each in runs}
        for path in (FOLDER / IMAGES).iterdir():
            tests = read_images(path)
            each = measured[path.name]
            own = [columns for test, columns in tests.items() if not test.startswith("round_")]
            assert [len(columns["name"]) for columns in own] == [each.test_images]
            assert path == images_path(FOLDER, each.row, each.seed)
        lines = (FOLDER / METRICS).read_text().splitlines()[1:]
        assert {tuple(line.split(",")[:2]) for line in lines} == {(each.row, str(each.seed)) for each in runs}

    def test_runs_have_the_metrics_of_their_rows_and_one_recipe_a_row(self, shipped):
        rows, runs, _ = shipped
        recipes, text = Recipes(), (ROOT / "docs" / "results.md").read_text()
        for name, own in ((name, [each for each in runs if each.row == name]) for name in rows):
            for each in own:
                assert rows[name].headline in each.metrics, each
                assert not each.commit.endswith("-dirty"), each
                assert set(each.metrics) <= set(rows[name].kept), each
            assert len({each.recipe for each in own}) <= 1, f"{name}: its seeds were measured with different settings"
            if stale_seeds(rows[name], own, recipes):
                assert f"| {name}† |" in text, f"{name} has other settings than it was measured with; `results --write`"

    def test_the_size_is_bounded(self):
        files = [FOLDER / RUNS, FOLDER / METRICS, *(FOLDER / IMAGES).iterdir()]
        assert sum(path.stat().st_size for path in files) < 2_000_000
        assert sum(len(path.read_text().splitlines()) for path in files[:2]) < 3000

    def test_the_first_table_fits_a_screen(self, shipped):
        rows, _, found = shipped
        lines = claims_table(found).splitlines()
        assert len(lines) <= 40
        assert max(map(len, lines)) <= WIDTH == 100
        assert {item.method for item in found} == {own.method for own in rows.values()}
        for method in {own.method for own in rows.values()}:
            text = method_table(rows_of_method(rows, method), shipped[1], [f for f in found if f.method == method])
            assert max(map(len, text.splitlines())) <= WIDTH

    def test_the_pages_agree_with_the_runs(self, shipped):
        tables, pictures = page(*shipped)
        for name, text in (("docs/results.md", tables), ("README.md", readme_lines(shipped[2]))):
            shown = (ROOT / name).read_text()
            assert shown == with_block(shown, text), "`structseg results --write`, and commit what it wrote"
        for method, picture in pictures.items():
            path = ROOT / "docs" / "results" / f"{method}.svg"
            assert path.read_text() == picture, "`structseg results --write`, and commit what it wrote"
            assert path.stat().st_size < 60_000
            assert f"(results/{method}.svg)" in tables

    def test_it_needs_neither_torch_nor_matplotlib(self):
        """`structseg results` has to answer within a second."""
        heavy = ("torch", "pytorch_lightning", "matplotlib", "jsonargparse", "rich", "scipy.stats")
        code = (
            "import sys\nfrom structseg.results.command import main\n"
            "main([]), main(['conta']), main(['--details', 'fasseg_v3'])\n"
            f"assert not [name for name in {heavy} if name in sys.modules]"
        )
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


ROWS = {name: row(name, config=f"experiments/{name[0]}/x.yaml") for name in ("b1", "a1", "b2", "a2")}
RUNS_OF = [run(name, seed, value + seed / 100) for name, value in (("b1", 0.5), ("b2", 0.4)) for seed in (0, 1, 2)]
CLAIM = Claim("is better, as the words of a long claim say", "b1", "clean.miou", "more", "1.5", "b2")


def test_claims_of_each_method():
    unequal = [run("b1", 0, 0.5), run("b2", 0, 0.25, hardware="Xeon")]
    found = judge([CLAIM], ROWS, RUNS_OF)
    lines = claims_table(found).splitlines()[2:]
    assert lines[0] == "b"
    assert re.fullmatch(
        r" is better, as the words of a +1.5 +0.510 +\+0.100 \(\+0.100 to \+0.100\) +3 +holds", lines[1]
    )
    assert lines[2:4] == [" long claim say", ""]
    text = claims_table(judge([CLAIM], ROWS, unequal))
    assert re.search(r"as the words of a +1.5 +- +- +0 +not decided\n long claim say\n", text)
    assert "Seeds left out, measured on different processors: b1 and b2." in text
    first = readme_lines(found).splitlines()[2]
    assert first == f"| b | {CLAIM.claim} | 1.5 | 0.510 | +0.100 (+0.100 to +0.100) | 3 | **holds** |"


def test_rows_of_a_method(monkeypatch):
    own = rows_of_method(ROWS, "B")
    monkeypatch.setattr(Recipes, "of", lambda self, row: "r" if row.name == "b1" else "new")
    text = method_table(
        {**own, "b3": row("b3", scored_on="val")}, [*RUNS_OF, run("b3", 0)], judge([CLAIM], ROWS, RUNS_OF)
    )
    assert f"{CLAIM.claim}: holds\n  b1 - b2, clean.miou\n  by seed +0.100, +0.100, +0.100; mean +0.100 (" in text
    assert re.search(r"\nb1 +clean.miou +0.510 +0.500 to 0.520 +3 +2\n", text)
    assert re.search(r"\nb2† +clean.miou +0.410", text)
    assert re.search(r"\nb3† +clean.miou \(validation\) +0.500 +1 +2\n", text)
    assert STALE in text
    assert "not measured yet (`structseg results --missing`): a1, a2" in method_table(rows_of_method(ROWS, "a"), [], [])
    dirty = method_table(own, [run("b1", 0, commit="c-dirty")], [])
    assert "\nb1* " in dirty
    assert "* measured with uncommitted changes" in dirty
    for method, message in [
        ("c", "no method c in the manifest; there are b, a"),
        ("b1", "b1 is a row, not a method; `structseg results --details b1` has its figures"),
    ]:
        with pytest.raises(ValueError, match=message):
            rows_of_method(ROWS, method)


def test_details_have_each_seed():
    own = row(decides="Whether it is.")
    table = details(own, [run("a", 0, {"x": 0.5, "y": math.nan}), run("a", 1, {"x": 0.75})])
    lines = {cells[0]: cells[1:] for cells in table.lines}
    assert lines["x"] == ("0.5000", "0.7500", "0.6250")
    assert lines["y"] == ("-", "-", "-")
    assert lines["hardware"][:2] == ("EPYC, 2 cores",) * 2
    assert table.title == "a: A row. Decides: Whether it is."
    with pytest.raises(ValueError, match="b is not measured; `structseg results --run b` measures it"):
        details(row("b"), [])


def test_a_dot_for_each_seed():
    rows = [row("a<b", what="x"), row("b"), row("c", headline="error", scored_on="val"), row("d")]
    runs = [run("a<b", 0, 0.25), run("a<b", 1, 0.5), run("b", 0, 0.5, hardware="Xeon"), run("c", 0, {"error": 3.0})]
    svg = ElementTree.fromstring(dot_plot(rows, [*runs, run("b", 1, math.nan)]))
    names = [element.tag.rpartition("}")[2] for element in svg.iter()]
    dots = [element for element in svg.iter() if element.tag.endswith("circle") and len(element)]
    assert len(dots) == 4
    assert [float(dots[i].get("cx")) < float(dots[1].get("cx")) for i in (0, 2)] == [True, False]
    assert dots[1].get("cx") == dots[2].get("cx")
    assert dots[0].get("fill") != dots[2].get("fill"), "another processor"
    texts = [element.text for element in svg.iter() if element.tag.endswith("text")]
    assert {"a<b", "b", "c", "clean.miou", "error (validation)", "EPYC, 2 cores, 2 threads"} <= set(texts)
    assert "d" not in texts
    assert dots[0][0].text == "a<b seed 0: 0.2500, EPYC, 2 cores, 2 threads"
    assert "script" not in names
    ElementTree.fromstring(dot_plot([], []))


def test_a_block_of_a_page():
    text = "a\n<!-- structseg results --write -->\nold\n<!-- end -->\nb\n"
    assert with_block(text, "new") == text.replace("old", "new")
    with pytest.raises(ValueError, match="put them around the place of the tables"):
        with_block("a", "new")


def test_the_command_prints_them(tmp_path, capsys):
    where = ["--manifest", str(manifest(tmp_path, a={}, b={}))]
    command.main(where)
    assert "claim" in capsys.readouterr().out, "nothing is measured or claimed"
    write_run(tmp_path, run(metrics=0.625))
    (tmp_path / CLAIMS).write_text("[{claim: c, row: a, target: 0.5, metric: clean.miou, better: more}]")
    command.main(where)
    assert re.search(r" c +- +0.625 +\+0.125 +1 +not decided\n", capsys.readouterr().out)
    command.main(["fasseg_unet", *where])
    assert "a†" in capsys.readouterr().out
    command.main(["--details", "a", *where])
    assert "0.6250" in capsys.readouterr().out
