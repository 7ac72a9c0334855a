import numpy as np
import pytest
import torch
from PIL import Image

from structseg.command import show
from structseg.command.batch_sheet import draw_batch
from structseg.datamodules.label_spaces import PARTS


def test_the_picture_shows_images_and_label_colours(tmp_path):
    image, mask = torch.zeros(1, 3, 20, 30), torch.zeros(1, 20, 30, dtype=torch.int64)
    image[0, 0], mask[0, :, 15:] = 1.0, 1
    page = np.asarray(draw_batch({"image": image, "mask": mask, "name": ["a"]}, PARTS))
    assert (page[:20, :30] == (255, 0, 0)).all(), "the image alone"
    assert (page[:20, 60:75] == PARTS.palette[0]).all()
    assert (page[:20, 75:90] == PARTS.palette[1]).all()


def test_blobs_have_a_colour_each_and_what_is_missing_is_left_out():
    image, blobs = torch.zeros(1, 3, 20, 30), torch.zeros(1, 20, 30, dtype=torch.int64)
    blobs[0, :, 10:] = 1
    page = np.asarray(draw_batch({"image": image, "blobs": blobs, "name": ["a"]}, PARTS))
    shown = page[:20, 30:60].reshape(20, 30, 3)
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) == 2
    assert (shown[:, :10] == shown[0, 0]).all()


def test_the_command_draws_an_augmented_batch(tmp_path, capsys):
    config = tmp_path / "e.yaml"
    config.write_text("data: {class_path: tests.data.tiny.TinyDataModule, init_args: {augmentation: {flip: 1.0}}}")
    pictures = []
    for more in ([], ["--plain"], ["--", "--data.batch_size", "2"]):
        out = tmp_path / "show.png"
        show.main([str(config), "--out", str(out), "--count", "4", *more])
        pictures.append(np.asarray(Image.open(out)))
    assert "4 images with their labels" in capsys.readouterr().out
    assert not np.array_equal(pictures[0], pictures[1]), "augmentation shows"
    assert np.array_equal(pictures[0], pictures[2]), "and is the same each time"


def test_wrong_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no configuration none\.yaml"):
        show.main(["none.yaml"])
    (tmp_path / "e.yaml").write_text("trainer: {}")
    with pytest.raises(ValueError, match="has no data part"):
        show.main([str(tmp_path / "e.yaml")])
