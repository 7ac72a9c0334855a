import csv

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Callback
from pytorch_lightning.loggers import CSVLogger, WandbLogger

from structseg.command import lightning as cli
from structseg.lightning_modules.callbacks import pictures
from structseg.lightning_modules.callbacks.pictures import Pictures
from structseg.lightning_modules.drawing.charts import read_curves
from structseg.lightning_modules.drawing.label_sheets import IGNORED, make_example, sheet
from tests.data.tiny import TinyDataModule
from tests.data.tiny_runs import make_module, make_trainer, predict
from tests.data.wandb_file import read_wandb_file


def _drawn(folder):
    return sorted(path.name for path in (folder / "pictures").glob("*.png") if "confusion" not in path.name)


def _pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def _examples(module, data, split, count=3):
    found = list(predict(module, data.dataset(split)))[:count]
    return [make_example(image, truth, prediction, data.label_space, name) for name, image, truth, prediction in found]


def test_every_second_epoch_the_last_and_the_test_are_drawn(tracked_run):
    assert _drawn(tracked_run.folder) == [
        "loss.png",
        "test.png",
        "val_epoch_0001.png",
        "val_epoch_0003.png",
        "val_epoch_0004.png",
    ]


@pytest.mark.parametrize(("split", "file"), [("test", "test.png"), ("val", "val_epoch_0004.png")])
def test_a_sheet_holds_the_first_images_with_truth_and_prediction(tracked_run, split, file):
    expected = sheet(_examples(tracked_run.module, tracked_run.data, split), tracked_run.data.label_space)
    assert (_pixels(tracked_run.folder / "pictures" / file) == np.asarray(expected)).all()


def test_the_truth_is_drawn_in_the_palette_and_ignored_pixels_are_not(tracked_run):
    page = _pixels(tracked_run.folder / "pictures" / "test.png")
    truth = tracked_run.data.dataset("test")[0]["mask"].numpy()
    scale, left, top = 5, 8 + 200 + 8, 20  # 48 x 40 is drawn five times as large, beside the image
    palette = tracked_run.data.label_space.palette
    panel = page[top + 2 : top + 48 * scale : scale, left + 2 : left + 40 * scale : scale]
    for label, colour in enumerate(palette):
        assert (truth == label).any()
        assert (panel[truth == label] == colour).all()
    ignored = {tuple(colour) for colour in panel[truth == 255].tolist()}
    assert ignored <= set(IGNORED)


def test_an_older_epoch_shows_an_older_prediction(tracked_run):
    folder = tracked_run.folder / "pictures"
    assert (_pixels(folder / "val_epoch_0001.png") != _pixels(folder / "val_epoch_0004.png")).any()


def test_wandb_has_the_images_with_both_masks(tracked_run):
    logged = tracked_run.wandb.values("val/pictures")
    assert [row["count"] for row in logged] == [3, 3, 3]
    steps = [row["trainer/global_step"] for row in tracked_run.wandb.history if "val/pictures" in row]
    assert steps == [4, 8, 10]  # two steps an epoch
    last = logged[-1]
    assert last["captions"] == ["val_000", "val_001", "val_002"]
    examples = _examples(tracked_run.module, tracked_run.data, "val")
    for example, file, masks in zip(examples, last["filenames"], last["all_masks"], strict=True):
        assert (_pixels(tracked_run.media / file) == example.image).all()
        assert (_pixels(tracked_run.media / masks["truth"]["path"]) == example.truth).all()
        assert (_pixels(tracked_run.media / masks["prediction"]["path"]) == example.prediction).all()
    (tested,) = tracked_run.wandb.values("test/pictures")
    assert tested["captions"] == ["test_000", "test_001", "test_002"]


def test_wandb_knows_the_names_of_the_classes(tracked_run):
    labels = tracked_run.wandb.config["_wandb"]["mask/class_labels"]
    for split in ("val", "test"):
        for mask in ("truth", "prediction"):
            names = labels[f"{split}/pictures_wandb_delimeter_{mask}"]["value"]
            assert names == {"0": "background", "1": "face", "2": "hair", "255": "ignored"}


def test_wandb_and_csv_have_the_same_scalars(tracked_run):
    with (tracked_run.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for key, count in (("train/loss_epoch", 5), ("train/loss_step", 10), ("val/loss", 5), ("val/miou", 5)):
        values = tracked_run.wandb.values(key)
        assert len(values) == count
        assert values == pytest.approx([float(row[key]) for row in rows if row[key]])
    assert tracked_run.wandb.values("val/miou")[-1] > tracked_run.wandb.values("val/miou")[0]
    assert tracked_run.wandb.values("test/iou/face") == pytest.approx([tracked_run.wandb.summary["test/iou/face"]])


def test_nothing_of_the_pictures_is_in_a_checkpoint(tracked_run):
    checkpoint = torch.load(tracked_run.folder / "last.ckpt", weights_only=True)
    assert not [key for key in checkpoint["callbacks"] if "Pictures" in key or "ScoreTables" in key]


class _Spy(Callback):
    """Notes the epochs in which images are turned to pictures, the check before training as -1."""

    def __init__(self, monkeypatch):
        self.epochs, self.epoch = [], None
        drawing = pictures.make_example

        def noted(*args):
            self.epochs.append(self.epoch)
            return drawing(*args)

        monkeypatch.setattr(pictures, "make_example", noted)

    def on_validation_start(self, trainer, pl_module):
        self.epoch = -1 if trainer.sanity_checking else trainer.current_epoch


def test_images_are_looked_at_in_drawn_epochs_only(tmp_path, monkeypatch):
    data, spy = TinyDataModule(batch_size=2, train_images=2), _Spy(monkeypatch)
    make_trainer(tmp_path, [spy, Pictures(3, 2)], max_epochs=5).fit(make_module(data), data)
    assert spy.epochs == [1, 1, 1, 3, 3, 3, 4, 4, 4]


def test_the_last_epoch_is_drawn_when_steps_are_counted(tmp_path):
    data = TinyDataModule(batch_size=4)
    make_trainer(tmp_path, [Pictures(1)], max_epochs=-1, max_steps=6).fit(make_module(data), data)
    assert _drawn(tmp_path) == ["loss.png", "val_epoch_0002.png"]


def test_validate_draws_a_sheet_of_its_own(tmp_path):
    data = TinyDataModule(batch_size=2)
    module = make_module(data)
    make_trainer(tmp_path, [Pictures(3)]).validate(module, data, verbose=False)
    assert _drawn(tmp_path) == ["val.png"]
    expected = sheet(_examples(module, data, "val"), data.label_space)
    assert (_pixels(tmp_path / "pictures" / "val.png") == np.asarray(expected)).all()


def test_no_image_is_drawn_with_count_0(tmp_path):
    data = TinyDataModule()
    trainer = make_trainer(tmp_path, [Pictures(0, 1)])
    trainer.fit(make_module(data), data)
    trainer.test(make_module(data), data, verbose=False)
    assert _drawn(tmp_path) == ["loss.png"]


def test_a_fit_without_validation_draws_the_training_loss(tmp_path):
    data = TinyDataModule(val_images=0)
    make_trainer(tmp_path, [Pictures(1)]).fit(make_module(data), data)
    assert _drawn(tmp_path) == ["loss.png"]


def test_without_a_logger_the_curves_are_those_of_the_csv(tmp_path, monkeypatch):
    drawn = {}

    def keep(curves, path):
        drawn[path.parent.parent.name] = curves

    monkeypatch.setattr(pictures, "loss_curves", keep)
    for name in ("csv", "none"):
        data = TinyDataModule()
        folder = tmp_path / name
        loggers = [CSVLogger(folder, name="", version="")] if name == "csv" else False
        make_trainer(folder, [Pictures(1)], loggers, max_epochs=2, check_val_every_n_epoch=2).fit(
            make_module(data), data
        )
    assert drawn["csv"] == read_curves(tmp_path / "csv" / "metrics.csv")
    assert [epoch for epoch, _ in drawn["csv"]["val/miou"]] == [2]
    assert drawn["none"].keys() == drawn["csv"].keys() == {"train/loss", "val/loss", "val/miou"}
    for key, curve in drawn["csv"].items():
        assert np.array(drawn["none"][key]) == pytest.approx(np.array(curve))


def test_a_fast_development_run_leaves_nothing(tmp_path):
    data = TinyDataModule()
    make_trainer(tmp_path, [Pictures(1)], fast_dev_run=True).fit(make_module(data), data)
    assert not (tmp_path / "pictures").exists()


def test_a_network_that_has_gone_to_nan_is_not_drawn(tmp_path):
    """Its classes would look like background: validation stops the fit instead."""
    data = TinyDataModule()
    module = make_module(data, lr=float("inf"))
    with pytest.raises(ValueError, match=r"^the logits of val_\d.* are not finite"):
        make_trainer(tmp_path, [Pictures(1)], max_epochs=2).fit(module, data)
    assert module.network.layers[0].weight.isnan().all()
    assert _drawn(tmp_path) == []


def test_a_full_disk_does_not_end_a_training(tmp_path, monkeypatch):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    monkeypatch.setattr(pictures, "loss_curves", full)
    data = TinyDataModule()
    trainer = make_trainer(tmp_path, [Pictures(1)])
    with pytest.warns(UserWarning, match=r"pictures/(loss|val_epoch_0000).png could not be written \(No space") as seen:
        trainer.fit(make_module(data), data)
    assert len([w for w in seen if "could not be written" in str(w.message)]) == 2
    assert trainer.global_step == 2


def test_a_run_with_wandb_disabled_draws_its_files(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    data = TinyDataModule()
    tracker = WandbLogger(save_dir=tmp_path, mode="disabled")
    make_trainer(tmp_path, [Pictures(1)], [tracker]).fit(make_module(data), data)
    tracker.experiment.finish()
    assert _drawn(tmp_path) == ["loss.png", "val_epoch_0000.png"]
    assert not list(tmp_path.rglob("*.wandb"))


@pytest.mark.parametrize("settings", [{"count": -1}, {"every_n_epochs": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}={next(iter(settings.values()))}"):
        Pictures(**settings)


@pytest.mark.slow
def test_the_command_line_tracks_figures_configuration_and_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("STRUCTSEG_RUN_FOLDER", raising=False)
    tiny = "tests.data.tiny"
    made = cli.run(
        [
            *("fit", "--model", "FASSEGUNet", "--model.network", f"{tiny}.TinyNetwork"),
            *("--data", f"{tiny}.TinyDataModule", "--data.batch_size", "2", "--runs_dir", str(tmp_path)),
            *("--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"),
            *("--pictures.count", "2", "--experiment", "tiny"),
        ]
    )
    for logger in made.trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
    (folder,) = (tmp_path / "tiny").iterdir()
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    run = read_wandb_file(file)
    assert file.stem == f"run-{folder.name}"
    assert len(run.values("train/loss_step")) == 8
    assert len(run.values("val/miou")) == 2
    assert run.config["data"]["init_args"]["batch_size"] == 2
    assert run.config["model"]["class_path"].endswith("FASSEGUNet")
    assert run.config["pictures"] == {"count": 2, "every_n_epochs": 10}
    assert [row["captions"] for row in run.values("val/pictures")] == [["val_000", "val_001"]]
    assert _drawn(folder) == ["loss.png", "val_epoch_0001.png"]
    assert (folder / "classes_val.csv").is_file()
    assert len(run.values("val/confusion")) == 1
