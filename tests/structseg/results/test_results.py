import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml

from structseg import provenance
from structseg.command.configs import resolved_config
from structseg.command.lightning import run as run_command
from structseg.metric_names import nest_metrics
from structseg.pipelines import session
from structseg.pipelines.file import load_pipeline
from structseg.pipelines.record import RECORD, read_record
from structseg.pipelines.session import Session
from structseg.pipelines.stages import pipeline_folder
from structseg.provenance import commit
from structseg.results import command as results
from structseg.results import measure, run_rows
from structseg.results.files import RUNS, images_path, read_images, read_runs, write_run
from structseg.results.manifest import (
    Recipes,
    args_of_stages,
    args_to_fit,
    args_to_score,
    data_folder,
    find_data_root,
    find_row,
    load_manifest,
)
from structseg.results.measure import kept_images, kept_metrics
from structseg.results.run_rows import Job, Place, measure_command, run_jobs
from tests.data.fasseg import make_fasseg
from tests.structseg.results.made import ROW, manifest, row, run

TINY_NETWORK = "tests.data.tiny.TinyNetwork"


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
        rows = load_manifest(manifest(tmp_path, b={}, a={"overrides": ["--x", "1"], "minutes": {"cpu": 2}}))
        assert list(rows) == ["a", "b"]  # as safe_dump sorts them
        assert rows["a"].overrides == ("--x", "1")
        assert rows["a"].minutes == {"cpu": 2, "gpu": None}
        assert rows["b"].seeds == (0, 1, 2)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"headlin": "miou"}, r"row a: unknown key headlin \(did you mean headline\?\)"),
            ({"config": "experiments/nothing.yaml"}, "row a: no file experiments/nothing.yaml"),
            ({"seeds": []}, "seeds are"),
            ({"seeds": [1, 1]}, "seeds are"),
            ({"seeds": [True]}, "seeds are"),
            ({"overrides": "--x 1"}, "overrides are '--x 1'"),
            ({"overrides": ["--x", 1]}, "overrides are"),
            ({"decides": 3}, "decides is 3, not a string"),
            ({"minutes": {"cpus": 1}}, r"unknown key minutes.cpus \(did you mean cpu\?\)"),
            ({"minutes": {"cpu": 0}}, "minutes are"),
            ({"what": ""}, "what is ''"),
            ({"pipeline": "p.yaml", "stage": "a"}, "row a: both config and pipeline; a row has one of them"),
            ({"stage": "a"}, "row a: pipeline and stage belong together; one is missing"),
            ({"scored_on": "train"}, "scored_on is 'train', not val or test"),
            ({"tests": {}}, "tests are {}, not a list of strings for each name"),
            ({"tests": ["--x"]}, r"tests are \['--x'\], not a list"),
            ({"tests": {"a": "--x"}}, "tests are {'a': '--x'}"),
            ({"tests": {"a": ["--x", 1]}}, "tests are {'a': "),
            ({"tests": {128: []}}, "the test name 128 has other characters than letters"),
            ({"tests": {"a.b": []}}, "the test name 'a.b' has other characters than letters"),
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

    def test_a_row_may_be_a_stage_of_a_pipeline(self, tmp_path, monkeypatch):
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
            ({"data_option": 3}, "data_option is 3, not a string"),
            ({"stage": "part"}, r"has no stage part \(did you mean parts\?\)"),
            ({"pipeline": "none.yaml"}, "no pipeline at .*none.yaml"),
            ({"pipeline": ""}, "pipeline is '', not a string"),
            ({"overrides": ["--x", "1"]}, "overrides; settings of a pipeline's stages belong in its file"),
        ]:
            with pytest.raises(ValueError, match=f"row a: .*{message}"):
                load_manifest(manifest(tmp_path, yaml.safe_dump({"a": {**content, **changes}})))
        path = manifest(tmp_path, yaml.safe_dump({"a": {**content, "stage": "part"}}))
        monkeypatch.setattr("structseg.results.manifest.load_pipeline", lambda path: pytest.fail(f"{path} is read"))
        assert list(load_manifest(path, stages=False)) == ["a"]
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

    def test_the_commit_outside_a_checkout_comes_from_the_environment(self, tmp_path, monkeypatch):
        monkeypatch.setattr(provenance, "ROOT", tmp_path)
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        monkeypatch.delenv("STRUCTSEG_COMMIT", raising=False)
        assert commit() == ("unknown", True)
        monkeypatch.setenv("STRUCTSEG_COMMIT", "abc")
        assert commit() == ("abc", False)
        monkeypatch.setenv("STRUCTSEG_COMMIT", "abc-dirty")
        assert commit() == ("abc", True)

    def test_only_other_files_than_results_make_a_checkout_dirty(self, tmp_path, monkeypatch):
        monkeypatch.setattr(provenance, "ROOT", tmp_path)
        git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
        (tmp_path / "pyproject.toml").write_text("")
        for args in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
            subprocess.run([*git, *args], check=True)
        folder = tmp_path / "experiments" / "results"
        write_run(folder, run(), {"": [["name"], ["x"]]})
        head, dirty = commit()
        assert (len(head), dirty) == (40, False)
        (folder / "manifest.yaml").write_text("")
        assert commit() == (head, True)

    def test_what_a_row_keeps(self, capsys):
        own = row(headline="128.miou", also=["128.component_error", "x"], tests={"128": [], "250": []})
        known = {"128.miou": 0.5, "128.component_error": 2.0, "250.miou": 0.25}
        assert kept_metrics(own, known) == {"128.miou": 0.5, "128.component_error": 2.0}
        assert capsys.readouterr().out == "row a: its test has no metric x; change the manifest\n"
        with pytest.raises(ValueError, match=r"no metric 128.miou \(did you mean 250.miou\?\); change the manifest"):
            kept_metrics(own, {"250.miou": 0.5})
        table = [["name", "tp/x", "component_error", "boundary_f1"], ["i", "1", "2", "3"]]
        kept = kept_images(own, 0, {"128": table, "250": table, "round_1.segmenter": table, "round_1.masks": table})
        assert list(kept) == ["128", "round_1.segmenter"]
        assert kept["128"] == [["name", "tp/x", "component_error"], ["i", "1", "2"]]
        assert kept_images(own, 1, {"128": table}) == {}, "of the first seed alone"
        assert list(kept_images(row(), 0, {"": table})) == [""]

    def test_rows_with_changed_settings_are_measured_again(self, tmp_path):
        (tmp_path / "c.yaml").write_text("trainer: {max_epochs: 3}  # a comment says nothing\n")
        rows = {"a": row(config=str(tmp_path / "c.yaml"), seeds=[0])}
        runs = [run(recipe=Recipes().of(rows["a"]))]
        (tmp_path / "c.yaml").write_text("trainer:\n  max_epochs: 3\n")
        assert results.choose_jobs(rows, runs, ["missing"], None) == []
        (tmp_path / "c.yaml").write_text("trainer: {max_epochs: 4}\n")
        assert [str(job) for job in results.choose_jobs(rows, runs, ["missing"], None)] == ["a.0"]

    def test_a_recipe_depends_on_the_settings_of_a_row(self, tmp_path):
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


class TestCommand:
    def test_missing_has_the_commands(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "c.yaml").write_text("")
        changes = {"config": str(tmp_path / "c.yaml"), "data": "fasseg", "seeds": [0, 3], "overrides": ["--x", "a b"]}
        path = manifest(tmp_path, a=changes)
        write_run(tmp_path, run(recipe=Recipes().of(load_manifest(path)["a"])))
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
        write_run(tmp_path, run(recipe=Recipes().of(load_manifest(path)["a"])))
        results.main(["--missing", "--manifest", str(path), "--data_root", str(tmp_path)])
        test = "    structseg test --ckpt_path runs/a/RUN_ID/checkpoints/best.ckpt --seed_everything 3 "
        assert [
            line.removesuffix(" --trainer.accelerator cpu --trainer.devices 1")
            for line in capsys.readouterr().out.splitlines()[2:4]
        ] == [f"{test}--data.score_at size", f"{test}--x 'a b'"]
        for seed in (0, 3):
            write_run(tmp_path, run(seed=seed, recipe=Recipes().of(load_manifest(path)["a"])))
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
            (["--details", "a", "--seeds", "1"], 2, "--seeds has no effect without --run or --missing or --compare"),
            (["--details", "a", "--across"], 2, "--across has no effect without --compare"),
            (["conta", "--missing"], 2, "METHOD (conta) is not allowed with --missing"),
            (["--compare", "a"], 2, "--compare: expected 2 arguments"),
            (["--run", "a", "--missing"], 2, "not allowed with"),
            (["--runs", "a"], 2, "unknown option --runs (did you mean --run?)"),
            (["--run", "a", "--device", "tpu"], 2, "invalid choice: 'tpu'"),
        ],
    )
    def test_wrong_options_are_one_line(self, args, code, message, capsys):
        assert message in refused(results.main, args, code=code, capsys=capsys)

    def test_jobs(self):
        rows = {"a": row(), "b": row("b", seeds=(4,))}
        found = [run(seed=1, recipe=Recipes().of(rows["a"]))]

        def choose(*names, seeds=None, again=False):
            return [str(job) for job in results.choose_jobs(rows, found, names, seeds, again)]

        assert choose("missing") == ["a.0", "a.2", "b.4"]
        assert choose("b", "a") == ["a.0", "a.2", "b.4"]
        assert choose("a", again=True) == ["a.0", "a.1", "a.2"]
        assert choose("missing", seeds=[0, 4]) == ["a.0", "b.4"]
        with pytest.raises(ValueError, match="none of the rows a has seed 4"):
            choose("a", seeds=[4])
        with pytest.raises(ValueError, match="no row c in the manifest; `structseg results METHOD` lists"):
            choose("c")


class TestRunning:
    @pytest.fixture
    def place(self, tmp_path):
        (tmp_path / "results").mkdir()
        return Place("cpu", None, tmp_path / "runs", tmp_path / "manifest.yaml", tmp_path / "results")

    @pytest.fixture
    def child(self, place, monkeypatch):
        """Makes every job run this Python text, which finds its name and that of `runs.csv`."""

        def become(text):
            def command(job, place):
                names = f"import os, signal, sys, time; path={str(place.results / RUNS)!r}; job={str(job)!r}\n"
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

    def test_a_killed_run_failed(self, place, child):
        child("os.kill(os.getpid(), signal.SIGKILL)")
        job = Job(row(), 0)
        assert run_jobs([job], place) == [job]
        assert list(place.results.iterdir()) == []

    @pytest.mark.parametrize("stubborn", ["", "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"])
    def test_termination_ends_the_run_too(self, place, child, monkeypatch, stubborn):
        monkeypatch.setattr(run_rows, "GRACE_SECONDS", 0.3)
        child(stubborn + "print(os.getpid(), flush=True)\nos.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(60)")
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
    def test_no_cuda_device_is_one_line(self, place):
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
    return next(found for found in read_runs(place.results) if (found.row, found.seed) == (job.row.name, job.seed))


@pytest.mark.slow
def test_a_row_end_to_end(tmp_path, capsys, monkeypatch):
    make_fasseg(tmp_path / "data" / "fasseg", train=4, test=3)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    whole = {"config": str(tmp_path / "tiny.yaml"), "data": "fasseg", "overrides": ["--trainer.max_epochs", "2"]}
    broken = {**whole, "overrides": ["--data.version", "V3"]}
    held_out = ["--data.fold", "0", "--data.folds", "2"]
    held = {**whole, "overrides": held_out, "scored_on": "val", "headline": "miou"}
    whole |= {"tests": {"native": [], "small": ["--data.score_at", "size"]}, "headline": "native.clean.miou"}
    whole |= {"also": ["small.clean.miou", "native.all.pixel_accuracy"], "seeds": [1]}
    held["seeds"] = broken["seeds"] = [1]
    path = manifest(tmp_path, broken=broken, held=held, whole=whole)
    rows = load_manifest(path)
    place = Place("cpu", tmp_path / "data", tmp_path / "runs", path, tmp_path / "results")
    where = ["--manifest", str(path), "--results", str(place.results)]
    more = ["--data_root", str(place.data_root), "--runs_dir", str(place.runs_dir), "--seeds", "1"]
    assert "failed: broken.1" in refused(results.main, ["--run", "broken", *where, *more], capsys=capsys)
    found, held = (measured_here(Job(rows[name], 1), place, monkeypatch) for name in ("whole", "held"))
    assert (found.train_images, found.test_images, held.train_images, held.test_images) == (4, 3, 2, 2)
    assert found.minutes > 0
    assert found.recipe == Recipes().of(find_row(load_manifest(path), "whole"))
    assert list(found.metrics) == ["native.all.pixel_accuracy", "native.clean.miou", "small.clean.miou"]
    assert found.value("native.clean.miou") != found.value("small.clean.miou")
    assert (list(held.metrics), found.threads) == (["miou"], torch.get_num_threads())

    (test, columns), *others = read_images(images_path(place.results, "whole", 1)).items()
    assert (test, others, len(columns["name"])) == ("native", [], 3)
    hits, missed = (
        sum(int(n) for key in columns if key.startswith(kind) for n in columns[key]) for kind in ("tp", "fn")
    )
    assert found.value("native.all.pixel_accuracy") == pytest.approx(hits / (hits + missed), abs=1e-6)
    assert [len(own["name"]) for own in read_images(images_path(place.results, "held", 1)).values()] == [2]

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
        run_command(args)
        return 1.5

    monkeypatch.setattr(session, "run_structseg", structseg)
    teacher, student = (measured_here(Job(row, 1), place, monkeypatch) for row in load_manifest(path).values())
    assert ran == ["stage teacher", "stage student"]
    stages = pipeline_folder(file, 1, tmp_path / "runs")
    assert sorted(found.name for found in stages.glob("[a-z]*")) == ["student", "teacher"]
    (kept,) = (found for found in (stages / "teacher").iterdir() if found.name != RECORD)

    seconds = {name: read_record(stages / name).seconds for name in ("teacher", "student")}
    assert teacher.minutes >= seconds["teacher"] / 60 - 0.05
    assert student.minutes >= sum(seconds.values()) / 60 - 0.05
    assert (student.train_images, student.test_images) == (2, 3)
    assert student.value("all.miou") != teacher.value("all.miou")
    assert kept.is_dir()
