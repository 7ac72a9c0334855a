import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from structseg import provenance
from structseg.command.configs import resolved_config
from structseg.command.lightning import run
from structseg.files import ROOT, part_of, write_result
from structseg.lightning_modules.callbacks.image_scores import read_table
from structseg.metric_names import nest_metrics
from structseg.pipelines import session
from structseg.pipelines.file import load_pipeline
from structseg.pipelines.record import RECORD, read_record
from structseg.pipelines.session import Session
from structseg.pipelines.stages import pipeline_folder
from structseg.provenance import commit
from structseg.results import command as results
from structseg.results import measure, run_rows
from structseg.results.files import images_path, portable, read_results, result_path, write_images
from structseg.results.manifest import (
    Recipes,
    Row,
    args_of_stages,
    args_to_fit,
    args_to_score,
    data_folder,
    find_data_root,
    find_row,
    load_manifest,
)
from structseg.results.run_rows import Job, Place, measure_command, run_jobs
from structseg.results.table import (
    STALE_NOTE,
    WIDTH,
    details,
    markdown,
    method_table,
    not_measured,
    overview,
    rows_of_method,
    summarise,
)
from tests.data.fasseg import make_fasseg

TINY_NETWORK = "tests.data.tiny.TinyNetwork"
ROW = {
    "what": "A row.",
    "config": "pyproject.toml",
    "seeds": [0, 1, 2],
    "data": "synthetic",
    "headline": "clean.miou",
    "minutes": {"cpu": 8, "gpu": 1},
}


def row(name="a", **changes):
    content = {**ROW, **changes}
    return Row(name, **{**content, "seeds": tuple(content["seeds"])})


def manifest(folder, text=None, **rows):
    path = folder / "manifest.yaml"
    path.write_text(text or yaml.safe_dump({name: {**ROW, **changes} for name, changes in rows.items()}))
    return path


def result(folder, name="a", seed=0, miou=0.8, skin=0.5, seconds=60.0, hardware="box", dirty=False, **more):
    metrics = {"all": {"miou": 0.1, "iou": {"skin": 0.1}}, "clean": {"miou": miou, "iou": {"skin": skin, "eyes": 0.25}}}
    content = {"row": name, "seed": seed, "commit": "c0ffee", "dirty": dirty, "hardware": hardware, **more}
    path = result_path(folder, name, seed)
    write_result(path, {**content, "wall_seconds": seconds, "test_seconds": 0.0, "metrics": metrics})
    return path


def write_pipeline(folder, stages, base="{}"):
    (folder / "base.yaml").write_text(base)
    (folder / "p.yaml").write_text(yaml.safe_dump({"config": "base.yaml", "stages": stages}, sort_keys=False))
    return folder / "p.yaml"


def refused(call, *args, code=1, capsys):
    with pytest.raises(SystemExit) as end:
        call(*args)
    assert end.value.code == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


class TestManifest:
    @pytest.mark.slow
    def test_the_arguments_of_every_shipped_row_are_accepted(self):
        """One row for each configuration, each set of overrides and each option of the data."""
        seen = set()
        for shipped in load_manifest().values():
            new = {shipped.data_option, *((shipped.source, shipped.overrides) if shipped.config else ())}
            if new <= seen:
                continue
            seen |= new
            data = None if shipped.data == "synthetic" else "data"
            if shipped.config:
                resolved_config(args_to_fit(shipped, 0, "cpu", data, str(shipped.path), "runs"))
            else:
                pipeline = load_pipeline(shipped.path)
                Session(
                    pipeline, more=tuple(args_of_stages(shipped, "cpu", data)), last=next(iter(pipeline.stages))
                ).configs()

    def test_reads_rows_in_order(self, tmp_path):
        rows = load_manifest(manifest(tmp_path, b={}, a={"overrides": ["--x", "1"], "aim": 0.9, "minutes": {"cpu": 2}}))
        assert list(rows) == ["a", "b"]  # as safe_dump sorts them
        assert rows["a"].overrides == ("--x", "1")
        assert rows["a"].minutes == {"cpu": 2, "gpu": None}
        assert rows["b"].seeds == (0, 1, 2)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"shown": 1}, "shown is 1, not true or false"),
            ({"headlin": "miou"}, r"row a: unknown key headlin \(did you mean headline\?\)"),
            ({"config": "experiments/nothing.yaml"}, "row a: no file experiments/nothing.yaml"),
            ({"seeds": []}, "seeds are"),
            ({"seeds": [1, 1]}, "seeds are"),
            ({"seeds": [True]}, "seeds are"),
            ({"overrides": "--x 1"}, "overrides are '--x 1'"),
            ({"overrides": ["--x", 1]}, "overrides are"),
            ({"aim": "high"}, "aim is 'high'"),
            ({"minutes": {"cpus": 1}}, r"unknown key minutes.cpus \(did you mean cpu\?\)"),
            ({"minutes": {"cpu": 0}}, "minutes are"),
            ({"what": ""}, "what is ''"),
            ({"pipeline": "p.yaml", "stage": "a"}, "row a: config and pipeline; a row has one of them"),
            ({"stage": "a"}, "row a: pipeline and stage belong together; one is missing"),
            ({"scored_on": "train"}, "scored_on is 'train', not val or test"),
            ({"tests": {}}, "tests are {}, not a list of texts for each name"),
            ({"tests": ["--x"]}, r"tests are \['--x'\], not a list"),
            ({"tests": {"a": "--x"}}, "tests are {'a': '--x'}"),
            ({"tests": {"a": ["--x", 1]}}, "tests are {'a': "),
            ({"tests": {128: []}}, "the test name 128 is not a text of letters"),
            ({"tests": {"a.b": []}}, "the test name 'a.b' is not a text of letters"),
            (
                {"tests": {"128": [], "250": []}},
                "clean.miou belongs to no test; say which: 128.clean.miou, 250.clean.m",
            ),
            ({"tests": {"clean": []}, "also": ["all.miou"]}, "metric all.miou belongs to no test"),
        ],
    )
    def test_a_fault_is_named(self, tmp_path, changes, message):
        with pytest.raises(ValueError, match=message) as error:
            load_manifest(manifest(tmp_path, a=changes))
        assert "\n" not in str(error.value)

    def test_a_row_may_be_a_stage_of_a_pipeline(self, tmp_path):
        file = write_pipeline(tmp_path, {"coarse": {}, "parts": {"model": {"x": "{coarse}"}}})
        content = {**ROW, "pipeline": str(file), "stage": "parts"}
        del content["config"]
        found = load_manifest(manifest(tmp_path, yaml.safe_dump({"a": content})))["a"]
        assert (found.source, found.config, found.stage) == (str(file), None, "parts")
        assert args_to_fit(found, 3, "cuda", "d", "p.yaml", "runs") == [
            "pipeline", "p.yaml", "--until", "parts", "--seed", "3", "--runs_dir", "runs",
            "--", "--data.root", "d", "--trainer.accelerator", "gpu", "--trainer.devices", "1",
        ]  # fmt: skip
        content["data_option"] = "--data.layouts"
        found = load_manifest(manifest(tmp_path, yaml.safe_dump({"a": content})))["a"]
        assert args_to_fit(found, 3, "cuda", "d", "p.yaml", "runs")[9:11] == ["--data.layouts", "d"]
        for changes, message in [
            ({"data_option": 3}, "data_option is 3, not a text"),
            ({"stage": "part"}, r"has no stage part \(did you mean parts\?\)"),
            ({"pipeline": "none.yaml"}, "no pipeline at .*none.yaml"),
            ({"pipeline": ""}, "pipeline is '', not a text"),
            ({"overrides": ["--x", "1"]}, "overrides; the arguments of a pipeline's stage belong in its file"),
        ]:
            with pytest.raises(ValueError, match=f"row a: .*{message}"):
                load_manifest(manifest(tmp_path, yaml.safe_dump({"a": {**content, **changes}})))
        path = manifest(tmp_path, yaml.safe_dump({"a": {**content, "stage": "part"}}))
        assert list(load_manifest(path, stages=False)) == ["a"], "the pipeline is not read"
        del content["pipeline"], content["stage"]
        with pytest.raises(ValueError, match="row a: no config, and no pipeline"):
            load_manifest(manifest(tmp_path, yaml.safe_dump({"a": content})))

    def test_tests_by_name(self, tmp_path):
        tests = {"128": ["--data.score_at", "size"], "250": []}
        rows = load_manifest(manifest(tmp_path, a={"tests": tests, "headline": "250.miou", "scored_on": "val"}, b={}))
        assert rows["a"].tests == {"128": ("--data.score_at", "size"), "250": ()}
        assert (rows["a"].scored_on, rows["b"].scored_on, rows["b"].tests) == ("val", "test", {})
        where = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
        assert args_to_score(rows["a"], "x.ckpt", 3, "cpu") == {
            "128": ["validate", "--ckpt_path", "x.ckpt", "--seed_everything", "3", *tests["128"], *where],
            "250": ["validate", "--ckpt_path", "x.ckpt", "--seed_everything", "3", *where],
        }
        assert args_to_score(rows["b"], "x.ckpt", 3, "cpu") == {
            "": ["test", "--ckpt_path", "x.ckpt", "--seed_everything", "3", *where]
        }

    def test_all_faults_come_at_once(self, tmp_path):
        text = "a: {what: x}\nb: 3\nmissing: {}\na: {}\n"
        with pytest.raises(ValueError, match=r"a is given twice; .*no config.*row b: holds 3.*row missing: a name has"):
            load_manifest(manifest(tmp_path, text))

    @pytest.mark.parametrize("text", ["- a\n", "a: [", "3"])
    def test_no_manifest_at_all(self, tmp_path, text):
        with pytest.raises(ValueError, match=r"manifest.yaml (is no YAML|holds no rows)"):
            load_manifest(manifest(tmp_path, text))

    def test_unknown_row_has_the_nearest_name(self):
        with pytest.raises(ValueError, match=r"no row fasseg_v4 .*did you mean fasseg_v3\?"):
            find_row({"fasseg_v3": row(), "voc": row()}, "fasseg_v4")

    def test_data_root(self, tmp_path, monkeypatch):
        monkeypatch.setenv("STRUCTSEG_DATA", str(tmp_path))
        assert find_data_root(None) == tmp_path
        assert find_data_root(str(tmp_path / "x")) == tmp_path / "x"
        (tmp_path / "fasseg").mkdir()
        assert data_folder(row(data="fasseg"), tmp_path) == tmp_path / "fasseg"
        assert data_folder(row(data="synthetic"), None) is None
        with pytest.raises(FileNotFoundError, match=r"a reads .*voc, which is not a folder"):
            data_folder(row(data="voc"), tmp_path)
        with pytest.raises(FileNotFoundError, match="a reads voc; give the folder"):
            data_folder(row(data="voc"), None)


class TestFiles:
    def test_nan_becomes_null_and_is_read_as_nan(self, tmp_path):
        path = result(tmp_path, miou=math.nan, skin=math.inf)
        assert json.loads(path.read_text())["metrics"]["clean"] == {"miou": None, "iou": {"skin": None, "eyes": 0.25}}
        assert math.isnan(read_results(tmp_path)[0].value("clean.miou"))

    def test_a_failed_write_leaves_what_was_there(self, tmp_path):
        path = result(tmp_path, miou=0.5)
        before = path.read_text()
        with pytest.raises(TypeError):
            write_result(path, {"row": "a", "config": object()})
        assert path.read_text() == before
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"row": "a"}', '{"row": "a", "seed": 0, "metrics": 3}'])
    def test_a_damaged_file_is_named(self, tmp_path, text):
        result(tmp_path, seed=1)
        (tmp_path / "a.0.json").write_text(text)
        with pytest.raises(ValueError, match=r"a\.0\.json is damaged"):
            read_results(tmp_path)

    def test_a_file_under_another_name_is_refused(self, tmp_path):
        result(tmp_path).rename(tmp_path / "b.0.json")
        with pytest.raises(ValueError, match=r"b\.0\.json holds row a, seed 0"):
            read_results(tmp_path)
        (tmp_path / "b.0.json").rename(tmp_path / "notes.json")
        with pytest.raises(ValueError, match=r"notes\.json is not a result"):
            read_results(tmp_path)

    def test_seeds_are_ordered_as_numbers(self, tmp_path):
        for seed in (10, 2):
            result(tmp_path, seed=seed)
        assert [found.seed for found in read_results(tmp_path)] == [2, 10]

    def test_an_unknown_metric_has_the_nearest_name(self, tmp_path):
        result(tmp_path)
        with pytest.raises(ValueError, match=r"a\.0\.json has no metric clear.miou \(did you mean clean.miou\?\)"):
            read_results(tmp_path)[0].value("clear.miou")

    def test_metrics_without_parts_stay_flat(self):
        logged = {"test/miou": 0.5, "test/iou/skin": 0.25, "val/miou": 0.9, "train/loss": 1.0}
        assert nest_metrics(logged) == {"miou": 0.5, "iou": {"skin": 0.25}}

    def test_metrics_with_parts_get_names(self):
        logged = {"test/miou": 0.5, "test/iou/skin": 0.25, "test/clean/miou": 0.75, "test/clean/iou/skin": 1.0}
        assert nest_metrics(logged) == {
            "all": {"miou": 0.5, "iou": {"skin": 0.25}},
            "clean": {"miou": 0.75, "iou": {"skin": 1.0}},
        }

    def test_metrics_of_a_validation(self):
        logged = {"test/miou": 0.5, "val/iou/skin": 0.25, "val/miou": 0.9, "train/loss": 1.0}
        assert nest_metrics(logged, "val") == {"iou": {"skin": 0.25}, "miou": 0.9}

    def test_images_of_one_test_and_of_several(self, tmp_path):
        path = images_path(result_path(tmp_path, "a", 0))
        assert path == tmp_path / "a.0.images.csv.gz"
        one, two = [["name", "tp/x"], ["i", "1"]], [["name", "tp/x"], ["i", "2"], ["j", "3"]]
        first = write_images(path, {"": one})
        assert read_table(path) == one
        assert write_images(path, {"128": one, "250": two}) != first
        assert read_table(path) == [["test", "name", "tp/x"], ["128", "i", "1"], ["250", "i", "2"], ["250", "j", "3"]]
        assert write_images(path, {"": one}) == first
        with pytest.raises(ValueError, match="the tests a, b have different classes"):
            write_images(path, {"a": one, "b": [["name", "tp/y"]]})
        assert [file.name for file in tmp_path.iterdir()] == ["a.0.images.csv.gz"]
        assert read_results(tmp_path) == []  # it is no result

    def test_configurations_name_no_folder_of_the_machine(self, tmp_path):
        config = {
            "root": str(tmp_path / "fasseg"),
            "size": [1, 2],
            "x": [str(ROOT / "a.yaml"), "runs", None],
        }
        there = portable({**config, "y": "/elsewhere/deep/file"}, tmp_path)
        assert there == {
            "root": "$STRUCTSEG_DATA/fasseg",
            "size": [1, 2],
            "x": ["a.yaml", "runs", None],
            "y": ".../file",
        }

    def test_the_commit_outside_a_checkout_is_as_told(self, tmp_path, monkeypatch):
        monkeypatch.setattr(provenance, "ROOT", tmp_path)
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        monkeypatch.delenv("STRUCTSEG_COMMIT", raising=False)
        assert commit() == ("unknown", True)
        monkeypatch.setenv("STRUCTSEG_COMMIT", "abc")
        assert commit() == ("abc", False)
        monkeypatch.setenv("STRUCTSEG_COMMIT", "abc-dirty")
        assert commit() == ("abc", True)

    def test_results_do_not_make_a_checkout_dirty_and_anything_else_does(self, tmp_path, monkeypatch):
        monkeypatch.setattr(provenance, "ROOT", tmp_path)
        git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
        (tmp_path / "pyproject.toml").write_text("")
        for args in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
            subprocess.run([*git, *args], check=True)
        folder = tmp_path / "experiments" / "results"
        write_images(images_path(result(folder)), {"": [["name"]]})
        head, dirty = commit()
        assert (len(head), dirty) == (40, False)
        (folder / "manifest.yaml").write_text("")
        assert commit() == (head, True)


class TestTable:
    def test_mean_spread_and_classes_by_hand(self, tmp_path):
        for seed, miou, skin in ((0, 0.80, 0.4), (1, 0.86, math.nan), (2, 0.95, 0.6), (7, 0.1, 0.1)):
            result(tmp_path, seed=seed, miou=miou, skin=skin, seconds=60.0 * (seed + 1))
        summary = summarise(row(aim=0.88), read_results(tmp_path))
        assert summary.mean == pytest.approx(0.87)  # 2.61 / 3; seed 7 is not of the row
        assert summary.spread == pytest.approx(math.sqrt((0.07**2 + 0.01**2 + 0.08**2) / 2))
        assert summary.classes == pytest.approx({"skin": 0.5, "eyes": 0.25})
        cells = summary.cells()
        assert cells[:2] == ("a", "A row.")
        assert cells[2:5] == ("3", "clean.miou 0.870 ± 0.075", "0.800 to 0.950")
        assert cells[5:] == ("skin 0.500, eyes 0.250", "0.88: not met", "box", "2.0")

    def test_a_single_seed_has_no_spread(self, tmp_path):
        result(tmp_path, miou=0.8796, skin=math.nan, hardware="x|y")
        summary = summarise(row(aim=0.88), read_results(tmp_path))
        assert math.isnan(summary.spread)
        assert summary.cells()[2:7] == ("1 of 3", "clean.miou 0.880", "", "skin -, eyes 0.250", "0.88: met")
        assert r"| x\|y |" in markdown({"a": row()}, read_results(tmp_path))

    def test_the_headline_may_be_a_class(self, tmp_path):
        result(tmp_path, skin=0.75)
        summary = summarise(row(headline="clean.iou.skin"), read_results(tmp_path))
        assert summary.mean == 0.75
        assert summary.classes == {"skin": 0.75, "eyes": 0.25}

    def test_figures_of_validation_images_say_so(self, tmp_path):
        result(tmp_path, scored_on="val")
        rows = {"a": row(scored_on="val"), "b": row("b", scored_on="val")}
        text = markdown(rows, read_results(tmp_path))
        assert "| validation: clean.miou 0.800 |" in text
        assert text.endswith("\n\n1 further rows are not measured: `structseg results --missing`")
        assert re.search(r"a +clean.miou \(validation\) +0.800 +1 of 3\n", overview(rows, read_results(tmp_path)))
        with pytest.raises(ValueError, match=r"a\.0\.json was scored on val, its row says test; measure it"):
            markdown({"a": row()}, read_results(tmp_path))

    def test_rows_without_results(self):
        rows = {"a": row(), "gpu": row("gpu", minutes={"cpu": None, "gpu": 4}, aim=0.5)}
        assert summarise(rows["a"], []) is None
        assert not_measured(rows["a"]) == "not measured (≈ 8 min on 2 cores, ≈ 1 min on a GPU)"
        assert not_measured(rows["gpu"]) == "not measured (≈ 4 min on a GPU)"
        assert re.search(r"  a +clean.miou +- +0 of 3\n  gpu +clean.miou +- +0 of 3\n", overview(rows, []))
        assert "--missing`): a, gpu\n" in method_table(rows, [])
        assert "gpu" not in markdown(rows, [])
        assert "2 further rows are not measured" in markdown(rows, [])

    def test_the_overview_has_the_shown_rows_of_each_method(self, tmp_path):
        rows = {
            name: row(name, config=f"experiments/{name[0]}/x.yaml", shown=shown)
            for name, shown in (("b1", True), ("a1", False), ("b2", False), ("b3", True), ("a2", False))
        }
        for seed, miou in ((0, 0.5), (1, 0.7)):
            result(tmp_path, "b1", seed, miou)
        result(tmp_path, "b2")
        assert overview(rows, read_results(tmp_path)).splitlines() == [
            "row   metric          mean ± sd   seeds",
            "----  ----------  -------------  ------",
            "",
            "b",
            "  b1  clean.miou  0.600 ± 0.141  2 of 3",
            "  b3  clean.miou              -  0 of 3",
            "",
            "a",
            "  a1  clean.miou              -  0 of 3",
            "  a2  clean.miou              -  0 of 3",
            "",
            "All rows of a method: `structseg results METHOD`. All of a row: `structseg results --details ROW`.",
        ]
        assert list(rows_of_method(rows, "A")) == ["a1", "a2"]
        for method, message in [
            ("c", "no method c in the manifest; there are b, a"),
            ("b1", "b1 is a row, not a method; `structseg results --details b1` has its figures"),
        ]:
            with pytest.raises(ValueError, match=message):
                rows_of_method(rows, method)

    def test_a_method_has_every_row_within_the_width(self, tmp_path):
        name, metric = "a_name_of_thirty_six_characters_long", "round_2.pseudo_masks.pseudo_mean_miou"
        rows = {name: row(name, headline=metric, what="so " * 60, config="experiments/consensus/lfw_parts.yaml")}
        rows |= {f"row_{number}": row(f"row_{number}") for number in range(40)}
        path = result(tmp_path, name, recipe="x", dirty=True)
        content = json.loads(path.read_text())
        write_result(path, {**content, "metrics": {"round_2": {"pseudo_masks": {"pseudo_mean_miou": 0.25}}}})
        lines = method_table(rows, read_results(tmp_path)).splitlines()
        assert lines[2].split() == [f"{name}*†", "round_2.pseudo_masks.pseudo_mean_…", "0.250", "1", "of", "3"]
        assert lines[3] == f"    {' '.join(['so'] * 32)}"
        assert max(map(len, lines)) <= WIDTH
        assert all(f"{other}," in f"{' '.join(lines)}," for other in list(rows)[1:-1])

    def test_the_shipped_overview_fits_a_screen(self):
        rows = load_manifest(stages=False)
        lines = overview(rows, read_results(ROOT / "experiments" / "results")).splitlines()
        assert len(lines) <= 40
        assert max(map(len, lines)) <= WIDTH == 100
        assert {line for line in lines if re.fullmatch(r"\w+", line)} == {
            "fasseg_unet",
            "consensus",
            "stn_icnn",
            "conta",
        }

    def test_it_loads_nothing_that_trains_or_draws(self):
        """`structseg results` has to answer within a second."""
        heavy = ("torch", "pytorch_lightning", "matplotlib", "jsonargparse", "numpy", "rich")
        code = (
            "import sys\nfrom structseg.results.command import main\n"
            "main([]), main(['conta']), main(['--details', 'fasseg_v3'])\n"
            f"assert not [name for name in {heavy} if name in sys.modules]"
        )
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    def test_uncommitted_changes_and_foreign_files_are_told(self, tmp_path):
        result(tmp_path, dirty=True)
        result(tmp_path, "old", 3)
        text = markdown({"a": row()}, read_results(tmp_path))
        assert r"| a\* | A row. |" in text
        assert text.endswith(
            "\n\n\\* measured with changes that were not committed\n\nof no row or seed of the manifest: old.3.json"
        )
        text = overview({"a": row()}, read_results(tmp_path))
        assert "  a*  clean.miou" in text
        assert "\n* measured with changes that were not committed\nof no row or seed of the manifest: old.3" in text

    def test_settings_that_have_changed_since_are_told_and_measured_anew(self, tmp_path):
        (tmp_path / "c.yaml").write_text("trainer: {max_epochs: 3}  # a comment says nothing\n")
        rows = {"a": row(config=str(tmp_path / "c.yaml"), seeds=[0, 1])}
        result(tmp_path, seed=0, recipe=Recipes().of(rows["a"]))
        result(tmp_path, seed=1)  # from before it was kept
        (tmp_path / "c.yaml").write_text("trainer:\n  max_epochs: 3\n")
        found = read_results(tmp_path)
        assert "†" not in markdown(rows, found)
        assert results.choose_jobs(rows, found, ["missing"], None) == []
        (tmp_path / "c.yaml").write_text("trainer: {max_epochs: 4}\n")
        text = markdown(rows, found)
        assert "| a† |" in text
        assert text.endswith(f"\n\n{STALE_NOTE}")
        assert [str(job) for job in results.choose_jobs(rows, found, ["missing"], None)] == ["a.0"]

    def test_a_recipe_is_what_the_files_say_of_a_row(self, tmp_path):
        stages = {"one": {"model": {"x": 1}}, "two": {"model": {"x": 2}}}
        path = str(write_pipeline(tmp_path, stages))
        mine = row(config=None, pipeline=path, stage="one")
        before = Recipes().of(mine)
        assert Recipes().of(replace(mine, seeds=(7,), what="x", headline="y", minutes={})) == before
        write_pipeline(tmp_path, {**stages, "two": {"model": {"x": 3}}})  # it does not build on that
        assert Recipes().of(mine) == before
        others = [Recipes().of(replace(mine, stage="two")), Recipes().of(replace(mine, tests={"a": ("--y",)}))]
        write_pipeline(tmp_path, {**stages, "one": {"model": {"x": 3}}})
        others.append(Recipes().of(mine))
        write_pipeline(tmp_path, stages, "trainer: {max_epochs: 9}")
        others.append(Recipes().of(mine))
        write_pipeline(tmp_path, {**stages, "one": {"model": {"x": 1}, "test": {"t": {}}}})
        others.append(Recipes().of(mine))
        (tmp_path / "base.yaml").write_text("base: below.yaml")
        for epochs in (1, 2):  # what a configuration builds on counts
            (tmp_path / "below.yaml").write_text(f"trainer: {{max_epochs: {epochs}}}")
            others.append(Recipes().of(mine))
        assert len({before, *others}) == 8

    def test_details_have_each_seed(self, tmp_path):
        result(tmp_path, seed=0, miou=0.5, skin=math.nan)
        result(tmp_path, seed=1, miou=0.7, skin=0.25)
        lines = {cells[0]: cells[1:] for cells in details(row(), read_results(tmp_path)).lines}
        assert lines["clean.miou"] == ("0.5000", "0.7000", "0.6000 ± 0.1414")
        assert lines["clean.iou.skin"] == ("-", "0.2500", "0.2500")
        with pytest.raises(ValueError, match="b is not measured"):
            details(row("b"), [])


class TestCommand:
    def test_prints_the_table(self, tmp_path, capsys):
        path = manifest(tmp_path, a={}, b={})
        result(tmp_path, miou=0.625)
        results.main(["--manifest", str(path)])
        text = capsys.readouterr().out
        assert re.search(r"  a +clean.miou +0.625 +1 of 3\n  b +clean.miou +- +0 of 3", text)
        results.main(["other", "--manifest", str(path)])
        assert "\n    A row.\n" in capsys.readouterr().out
        results.main(["other", "--markdown", "--manifest", str(path)])
        assert "| clean.miou 0.625 |" in capsys.readouterr().out

    def test_missing_has_the_commands(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "c.yaml").write_text("")
        changes = {"config": str(tmp_path / "c.yaml"), "data": "fasseg", "seeds": [0, 3], "overrides": ["--x", "a b"]}
        path = manifest(tmp_path, a=changes)
        result(tmp_path)
        results.main(["--missing", "--manifest", str(path), "--data_root", str(tmp_path), "--device", "cuda"])
        assert capsys.readouterr().out.splitlines()[:3] == [
            "a.3: about 1 min (cuda)",
            "    structseg fit --config c.yaml --experiment a --runs_dir runs --seed_everything 3 --x 'a b' "
            "--data.root ./fasseg --trainer.accelerator gpu --trainer.devices 1",
            "    structseg test --ckpt_path runs/a/RUN_ID/checkpoints/best.ckpt --seed_everything 3 "
            "--trainer.accelerator gpu --trainer.devices 1",
        ]
        tests = {"128": ["--data.score_at", "size"], "250": ["--x", "a b"]}
        path = manifest(tmp_path, a={**changes, "tests": tests, "headline": "128.miou"})
        results.main(["--missing", "--manifest", str(path), "--data_root", str(tmp_path)])
        test = "    structseg test --ckpt_path runs/a/RUN_ID/checkpoints/best.ckpt --seed_everything 3 "
        assert [
            line.removesuffix(" --trainer.accelerator cpu --trainer.devices 1")
            for line in capsys.readouterr().out.splitlines()[2:4]
        ] == [f"{test}--data.score_at size", f"{test}--x 'a b'"]
        result(tmp_path, seed=3)
        results.main(["--missing", "--manifest", str(path)])
        assert capsys.readouterr().out == "every row is measured\n"

    def test_missing_has_the_command_of_a_pipeline(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        content = {**ROW, "pipeline": str(write_pipeline(tmp_path, {"coarse": {}})), "stage": "coarse", "seeds": [2]}
        del content["config"]
        path = manifest(tmp_path, yaml.safe_dump({"a": content}))
        results.main(["--missing", "--manifest", str(path), "--runs_dir", "r"])
        assert capsys.readouterr().out.splitlines()[1:3] == [
            "    structseg pipeline p.yaml --until coarse --seed 2 --runs_dir r -- --trainer.accelerator cpu "
            "--trainer.devices 1",
            f"    structseg test --ckpt_path r/{tmp_path.name}_p/2/coarse/RUN_ID/checkpoints/best.ckpt "
            "--seed_everything 2 --trainer.accelerator cpu --trainer.devices 1",
        ]

    @pytest.mark.parametrize(
        ("args", "code", "message"),
        [
            (["--again"], 2, "--again has no effect without --run"),
            (["--details", "a", "--seeds", "1"], 2, "--seeds has no effect without --run or --missing"),
            (["--plot", "a", "b", "--y", "miou"], 2, "--plot needs --x and --out"),
            (["--x", "a"], 2, "--x has no effect without --plot"),
            (["--compare", "a", "b", "--out", "x"], 2, "--out has no effect without --plot"),
            (["conta", "--missing"], 2, "METHOD (conta) is not allowed with --missing"),
            (["--compare", "a"], 2, "--compare: expected 2 arguments"),
            (["--compare", "a", "b", "--plot", "a"], 2, "not allowed with"),
            (["--details", "a", "--markdown"], 2, "--markdown is not allowed with --details"),
            (["--run", "a", "--missing"], 2, "not allowed with"),
            (["--runs", "a"], 2, "unrecognized arguments: --runs"),
            (["--run", "a", "--device", "tpu"], 2, "invalid choice: 'tpu'"),
        ],
    )
    def test_wrong_options_are_one_line(self, args, code, message, capsys):
        assert message in refused(results.main, args, code=code, capsys=capsys)

    def test_jobs(self, tmp_path):
        rows = {"a": row(), "b": row("b", seeds=(4,))}
        result(tmp_path, seed=1)
        found = read_results(tmp_path)

        def choose(*names, seeds=None, again=False):
            return [str(job) for job in results.choose_jobs(rows, found, names, seeds, again)]

        assert choose("missing") == ["a.0", "a.2", "b.4"]
        assert choose("b", "a") == ["a.0", "a.2", "b.4"]
        assert choose("a", again=True) == ["a.0", "a.1", "a.2"]
        assert choose("missing", seeds=[0, 4]) == ["a.0", "b.4"]
        with pytest.raises(ValueError, match="none of the rows a has seed 4"):
            choose("a", seeds=[4])
        with pytest.raises(ValueError, match="no row c"):
            choose("c")


class TestRunning:
    @pytest.fixture
    def place(self, tmp_path):
        (tmp_path / "results").mkdir()
        return Place("cpu", None, tmp_path / "runs", tmp_path / "manifest.yaml", tmp_path / "results")

    @pytest.fixture
    def child(self, place, monkeypatch):
        """Makes every job run this Python text, which finds the names of its result and of the part file."""

        def become(text):
            def command(job, place):
                path = result_path(place.results, job.row.name, job.seed)
                parts = f"part={str(part_of(path))!r}; images={str(part_of(images_path(path)))!r}"
                names = f"import os, signal, sys, time; path={str(path)!r}; {parts}; job={str(job)!r}\n"
                return [sys.executable, "-S", "-c", names + text]

            monkeypatch.setattr(run_rows, "measure_command", command)

        return become

    def test_each_row_is_a_process_and_a_failing_one_does_not_stop_the_rest(self, place, child, capsys):
        child("print(job, os.getpid())\nif job == 'a.0': raise ValueError('no such colour')")
        jobs = [Job(row(), 0), Job(row(), 1)]
        assert run_jobs(jobs, place) == jobs[:1]
        text = capsys.readouterr().out
        assert re.search(r"a\.0: failed .*exit code 1", text)
        assert "ValueError: no such colour" in text
        assert "a.1: measured" in text
        logs = [(place.runs_dir / "results" / f"a.{seed}.log").read_text().split() for seed in (0, 1)]
        assert logs[0][:1] + logs[1][:1] == ["a.0", "a.1"]
        assert logs[0][1] != logs[1][1] != str(os.getpid())

    def test_a_killed_run_leaves_nothing(self, place, child):
        child("open(part, 'w').write('{')\nopen(images, 'w').write('x')\nos.kill(os.getpid(), signal.SIGKILL)")
        job = Job(row(), 0)
        assert run_jobs([job], place) == [job]
        assert list(place.results.iterdir()) == []

    @pytest.mark.parametrize("stubborn", ["", "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"])
    def test_termination_ends_the_run_too(self, place, child, monkeypatch, stubborn):
        monkeypatch.setattr(run_rows, "GRACE_SECONDS", 0.3)
        child(
            stubborn + "open(part, 'w').write('{')\nprint(os.getpid(), flush=True)\n"
            "os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(60)"
        )
        handler, start = signal.getsignal(signal.SIGTERM), time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run_jobs([Job(row(), 0)], place)
        assert time.monotonic() - start < 10
        assert signal.getsignal(signal.SIGTERM) is handler
        assert list(place.results.iterdir()) == []
        pid = int((place.runs_dir / "results" / "a.0.log").read_text().split()[0])
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_no_cuda_device_is_said_in_one_line(self, place):
        with pytest.raises(ValueError, match="no CUDA device on this machine"):
            run_jobs([Job(row(), 0)], Place("cuda", None, place.runs_dir, place.manifest, place.results))

    def test_missing_data_stop_everything_before_it_starts(self, place, child):
        child("open(path, 'w').write('x')")
        with pytest.raises(FileNotFoundError, match="b reads fasseg"):
            run_jobs([Job(row(), 0), Job(row("b", data="fasseg"), 0)], place)
        assert not place.runs_dir.exists()


@pytest.mark.parametrize(("interrupted", "finished"), [(True, False), (True, True), (False, False)])
def test_an_interrupted_training_is_not_scored(tmp_path, monkeypatch, interrupted, finished):
    trainer = SimpleNamespace(interrupted=interrupted, state=SimpleNamespace(finished=finished))
    monkeypatch.setattr(measure, "run", lambda args: SimpleNamespace(trainer=trainer))
    with pytest.raises(RuntimeError, match="the training was interrupted"):
        measure.measure(row(config="experiments/consensus/lfw_parts.yaml"), 0, "cpu", None, str(tmp_path), tmp_path)
    assert list(tmp_path.iterdir()) == []


TINY = {
    "model": {"class_path": "ConsensusSegmenter", "init_args": {"network": {"class_path": TINY_NETWORK}}},
    "data": {"class_path": "FASSEGDataModule", "init_args": {"size": [32, 32], "score_at": "native"}},
    "trainer": {"max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False},
}


def measured_here(job, place, monkeypatch):
    """What the process of a job does, in this one."""
    monkeypatch.setattr(sys, "argv", measure_command(job, place)[2:])
    measure.main()
    return json.loads(result_path(place.results, job.row.name, job.seed).read_text())


@pytest.mark.slow
def test_a_row_end_to_end(tmp_path, capsys, monkeypatch):
    make_fasseg(tmp_path / "data" / "fasseg", train=4, test=3)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    whole = {"config": str(tmp_path / "tiny.yaml"), "data": "fasseg", "overrides": ["--trainer.max_epochs", "2"]}
    broken = {**whole, "overrides": ["--data.version", "V3"]}
    held_out = ["--data.fold", "0", "--data.folds", "2"]
    held = {**whole, "overrides": held_out, "scored_on": "val", "headline": "miou"}
    whole |= {"tests": {"native": [], "small": ["--data.score_at", "size"]}, "headline": "native.clean.miou"}
    path = manifest(tmp_path, broken=broken, held=held, whole=whole)
    rows = load_manifest(path)
    place = Place("cpu", tmp_path / "data", tmp_path / "runs", path, tmp_path / "results")
    where = ["--manifest", str(path), "--results", str(place.results)]
    more = ["--data_root", str(place.data_root), "--runs_dir", str(place.runs_dir), "--seeds", "1"]
    assert "failed: broken.1" in refused(results.main, ["--run", "broken", *where, *more], capsys=capsys)
    found, held = (measured_here(Job(rows[name], 1), place, monkeypatch) for name in ("whole", "held"))
    assert sorted(file.name for file in place.results.iterdir()) == [
        f"{name}.1.{kind}" for name in ("held", "whole") for kind in ("images.csv.gz", "json")
    ]
    assert (found["method"], found["train_images"], found["test_images"]) == ("ConsensusSegmenter", 4, 3)
    assert {test: set(parts) for test, parts in found["metrics"].items()} == {
        "native": {"all", "clean"},
        "small": {"all", "clean"},
    }
    assert found["metrics"]["native"] != found["metrics"]["small"]
    clean = found["metrics"]["native"]["clean"]
    assert list(clean["iou"]) == ["background", "skin", "hair", "eyes", "nose", "mouth"]
    known = [value for value in clean["iou"].values() if value is not None]
    assert clean["miou"] == pytest.approx(sum(known) / len(known), abs=1e-5)
    config = found["config"]
    assert (config["seed_everything"], config["trainer"]["max_epochs"]) == (1, 2)
    assert config["data"]["init_args"]["root"] == "$STRUCTSEG_DATA/fasseg"
    assert str(tmp_path.parent) not in json.dumps(found)
    assert found["wall_seconds"] > 0
    assert found["initial_weights"] == "random"
    assert found["recipe"] == Recipes().of(find_row(load_manifest(path), "whole"))

    header, *images = read_table(tmp_path / "results" / "whole.1.images.csv.gz")
    assert header[:3] == ["test", "name", "tp/background"]
    assert [line[0] for line in images] == ["native"] * 3 + ["small"] * 3
    for test, lines in (("native", images[:3]), ("small", images[3:])):
        hits, _, missed = np.array([line[2:20] for line in lines], int).sum(0).reshape(3, 6)
        accuracy = hits.sum() / (hits + missed).sum()
        assert found["metrics"][test]["all"]["pixel_accuracy"] == pytest.approx(accuracy, abs=1e-6)

    assert (held["scored_on"], held["train_images"], held["val_images"]) == ("val", 2, 2)
    assert "test_images" not in held
    assert isinstance(held["metrics"]["miou"], float)
    assert len(read_table(tmp_path / "results" / "held.1.images.csv.gz")) == 1 + 2

    results.main(["--details", "whole", *where])
    assert "clean.miou" in capsys.readouterr().out


@pytest.mark.slow
def test_rows_that_are_stages_of_a_pipeline_share_them(tmp_path, monkeypatch):
    make_fasseg(tmp_path / "data" / "fasseg", train=4, test=3)
    data = {"class_path": "FASSEGDataModule", "init_args": {"size": [32, 32], "fold": 0, "folds": 2}}
    student = {"model": {"teacher_ckpt": "{teacher}"}, "data": {"size": [24, 24]}}
    file = write_pipeline(
        tmp_path, {"teacher": {}, "aside": {}, "student": student}, yaml.safe_dump({**TINY, "data": data})
    )
    content = {**ROW, "data": "fasseg", "headline": "all.miou", "seeds": [1], "pipeline": str(file)}
    del content["config"]
    path = manifest(
        tmp_path, yaml.safe_dump({"t": {**content, "stage": "teacher"}, "u": {**content, "stage": "student"}})
    )
    place = Place("cpu", tmp_path / "data", tmp_path / "runs", path, tmp_path / "results")
    ran = []

    def structseg(what, args, keeps):  # the signature of what it stands for
        ran.append(what)
        run(args)
        return 1.5

    monkeypatch.setattr(session, "run_structseg", structseg)
    teacher, student = (measured_here(Job(row, 1), place, monkeypatch) for row in load_manifest(path).values())
    assert ran == ["stage teacher", "stage student"]
    stages = pipeline_folder(file, 1, tmp_path / "runs")
    assert sorted(found.name for found in stages.glob("[a-z]*")) == ["student", "teacher"]
    (kept,) = (found for found in (stages / "teacher").iterdir() if found.name != RECORD)

    seconds = {name: read_record(stages / name).seconds for name in ("teacher", "student")}
    assert (teacher["stage_seconds"], student["stage_seconds"]) == ({"teacher": seconds["teacher"]}, seconds)
    assert teacher["wall_seconds"] == seconds["teacher"]
    assert student["wall_seconds"] == pytest.approx(sum(seconds.values()), abs=0.06)
    assert set(student["stage_commits"]) == {"teacher", "student"}
    assert (student["method"], student["train_images"], student["test_images"]) == ("ConsensusSegmenter", 2, 3)
    assert student["config"]["seed_everything"] == 1
    assert student["config"]["data"]["init_args"]["size"] == [24, 24]
    assert student["config"]["data"]["init_args"]["root"] == "$STRUCTSEG_DATA/fasseg"
    assert student["config"]["model"]["init_args"]["teacher_ckpt"].endswith("best.ckpt")
    assert student["metrics"]["all"] != teacher["metrics"]["all"]
    assert str(tmp_path.parent) not in json.dumps(student)
    assert kept.is_dir()


def test_the_page_shows_the_table_that_the_results_make(capsys):
    results.main(["--markdown"])
    table = capsys.readouterr().out.strip()
    shown = (
        (ROOT / "docs" / "results.md")
        .read_text()
        .partition("<!-- structseg results --markdown -->")[2]
        .partition("<!-- end -->")[0]
    )
    assert shown.strip() == table, "paste what `structseg results --markdown` prints between the two marks"
