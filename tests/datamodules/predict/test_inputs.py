"""The images below a folder, files that are skipped or refused, and the kinds of sources."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from structseg.datamodules.predict.inputs import PredictImages, predict_inputs
from structseg.datamodules.predict.video import PredictFrames


def save(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 7)).save(file)
    return file


def names(out: Path, *sources: Path | str) -> list[str]:
    found = predict_inputs(list(map(str, sources)), out)
    assert isinstance(found, PredictImages)
    return list(found.files)


def test_a_folder_is_searched_in_order_and_what_is_no_image_is_passed_over(tmp_path: Path) -> None:
    for name in ("b.png", "A.JPG", "sub/deep/c.tiff", "sub/a.webp", "d.jpe.jpg", ".hidden.png", ".thumbnails/b.png"):
        save(tmp_path / name)
    for name in ("notes.txt", "sub/clip.MP4", "README", "scan.tga"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = predict_inputs([str(tmp_path)], tmp_path / "out")
    assert isinstance(found, PredictImages)
    assert list(found.files) == ["A.JPG", "b.png", "d.jpe.jpg", "sub/a.webp", "sub/deep/c.tiff"]
    assert found.files["sub/a.webp"] == tmp_path / "sub/a.webp"
    assert found.passed_over == {
        "README": "a name without a suffix is no image that is read",
        "notes.txt": ".txt is no image that is read",
        "scan.tga": ".tga is no image that is read",
        "sub/clip.MP4": "a video, which is predicted alone",
    }


def test_links_are_followed_and_each_folder_is_read_once(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere/x/p.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere/x/ring").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "in/q.png").symlink_to(tmp_path / "elsewhere/x/p.png")
    (tmp_path / "in/gone.png").symlink_to(tmp_path / "nowhere.png")
    assert names(tmp_path / "out", tmp_path / "in") == ["link/x/p.png", "q.png"]


def test_one_image_whatever_it_is_called(tmp_path: Path) -> None:
    save(tmp_path / "a.png").rename(tmp_path / "scan.dat")
    assert names(tmp_path / "out", tmp_path / "scan.dat") == ["scan.dat"]


@pytest.mark.parametrize("relative", [False, True])
def test_predictions_below_the_folder_are_not_read(
    relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jpg", "out/a.png", "out/sub/b.png", "outside/c.png"):
        save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    source, out = (Path(), Path("out")) if relative else (tmp_path, tmp_path / "out")
    assert names(out, source) == ["a.jpg", "outside/c.png"]


def test_a_folder_below_the_predictions_is_read(tmp_path: Path) -> None:
    save(tmp_path / "in/a.jpg")
    assert names(tmp_path, tmp_path / "in") == ["a.jpg"]


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
    with pytest.raises(ValueError, match=r"would lie among the images that are read; give another --out"):
        names(out, source)


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "movie.mp4").touch()
    with pytest.raises(ValueError, match=r"holds no images .*give a video by the path"):
        names(tmp_path / "out", tmp_path)
    for missing in ("gone", "gone.png", "gone.mp4"):
        with pytest.raises(FileNotFoundError, match=rf"no file or folder .*{missing}; give images"):
            names(tmp_path / "out", tmp_path / missing)


def test_the_source_decides(tmp_path: Path) -> None:
    save(tmp_path / "clip.mp4/a.png")  # a folder, however it is called
    assert names(tmp_path / "out", tmp_path / "clip.mp4") == ["a.png"]
    assert isinstance(predict_inputs(["camera:0"], tmp_path / "out"), PredictFrames)


def test_what_an_earlier_prediction_wrote_is_no_photograph(tmp_path: Path) -> None:
    for name, summary in (("old", "name,width,height,background\n"), ("own", "name;age\n")):
        save(tmp_path / name / "a.png")
        (tmp_path / name / "summary.csv").write_text(summary)
    assert names(tmp_path / "new", tmp_path) == ["own/a.png"]
    assert names(tmp_path / "new", tmp_path / "old") == ["a.png"]


def test_several_images_and_folders(tmp_path: Path) -> None:
    """Each once; below the folder that holds them all where two would have one name; no video among them."""
    for name in ("a/p.png", "a/q.png", "b/p.png", "c.png"):
        save(tmp_path / name)
    (tmp_path / "v.mp4").touch()

    def found(*sources: str) -> tuple[list[str], list[str]]:
        images = predict_inputs([str(tmp_path / source) for source in sources], tmp_path / "out")
        assert isinstance(images, PredictImages)
        return list(images.files), [file.relative_to(tmp_path).as_posix() for file in images.files.values()]

    assert found("c.png", "a", "a/p.png") == (["c.png", "p.png", "q.png"], ["c.png", "a/p.png", "a/q.png"])
    assert found("a/p.png", "b") == (["a/p.png", "b/p.png"],) * 2
    assert found("c.png") == (["c.png"],) * 2
    with pytest.raises(ValueError, match=r"v\.mp4 is a video or a camera, which is predicted alone"):
        found("c.png", "v.mp4")
