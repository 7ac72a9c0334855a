import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from structseg.datamodules.fasseg.datamodule import FASSEGDataModule
from structseg.datamodules.packed import MARKER, PackedFile, packed_copy, packed_size
from structseg.results import pack
from structseg.results.manifest import Row
from tests.data.fasseg import make_fasseg
from tests.data.tiny import TinyDataModule

SIZE = (32, 24)


def row(name="a", **changes):
    return Row(name, "what", "pyproject.toml", "faces", "miou", {"cpu": 1, "gpu": 1}, (0,), **changes)


def photograph(path: Path, size=(96, 72), seed=0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


class Photographs:
    """Stands for a datamodule."""

    def __init__(self, files):
        self.files = files

    def files_to_pack(self):
        return self.files


@pytest.fixture
def reads(tmp_path, monkeypatch):
    """Says what each row reads; the data root is `tmp_path`."""
    (tmp_path / "faces").mkdir()

    def say(**files):
        monkeypatch.setattr(pack, "row_datamodules", lambda row, folder: [Photographs(files[row.name])])

    return say


def test_images_shrink_to_the_pixels_that_are_trained_on_and_the_rest_is_copied(tmp_path, reads):
    image = photograph(tmp_path / "x" / "1.bmp")
    label = photograph(tmp_path / "x" / "1.png", seed=1)
    reads(a=[PackedFile(image, "RGB/1.bmp", SIZE), PackedFile(label, "labels/1.png")])
    total = pack.pack_rows([row()], tmp_path / "out", tmp_path)
    copy = tmp_path / "out" / "faces"
    with Image.open(image) as whole, Image.open(copy / "RGB" / "1.bmp") as shrunk:
        expected = whole.resize((24, 32), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(np.asarray(shrunk), np.asarray(expected))
    assert (copy / "labels" / "1.png").read_bytes() == label.read_bytes()
    assert total == sum(path.stat().st_size for path in copy.rglob("1.*"))
    assert json.loads((copy / MARKER).read_text()) == {"format": 1, "size": [32, 24], "quality": None, "files": 2}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_file_that_takes_less_room_as_it_is_stays_so(tmp_path, reads):
    image = tmp_path / "flat.png"
    Image.new("RGB", (33, 33)).save(image)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(image)
    reads(a=[PackedFile(image, "flat.png", (64, 64))])
    pack.pack_rows([row()], tmp_path / "out", tmp_path)
    assert (tmp_path / "out" / "faces" / "flat.png").read_bytes() == image.read_bytes()


def test_jpeg_on_request(tmp_path, reads):
    image = photograph(tmp_path / "1.bmp")
    reads(a=[PackedFile(image, "1.bmp", SIZE)])
    pack.pack_rows([row()], tmp_path / "out", tmp_path, quality=95)
    with Image.open(tmp_path / "out" / "faces" / "1.bmp") as stored:
        assert (stored.format, stored.size) == ("JPEG", (24, 32))
    assert packed_copy(tmp_path / "out" / "faces")["quality"] == 95
    with pytest.raises(ValueError, match="quality is 0"):
        pack.pack_rows([row()], tmp_path / "out2", tmp_path, quality=0)


def test_rows_that_want_two_sizes_get_whole_images(tmp_path, reads, capsys):
    image = photograph(tmp_path / "1.bmp")
    reads(a=[PackedFile(image, "1.bmp", SIZE)], b=[PackedFile(image, "1.bmp", (16, 16))])
    pack.pack_rows([row(), row("b")], tmp_path / "out", tmp_path)
    assert (tmp_path / "out" / "faces" / "1.bmp").read_bytes() == image.read_bytes()
    assert packed_size(tmp_path / "out" / "faces", (5, 5)) is None
    assert "faces is read at 16x16, 32x24: its images are copied as they are" in capsys.readouterr().out


def test_two_files_for_one_place_are_refused(tmp_path, reads):
    one, two = photograph(tmp_path / "1.bmp"), photograph(tmp_path / "2.bmp")
    reads(a=[PackedFile(one, "1.bmp"), PackedFile(two, "1.bmp")])
    with pytest.raises(ValueError, match=r"both belong at faces/1\.bmp"):
        pack.pack_rows([row()], tmp_path / "out", tmp_path)


def test_past_the_limit_nothing_is_left(tmp_path, reads):
    files = [PackedFile(photograph(tmp_path / f"{i}.bmp", (300, 300)), f"{i}.bmp") for i in range(4)]  # 0.26 MiB each
    reads(a=files)
    with pytest.raises(
        ValueError, match=r"passes 0\.5 MiB after 2 of 4 files of faces \(about 1 MiB in all\)"
    ) as error:
        pack.pack_rows([row()], tmp_path / "out", tmp_path, limit_mib=0.5)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_cannot_be_packed(tmp_path, monkeypatch, capsys):
    (tmp_path / "faces").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(ValueError, match="full is not empty"):
        pack.pack_rows([row()], tmp_path / "full", tmp_path)
    with pytest.raises(FileNotFoundError, match="which is no folder"):
        pack.pack_rows([row()], tmp_path / "out", tmp_path / "nowhere")
    monkeypatch.setattr(pack, "row_datamodules", lambda row, folder: [TinyDataModule()])
    with pytest.raises(ValueError, match="TinyDataModule of row a cannot be packed"):
        pack.pack_rows([row()], tmp_path / "out", tmp_path)


def test_markers(tmp_path):
    assert packed_copy(tmp_path) is None
    assert packed_size(tmp_path, (3, 4)) is None
    marker = tmp_path / MARKER
    marker.write_text('{"format": 1, "size": [32, 24], "quality": null}')
    assert packed_size(tmp_path, SIZE) == packed_size(tmp_path) == SIZE
    with pytest.raises(ValueError, match=r"copy for images of 32x24, not 24x32; set --data\.size \[32, 24\]"):
        packed_size(tmp_path, (24, 32))
    for text in ("", "[]", '{"format": 2, "size": null}', '{"format": 1}', '{"format": 1, "size": [3]}'):
        marker.write_text(text)
        with pytest.raises(ValueError, match=r"packed\.json is damaged"):
            packed_copy(tmp_path)


@pytest.mark.parametrize("decoding", ["fasseg-labels-1", "published"])
def test_fasseg_reads_its_copy_to_the_same_samples(tmp_path, decoding):
    root = make_fasseg(tmp_path / "data" / "fasseg", train=4, test=2, size=(96, 72), ext="bmp")
    config = {
        "model": {"class_path": "FASSEGUNet"},
        "data": {"class_path": "FASSEGDataModule", "init_args": {"size": list(SIZE), "label_decoding": decoding}},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    overrides = ("--data.folds", "2", "--data.fold", "0", "--data.score_at", "native")
    made = Row("a", "x", str(tmp_path / "c.yaml"), "fasseg", "miou", {"cpu": 1}, (0,), overrides)
    pack.pack_rows([made], tmp_path / "out", tmp_path / "data")
    copy = tmp_path / "out" / "fasseg"
    assert sum(path.stat().st_size for path in copy.rglob("*_RGB/*")) * 4 < sum(
        path.stat().st_size for path in root.rglob("*_RGB/*")
    )
    for split in ("train", "val", "test"):
        whole, packed = (
            FASSEGDataModule(folder, size=SIZE, label_decoding=decoding, folds=2, fold=0, score_at="native").dataset(
                split
            )
            for folder in (root, copy)
        )
        assert len(whole) == len(packed) > 0
        for one, other in zip(whole, packed, strict=False):
            assert one["name"] == other["name"]
            assert torch.equal(one["image"], other["image"])
            assert torch.equal(one["mask"], other["mask"])
    with pytest.raises(ValueError, match="copy for images of 32x24, not 256x256"):
        FASSEGDataModule(copy).dataset("train")
