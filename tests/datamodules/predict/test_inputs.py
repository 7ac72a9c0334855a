"""What is found below a folder, what is refused before the work begins, and which input a source names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from structseg.datamodules.predict.inputs import PredictImages, predict_inputs
from structseg.datamodules.predict.video import PredictFrames

SIZE = (8, 6)


def save(file: Path, value: int = 0, size: tuple[int, int] = (5, 7)) -> Path:
    """A grey image of (width, height)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(file)
    return file


def test_a_folder_is_searched_in_order_and_samples_have_both_sizes(tmp_path: Path) -> None:
    for value, name in enumerate(["b.png", "A.JPG", "sub/deep/c.tiff", "sub/a.webp"]):
        save(tmp_path / name, value * 51)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("what macOS leaves behind")
    (tmp_path / ".thumbnails").mkdir()
    save(tmp_path / ".thumbnails/b.png")
    (tmp_path / "folder.png").mkdir()
    images = PredictImages(tmp_path, SIZE)
    assert images.names == ["A.JPG", "b.png", "sub/a.webp", "sub/deep/c.tiff"]
    assert len(images) == 4
    sample = images[3]
    assert sample["name"] == "sub/deep/c.tiff"
    assert sample["image"].shape == (3, 8, 6)
    assert sample["original"].shape == (3, 7, 5)
    assert torch.allclose(sample["original"][0], torch.full((7, 5), 102 / 255))
    assert sample["original"][1:].max() == 0
    assert set(sample) == {"image", "original", "name"}


def test_one_image_whatever_it_is_called(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(tmp_path / "scan.dat", "PNG")
    images = PredictImages(tmp_path / "scan.dat", SIZE, tmp_path / "out")
    assert images.names == ["scan.dat"]
    assert images[0]["original"].shape == (3, 1, 1)


@pytest.mark.parametrize("relative", [False, True])
def test_predictions_below_the_folder_are_not_read(
    relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a.jpg")
    save(tmp_path / "out/a.png")
    save(tmp_path / "out/sub/b.png")
    save(tmp_path / "outside/c.png")
    monkeypatch.chdir(tmp_path)
    source, out = (Path(), Path("out")) if relative else (tmp_path, tmp_path / "out")
    assert PredictImages(source, SIZE, out).names == ["a.jpg", "outside/c.png"]


def test_a_folder_below_the_predictions_is_read(tmp_path: Path) -> None:
    save(tmp_path / "in/a.jpg")
    assert PredictImages(tmp_path / "in", SIZE, tmp_path).names == ["a.jpg"]


@pytest.mark.parametrize("case", ["the folder itself", "the image's folder", "by way of a subfolder"])
def test_predictions_among_the_images_are_refused(case: str, tmp_path: Path) -> None:
    source, out = tmp_path, tmp_path
    file = save(tmp_path / "a.png")
    if case == "the image's folder":
        source = file
    if case == "by way of a subfolder":  # sub/x/b.png -> OUT/x/b.png, and OUT/x is what is read
        source, out = tmp_path / "x", tmp_path
        save(source / "x/b.png")
        save(source / "b.png")
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"would lie among the images that are read; set --data\.predict_out"):
        PredictImages(source, SIZE, out)
    assert file.read_bytes() == before


def test_all_unreadable_images_are_named_at_the_start_in_one_line(tmp_path: Path) -> None:
    good = save(tmp_path / "a.jpg", size=(640, 640))
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"^\S*cut\.jpg cannot be decoded \(.*truncated.*\); copy it again"):
        PredictImages(tmp_path, SIZE)
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(
        ValueError, match=r"3 of 4 images cannot be read: .*cut\.jpg.*; .*empty\.png.*; .*text\.png"
    ) as e:
        PredictImages(tmp_path, SIZE)
    assert "\n" not in str(e.value)
    for number in range(20):
        (tmp_path / f"z{number:02d}.png").touch()
    with pytest.raises(ValueError, match=r"23 of 24 images.*z06\.png is empty.*; and 13 more$"):
        PredictImages(tmp_path, SIZE)


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "movie.mp4").touch()
    with pytest.raises(ValueError, match=r"holds no images .*check --data\.predict_dir, and give a video by the path"):
        PredictImages(tmp_path, SIZE)
    for missing in ("gone", "gone.png", "gone.mp4"):
        with pytest.raises(FileNotFoundError, match=rf"no file or folder .*{missing}; check --data\.predict_dir"):
            predict_inputs(str(tmp_path / missing), SIZE, tmp_path / "out")


def test_the_source_decides(tmp_path: Path) -> None:
    save(tmp_path / "clip.mp4/a.png")  # a folder, however it is called
    assert isinstance(predict_inputs(str(tmp_path / "clip.mp4"), SIZE, tmp_path / "out"), PredictImages)
    assert isinstance(predict_inputs(str(tmp_path / "clip.mp4/a.png"), SIZE, tmp_path / "out"), PredictImages)
    assert isinstance(predict_inputs("camera:0", SIZE, tmp_path / "out"), PredictFrames)


def test_what_an_earlier_prediction_wrote_is_no_photograph(tmp_path):
    for name, summary in (("old", "name,width,height,background\n"), ("own", "name;age\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.csv").write_text(summary)
        Image.new("RGB", (4, 4)).save(tmp_path / name / "a.png")
    assert PredictImages(tmp_path, (8, 8), tmp_path / "new").names == ["own/a.png"]
    assert PredictImages(tmp_path / "old", (8, 8), tmp_path / "new").names == ["a.png"]


def test_several_images_and_folders(tmp_path):
    """Each once; below the folder that holds them all where two would have one name; no video among them."""
    for name in ("a/p.png", "a/q.png", "b/p.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 3)).save(tmp_path / name)
    (tmp_path / "v.mp4").touch()
    size, out = (8, 8), tmp_path / "out"

    def names(*sources):
        found = predict_inputs([str(tmp_path / source) for source in sources], size, out)
        return found.names, [file.relative_to(tmp_path).as_posix() for file in found.files]

    assert names("c.png", "a", "a/p.png") == (["c.png", "p.png", "q.png"], ["c.png", "a/p.png", "a/q.png"])
    assert names("a/p.png", "b") == (["a/p.png", "b/p.png"],) * 2
    assert names("c.png") == (["c.png"],) * 2
    with pytest.raises(ValueError, match=r"v\.mp4 is a video or a camera, which is predicted alone"):
        names("c.png", "v.mp4")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        names("c.png", "none")
