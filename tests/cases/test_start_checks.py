"""Faults that names and headers show are reported before the first step, in one line, without decoding."""

from pathlib import Path

import pytest
from PIL import Image, ImageFile

from structseg.audit.check import check
from tests.data.every_set import SETS, make_set


@pytest.mark.parametrize("name", SETS)
def test_all_faults_at_once_and_as_check_says_them(tmp_path: Path, name: str) -> None:
    make = make_set(name, tmp_path)
    first, second, third = make().file_samples("train", [])[:3]
    gone = first.masks[0] if first.masks else first.image
    gone.unlink()
    width, height = Image.open(second.image).size
    Image.new("RGB", (width, height // 2)).save(second.image)
    third.image.unlink()
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # looked at below
        make().dataset("train")
    text = str(caught.value)
    assert "\n" not in text
    for part in (first.name.rsplit("/", 1)[-1], str(second.image), "but its mask", third.image.stem):
        assert part in text
    said = " ".join(message for _, message in check(make()).faults)
    assert str(second.image) in said
    assert third.image.stem in said


@pytest.mark.parametrize("name", SETS)
def test_nothing_is_decoded(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_set(name, tmp_path)()
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail(f"decodes {image}"))
    data.check_files(("train", "test"))


@pytest.mark.parametrize(
    ("name", "file", "line"),
    [("voc", "ImageSets/Segmentation/train.txt", "2007_000002"), ("lfw", "parts_train.txt", "Ann_Lee 1")],
)
def test_names_that_are_listed_twice(tmp_path: Path, name: str, file: str, line: str) -> None:
    make = make_set(name, tmp_path)
    path = next(tmp_path.rglob(file))
    path.write_text(f"{path.read_text()}{line}\n{line}\n")
    with pytest.raises(ValueError, match=r"3 times|is listed twice"):
        make().dataset("train")
