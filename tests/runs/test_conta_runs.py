"""CONTA through the command line: rounds on drawn scenes, the published settings on made trees, stages alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from PIL import Image

from structseg.datamodules.round_files import About
from structseg.pipelines import session as pipeline
from structseg.command.lightning import run
from structseg.files import ROOT
from structseg.pipelines.session import Session
from structseg.pipelines.file import load_pipeline
from structseg.command.processes import child_environment
from tests.data.coco import make_coco
from tests.data.voc import make_voc

CONTA = ROOT / "experiments" / "conta"
QUICK = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")
TINY = (
    *QUICK,
    "--trainer.max_epochs",
    "1",
    "--data.train",
    "10",
    "--data.test",
    "4",
    "--data.size",
    "[64, 64]",
    "--data.batch_size",
    "5",
)
STAGES = ("classifier", "cams", "relation", "pseudo_masks", "segmenter", "masks")  # fmt: skip


@pytest.fixture
def here(monkeypatch):
    """Stages run in this process, as starting one costs more than a tiny stage."""
    ran = []

    def structseg(what, args, keeps):
        ran.append(what.removeprefix("stage "))
        run(args)
        return 1.0

    monkeypatch.setattr(pipeline, "run_structseg", structseg)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return ran


def session(name, folder, *more, arm="sum", last=None):
    return Session(load_pipeline(CONTA / f"{name}.yaml").of_arm(arm), runs_dir=folder, more=more, last=last)


@pytest.mark.slow
def test_two_rounds_of_drawn_scenes_leave_all_artefacts_and_reports(tmp_path, here):
    made = session("synthetic", tmp_path, *TINY)
    records = made.run()
    assert list(records) == [f"{folder}/{stage}" for folder in ("round_0", "round_1_sum") for stage in STAGES]
    for folder in ("round_0", "round_1_sum"):
        home = made.folder / folder
        for kind, suffix in (
            ("cams", "npz"),
            ("relation_labels", "png"),
            ("pseudo_masks", "png"),
            ("masks", "png"),
            ("queries", "npz"),
        ):
            assert len(list((home / kind).glob(f"scene_train_*.{suffix}"))) == 10
            assert About.read(home / kind).place == f"{folder}/{kind}"
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
    assert here[0] == "round_1_sum/cams"
    # With the same seed the maps come out the same, so nothing that builds on them runs again.
    assert here == ["round_1_sum/cams"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arm",
    ["none", "constant", "placebo", "position_3", "unscaled", "c2am", "pooled", "pooled_placebo", "pooled_displaced"],
)
def test_every_arm_runs_its_classifier_and_maps(tmp_path, here, arm):
    made = session("scenes_09", tmp_path, *TINY, arm=arm, last=f"round_1_{arm}/cams")
    records = made.run(tests=False)
    assert list(records)[-2:] == [f"round_1_{arm}/classifier", f"round_1_{arm}/cams"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["voc12", "coco14"])
def test_the_published_settings_run_a_batch_of_each_stage(tmp_path, here, name):
    root = tmp_path / "data"
    (make_voc if name == "voc12" else make_coco)(root)
    more = [
        *QUICK,
        "--data.root",
        str(root),
        "--data.num_workers",
        "0",
        "--model.weights",
        "random",
        "--trainer.max_epochs",
        "1",
    ]
    more += ["--trainer.max_steps", "1", "--data.size", "[81, 81]", "--data.batch_size", "2"]  # fmt: skip
    made = session(name, tmp_path / "runs", *more, last="round_1_sum/cams")
    records = made.run(tests=False)
    assert list(records) == [*(f"round_0/{stage}" for stage in STAGES), "round_1_sum/classifier", "round_1_sum/cams"]
    notices = {notice for record in records.values() for notice in record.notices}
    assert any("random weights" in notice for notice in notices)
    assert any("the recipe has 16" in notice for notice in notices)


@pytest.mark.slow
def test_a_stage_alone_and_a_photograph(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    where = ["--runs_dir", str(tmp_path), "--experiment", "alone"]
    configs = ["--config", str(CONTA / "scenes_data.yaml"), "--config", str(CONTA / "small_segmenter.yaml")]
    done = run(["fit", *configs, *TINY, "--data.masks", "truth", *where])
    best = str(done.folder.checkpoints / "best.ckpt")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(tmp_path / "p.jpg")
    for crf in ("false", "true"):
        out = tmp_path / f"crf_{crf}"
        run(["predict", "--ckpt_path", best, "--data.predict_dir", str(tmp_path / "p.jpg"), "--data.predict_out", str(out),
             "--model.crf", crf])  # fmt: skip
        with Image.open(out / "p.png") as mask:
            assert (mask.size, mask.mode) == ((70, 50), "P")


@pytest.mark.slow
def test_a_fit_without_masks_or_with_those_of_another_stage_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    configs = ["--config", str(CONTA / "scenes_data.yaml"), "--config", str(CONTA / "small_segmenter.yaml")]
    with pytest.raises(ValueError, match=r"no masks.*--data\.masks"):
        run(["fit", *configs, *TINY, "--runs_dir", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match=r"no folder .*round_0/pseudo_masks.*--until round_0/pseudo_masks"):
        run(
            [
                "fit",
                *configs,
                *TINY,
                "--runs_dir",
                str(tmp_path),
                "--data.masks",
                str(tmp_path / "round_0" / "pseudo_masks"),
            ]
        )


@pytest.mark.slow
def test_killed_in_the_middle_and_run_again(tmp_path):
    command = [
        sys.executable,
        "-m",
        "structseg",
        "pipeline",
        str(CONTA / "synthetic.yaml"),
        "--runs_dir",
        str(tmp_path),
    ]
    command += ["--until", "round_0/cams", "--", *TINY]  # fmt: skip
    environment = {**child_environment(), "WANDB_MODE": "disabled"}
    first = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    record = tmp_path / "conta_synthetic/0/round_0/classifier/stage.json"
    deadline = time.monotonic() + 240
    while not record.is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert record.is_file()
    time.sleep(2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = record.read_bytes()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "round_0/classifier: skip" in again.stdout or "round_0/classifier: test" in again.stdout
    assert yaml.safe_load(before)["run"] == yaml.safe_load(record.read_bytes())["run"]
    assert (tmp_path / "conta_synthetic/0/round_0/cams/about.json").is_file()
    assert not list((tmp_path / "conta_synthetic/0/round_0").glob("*.part"))
