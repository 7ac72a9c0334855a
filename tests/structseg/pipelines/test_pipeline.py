"""Pipelines: the file, what runs and why, and one through the real command line, killed in the middle."""

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import count, pairwise

import pytest
import yaml

from structseg.command import processes
from structseg.command.configs import resolved_config
from structseg.command.lightning import run
from structseg.command.processes import run_structseg
from structseg.files import ROOT
from structseg.pipelines import session as pipeline
from structseg.pipelines.command import comparison, main
from structseg.pipelines.file import load_pipeline
from structseg.pipelines.record import RECORD, Inputs, read_record
from structseg.pipelines.session import Session
from tests.structseg.command.test_light_commands import light

STAGES = {
    "coarse": {"model": {"stage": "coarse"}},
    "aside": {"test": False},
    "parts": {"model": {"init_from": "{coarse}"}, "test": {"plain": {}, "flipped": {"model": {"flip": True}}}},
    "joint": {"model": {"init_from": ["{coarse}", "{parts}"]}},
}


def write(folder, stages=STAGES, **more):
    (folder / "base.yaml").write_text("trainer: {max_epochs: 3}\n")
    path = folder / "p.yaml"
    path.write_text(yaml.safe_dump({"config": "base.yaml", "stages": stages, **more}, sort_keys=False))
    return path


class TestFile:
    def test_its_content(self, tmp_path):
        found = load_pipeline(write(tmp_path, table=["miou"]))
        assert (found.stages["parts"].configs, found.table) == ((tmp_path / "base.yaml",), ("miou",))
        assert {name: stage.needs for name, stage in found.stages.items()} == {
            "coarse": (), "aside": (), "parts": ("coarse",), "joint": ("coarse", "parts"),
        }  # fmt: skip
        assert {name: dict(stage.tests) for name, stage in found.stages.items()} == {
            "coarse": {"": ()}, "aside": {}, "parts": {"plain": (), "flipped": ("--model.flip", "true")}, "joint": {"": ()},
        }  # fmt: skip
        joint = found.stages["joint"]
        assert joint.args_with({"coarse": "a/b.ckpt", "parts": "c.ckpt"}) == [
            "--model.init_from",
            '["a/b.ckpt", "c.ckpt"]',
        ]

    def test_a_base(self, tmp_path):
        below = load_pipeline(write(tmp_path, table=["miou"], data={"seed": 1, "train": 3}))
        (tmp_path / "own").mkdir()
        path = tmp_path / "own" / "q.yaml"
        path.write_text("base: ../p.yaml\ndata: {seed: 2}\ntable: [loss]\nstages: {coarse: {model: {lr: 3}}, one: }\n")
        found = load_pipeline(path)
        assert (list(found.stages), found.table) == ([*below.stages, "one"], ("loss",))
        assert [config.resolve() for config in found.stages["parts"].configs] == [tmp_path / "base.yaml"]
        shared = ("--data.seed", "2", "--data.train", "3")
        assert found.stages["coarse"].args == (*shared, "--model.stage", "coarse", "--model.lr", "3")
        assert found.stages["one"].args == shared
        last = tmp_path / "r.yaml"
        last.write_text("base: own/q.yaml\ndata: {train: 4}")
        assert load_pipeline(last).stages["one"].args == ("--data.seed", "2", "--data.train", "4")

    def test_settings_become_options(self, tmp_path):
        loss = {"class_path": "X", "init_args": {"a": [1, "b"], "c": None}}
        stages = {
            "s": {"data": {"size": [64, 64]}, "model": {"init_args": {"lr": 1e-5}, "loss": loss, "on": False, "d": {}}}
        }
        assert load_pipeline(write(tmp_path, stages)).stages["s"].args == (
            "--model.lr", "1e-05", "--model.loss", "X", "--model.loss.a", '[1, "b"]', "--model.loss.c", "null",
            "--model.on", "false", "--data.size", "[64, 64]",
        )  # fmt: skip

    def test_inputs_become_the_options_that_take_them(self, tmp_path):
        masks = {"predict": "a", "makes": ["pseudo_masks", "confounders.npz"]}
        stages = {"a": {}, "pseudo_masks": masks, "b": {"inputs": ["pseudo_masks", "confounders"]}}
        found = load_pipeline(write(tmp_path, stages)).stages["b"]
        assert found.args == ("--data.masks", "{pseudo_masks}", "--model.confounders", "{confounders.npz}")
        assert found.needs == ("pseudo_masks",)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("base: none.yaml", r"q.yaml: base: no configuration .*none.yaml"),
            ("base: [p.yaml]", r"base is \['p.yaml'\], not the path"),
            ("base: q.yaml", "its base leads back"),
            ("base: three.yaml", "q.yaml: its base .*three.yaml holds '3', not keys and values"),
            ("base: p.yaml\ndata: 3", "data is 3, not keys and values"),
            ("base: p.yaml\nstages: {a: , a: }", "stage a is there twice"),
            ("base: p.yaml\nbase: p.yaml", "key base is there twice"),
            ("base: wrong.yaml", "data is 'a text', not keys and values"),
            ("base: p.yaml\nstage: {a: }", r"unknown key stage \(.*stages"),
        ],
    )
    def test_a_fault_of_a_base_is_named(self, tmp_path, text, message):
        write(tmp_path)
        (tmp_path / "three.yaml").write_text("3")
        (tmp_path / "wrong.yaml").write_text("config: base.yaml\ndata: a text\nstages: {a: }")
        (tmp_path / "q.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_pipeline(tmp_path / "q.yaml")

    def test_a_stage_and_its_dependencies(self, tmp_path):
        found = load_pipeline(write(tmp_path))
        assert [stage.name for stage in found.needed("parts")] == ["coarse", "parts"]
        assert [stage.name for stage in found.needed("joint")] == ["coarse", "parts", "joint"]
        assert len(found.needed(None)) == 4
        chain = {"a": {}, "b": {"model": {"x": "{a}"}}, "c": {"model": {"x": "{b}"}}}
        assert [stage.name for stage in load_pipeline(write(tmp_path, chain)).needed("c")] == ["a", "b", "c"]
        with pytest.raises(ValueError, match=r"no stage part \(did you mean parts\?\)"):
            found.needed("part")

    def test_braces_without_a_name_stay_as_they_are(self, tmp_path):
        stage = load_pipeline(write(tmp_path, {"a": {"model": {"x": "a {} b", "y": [{"b": 1}]}}})).stages["a"]
        assert (stage.needs, stage.args_with({})) == ((), ["--model.x", "a {} b", "--model.y", '[{"b": 1}]'])

    @pytest.mark.parametrize(
        ("stages", "message"),
        [
            ({}, "no stages"),
            ({"a/b": {}}, "stage a/b: a name has only letters"),
            ({3: {}}, "stage 3: a name has only letters"),
            ({"a": {"modle": {}}}, r"stage a: unknown key modle \(did you mean model\?\)"),
            ({"a": {"args": []}}, "stage a: unknown key args"),
            ({"a": {"base": "b.yaml"}}, "stage a: unknown key base"),
            ({"a": 3}, "stage a: holds 3, not keys and values"),
            ({"a": {"model": ["--x", 8]}}, r"stage a: model is \['--x', 8\], not keys and values"),
            ({"a": {"inputs": "masks"}}, "stage a: inputs are 'masks', not a list of names: cams, "),
            ({"a": {"inputs": ["query"]}}, r"stage a: no input query \(did you mean queries\?\)"),
            ({"a": {"inputs": ["queries"]}}, r"stage a: \{before.queries\}: round 0 has no previous round"),
            ({"a": {"model": {"x": "{b}"}}, "b": {}}, r"stage a: \{b\}: no earlier stage makes it"),
            ({"a": {"model": {"x": ["{a}"]}}}, r"stage a: \{a\}: no earlier stage makes it"),
            (
                {"coarse": {}, "b": {"model": {"x": "{corse}"}}},
                r"stage b: \{corse\}: there is no such stage \(did you mean coa",
            ),
            ({"a": {}, "b": {"model": {"{a}": 1}}}, r"stage b: \{a\} is in the name of a setting"),
            ({"a": {}, "b": {"data": {"predict_out": "r"}}}, "stage b: --data.predict_out is set by the pipeline"),
            ({"a": {"test": True}}, "stage a: test is True, not false or settings for each name"),
            ({"a": {"test": {}}}, "stage a: test is {}"),
            ({"a": {"test": {"x": "y"}}}, "stage a: test x: holds 'y', not keys and values"),
            ({"a": {"test": {"x/y": {}}}}, "the test name 'x/y' has other"),
            (
                {"a": {}, "b": {"test": {"x": {"model": {"y": "{a}"}}}}},
                r"test x: \{a\} stands for a checkpoint, which is allowed only",
            ),
            ({"a": {"test": {"x": {"ckpt_path": "y"}}}}, "test x: unknown key ckpt_path"),
        ],
    )
    def test_a_fault_of_a_stage_is_named(self, tmp_path, stages, message):
        with pytest.raises(ValueError, match=message) as error:
            load_pipeline(write(tmp_path, stages))
        assert str(error.value).startswith(f"{tmp_path / 'p.yaml'}: ")
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a: [", "is no YAML"),
            ("3", "holds no stages"),
            ("stages: {a: }", "no config; give the YAML"),
            ("config: nothing.yaml\nstage: {a: }", r"unknown key stage \(.*stages\?\); no configuration .*nothing.yaml.*; no stages"),
            ("config: base.yaml\nstages: {a: , b: , a: }", "stage a is there twice"),
            ("config: base.yaml\nstages: {a: }\nrounds: 1\narms: {x: , y: , x: }", "arm x is there twice"),
            ("config: base.yaml\nstages: {a: }\ndata: [3]", r"data is \[3\], not keys and values"),
            ("config: base.yaml\nstages: {a: }\ndata: {x: '{a}'}", "{a} stands for a checkpoint, which is allowed only in the"),
            ("config: base.yaml\nstages: {a: }\ntable: miou", "table is 'miou', not a list of metrics"),
        ],
    )  # fmt: skip
    def test_a_fault_of_the_file_is_named(self, tmp_path, text, message):
        write(tmp_path).write_text(text)
        with pytest.raises(ValueError, match=message):
            load_pipeline(tmp_path / "p.yaml")

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no pipeline at .*none.yaml"):
            load_pipeline(tmp_path / "none.yaml")


class TestInputs:
    def test_the_folder_of_a_run_has_no_effect(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "data").mkdir()
        a = Inputs.of(
            {"experiment": "a", "runs_dir": "r", "resume": "never", "data": {"root": "./data", "size": [1, 2]}}, {}
        )
        b = Inputs.of(
            {
                "experiment": "b",
                "runs_dir": "s",
                "run_id": "x",
                "data": {"root": str(tmp_path / "data"), "size": [1, 2]},
            },
            {},
        )
        assert a.fingerprint == b.fingerprint
        assert a.changes(b) == ""

    def test_a_file_is_compared_by_its_content_too(self, tmp_path):
        tags = tmp_path / "tags.csv"
        tags.write_text("a")
        before = Inputs.of({"data": {"tags": str(tags)}}, {})
        tags.write_text("b")
        assert Inputs.of({"data": {"tags": str(tags)}}, {}).fingerprint != before.fingerprint
        tags.write_text("a")
        assert Inputs.of({"data": {"tags": str(tags)}}, {}).fingerprint == before.fingerprint

    def test_a_file_is_found_from_the_datas_root_and_by_its_name_alone(self, tmp_path, monkeypatch):
        (tmp_path / "root").mkdir()
        tags = tmp_path / "tags.csv"
        monkeypatch.chdir(tmp_path)
        for root, name in ((str(tmp_path / "root"), "../tags.csv"), (None, "tags.csv")):
            found = []
            for text in "ab":
                tags.write_text(text)
                found.append(Inputs.of({"data": {"init_args": {"root": root, "tags": name}}}, {}).fingerprint)
            assert found[0] != found[1]
        assert Inputs.of({"stage": "root"}, {}).config == {"stage": '"root"'}  # a word, though a folder is called so

    def test_a_large_file_is_compared_by_its_size_and_time(self, tmp_path, monkeypatch):
        monkeypatch.setattr("structseg.pipelines.record._HASHED", 3)
        weights = tmp_path / "w.pth"
        found = []
        for text, second in (("1234", 1), ("12345", 1), ("12345", 2), ("54321", 2)):
            weights.write_text(text)
            os.utime(weights, (second, second))
            found.append(Inputs.of({"weights": str(weights)}, {}).fingerprint)
        assert len(set(found)) == 3
        assert found[2] == found[3]

    def test_changes_are_described(self, monkeypatch):
        before = Inputs.of({"trainer": {"max_epochs": 8}, "model": {"stage": "coarse"}}, {"coarse": "1"})
        after = Inputs.of({"trainer": {"max_epochs": 1}, "model": {"stage": "coarse", "x": None}}, {"coarse": "2"})
        assert after.changes(before) == "trainer.max_epochs 8 -> 1, model.x nothing -> null, stage coarse changed"
        assert len({before.fingerprint, after.fingerprint, Inputs.of({}, {}).fingerprint}) == 3
        many = Inputs.of(dict.fromkeys("abcdef", 1), {})
        assert many.changes(Inputs.of({"a": 1}, {})).endswith("d nothing -> 1, and 2 more")
        monkeypatch.setattr("structseg.pipelines.record.version", lambda name: "9.9")
        assert Inputs.of({}, {}).changes(Inputs({}, {}, "0.1")) == "structseg 0.1 -> 9.9"


ALL = ["coarse", "test", "aside", "parts", "test", "test", "joint", "test"]  # what runs from nothing


class TestRunning:
    @pytest.fixture
    def ran(self, monkeypatch):
        """Runs of a stand-in for `structseg`, by stage or test; `fail` names one that fails; `content` is trained."""

        class Ran(list):
            fail: str | None = None
            content = "weights"
            number = count(1)

        ran = Ran()

        def structseg(what, args, keeps):
            os.fstat(keeps)
            option = dict(pairwise(args))
            kind = args[0] if args[0] == "test" else option["--experiment"]
            if kind == ran.fail:
                raise RuntimeError(f"{what} failed (exit code 1)")
            ran.append(kind)
            if kind == "test":
                log = ROOT / option["--ckpt_path"].replace("checkpoints/best.ckpt", "metrics.csv")
                new = not log.is_file()
                with log.open("a", newline="") as file:
                    table = csv.writer(file)
                    if new:
                        table.writerow(["epoch", "val/miou", "test/miou", "test/iou/face"])
                        table.writerow([0, 0.25, "", ""])
                    table.writerow([0, "", 0.5 + 0.25 * ("--model.flip" in args), "nan"])
            else:
                folder = ROOT / option["--runs_dir"] / kind / f"run{next(ran.number)}" / "checkpoints"
                folder.mkdir(parents=True)
                (folder / "best.ckpt").write_text(f"{kind} {ran.content} {option.get('--model.init_from')}")
            return 60.0

        monkeypatch.setattr(pipeline, "run_structseg", structseg)
        monkeypatch.setattr(pipeline, "commit", lambda: ("c0ffee", False))
        monkeypatch.setattr(pipeline, "read_card", lambda path: {"notices": ["look"]})
        monkeypatch.setattr(pipeline, "resolved_config", lambda args: {"args": list(args)})
        return ran

    @pytest.fixture
    def session(self, tmp_path, ran):
        path = write(tmp_path)

        def make(*more, **changes):
            return Session(load_pipeline(path), runs_dir=tmp_path / "runs", more=more, **changes)

        return make

    def test_every_stage_runs_once(self, session, ran, capsys):
        records = session().run()
        assert ran == ALL
        assert records["parts"].run == "run3"
        assert {test: scored.metrics["miou"] for test, scored in records["parts"].tests.items()} == {
            "plain": 0.5,
            "flipped": 0.75,
        }
        ran.clear()
        again = session().run()
        assert ran == []
        assert {name: record.run for name, record in again.items()} == {n: r.run for n, r in records.items()}
        assert "[3/4] parts: skip (finished, 1.0 min)" in capsys.readouterr().out

    def test_the_folders_and_the_checkpoints_that_are_handed_on(self, session, tmp_path):
        made = session(seed=3)
        made.run()
        folder = tmp_path / "runs" / f"{tmp_path.name}_p" / "3"
        assert made.folder == folder
        assert {path.name for path in (folder / "coarse").iterdir()} == {"run1", RECORD}
        one, two = folder / "coarse/run1/checkpoints/best.ckpt", folder / "parts/run3/checkpoints/best.ckpt"
        joint = made.pipeline.stages["joint"]
        assert made.args(joint)[:5] == [
            "fit", "--config", str(tmp_path / "base.yaml"), "--model.init_from", f'["{one}", "{two}"]',
        ]  # fmt: skip
        assert (folder / "joint/run4/checkpoints/best.ckpt").read_text() == f'joint weights ["{one}", "{two}"]'
        content = json.loads((folder / "parts" / RECORD).read_text())
        assert content["fingerprint"] == read_record(folder / "parts").inputs.fingerprint
        assert content["tests"]["plain"]["metrics"] == {"miou": 0.5, "iou/face": None}

    def test_a_failed_stage_is_the_next_to_run(self, session, ran):
        ran.fail = "parts"
        with pytest.raises(RuntimeError, match="stage parts failed"):
            session().run()
        assert ran == ALL[:3]
        ran.clear()
        ran.fail = None
        session().run()
        assert ran == ALL[3:]

    def test_a_failed_test_does_not_cost_the_training(self, session, ran):
        ran.fail = "test"
        with pytest.raises(RuntimeError, match="stage coarse failed"):
            session().run()
        ran.fail = None
        assert str(next(session().survey())[1]) == "test (finished, 1.0 min; its test not done yet)"
        session().run()
        assert ran == ALL

    def test_a_new_test_does_not_cost_the_training(self, session, ran, tmp_path):
        session().run()
        ran.clear()
        write(tmp_path, {**STAGES, "coarse": {**STAGES["coarse"], "test": {"": {}, "x": {"model": {"flip": True}}}}})
        assert str(next(session().survey())[1]) == "test (finished, 1.0 min; test x not done yet)"
        assert session().run()["coarse"].tests["x"].metrics["miou"] == 0.75
        assert ran == ["test"]

    def test_dependents_of_a_changed_stage_run_again_even_after_a_kill_in_between(self, session, ran, tmp_path):
        session().run()
        ran.clear()
        write(tmp_path, {**STAGES, "coarse": {"model": {"stage": "rough"}}})
        ran.fail, ran.content = "parts", "other weights"
        with pytest.raises(RuntimeError):
            session().run()
        ran.fail = None
        assert [str(found) for _, found, _ in session().survey()] == [
            "skip (finished, 1.0 min)",
            "skip (finished, 1.0 min)",
            "run (stage coarse changed)",
            "run (stage parts changed)",
        ]
        session().run()
        assert ran == ["coarse", "test", *ALL[3:]]
        assert len(list((session().folder / "coarse").glob("run*"))) == 2, "nothing is deleted"

    def test_an_equal_checkpoint_keeps_its_dependents(self, session, ran):
        made = session()
        made.run()
        (made.folder / "coarse" / RECORD).unlink()
        assert [str(found)[:3] for _, found, _ in made.survey()] == ["run", "ski", "run", "run"]
        ran.clear()
        made.run()
        assert ran == ["coarse", "test"]

    @pytest.mark.parametrize(
        ("harm", "why"),
        [
            (lambda folder: (folder / RECORD).write_text("{"), "not finished"),
            (lambda folder: (folder / RECORD).write_text('{"fingerprint": "x", "inputs": 3}'), "not finished"),
            (lambda folder: (folder / "run1/checkpoints/best.ckpt").unlink(), "best.ckpt is missing"),
            (lambda folder: (folder / "run1/checkpoints/best.ckpt").write_text("x"), "best.ckpt was modified"),
        ],
    )  # fmt: skip
    def test_a_damaged_stage_runs_again(self, session, ran, harm, why):
        made = session(last="coarse")
        made.run()
        harm(made.folder / "coarse")
        assert why in str(next(made.survey())[1])
        ran.clear()
        made.run()
        assert ran == ["coarse", "test"]

    def test_until_runs_the_needed_stages_and_rows_need_no_tests(self, session, ran):
        assert list(session(last="parts").run(tests=False)) == ["coarse", "parts"]
        assert ran == ["coarse", "parts"]

    def test_dry_run_has_each_command_and_runs_nothing(self, session, ran, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        main(["p.yaml", "--dry-run", "--until", "parts", "--seed", "2", "--", "--data.root", "a b"])
        where = f"runs/{tmp_path.name}_p/2"
        best = "RUN_ID/checkpoints/best.ckpt"
        test = f"    structseg test --ckpt_path {where}/parts/{best} --data.root 'a b'"
        assert capsys.readouterr().out.splitlines() == [
            "2 stages",
            "coarse: run (not run yet)",
            "    structseg fit --config base.yaml --model.stage coarse --data.root 'a b' --experiment coarse "
            f"--runs_dir {where} --seed_everything 2",
            f"    structseg test --ckpt_path {where}/coarse/{best} --data.root 'a b' --seed_everything 2",
            "parts: run (not run yet)",
            f"    structseg fit --config base.yaml --model.init_from {where}/coarse/{best} --data.root 'a b' "
            f"--experiment parts --runs_dir {where} --seed_everything 2",
            f"{test} --seed_everything 2",
            f"{test} --model.flip true --seed_everything 2",
        ]
        assert (ran, (tmp_path / "runs").exists()) == ([], False)

    def test_a_stage_that_leaves_no_checkpoint(self, session, ran, monkeypatch):
        session(last="coarse").run()
        (session().folder / "coarse" / RECORD).unlink()  # the checkpoint of that run is not the next one's
        monkeypatch.setattr(pipeline, "run_structseg", lambda what, args, keeps: 1.0)
        with pytest.raises(RuntimeError, match="stage coarse left no checkpoint in"):
            session().run()

    def test_a_test_that_leaves_no_figures(self, session, ran, monkeypatch):
        session(last="coarse").run(tests=False)
        monkeypatch.setattr(pipeline, "run_structseg", lambda what, args, keeps: 1.0)
        with pytest.raises(RuntimeError, match="the test of stage coarse left no figures in"):
            session(last="coarse").run()

    def test_two_at_once_are_refused(self, session, ran):
        made = session()
        made.folder.mkdir(parents=True)
        with (made.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(RuntimeError, match="another process is at work in"):
                made.run()
        made.run()
        assert ran == ALL

    def test_arguments_for_every_stage(self, session):
        with pytest.raises(ValueError, match="--runs_dir is set by the pipeline"):
            session("--runs_dir", "x")
        with pytest.raises(ValueError, match=r"\{coarse\} stands for a checkpoint, which is allowed only"):
            session("--x", "{coarse}")

    def test_the_table(self, session, tmp_path):
        write(tmp_path, table=["miou", "iou/face", "mioo"])
        made = session()
        table = comparison(made, made.run())
        assert table.lines == [
            ("coarse", "0.5000", "-", "-", "1.0"),
            ("parts plain", "0.5000", "-", "-", "1.0"),
            ("parts flipped", "0.7500", "-", "-", ""),
            ("joint", "0.5000", "-", "-", "1.0"),
        ]
        assert table.notes == ["no test has mioo (did you mean miou?)"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["p.yaml", "--sed", "1"], "unknown option --sed (did you mean --seed?)"),
        (["p.yaml", "--seed", "-1"], "--seed is -1; expected a whole number from 0"),
        ([], "PIPELINE is missing, as in: structseg pipeline stn_icnn/synthetic"),
    ],
)
def test_wrong_options_are_one_line(args, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


class TestProcesses:
    def become(self, monkeypatch, code):
        """Every process of the suite is this Python text instead."""
        real = subprocess.Popen
        monkeypatch.setattr(
            processes.subprocess, "Popen", lambda command, **more: real([sys.executable, "-S", "-c", code], **more)
        )

    def test_a_failing_one(self, monkeypatch, tmp_path):
        self.become(monkeypatch, "raise SystemExit(3)")
        with (tmp_path / "lock").open("w") as lock, pytest.raises(RuntimeError) as error:
            run_structseg("stage a", ["fit", "--x", "b c"], lock.fileno())
        assert str(error.value) == ("stage a failed (exit code 3); the same command continues: structseg fit --x 'b c'")

    @pytest.mark.parametrize("sent", ["SIGTERM", "SIGINT"])
    def test_a_signal_ends_the_child_too(self, monkeypatch, tmp_path, capsys, sent):
        pid = tmp_path / "pid"
        self.become(
            monkeypatch,
            f"import os, signal, time; open({str(pid)!r}, 'w').write(str(os.getpid()))\n"
            f"os.kill(os.getppid(), signal.{sent}); time.sleep(60)",
        )
        handler, start = signal.getsignal(signal.SIGTERM), time.monotonic()
        with (tmp_path / "lock").open("w") as lock, pytest.raises(SystemExit) as end:
            run_structseg("stage a", ["fit"], lock.fileno())
        assert (end.value.code, end.value.__context__) == (130, None)
        assert time.monotonic() - start < 9, "it is asked to end, not left to the grace"
        assert capsys.readouterr().err == ("structseg: error: stage a was interrupted; the same command continues\n")
        assert signal.getsignal(signal.SIGTERM) is handler
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)

    def test_one_that_outlives_the_pipeline_keeps_the_folder(self, tmp_path):
        path = tmp_path / "lock"
        code = "import time; time.sleep(60)"
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            child = subprocess.Popen([sys.executable, "-S", "-c", code], pass_fds=(lock.fileno(),))
        try:
            with path.open("w") as again, pytest.raises(BlockingIOError):
                fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            child.kill()
            child.wait()
        with path.open("w") as again:
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


TINY = """
model: {class_path: ConsensusSegmenter, init_args: {network: {class_path: tests.data.tiny.TinyNetwork}}}
data:
  class_path: SyntheticFacesDataModule
  init_args: {label_space: occlusion, train: 4, val: 2, test: 2, size: [32, 32], batch_size: 2}
trainer: {accelerator: cpu, max_epochs: 1, enable_progress_bar: false, enable_model_summary: false}
"""
TEACHING = {
    "teacher": {"test": False},
    "student": {
        "model": {"teacher_ckpt": "{teacher}"},
        "trainer": {"max_epochs": 2},
        "test": {"plain": {}, "flipped": {"model": {"flip_test": True}}},
    },
}


def teaching(folder):
    path = write(folder, TEACHING, table=["miou", "iou/face"])
    (folder / "base.yaml").write_text(TINY)
    return path


def test_faults_of_any_stage_are_found_before_the_first_runs(tmp_path):
    path = teaching(tmp_path)
    session = Session(load_pipeline(path), runs_dir=tmp_path / "runs")
    assert session.configs()["student"]["model"]["init_args"]["teacher_ckpt"] == "teacher.ckpt"
    with pytest.raises(
        ValueError, match=r"stage teacher: unknown option .*max_epoch \(did you mean --trainer.max_epochs\?\)"
    ):
        Session(load_pipeline(path), runs_dir=tmp_path / "runs", more=("--trainer.max_epoch", "1")).run()
    text = path.read_text().replace("flip_test", "flip_tset")
    path.write_text(text)
    with pytest.raises(ValueError, match=r"p.yaml: stage student: unknown option .*flip_tset"):
        Session(load_pipeline(path), runs_dir=tmp_path / "runs").run()
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ValueError, match="seed_everything"):
        resolved_config(["fit", "--config", str(tmp_path / "base.yaml"), "--seed_everything", "x"])


@pytest.mark.slow
def test_a_pipeline_through_the_command_line_killed_in_the_middle(tmp_path, capsys, monkeypatch):
    path = teaching(tmp_path)
    call = ["pipeline", str(path), "--runs_dir", str(tmp_path / "runs")]
    stages = tmp_path / "runs" / f"{tmp_path.name}_p" / "0"
    process = subprocess.Popen(
        [sys.executable, "-m", "structseg", *call], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list((stages / "student").glob("*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    first = process.communicate()[0]
    assert (stages / "teacher" / RECORD).is_file(), first
    assert not (stages / "student" / RECORD).exists()

    def structseg(what, args, keeps):
        """The same in this process: only what is killed needs one of its own."""
        run(args)
        return 1.0

    monkeypatch.setattr(pipeline, "run_structseg", structseg)
    main(call[1:])
    second = capsys.readouterr().out
    assert "[1/2] teacher: skip (finished, " in second
    assert "[2/2] student: run (not finished)" in second
    record = read_record(stages / "student")
    assert [folder.name for folder in (stages / "student").iterdir() if folder.is_dir()] == [record.run]
    resolved = yaml.safe_load((stages / "student" / record.run / "experiment.yaml").read_text())
    taught = stages / "teacher" / read_record(stages / "teacher").run / "checkpoints" / "best.ckpt"
    assert resolved["model"]["init_args"]["teacher_ckpt"] == str(taught)
    assert resolved["trainer"]["max_epochs"] == 2
    assert set(record.tests) == {"plain", "flipped"}
    assert record.tests["plain"].metrics["loss"] != record.tests["flipped"].metrics["loss"]
    assert f"{record.tests['flipped'].metrics['miou']:.4f}" in second.splitlines()[-1]

    main([*call[1:], "--dry-run"])
    third = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in third] == ["2 stages", "teacher: skip", "student: skip"]
    main([*call[1:], "--dry-run", "--", "--data.train", "6"])
    changed = capsys.readouterr().out
    assert "teacher: run (data.init_args.train 4 -> 6)" in changed
    assert "student: run (stage teacher changed)" in changed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fasseg_v2"], "fasseg_v2.yaml is one fit, no pipeline; structseg fit fasseg_unet/fasseg_v2 runs it"),
        (["conta/voc_photos"], "arms (none, sum, mean"),
        (
            ["conta/voc_photos"],
            " hours on 2 CPU cores; choose one, such as --arm none, or --arm all",
        ),
        (["stn_icnn/helen", "--dry-run", "--data.root", "gone"], "stage coarse: no folder gone; give the folder of"),
        (["stn_icnn/helen"], "stage coarse: data: missing root"),
        (
            ["stn_icnn/synthetic", "--model.learning_rate", "1"],
            "unknown option --model.learning_rate (did you mean --model.",
        ),
        ([], "PIPELINE is missing, as in: structseg pipeline stn_icnn/synthetic"),
    ],
)
def test_faults_are_found_before_torch_is_loaded(args, message):
    code, out, err = light("pipeline", *args)
    assert (code > 0, out, err.count("\n")) == (True, "", 1)
    assert message in err
