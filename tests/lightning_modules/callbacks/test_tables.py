import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import RichProgressBar
from rich.console import Console

from structseg.datamodules.label_spaces import HELEN
from structseg.lightning_modules.callbacks import tables
from structseg.lightning_modules.callbacks.tables import Scores, ScoreTables, parts_table, terminal_table, write_files
from structseg.lightning_modules.metrics.segmentation import SegmentationMetrics
from tests.data.tiny import TinyDataModule
from tests.data.tiny_runs import count_pixels, make_module, make_trainer


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def _by_hand(confusion):
    """IoU, precision, recall and F1 of each class."""
    hits, truth, guess = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    return np.stack([hits / (truth + guess - hits), hits / guess, hits / truth, 2 * hits / (truth + guess)], 1)


def _wandb_table(run, key):
    (entry,) = run.wandb.values(key)
    return json.loads((run.media / entry["path"]).read_text())


@pytest.mark.parametrize(
    ("split", "names", "file", "key"),
    [
        ("val", None, "classes_val.csv", "val"),
        ("test", None, "classes_test.csv", "test"),
        ("test", {"test_000", "test_002"}, "classes_test_easy.csv", "test/easy"),
    ],
)
def test_file_and_wandb_have_the_scores_of_each_class_and_the_confusion(tracked_run, split, names, file, key):
    confusion = count_pixels(tracked_run.module, tracked_run.data.dataset(split), 3, names)
    expected = _by_hand(confusion)
    assert ((expected > 0.3) & (expected <= 1)).all()
    assert not np.allclose(expected[:, 1], expected[:, 2])  # precision and recall could be told apart

    header, *rows = _rows(tracked_run.folder / file)
    assert header == ["class", "iou", "precision", "recall", "f1"]
    assert [row[0] for row in rows] == ["background", "face", "hair"]
    assert np.array([row[1:] for row in rows], float) == pytest.approx(expected, abs=1e-6)

    scores = _wandb_table(tracked_run, f"{key}/classes")
    assert scores["columns"] == header
    assert [row[0] for row in scores["data"]] == ["background", "face", "hair"]
    assert np.array([row[1:] for row in scores["data"]], float) == pytest.approx(expected, abs=1e-6)

    counts = _wandb_table(tracked_run, f"{key}/confusion")
    assert counts["columns"] == ["truth", "background", "face", "hair"]
    assert [row[0] for row in counts["data"]] == ["background", "face", "hair"]
    assert [row[1:] for row in counts["data"]] == confusion.tolist()

    with Image.open(tracked_run.folder / "pictures" / f"confusion_{key.replace('/', '_')}.png") as picture:
        assert min(picture.size) > 200


def test_the_scores_that_are_logged_agree_with_the_table(tracked_run):
    rows = {row[0]: row for row in _rows(tracked_run.folder / "classes_test.csv")}
    assert float(rows["hair"][1]) == pytest.approx(tracked_run.wandb.summary["test/iou/hair"], abs=1e-6)
    assert tracked_run.wandb.values("val/miou")[-1] == pytest.approx(
        np.mean([float(row[1]) for row in _rows(tracked_run.folder / "classes_val.csv")[1:]]), abs=1e-6
    )


class _Stop(Callback):
    """Ends a fit as EarlyStopping does: when the validation is over."""

    def on_validation_end(self, trainer, pl_module):
        trainer.should_stop = not trainer.sanity_checking and trainer.current_epoch == 1


def test_a_fit_that_ends_early_has_the_scores_of_its_last_epoch(tmp_path):
    data = TinyDataModule()
    module = make_module(data)
    make_trainer(tmp_path, [ScoreTables(), _Stop()], max_epochs=50).fit(module, data)
    with np.errstate(invalid="ignore"):  # a class that is predicted nowhere has precision 0
        expected = np.nan_to_num(_by_hand(count_pixels(module, data.dataset("val"), 3)))
    written = np.array([row[1:] for row in _rows(tmp_path / "classes_val.csv")[1:]], float)
    assert written == pytest.approx(expected, abs=1e-6)
    assert module.val_scores.confusion.sum() == 0


def test_validate_writes_its_tables(tmp_path):
    data = TinyDataModule()
    make_trainer(tmp_path, [ScoreTables()]).validate(make_module(data), data, verbose=False)
    assert len(_rows(tmp_path / "classes_val.csv")) == 4


def test_nothing_is_written_without_validation_or_in_a_fast_development_run(tmp_path):
    for data, settings in ((TinyDataModule(val_images=0), {}), (TinyDataModule(), {"fast_dev_run": True})):
        make_trainer(tmp_path, [ScoreTables()], **settings).fit(make_module(data), data)
    assert not list(tmp_path.iterdir())


def test_after_a_test_the_scores_and_the_pictures_are_printed(tmp_path, capsys):
    data = TinyDataModule()
    module = make_module(data)
    trainer = make_trainer(tmp_path, [ScoreTables()], max_epochs=4)
    trainer.fit(module, data)
    capsys.readouterr()
    (logged,) = trainer.test(module, data, verbose=False)
    printed = capsys.readouterr().out
    lines = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in printed.splitlines() if "│" in line}
    scores = ("iou", "f1", "precision", "recall")
    assert [cell.strip() for cell in lines["hair"]] == [f"{logged[f'test/{score}/hair']:.4f}" for score in scores]
    means = ("miou", "mean_f1", "mean_precision", "mean_recall")
    assert [cell.strip() for cell in lines["mean"]] == [f"{logged[f'test/{mean}']:.4f}" for mean in means]
    assert lines["pixel accuracy"][0].strip() == f"{logged['test/pixel_accuracy']:.4f}"
    assert lines["loss"][0].strip() == f"{logged['test/loss']:.4f}"
    assert str(tmp_path / "pictures" / "confusion_test.png") in printed.splitlines()


def test_a_progress_bar_has_ended_before_the_table_is_printed(tmp_path, monkeypatch):
    data, stopped = TinyDataModule(), []

    class Bar(RichProgressBar):
        def teardown(self, trainer, pl_module, stage):
            stopped.append(stage)
            super().teardown(trainer, pl_module, stage)

    def printed(*args):
        stopped.append("table")
        return terminal_table(*args)

    monkeypatch.setattr(tables, "terminal_table", printed)
    trainer = make_trainer(tmp_path, [ScoreTables()])
    bar = Bar()
    trainer.callbacks.append(bar)
    trainer.test(make_module(data), data, verbose=False)
    assert stopped[:2] == ["test", "table"]


def test_a_full_disk_does_not_end_a_training(tmp_path, monkeypatch):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(tables, "write_files", full)
    data = TinyDataModule()
    with pytest.warns(UserWarning, match=r"the score tables could not be written \(No space left"):
        make_trainer(tmp_path, [ScoreTables()]).fit(make_module(data), data)


def _helen_scores():
    """20 pixels: 4 of the upper lip, half of them taken for the lower lip; 16 of the background, 4 taken for skin."""
    metric = SegmentationMetrics(HELEN.classes, 255, HELEN.groups)
    truth = torch.tensor([0] * 16 + [7] * 4)
    guess = torch.tensor([0] * 12 + [1] * 4 + [7, 7, 9, 9])
    metric.update(guess.view(1, 4, 5), truth.view(1, 4, 5))
    return Scores.of(metric)


def test_scores_outlive_a_reset_of_the_metric():
    metric = SegmentationMetrics(["background", "face"])
    metric.update(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 1]]]))
    scores = Scores.of(metric)
    metric.reset()
    assert scores.confusion.tolist() == [[1, 1], [0, 1]]
    assert scores.values["iou/face"] == 0.5


def test_an_absent_class_is_nan_in_the_file(tmp_path):
    write_files(tmp_path, "test", _helen_scores())
    rows = {row[0]: row[1:] for row in _rows(tmp_path / "classes_test.csv")[1:]}
    assert tuple(rows) == HELEN.classes
    assert rows["hair"] == ["nan"] * 4
    assert rows["background"] == ["0.750000", "1.000000", "0.750000", "0.857143"]
    assert rows["upper_lip"] == ["0.500000", "1.000000", "0.500000", "0.666667"]


def test_the_table_has_groups_and_dashes_for_absent_classes():
    console = Console(width=100)
    with console.capture() as captured:
        console.print(terminal_table("test", _helen_scores()))
    lines = captured.get().splitlines()
    cells = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]] for line in lines if "│" in line
    }
    assert cells["hair"] == ["-"] * 4
    assert cells["upper_lip"] == ["0.5000", "0.6667", "1.0000", "0.5000"]
    assert cells["mouth (group)"] == ["1.0000", "1.0000", "", ""]
    assert cells["brows (group)"] == ["-", "-", "", ""]
    assert cells["all groups"] == ["", "1.0000", "", ""]
    # four classes occur: background, skin, upper and lower lip
    assert cells["mean"][0] == f"{(0.75 + 0 + 0.5 + 0) / 4:.4f}"
    assert cells["pixel accuracy"][0] == "0.7000"
    assert "loss" not in cells


def test_wandb_gets_no_nan(tmp_path):
    class Tracker(tables.WandbLogger):
        def __init__(self):
            self.tables = {}

        def log_table(self, key, columns, data, step):
            self.tables[key] = data

    class Trainer:
        is_global_zero, fast_dev_run, global_step, default_root_dir = True, False, 1, str(tmp_path)
        loggers = (Tracker(),)

    callback = ScoreTables()
    callback._scores = {"test": _helen_scores()}
    callback._write(Trainer())
    rows = {row[0]: row[1:] for row in Trainer.loggers[0].tables["test/classes"]}
    assert rows["hair"] == [None] * 4
    assert not any(isinstance(v, float) and math.isnan(v) for row in rows.values() for v in row)


def test_parts_of_the_test_set_are_a_line_each():
    """Six poses are six lines, not six tables; a score that a part lacks is a dash."""
    plain = SegmentationMetrics(["background", "face"])
    plain.update(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 1]]]))
    console = Console(width=120)
    with console.capture() as captured:
        console.print(parts_table({"test/left": _helen_scores(), "test/right": Scores.of(plain)}))
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in captured.get().splitlines() if "│" in line]
    assert [row[0] for row in cells] == ["left", "right"]
    assert cells[0][1] == f"{(0.75 + 0 + 0.5 + 0) / 4:.4f}"
    assert cells[0][3] == "1.0000"
    assert cells[1] == ["right", "0.5000", f"{(2 / 3 + 2 / 3) / 2:.4f}", "-", f"{2 / 3:.4f}"]
