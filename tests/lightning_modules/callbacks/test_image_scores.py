import gzip
import math
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Callback

from structseg.datamodules.label_spaces import label_space
from structseg.lightning_modules.callbacks import image_scores
from structseg.lightning_modules.callbacks.image_scores import (
    ImageScores,
    image_columns,
    image_miou,
    image_rows,
    read_table,
    worst_folder,
    write_table,
)
from structseg.lightning_modules.drawing.label_sheets import Example, error_tile
from tests.data.processes import run_ranks
from tests.data.tiny import TinyDataModule
from tests.data.tiny_runs import make_module, make_trainer, predict

SPACE = label_space("parts")


def test_cells_by_hand():
    truth = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 255]], [[0, 0, 0, 0], [0, 0, 0, 0]]])
    guess = torch.tensor([[[0, 1, 1, 1], [0, 0, 1, 2]], [[0, 2, 0, 2], [0, 0, 0, 0]]])
    one, other = image_rows(["b.png", "a.png"], guess, truth, SPACE)
    assert image_columns(SPACE.classes)[:4] == ["name", "tp/background", "tp/face", "tp/hair"]
    assert one[:10] == ["b.png", *"330", *"010", *"100"]  # one pixel of background taken for face
    assert other[:10] == ["a.png", *"600", *"002", *"200"]
    assert one[10:12] == ["0", "0.0000"]
    assert other[10:] == ["2", "2.0000", "0.0000"]  # no hair in the truth, two pieces in the prediction
    assert image_columns(SPACE.classes)[10:] == ["component_error", "component_error_relative", "boundary_f1"]


def test_an_image_of_ignored_pixels_has_no_boundary_score():
    nothing = torch.full((1, 3, 3), 255)
    (row,) = image_rows(["x"], torch.zeros_like(nothing), nothing, SPACE)
    assert row == ["x", *"000000000", "0", "0.0000", "nan"]


class Predictions(Callback):
    """The classes that an evaluation found, an image each; of a batch they may differ from an image's own by a rounding."""

    def __init__(self):
        self.found = []

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.found += list(outputs["prediction"].numpy())

    on_validation_batch_end = on_test_batch_end


@pytest.mark.parametrize("score_at", ["size", "native"])
@pytest.mark.parametrize("split", ["test", "val"])
def test_every_image_has_a_row(tmp_path, split, score_at):
    data = TinyDataModule(score_at=score_at, test_images=5, val_images=5, batch_size=2)
    module = make_module(data)
    predictions = Predictions()
    trainer = make_trainer(tmp_path, [ImageScores(), predictions])
    if split == "test":
        trainer.test(module, data, verbose=False)
    else:
        trainer.validate(module, data, verbose=False)
    assert [file.name for file in tmp_path.glob("images_*")] == [f"images_{split}.csv.gz"]
    header, *rows = read_table(tmp_path / f"images_{split}.csv.gz")
    assert header == image_columns(SPACE.classes)
    assert [row[0] for row in rows] == [f"{split}_{i:03d}" for i in range(5)]
    expected = predict(module, data.dataset(split))
    for row, guess, (name, _, truth, alone) in zip(rows, predictions.found, expected, strict=True):
        assert (guess == alone).mean() > 0.99
        counted = truth != 255
        pixels = [
            [int((a(guess, c) & b(truth, c) & counted).sum()) for c in range(3)]
            for a, b in ((np.equal, np.equal), (np.equal, np.not_equal), (np.not_equal, np.equal))
        ]
        assert row[0] == name
        assert [int(cell) for cell in row[1:10]] == np.array(pixels).ravel().tolist()
        assert 0 <= float(row[12]) <= 1
    total = np.array([row[1:4] for row in rows], int).sum()
    assert total / np.array([row[1:10] for row in rows], int)[:, :6].sum() == pytest.approx(
        float(trainer.callback_metrics[f"{split}/pixel_accuracy"]), abs=1e-6
    )


def test_a_fit_and_a_dry_run_write_nothing(tmp_path):
    data = TinyDataModule()
    trainer = make_trainer(tmp_path, [ImageScores()])
    trainer.fit(make_module(data), data)
    make_trainer(tmp_path, [ImageScores()], fast_dev_run=True).test(make_module(data), data, verbose=False)
    assert not list(tmp_path.glob("images_*"))


def test_a_second_test_starts_from_nothing(tmp_path):
    data, scores = TinyDataModule(), ImageScores()
    module, trainer = make_module(data), make_trainer(tmp_path, [scores])
    trainer.test(module, data, verbose=False)
    before = (tmp_path / "images_test.csv.gz").read_bytes()
    trainer.test(module, data, verbose=False)
    assert (tmp_path / "images_test.csv.gz").read_bytes() == before
    assert len(read_table(tmp_path / "images_test.csv.gz")) == 5


def test_a_folder_that_cannot_be_written_does_not_stop_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    data = TinyDataModule()
    with pytest.warns(UserWarning, match="the scores of each image could not be written"):
        make_trainer(tmp_path / "file", [ImageScores()]).test(make_module(data), data, verbose=False)


@pytest.mark.slow
def test_two_processes_write_each_image_once(tmp_path):
    code = f"""
        import torch, structseg
        from structseg.lightning_modules.callbacks.image_scores import ImageScores
        from tests.data.tiny import TinyDataModule
        from tests.data.tiny_runs import make_module, make_trainer
        data = TinyDataModule(test_images=5, batch_size=2)
        more = dict(devices=2, strategy="ddp", use_distributed_sampler=False)
        make_trainer({str(tmp_path / "two")!r}, [ImageScores()], **more).test(make_module(data), data, verbose=False)
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    run_ranks(2, tmp_path / "logs", [str(script)])
    data = TinyDataModule(test_images=5, batch_size=2)
    make_trainer(tmp_path / "one", [ImageScores()]).test(make_module(data), data, verbose=False)
    one, two = (read_table(tmp_path / name / "images_test.csv.gz") for name in ("one", "two"))
    assert one == two


def test_equal_tables_are_equal_bytes_and_go_both_ways(tmp_path):
    lines = [["name", "a"], ['x, "y".png', "1"], ["Ärger\n2", ""]]
    write_table(tmp_path / "a.csv.gz", lines)
    write_table(tmp_path / "new" / "b.csv.gz", lines)
    assert read_table(tmp_path / "a.csv.gz") == lines
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "new" / "b.csv.gz").read_bytes()
    assert (tmp_path / "a.csv.gz").read_bytes()[4:8] == bytes(4)  # no time in the header
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_table_is_named(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"name,a\n" * 100)[:-9])
    with pytest.raises(ValueError, match=r"a\.csv\.gz is damaged"):
        read_table(path)
    path.write_text("name,a\n")
    with pytest.raises(ValueError, match=r"a\.csv\.gz is damaged"):
        read_table(path)


def test_a_large_test_set_makes_a_small_file(tmp_path):
    random = np.random.default_rng(0)
    cells = random.integers(0, 60000, (927, 9)).astype(str)
    rows = [[f"Some_Body_{i:04d}", *cells[i], "3", f"{i / 927:.4f}", f"{math.sin(i) ** 2:.4f}"] for i in range(927)]
    write_table(tmp_path / "a.csv.gz", rows)
    assert (tmp_path / "a.csv.gz").stat().st_size < 60_000


def test_an_images_own_mean_iou_by_hand():
    assert image_miou(["x", *"330", *"010", *"100"], 3) == pytest.approx((3 / 4 + 3 / 4) / 2)  # no hair in either
    assert image_miou(["x", *"600", *"002", *"200", "2", "0", "nan"], 3) == pytest.approx((6 / 8 + 0) / 2)
    assert image_miou(["x", *"000000000"], 3) == 1.0, "nothing to be wrong in"


def test_the_worst_images_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(image_scores, "WORST", 3)
    data = TinyDataModule(test_images=7, batch_size=2)
    folder = worst_folder(tmp_path, "test")
    folder.mkdir(parents=True)
    (folder / "09.jpg").write_bytes(b"of the test before")
    drawn = []
    monkeypatch.setattr(
        image_scores, "error_tile", lambda example, space: drawn.append(example) or error_tile(example, space)
    )
    make_trainer(tmp_path, callbacks=[ImageScores()]).test(make_module(data), data, verbose=False)
    assert [path.name for path in sorted(folder.iterdir())] == ["01.jpg", "02.jpg", "03.jpg"]
    header, *rows = read_table(tmp_path / "images_test.csv.gz")
    classes = sum(name.startswith("tp/") for name in header)
    ranked = sorted((image_miou(row, classes), row[0]) for row in rows)
    assert [example.name for example in drawn] == [name for _, name in ranked[:3]]
    height, width = drawn[0].truth.shape
    assert Image.open(folder / "01.jpg").size == (2 * width + 8, 2 * height + 8)


def test_an_error_tile_shows_what_is_wrong_in_red():
    truth, guess = np.array([[0, 1], [1, 255]], np.uint8), np.array([[0, 1], [2, 2]], np.uint8)
    pixels = np.asarray(error_tile(Example(np.zeros((2, 2, 3), np.uint8), truth, guess, "x", 0.5), SPACE))
    error = pixels[-2:, -2:]
    assert error[1, 0].tolist() == [220, 30, 30]
    assert error[0, 0].tolist() == error[0, 1].tolist() == [90, 90, 90]
    assert error[1, 1].tolist() == pixels[1, -1].tolist(), "what is not counted is no error"
