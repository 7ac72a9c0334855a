"""The real command line, from a configuration to a checkpoint and back."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from structseg.command.configs import resolved_config
from structseg.command.lightning import run
from structseg.command.main import main
from structseg.files import ROOT
from structseg.lightning_modules.checkpoints import failed_batch
from structseg.lightning_modules.checkpoints.card import read_card
from structseg.options.config_files import config_names, find_config, load_config
from structseg.pipelines.file import load_pipeline
from structseg.pipelines.session import Session
from structseg.prediction.command import main as predict
from structseg.yaml_files import load_yaml


def fit(config, folder, *more):
    return run(["fit", "--config", str(config), *more, "--runs_dir", str(folder)])


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def structseg(*args, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-m", "structseg", *map(str, args)],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run: its folder."""
    from _pytest.monkeypatch import MonkeyPatch

    folder = tmp_path_factory.mktemp("runs")
    config = folder / "tiny.yaml"
    config.write_text(
        """
model: {class_path: FASSEGUNet, init_args: {network: {class_path: tests.data.tiny.TinyNetwork}}}
data: {class_path: tests.data.tiny.TinyDataModule}
trainer: {accelerator: cpu, max_epochs: 2, enable_progress_bar: false, enable_model_summary: false}
"""
    )
    with MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["structseg"])
        patch.setenv("WANDB_MODE", "offline")
        return fit(config, folder).folder.path


def test_a_run_leaves_everything_in_one_folder(trained):
    assert trained.parent.name == "tiny"
    assert {p.name for p in trained.iterdir()} >= {"experiment.yaml", "checkpoints", "metrics.csv", "pictures", "wandb"}
    start = json.loads((trained / "start.json").read_text())
    assert list(start) == ["date", "commit", "hardware"]
    assert re.match("[0-9a-f]{40}|unknown", start["commit"])
    names = {"best.ckpt", "last.ckpt"}
    assert {p.name for p in (trained / "checkpoints").iterdir()} == names
    assert list((trained / "wandb").glob(f"offline-run-*-{trained.name}")), "the W&B id is the run id"
    rows = list(csv.DictReader((trained / "metrics.csv").open()))
    assert {"train/loss_epoch", "val/loss", "val/miou", "val/iou/face"} <= set(rows[0])


def test_the_resolved_configuration_reloads(trained, tmp_path):
    again = run(["fit", "--config", str(trained / "experiment.yaml"), "--runs_dir", str(tmp_path)])
    assert again.folder.experiment == "tiny"
    old, new = (yaml.safe_load((f / "experiment.yaml").read_text()) for f in (trained, again.folder.path))
    for config in (old, new):
        config.pop("runs_dir")
        config["trainer"].pop("default_root_dir")
    assert old == new
    first, second = (weights(f / "checkpoints" / "last.ckpt") for f in (trained, again.folder.path))
    assert all(torch.equal(first[key], second[key]) for key in first), "same seed, same weights"


def test_a_checkpoint_carries_its_card_in_plain_values(trained):
    """Read in a process that never saw the suite."""
    code = (
        "import sys, torch; c = torch.load(sys.argv[1], weights_only=True)['structseg'];"
        "print(c['method'], c['classes'], c['palette'][1], c['mean'], c['size'], c['initial_weights'])"
    )
    path = trained / "checkpoints" / "best.ckpt"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    expected = "FASSEGUNet ['background', 'face', 'hair'] [0, 255, 0] [0.5, 0.5, 0.5] [32, 32] random"
    assert done.stdout.strip() == expected


def test_a_checkpoint_is_enough_to_test(trained):
    tested = run(["test", str(trained / "checkpoints" / "best.ckpt"), "--trainer.accelerator", "cpu"])
    assert tested.folder.path.resolve() == trained.resolve()
    assert 0 <= tested.trainer.callback_metrics["test/miou"] <= 1
    assert (trained / "classes_test.csv").is_file()


def test_a_checkpoint_is_enough_to_predict(trained, tmp_path):
    images = tmp_path / "in"
    images.mkdir()
    Image.fromarray(np.full((37, 53), 90, np.uint8)).save(images / "grey.png")
    Image.new("CMYK", (20, 10), (10, 200, 30, 0)).save(images / "print.jpg")
    out = tmp_path / "out"
    checkpoint = str(trained / "checkpoints" / "last.ckpt")
    predict([checkpoint, *map(str, images.iterdir()), "--out", str(out)])
    assert Image.open(out / "grey.png").size == (53, 37)
    assert Image.open(out / "print.png").size == (20, 10)
    assert Image.open(out / "grey.png").mode == "P"
    rows = list(csv.DictReader((out / "summary.csv").open()))
    assert [row["name"] for row in rows] == ["grey.png", "print.jpg"]


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tiny_config, tmp_path):
    whole = fit(tiny_config, tmp_path / "whole")
    stop = tmp_path / "stop.yaml"
    stop.write_text("trainer: {callbacks: [{class_path: tests.data.stop.StopAfterEpoch, init_args: {epoch: 1}}]}")
    cut = fit(tiny_config, tmp_path / "cut", "--config", str(stop))
    last = cut.folder.checkpoints / "last.ckpt"
    assert cut.trainer.current_epoch == 2
    resumed = run(["fit", "--config", str(tiny_config), "--ckpt_path", str(last)])
    assert resumed.folder.path.resolve() == cut.folder.path.resolve(), "the same folder and run id"
    first, second = weights(whole.folder.checkpoints / "last.ckpt"), weights(last)
    assert all(torch.equal(first[key], second[key]) for key in first)

    def epochs(run):
        with (run.folder.path / "metrics.csv").open() as file:
            return [row["epoch"] for row in csv.DictReader(file) if row["val/miou"]]

    assert epochs(resumed) == epochs(whole) == ["0", "1", "2", "3"], "the table goes on below its rows"


def test_the_seed_matters(tiny_config, tmp_path):
    one, two = (fit(tiny_config, tmp_path, "--seed_everything", s, "--trainer.max_epochs", "1") for s in ("0", "1"))
    first, second = (weights(r.folder.checkpoints / "last.ckpt") for r in (one, two))
    assert not all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data.label_space", "fasseg"],
            r"has the classes of parts \(background, face, hair\), the data those of fasseg",
        ),
        (["--checkpoint.monitor", "val/mIoU"], "BestAndLast watches val/mIoU, which no step logs; choose val/miou"),
    ],
)
def test_arguments_that_do_not_fit_the_checkpoint_are_refused(trained, tmp_path, arguments, message):
    checkpoint = str(trained / "checkpoints" / "last.ckpt")
    config = str(trained / "experiment.yaml")
    with pytest.raises(ValueError, match=message):
        run(["fit", "--config", config, "--ckpt_path", checkpoint, "--runs_dir", str(tmp_path), *arguments])


def test_the_checkpoint_of_another_method_is_refused_by_name(trained, tmp_path):
    content = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    content["structseg"]["method"] = "STNiCNN"
    torch.save(content, tmp_path / "other.ckpt")
    config = str(trained / "experiment.yaml")
    with pytest.raises(ValueError, match="of method STNiCNN, the model is FASSEGUNet"):
        run(["test", "--config", config, "--ckpt_path", str(tmp_path / "other.ckpt"), "--runs_dir", str(tmp_path)])


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("payload_was_run"),))


def test_other_files_than_checkpoints_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.ckpt").write_text("hello")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    torch.save({"structseg": Payload()}, tmp_path / "evil.ckpt")
    for name, message in {
        "text.ckpt": "damaged or no checkpoint|more than tensors",
        "foreign.ckpt": "no checkpoint of structseg",
        "evil.ckpt": "more than tensors and plain values",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_card(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*none\.ckpt"):
        read_card(tmp_path / "none.ckpt")
    assert not (tmp_path / "payload_was_run").exists()


def test_without_validation_data_the_last_epoch_is_the_best(tiny_config, tmp_path):
    done = fit(tiny_config, tmp_path, "--data.val_images", "0", "--trainer.max_epochs", "2")
    best, last = (weights(done.folder.checkpoints / f"{name}.ckpt") for name in ("best", "last"))
    assert all(torch.equal(best[key], last[key]) for key in best)


@pytest.mark.parametrize("mode", ["disabled", "csv"])
def test_without_wandb(tiny_config, tmp_path, monkeypatch, mode):
    more = ["--trainer.max_epochs", "1"]
    monkeypatch.setenv("WANDB_MODE", "disabled" if mode == "disabled" else "offline")
    if mode == "csv":
        more += ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", str(tmp_path / "csv")]
    done = fit(tiny_config, tmp_path, *more)
    assert (done.folder.checkpoints / "last.ckpt").is_file()
    assert not list(tmp_path.rglob("*.wandb"))


def test_nothing_is_written_when_the_data_are_missing(tmp_path):
    config = ROOT / "experiments" / "fasseg_unet" / "fasseg_v2_readme.yaml"
    with pytest.raises((FileNotFoundError, ValueError), match="no folder"):
        fit(config, tmp_path / "runs", "--data.root", str(tmp_path / "missing"))
    assert not (tmp_path / "runs").exists()


def test_a_schedule_counts_the_steps_of_the_resumed_run(tiny_config, tmp_path):
    cut = fit(tiny_config, tmp_path, "--trainer.max_epochs", "1")
    last = str(cut.folder.checkpoints / "last.ckpt")
    longer = run(["fit", "--config", str(tiny_config), "--ckpt_path", last, "--trainer.max_epochs", "3"])
    schedule = longer.trainer.lr_scheduler_configs[0].scheduler
    assert (schedule.total_steps, schedule.last_epoch) == (6, 6)
    with pytest.raises(ValueError, match=r"last\.ckpt was trained for 3 epochs; raise --trainer\.max_epochs from 2"):
        run(["fit", "--config", str(tiny_config), "--ckpt_path", last, "--trainer.max_epochs", "2"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--data.batch_size", "0"], "data: batch_size=0 (1 or more)"),
        (["--data.augmentation.flip", "3"], "augmentation: flip=3.0 (a probability, at most 1)"),
        (["--data.score_at", "nativ"], "data.score_at: expected one of 'size', 'native', got nativ"),
        (["--data.size", "[64]"], "data.size: expected tuple with 2 elements, got [64]"),
        (["--data.label_space", "fasegg"], "no label space 'fasegg'; choose one of"),
        (["--trainer.logger", "CSVLogger"], "trainer.logger: missing save_dir"),
        (["--model.lr_scheduler", "OneCycleLR", "--model.lr_scheduler.max_lr", "0.1"], "PolyLR and OneCycle find"),
        (
            [
                "--model.lr_scheduler",
                "pytorch_lightning.cli.ReduceLROnPlateau",
                "--model.lr_scheduler.monitor",
                "val/los",
            ],
            "lr_scheduler watches val/los, which no step logs here; set --model.lr_scheduler.monitor",
        ),
    ],
)
def test_an_error_of_a_constructor_is_printed_unchanged(tiny_config, tmp_path, monkeypatch, capsys, arguments, line):
    words = ["structseg", "fit", "--config", str(tiny_config), *arguments, "--runs_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (1, 2)
    error = [text for text in capsys.readouterr().err.splitlines() if text.startswith("structseg: error:")]
    assert len(error) == 1
    assert line in error[0]


def test_help_names_every_subcommand_and_tool(monkeypatch, capsys):
    for words in (["structseg"], ["structseg", "--help"]):
        monkeypatch.setattr(sys, "argv", words)
        main()
        shown = capsys.readouterr().out
        assert all(name in shown for name in ("fit", "test", "predict", "show", "results"))


def test_a_fast_development_run_writes_nothing(tiny_config, tmp_path):
    fit(tiny_config, tmp_path / "runs", "--trainer.fast_dev_run", "true", "--data.val_images", "0")
    assert not (tmp_path / "runs").exists()


def test_the_batch_of_a_fit_that_blew_up_is_computed_again(tiny_config, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"the loss is nan in .*train_00.*failed_batch\.pt$"):
        fit(tiny_config, tmp_path / "runs", "--model.optimizer.lr", "1e30")
    (kept,) = (tmp_path / "runs").rglob("failed_batch.pt")
    capsys.readouterr()
    failed_batch.main([str(kept)])
    loss, wrong = capsys.readouterr().out.splitlines()
    assert (loss, wrong[:44]) == ("loss nan", "gradients that are not finite: network.down1")
    for arguments, message in (([], "usage: "), (["none.pt"], "failed_batch: error: no checkpoint at none.pt")):
        with pytest.raises(SystemExit, match=message):
            failed_batch.main(arguments)


@pytest.mark.slow
def test_errors_are_one_line_and_exit_codes_are_not_zero(monkeypatch, capsys):
    fit = ["fit", "--config", "experiments/fasseg_unet/fasseg_v2_readme.yaml"]
    monkeypatch.chdir(ROOT)
    for arguments, message, code in (
        ([*fit, "--data.root", "nowhere"], "no folder nowhere", 1),
        ([*fit, "--data.rot", "x"], "unknown option --data.rot (did you mean --data.root?)", 2),
        (["test", "--ckpt_path", "none.ckpt"], "no checkpoint at none.ckpt", 1),
    ):
        monkeypatch.setattr(sys, "argv", ["structseg", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        ends = [(stop.value.code, capsys.readouterr().err)]
        if code == 2:  # the two others end in the same way
            done = structseg(*arguments)
            ends.append((done.returncode, done.stderr))
        for found, said in ends:
            assert found == code
            (line,) = [line for line in said.splitlines() if line.startswith("structseg: error:")]
            assert message in line
            assert "Traceback" not in said


CONTENTS = {name: load_config(path) for name, path in config_names().items()}


@pytest.mark.parametrize("name", [name for name, content in CONTENTS.items() if {"model", "data"} <= content.keys()])
def test_every_configuration_parses(name):
    if "stages" in CONTENTS[name] or "class_path" not in CONTENTS[name]["data"]:
        pytest.skip("not the whole configuration of a run")
    config = resolved_config(["fit", "--config", name])
    assert config["model"]["class_path"].startswith("structseg.lightning_modules.")


@pytest.mark.parametrize("name", [name for name, content in CONTENTS.items() if "stages" in content])
def test_every_pipeline_parses(name):
    """Every stage of it, and every test of every stage; of one that changes no stage of its base, those of round 0."""
    path = find_config(name)
    pipeline = load_pipeline(path)
    first = [name for name in pipeline.stages if name.startswith("round_0") and name.endswith("/masks")]
    last = first[0] if first and "stages" not in load_yaml(path)[0] else None
    session = Session(pipeline, last=last)
    assert list(session.configs()) == [stage.name for stage in session.stages]


def test_no_two_configurations_share_a_block_of_lines():
    """Six lines in a row, comments left out."""
    seen: dict[tuple[str, ...], str] = {}
    for name, path in config_names().items():
        lines = [line.partition(" #")[0].strip() for line in path.read_text().splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        for block in zip(*(lines[start:] for start in range(6)), strict=False):
            assert seen.setdefault(block, name) == name, f"{name} and {seen[block]} share {block}; give one a base"


@pytest.mark.slow
def test_two_processes_count_every_image_once(tiny_config, tmp_path):
    """5 test images on 2 processes: not 6, and the same matrix as one process."""
    one = fit(tiny_config, tmp_path, "--trainer.max_epochs", "1", "--data.test_images", "5")
    checkpoint = one.folder.checkpoints / "last.ckpt"
    tested = ["test", "--config", str(one.folder.config), "--ckpt_path", str(checkpoint)]
    run(tested)
    alone = (one.folder.path / "classes_test.csv").read_text()
    done = structseg(*tested, "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (one.folder.path / "classes_test.csv").read_text() == alone
