"""CONTA through the command line: rounds on drawn scenes, the published settings on made trees, stages alone."""

import functools
import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from structseg.command.configs import resolved_config
from structseg.command.lightning import run
from structseg.datamodules.round_files import ArtefactManifest
from structseg.files import ROOT
from structseg.lightning_modules.conta import round_writers
from structseg.pipelines import session as pipeline
from structseg.pipelines.file import load_pipeline
from structseg.pipelines.session import Session
from structseg.prediction.command import main as predict
from tests.data.coco import make_coco
from tests.data.voc import make_voc

CONTA = ROOT / "experiments" / "conta"
QUICK = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")
TINY = (
    *QUICK, "--trainer.max_epochs", "1", "--data.train", "10", "--data.test", "4", "--data.size", "[64, 64]",
    "--data.batch_size", "5",
)  # fmt: skip
STAGES = ("classifier", "cams", "relation", "pseudo_masks", "segmenter", "masks")


parsed = functools.cache(lambda *args: resolved_config(args))


@pytest.fixture
def here(monkeypatch):
    """Stages run in this process, as starting one costs more than a tiny stage; returns the list of those that ran."""
    ran = []

    def structseg(what, args, keeps):
        ran.append(what.removeprefix("stage "))
        run(args)
        return 1.0

    monkeypatch.setattr(pipeline, "run_structseg", structseg)
    monkeypatch.setattr(pipeline, "resolved_config", lambda args: parsed(*args))
    return ran


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all runs of drawn scenes: round 0 is fitted by the first test and shared by the others."""
    return tmp_path_factory.mktemp("runs")


def session(name, folder, *more, arm="sum", last=None):
    return Session(load_pipeline(CONTA / f"{name}.yaml").of_arm(arm), runs_dir=folder, more=more, last=last)


@pytest.mark.slow
def test_two_rounds_of_drawn_scenes_leave_all_artefacts_and_reports(runs, here):
    made = session("scenes_09", runs, *TINY, last="round_1_sum/masks")
    records = made.run()
    assert list(records) == [f"{folder}/{stage}" for folder in ("round_0", "round_1_sum") for stage in STAGES]
    for folder in ("round_0", "round_1_sum"):
        home = made.folder / folder
        images = {"cams": "npz", "relation_labels": "png", "pseudo_masks": "png", "masks": "png", "queries": "npz"}
        for kind, suffix in images.items():
            assert len(list((home / kind).glob(f"scene_train_*.{suffix}"))) == 10
            assert ArtefactManifest.read(home / kind).place == f"{folder}/{kind}"
        with np.load(home / "confounders.npz", allow_pickle=False) as found:
            assert found["confounders"].shape == (8, 32, 32)
        with Image.open(home / "confounders.png") as picture:
            assert picture.format == "PNG"
        report = json.loads((home / "report.json").read_text())
        assert set(report["stages"]) == set(STAGES)
        assert 0 <= report["stages"]["cams"]["scores"]["cam_miou"] <= 1
        assert 0 <= report["stages"]["pseudo_masks"]["scores"]["pseudo_miou"] <= 1
        assert {"all", "without_crf"} <= set(report["stages"]["segmenter"]["scores"])
    here.clear()
    assert all(str(found).startswith("skip") for _, found, _ in made.survey())
    shutil.rmtree(made.folder / "round_1_sum" / "cams")
    made.run()
    assert here == ["round_1_sum/cams"], "with the same seed the maps come out the same: what builds on them stays"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arm",
    ["none", "mean", "constant", "placebo", "company", "c2am", "pooled", "pooled_placebo", "pooled_displaced"],
)
def test_every_arm_runs_its_classifier_and_maps(runs, here, arm):
    records = session("scenes_09", runs, *TINY, arm=arm, last=f"round_1_{arm}/cams").run(tests=False)
    assert list(records)[-2:] == [f"round_1_{arm}/classifier", f"round_1_{arm}/cams"]


@pytest.mark.slow
def test_a_prediction_that_dies_in_the_middle_runs_again_whole(tmp_path, here, monkeypatch):
    """The pipeline killed by a signal is in tests/structseg/pipelines; here a stage that writes artefacts dies."""
    made = session("synthetic", tmp_path, *TINY, last="round_0/cams")
    written, write = [], round_writers.write_cams

    def dies(*args, **settings):
        written.append(args[1])
        if len(written) == 4:
            raise KeyboardInterrupt
        return write(*args, **settings)

    monkeypatch.setattr(round_writers, "write_cams", dies)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        made.run()
    monkeypatch.setattr(round_writers, "write_cams", write)
    record = made.folder / "round_0/classifier/stage.json"
    before = yaml.safe_load(record.read_text())["run"]
    assert not (made.folder / "round_0/cams").exists()
    here.clear()
    made.run()
    assert here == ["round_0/cams"]
    assert yaml.safe_load(record.read_text())["run"] == before
    assert len(list((made.folder / "round_0/cams").glob("*.npz"))) == 10
    assert not list((made.folder / "round_0").glob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["voc12", "coco14"])
def test_the_published_settings_run_a_batch_of_each_stage(tmp_path, here, name):
    root = tmp_path / "data"
    (make_voc if name == "voc12" else make_coco)(root)
    more = [
        *QUICK, "--data.root", str(root), "--data.num_workers", "0", "--model.weights", "random",
        "--trainer.max_epochs", "1", "--trainer.max_steps", "1", "--data.size", "[81, 81]", "--data.batch_size", "2",
    ]  # fmt: skip
    last = "round_1_sum/cams" if name == "voc12" else "round_0/masks"  # the stages are the same: the data differ
    records = session(name, tmp_path / "runs", *more, last=last).run(tests=False)
    stages = [f"round_0/{stage}" for stage in STAGES]
    stages += ["round_1_sum/classifier", "round_1_sum/cams"] if name == "voc12" else []
    assert list(records) == stages
    notices = {notice for record in records.values() for notice in record.notices}
    assert any("random weights" in notice for notice in notices)
    assert any("the recipe has 16" in notice for notice in notices)


@pytest.mark.slow
def test_a_stage_alone_and_a_photograph(tmp_path):
    where = ["--runs_dir", str(tmp_path), "--experiment", "alone"]
    configs = ["--config", str(CONTA / "scenes_data.yaml"), "--config", str(CONTA / "small_segmenter.yaml")]
    done = run(["fit", *configs, *TINY, "--data.masks", "truth", *where])
    best = str(done.folder.checkpoints / "best.ckpt")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(tmp_path / "p.jpg")
    for crf in ("false", "true"):
        out = tmp_path / f"crf_{crf}"
        predict([best, str(tmp_path / "p.jpg"), "--out", str(out), "--crf", crf])
        with Image.open(out / "p.png") as mask:
            assert (mask.size, mask.mode) == ((70, 50), "P")


@pytest.mark.slow
def test_a_fit_without_masks_or_with_those_of_another_stage_is_refused_in_one_line(tmp_path):
    configs = ["--config", str(CONTA / "scenes_data.yaml"), "--config", str(CONTA / "small_segmenter.yaml")]
    fit, masks = ["fit", *configs, *TINY, "--runs_dir", str(tmp_path)], str(tmp_path / "round_0" / "pseudo_masks")
    with pytest.raises(ValueError, match=r"no masks.*--data\.masks"):
        run(fit)
    with pytest.raises(FileNotFoundError, match=r"no folder .*round_0/pseudo_masks.*--until round_0/pseudo_masks"):
        run([*fit, "--data.masks", masks])


@pytest.mark.slow
def test_a_classifier_alone_names_its_next_command_and_prints_its_test_scores(tmp_path, capsys):
    configs = ["--config", str(CONTA / "scenes_data.yaml"), "--config", str(CONTA / "small_classifier.yaml")]
    done = run(["fit", *configs, *TINY, "--model.weights", "random", "--runs_dir", str(tmp_path)])
    best = done.folder.checkpoints / "best.ckpt"
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"next: structseg test {best}, or the next stage of a structseg pipeline"
    )
    run(["test", str(best), "--trainer.enable_progress_bar", "false"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()][:2] == ["test/map", "test/absent_classes"]
