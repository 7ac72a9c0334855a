"""Rounds of a pipeline: predictions by a fit's checkpoint, arms, reports, disk space."""

import json
import shutil
from collections import namedtuple
from itertools import count, pairwise
from pathlib import Path

import pytest
import yaml

from structseg.datamodules.round_files import ArtefactManifest
from structseg.pipelines import round_report as rounds
from structseg.pipelines import session as pipeline
from structseg.pipelines.command import comparison, main
from structseg.pipelines.file import load_pipeline
from structseg.pipelines.session import Session

STAGES = {
    "classifier": {"model": {"class_path": "C"}},
    "cams": {"predict": "classifier", "makes": ["cams", "labels"], "data": {"x": 1}},
    "segmenter": {"config": "other.yaml", "data": {"masks": "{labels}"}, "test": {"plain": {}, "crf": {"model": {"crf": True}}}},
    "masks": {"predict": "segmenter", "makes": ["masks", "set.npz"]},
}  # fmt: skip
ARMS = {
    "none": None,
    "sum": {"classifier": {"model": {"set": "{before.set.npz}"}, "data": {"queries": "{before.masks}"}}},
}


def write(folder, stages=STAGES, **more):
    for name in ("base.yaml", "other.yaml"):
        (folder / name).write_text("trainer: {max_epochs: 3}\n")
    path = folder / "p.yaml"
    content = {"config": "base.yaml", "rounds": 2, "arms": ARMS, "stages": stages, **more}
    path.write_text(
        yaml.safe_dump({key: value for key, value in content.items() if value is not None}, sort_keys=False)
    )
    return path


class TestFile:
    def test_the_rounds_of_each_arm_follow_on_a_shared_round_0(self, tmp_path):
        found = load_pipeline(write(tmp_path))
        folders = ["round_0", "round_1_none", "round_2_none", "round_1_sum", "round_2_sum"]
        assert list(found.rounds) == folders
        assert list(found.stages) == [f"{folder}/{stage}" for folder in folders for stage in STAGES]
        assert [found.stages[f"{folder}/cams"].round for folder in folders] == [0, 1, 2, 1, 2]

    def test_a_prediction_takes_over_its_fits_configuration_and_arguments_those_of_the_arm_too(self, tmp_path):
        stages = load_pipeline(write(tmp_path)).stages
        cams = stages["round_2_sum/cams"]
        assert cams.configs == stages["round_2_sum/classifier"].configs == (tmp_path / "base.yaml",)
        assert cams.args == (
            "--model", "C", "--model.set", "{round_1_sum/set.npz}", "--data.queries", "{round_1_sum/masks}", "--data.x", "1",
        )  # fmt: skip
        assert cams.makes == ("round_2_sum/cams", "round_2_sum/labels")
        assert cams.needs == ("round_2_sum/classifier", "round_1_sum/masks")
        assert stages["round_1_sum/cams"].needs == ("round_1_sum/classifier", "round_0/masks")
        assert stages["round_1_none/cams"].args == ("--model", "C", "--data.x", "1")
        assert stages["round_0/masks"].configs == (tmp_path / "base.yaml", tmp_path / "other.yaml")
        assert stages["round_0/segmenter"].needs == ("round_0/cams",)
        assert stages["round_0/cams"].tests == {}

    def test_a_predictions_own_option_holds_unless_the_arm_sets_it(self, tmp_path):
        arms = {"x": {"classifier": {"data": {"x": 2}}}, "y": {"cams": {"data": {"x": 3}}}}
        stages = load_pipeline(write(tmp_path, arms=arms)).stages
        assert stages["round_1_x/cams"].args == ("--model", "C", "--data.x", "2", "--data.x", "1")  # the last one holds
        assert stages["round_1_y/cams"].args == ("--model", "C", "--data.x", "1", "--data.x", "3")
        assert stages["round_1_x/classifier"].args == ("--model", "C", "--data.x", "2")

    def test_until_includes_all_stages_of_earlier_rounds(self, tmp_path):
        found = load_pipeline(write(tmp_path))
        names = [stage.name for stage in found.needed("round_2_none/classifier")]
        assert names == [f"{f}/{s}" for f in ("round_0", "round_1_none") for s in STAGES] + ["round_2_none/classifier"]
        assert [stage.name for stage in found.needed("round_0/cams")] == ["round_0/classifier", "round_0/cams"]

    def test_one_arm(self, tmp_path):
        found = load_pipeline(write(tmp_path))
        assert list(found.of_arm("sum").rounds) == ["round_0", "round_1_sum", "round_2_sum"]
        with pytest.raises(ValueError, match=r"has no arm sun \(did you mean sum\?\)"):
            found.of_arm("sun")
        with pytest.raises(ValueError, match="it has no arms"):
            load_pipeline(write(tmp_path, arms=None)).of_arm("sum")

    def test_with_rounds_0_the_arms_that_take_nothing_of_a_round_before_are_rounds_0(self, tmp_path):
        arms = {
            "plain": {},
            "x": {"classifier": {"data": {"x": 2}}},
            "sum": {"classifier": {"model": {"x": "{before.masks}"}}},
        }
        found = load_pipeline(write(tmp_path, arms=arms, rounds=0))
        assert list(found.rounds) == ["round_0_plain", "round_0_x"]
        assert found.stages["round_0_x/cams"].predicts == "round_0_x/classifier"
        assert found.stages["round_0_x/classifier"].args == ("--model", "C", "--data.x", "2")
        assert [stage.name for stage in found.needed("round_0_x/cams")] == ["round_0_x/classifier", "round_0_x/cams"]
        assert list(found.of_arm("x").rounds) == ["round_0_x"]
        assert list(load_pipeline(write(tmp_path, arms={"sum": arms["sum"]}, rounds=0)).rounds) == ["round_0"]

    def test_arguments_of_every_stage(self, tmp_path):
        stages = load_pipeline(write(tmp_path, data={"seed": 1})).stages
        assert {stage.args[:2] for stage in stages.values()} == {("--data.seed", "1")}
        assert all(stage.args.count("--data.seed") == 1 for stage in stages.values())

    def test_without_arms_and_without_rounds(self, tmp_path):
        assert list(load_pipeline(write(tmp_path, arms=None)).rounds) == ["round_0", "round_1", "round_2"]
        flat = load_pipeline(write(tmp_path, arms=None, rounds=None))
        assert (list(flat.stages), dict(flat.rounds)) == (list(STAGES), {})
        assert flat.stages["masks"].makes == ("masks", "set.npz")

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"rounds": True}, "rounds is True, not a whole number of 0 to 1000"),
            ({"rounds": None}, "arms without rounds"),
            ({"arms": ["sum"]}, r"arms are \['sum'\], not further settings"),
            ({"arms": {"sum": {"classifer": {}}}}, r"arm sum: no stage classifer \(did you mean classifier\?\)"),
            ({"arms": {"sum": {"classifier": "x"}}}, "arm sum: stage classifier: holds 'x', not keys and values"),
            ({"arms": {"sum": "x"}}, "arm sum: holds 'x', not settings of stages"),
            ({"arms": {"sum": {"classifier": {"config": "x"}}}}, "arm sum: stage classifier: unknown key config"),
            ({"arms": {"sum": {"classifier": {"inputs": ["queries"]}}}}, "{before.queries}: there is no such stage"),
            ({"arms": {"sum": {"classifier": {"model": {"x": "{before.mask}"}}}}}, r"{before.mask}: there is no such stage \(did you mean masks"),
            ({"arms": {"sum": {"classifier": {"model": {"x": "{labels}"}}}}}, r"{labels}: no earlier stage makes it; is {before.labels} meant\?"),
            ({"arms": {"sum": {"cams": {"data": {"x": "{cams}"}}}}}, "{cams}: no earlier stage makes it"),
            ({"round_megabytes": -1}, "round_megabytes is -1, not a number from 0"),
            ({"stages": {"a": {"model": {"x": "{before.b}"}}, "b": {}}, "arms": {}}, r"{before.b}: round 0 has no previous round"),
            ({"stages": {"a": {"makes": ["x"]}}, "arms": {}}, "makes goes with predict"),
            ({"stages": {"a": {}, "b": {"predict": "c", "makes": ["b"]}}, "arms": {}}, "predict is 'c', which is not an earlier fit"),
            ({"stages": {"a": {}, "b": {"predict": "a", "makes": ["c"]}}, "arms": {}}, r"makes is \['c'\], not a list of the"),
            ({"stages": {"a": {}, "b": {"predict": "a", "makes": ["b"], "test": {}}}, "arms": {}}, "test belongs to a fit"),
            ({"stages": {"a": {}, "b": {"predict": "a", "makes": ["b", "a"]}}, "arms": {}}, "a is made by another stage"),
            ({"stages": {"a": {}, "b": {"predict": "a", "makes": ["b"], "data": {"predict_out": "x"}}}, "arms": {}}, "predict_out is set"),
            ({"config": None}, "no config; give the YAML that all stages share, by its path from this file, or each fit"),
        ],
    )  # fmt: skip
    def test_a_fault_is_named(self, tmp_path, more, message):
        with pytest.raises(ValueError, match=message):
            load_pipeline(write(tmp_path, **more))


class TestRunning:
    @pytest.fixture
    def ran(self, monkeypatch):
        """Runs of a stand-in for `structseg`; a prediction's content depends on its checkpoint."""

        class Ran(list):
            content = ""
            number = count(1)
            fail: str | None = None

        ran = Ran()

        def structseg(what, args, keeps):
            option = dict(pairwise(args))
            if what == ran.fail:
                raise RuntimeError(f"{what} failed (exit code 1)")
            ran.append(f"{args[0]} {what.removeprefix('stage ')} {option['--seed_everything']}")
            if args[0] == "fit":
                folder = Path(option["--runs_dir"], option["--experiment"], f"run{next(ran.number)}", "checkpoints")
                folder.mkdir(parents=True)
                (folder / "best.ckpt").write_text(f"{ran.content} {' '.join(args[:-4])}")
            elif args[0] == "test":
                log = Path(option["--ckpt_path"]).parent.with_name("metrics.csv")
                before = log.read_text() if log.is_file() else "test/miou,test/iou/cat\n"
                log.write_text(before + "0.5,0.25\n")
                log.with_name("notices_test.txt").write_text("tested\n")
            else:
                folder, checkpoint = Path(option["--data.predict_out"]), Path(option["--ckpt_path"]).read_text()
                for name in ("cams", "labels") if what.endswith("cams") else ("masks",):
                    shutil.rmtree(folder / name, ignore_errors=True)
                    (folder / name).mkdir()
                    (folder / name / "a.png").write_text(checkpoint)
                    scores = {"iou/cat": 0.75} if name == "cams" else {}
                    ArtefactManifest(
                        name, f"{folder.name}/{name}", "M", "voc", ("a", "b"), 1, scores, (f"see {name}",)
                    ).write(folder / name)
                if what.endswith("masks"):
                    (folder / "set.npz").write_text(checkpoint)
            return 60.0

        monkeypatch.setattr(pipeline, "run_structseg", structseg)
        monkeypatch.setattr(pipeline, "commit", lambda: ("c0ffee", False))
        monkeypatch.setattr(pipeline, "read_card", lambda path: {"notices": ["look"]})
        monkeypatch.setattr(pipeline, "resolved_config", lambda args: {"args": list(args)})
        return ran

    @pytest.fixture
    def session(self, tmp_path, ran):
        def make(arm="sum", last=None, **more):
            return Session(
                load_pipeline(write(tmp_path, **more)).of_arm(arm), runs_dir=tmp_path / "runs", last=last, seed=7
            )

        return make

    def test_each_stage_once_with_the_seed_of_its_round_and_then_nothing(self, session, ran):
        session().run(tests=False)
        assert ran == [
            f"{'predict' if stage in ('cams', 'masks') else 'fit'} {folder}/{stage} {7 + 100 * number}"
            for number, folder in enumerate(("round_0", "round_1_sum", "round_2_sum"))
            for stage in STAGES
        ]
        ran.clear()
        session().run(tests=False)
        assert ran == []
        session("none").run(tests=False)
        assert [line.split()[1].split("/")[0] for line in ran] == ["round_1_none"] * 4 + ["round_2_none"] * 4

    def test_paths_that_stages_get(self, session):
        made = session()
        made.run(tests=False)
        stage, root = made.pipeline.stages["round_1_sum/cams"], made.folder
        checkpoint = made.checkpoint("round_1_sum/classifier")
        assert checkpoint.is_file()
        assert made.args(stage) == [
            "predict", "--config", str(root.parents[2] / "base.yaml"), "--data.predict_split", "train", "--model", "C",
            "--model.set", str(root / "round_0/set.npz"), "--data.queries", str(root / "round_0/masks"), "--data.x", "1",
            "--ckpt_path", str(checkpoint), "--data.predict_out", str(root / "round_1_sum"), "--seed_everything", "107",
        ]  # fmt: skip

    def test_a_changed_artefact_runs_its_stage_and_dependents_again(self, session, ran):
        made = session(last="round_1_sum/segmenter")
        made.run(tests=False)
        ran.clear()
        (made.folder / "round_0/masks/a.png").write_text("by hand")
        found = {stage.name: str(status) for stage, status, _ in made.survey()}
        assert found["round_0/masks"].endswith("round_0/masks was modified)")
        assert found["round_1_sum/classifier"] == "run (stage round_0/masks changed)"
        made.run(tests=False)
        assert [line.split()[1] for line in ran] == ["round_0/masks"], (
            "the same masks come out, so nothing else changes"
        )

    def test_other_masks_of_round_0_change_all_of_round_1(self, session, ran):
        made = session(last="round_1_sum/segmenter")
        made.run(tests=False)
        ran.clear()
        shutil.rmtree(made.folder / "round_0/classifier")
        ran.content = "other"
        made.run(tests=False)
        assert len(ran) == 4 + 3

    def test_predictions_of_another_configuration_are_replaced_only_with_anew(self, session, ran):
        session(last="round_0/segmenter").run(tests=False)
        masks = session(last="round_0/segmenter").folder / "round_0/cams/a.png"
        before = masks.read_text()
        ran.clear()
        other = session(last="round_0/segmenter", data={"size": 9})
        message = r"round_0/cams was made with another configuration \(round_0/cams: args .*--anew replaces it"
        with pytest.raises(ValueError, match=message):
            other.run(tests=False)
        with pytest.raises(ValueError, match=message):
            other.refuse_overwriting(other.configs())
        assert (ran, masks.read_text()) == ([], before)
        ran.fail = "stage round_0/cams"
        with pytest.raises(RuntimeError):
            other.run(tests=False, anew=True)
        with pytest.raises(ValueError, match=r"round_0/cams was made with another configuration \(round_0/cams: "):
            other.run(tests=False)
        ran.fail = None
        other.run(tests=False, anew=True)
        assert [line.split()[1] for line in ran] == ["round_0/classifier", "round_0/cams", "round_0/segmenter"]
        assert masks.read_text() != before
        other.run(tests=False)
        assert len(ran) == 3, "finished, by this configuration"

    def test_a_single_fit_has_a_folder_for_each_configuration(self, session, ran):
        session(last="round_0/classifier").run(tests=False)
        session(last="round_0/classifier", data={"size": 9}).run(tests=False)
        assert len(ran) == 2

    def test_a_missing_artefact_is_the_next_to_make(self, session, ran):
        made = session(last="round_0/masks")
        made.run(tests=False)
        (made.folder / "round_0/set.npz").unlink()
        assert "round_0/set.npz is missing" in str(list(made.survey())[-1][1])

    def test_a_killed_run_continues_at_its_stage(self, session, ran):
        ran.fail = "stage round_1_sum/segmenter"
        with pytest.raises(RuntimeError):
            session().run(tests=False)
        before, ran.fail = len(ran), None
        session().run(tests=False)
        assert ran[before].split()[1] == "round_1_sum/segmenter"
        assert len(ran) == 12

    def test_the_report_of_a_round(self, session):
        made = session(last="round_0/masks")
        made.run()
        report = json.loads((made.folder / "round_0/report.json").read_text())
        assert report["notices"] == ["look", "tested", "see cams", "see labels", "see masks"]
        assert report["stages"]["segmenter"]["notices"] == ["look", "tested"]
        assert report["commits"] == ["c0ffee"]
        assert report["stages"]["cams"] == {
            "seconds": 60.0, "notices": ["see cams", "see labels"], "scores": {"iou": {"cat": 0.75}},
        }  # fmt: skip
        plain = {"miou": 0.5, "iou": {"cat": 0.25}}
        assert report["stages"]["segmenter"]["scores"] == {"plain": plain, "crf": plain}
        assert not (made.folder / "round_1_sum/report.json").exists()

    def test_a_repeated_round_has_no_report_until_it_is_complete(self, session, ran):
        made = session(last="round_0/masks")
        made.run()
        report = made.folder / "round_0/report.json"
        before = report.read_text()
        (made.folder / "round_0/masks/a.png").unlink()
        ran.fail = "stage round_0/masks"
        with pytest.raises(RuntimeError):
            made.run()
        assert not report.exists(), "it spoke of masks that are gone"
        ran.fail = None
        made.run()
        assert report.read_text() == before

    def test_a_dry_run_says_what_the_real_one_refuses(self, session, ran, tmp_path, monkeypatch, capsys):
        session(last="round_0/cams").run(tests=False)
        write(tmp_path, data={"size": 9})
        monkeypatch.chdir(tmp_path)
        given = ["p.yaml", "--arm", "sum", "--until", "round_0/cams", "--seed", "7", "--runs_dir", "runs", "--dry-run"]
        main(given)
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("without --dry-run: ")
        assert "round_0/cams was made with another configuration" in last
        main([*given, "--anew"])
        assert "without --dry-run" not in capsys.readouterr().out

    def test_the_crf_is_checked_before_anything_runs(self, session, ran, monkeypatch):
        def missing():
            raise ValueError("no pydensecrf")

        monkeypatch.setattr(pipeline, "require_pydensecrf", missing)
        stages = {
            "classifier": {},
            "cams": {"predict": "classifier", "makes": ["cams", "relation_labels"]},
        }
        with pytest.raises(ValueError, match="no pydensecrf"):
            session(stages=stages, arms={"sum": None}).run()
        assert ran == []
        session().run(tests=False)  # which makes none

    def test_stages_of_different_commits_are_noticed(self, session, monkeypatch):
        session(last="round_0/segmenter").run(tests=False)
        monkeypatch.setattr(pipeline, "commit", lambda: ("deadbeef", True))
        made = session(last="round_0/masks")
        made.run(tests=False)
        report = json.loads((made.folder / "round_0/report.json").read_text())
        assert report["commits"] == ["c0ffee", "deadbeef+changes"]
        assert "different commits of the suite: c0ffee, deadbeef+changes" in report["notices"][-1]

    def test_the_table_has_predictions_too(self, session):
        made = session(last="round_0/masks", table=["miou", "iou/cat"])
        table = comparison(made, made.run())
        assert table.lines == [
            ("round_0/classifier", "0.5000", "0.2500", "1.0"),
            ("round_0/cams", "-", "0.7500", "1.0"),
            ("round_0/segmenter plain", "0.5000", "0.2500", "1.0"),
            ("round_0/segmenter crf", "0.5000", "0.2500", ""),
            ("round_0/masks", "-", "-", "1.0"),
        ]
        assert table.notes == []

    def test_a_prediction_that_leaves_nothing(self, session, monkeypatch):
        made = session(last="round_0/cams")
        whole = pipeline.run_structseg
        monkeypatch.setattr(
            pipeline, "run_structseg", lambda what, args, keeps: whole(what, args, keeps) if args[0] == "fit" else 1.0
        )
        with pytest.raises(RuntimeError, match=r"stage round_0/cams left no .*round_0/cams"):
            made.run(tests=False)

    def test_the_needed_disk_space_is_printed_and_checked(self, session, ran, capsys, monkeypatch):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(rounds.shutil, "disk_usage", lambda path: usage(0, 0, 100_000_000))
        with pytest.raises(OSError, match=r"120 MB are needed at .*, 100 MB are free; set --runs_dir"):
            session(round_megabytes=40).run()
        assert ran == []
        session(round_megabytes=20, last="round_0/masks").run(tests=False)
        assert "disk: about 20 MB for 1 rounds; 100 MB are free" in capsys.readouterr().out
        session(round_megabytes=20).run(tests=False)
        assert "disk: about 0 MB for 2 rounds" in capsys.readouterr().out, "as round 0 was measured"

    def test_an_unknown_need_is_reported(self, session, capsys):
        session(last="round_0/classifier").run(tests=False)
        assert "disk: round_megabytes is not set, the need is unknown" in capsys.readouterr().out

    def test_an_arm_of_the_command_line(self, tmp_path, monkeypatch, ran, capsys):
        write(tmp_path)
        monkeypatch.chdir(tmp_path)
        main(["p.yaml", "--arm", "none", "--dry-run"])
        out = capsys.readouterr().out
        assert "round_2_none/masks: run (not run yet)" in out
        assert "sum" not in out
