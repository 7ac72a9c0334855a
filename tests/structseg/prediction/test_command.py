"""The files and messages of `structseg predict`, for a network whose labels are known in every pixel."""

from __future__ import annotations

import csv
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from structseg.api import Prediction
from structseg.datamodules.label_spaces import LabelSpace
from structseg.files import ROOT
from structseg.lightning_modules.inference import Probabilities
from structseg.options.class_index import class_modules
from structseg.prediction.command import main
from structseg.prediction.writer import PredictionWriter, output_stems

SPACE = LabelSpace("halves", ("background", "right", "never"), ((9, 8, 7), (200, 100, 0), (1, 1, 1)))


class Halves:
    """Background in the left half of an image's columns, `right` in the rest; the middle column is on the right."""

    label_space = SPACE

    def __init__(self) -> None:
        self.seen: list[int] = []  # images of each call

    def __call__(self, images: Any) -> Any:
        some = images if isinstance(images, list) else [images]
        self.seen.append(len(some))
        found = [self.one(image) for image in some]
        return found if isinstance(images, list) else found[0]

    def one(self, image: Image.Image) -> Prediction:
        right = (torch.arange(image.width) >= image.width // 2).float().expand(image.height, -1)
        return Prediction(image, Probabilities(torch.stack([1 - right, right, 0 * right])), SPACE)


class Nothing(Halves):
    """Background alone."""

    def one(self, image: Image.Image) -> Prediction:
        return Prediction(image, Probabilities(torch.ones(3, image.height, image.width)), SPACE)


class Breaks(Halves):
    """Fails in images that are 3 pixels wide, or in all."""

    def __init__(self, width: int | None = 3, error: type[BaseException] = RuntimeError) -> None:
        super().__init__()
        self.width, self.error = width, error

    def one(self, image: Image.Image) -> Prediction:
        if image.width == self.width or self.width is None:
            raise self.error("no room\nfor this")
        return super().one(image)


@pytest.fixture
def predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command in `tmp_path` with a network of its own; returns the options that it was loaded with."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.ckpt").touch()

    def run(*words: str, segmenter: Any = None) -> dict[str, Any]:
        given: dict[str, Any] = {}

        def load(checkpoints: list[str], **options: Any) -> Any:
            given.update(checkpoints=checkpoints, **options)
            return segmenter or Halves()

        monkeypatch.setattr("structseg.api.load", load)
        main(list(words))
        return given

    return run


def save(file: Path, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Random colours of (width, height), written without loss."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return pixels


def summary(out: Path) -> list[dict[str, str]]:
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files(out: Path) -> list[str]:
    """All but the legend, which every run leaves."""
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    return [name for name in found if name != "overlay_legend.png"]


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (2, 1), (400, 300), (300, 401)])
def test_one_image_in_every_pixel(size: tuple[int, int], tmp_path: Path, predict: Any, capsys: Any) -> None:
    width, height = size
    pixels = save(tmp_path / "in/sub/a.png", size)
    predict("a.ckpt", "in", "--out", "out")
    assert capsys.readouterr().out == "predictions: out, 1 labelled\n"
    index = Image.open(tmp_path / "out/sub/a.png")
    assert (index.mode, index.size) == ("P", size)
    half = width // 2
    expected = np.zeros((height, width), np.uint8)
    expected[:, half:] = 1
    assert np.array_equal(np.asarray(index), expected)
    assert index.getpalette("RGB") == [9, 8, 7, 200, 100, 0, 1, 1, 1] + [0] * 3 * 253
    drawn = np.asarray(Image.open(tmp_path / "out/sub/a_overlay.png")).astype(int)
    assert np.array_equal(drawn[:, :half], pixels[:, :half])
    # Half of the pixel and half of (200, 100, 0), to the nearest.
    assert np.array_equal(drawn[:, half:], (pixels[:, half:].astype(int) + (200, 100, 0) + 1) // 2)
    right = (width - half) * height
    assert summary(tmp_path / "out") == [
        {
            "name": "sub/a.png", "width": str(width), "height": str(height), "background": f"{half / width:.6f}",
            "right": f"{right / (width * height):.6f}", "never": "0.000000",
            "background_pixels": str(half * height), "right_pixels": str(right), "never_pixels": "0",
        }
    ]  # fmt: skip
    assert files(tmp_path / "out") == ["sub/a.png", "sub/a_overlay.png", "summary.csv"]
    header = (tmp_path / "out/sub/a.png").read_bytes()[16:26]
    assert struct.unpack(">IIBB", header) == (*size, 8, 3)  # width, height, bit depth, palette


def test_options_reach_load(tmp_path: Path, predict: Any) -> None:
    save(tmp_path / "p.png", (4, 4))
    (tmp_path / "b.ckpt").touch()
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/best.ckpt").touch()
    given = predict("a.ckpt", "b.ckpt", "run", "p.png")
    defaults = {"device": "auto", "batch_size": 1, "overlap": 0.25}
    unset = dict.fromkeys(("flip_test", "test_scales", "crf", "cropper", "tile"))
    assert given == {"checkpoints": ["a.ckpt", "b.ckpt", "run"], **defaults, **unset}
    assert (tmp_path / "predictions/p.png").is_file()
    words = "a.ckpt --flip_test true p.png --test_scales [0.5,1] --crf=False --tile 64 --batch_size 2 --overlap 0.5"
    given = predict(*words.split(), "--device", "cpu", "--cropper", "stn", "--out", "other")
    assert given == {
        "checkpoints": ["a.ckpt"], "flip_test": True, "test_scales": [0.5, 1.0], "crf": False, "tile": 64,
        "batch_size": 2, "overlap": 0.5, "device": "cpu", "cropper": "stn",
    }  # fmt: skip


def test_failed_images_are_reported_and_the_rest_is_labelled(tmp_path: Path, predict: Any, capsys: Any) -> None:
    for number, name in enumerate(("in/a.png", "in/b.bmp", "in/sub/c.png", "in/d.png", "in/wide.png")):
        save(tmp_path / name, (3 if "wide" in name else 4, 4), number)
    (tmp_path / "in/d.png").write_text("text")
    (tmp_path / "in/notes.txt").touch()
    (tmp_path / "in/clip.mp4").touch()
    with pytest.raises(SystemExit) as stop:
        predict("a.ckpt", "in", "--out", "out", "--batch_size", "3", segmenter=Breaks())
    assert stop.value.code == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(
        "structseg: error: predictions: out, 3 labelled; 4 passed over, named in out/summary.csv: d"
    )
    assert all(
        text in said[0] for text in ("d.png (in/d.png is no image", "wide.png (no room for this)", "; and 1 more")
    )
    rows = {row["name"]: row["passed_over"] for row in summary(tmp_path / "out")}
    assert list(rows)[:3] == ["a.png", "b.bmp", "sub/c.png"]
    assert rows.pop("d.png").startswith("in/d.png is no image")
    assert rows == {
        **dict.fromkeys(("a.png", "b.bmp", "sub/c.png"), ""), "wide.png": "no room for this",
        "notes.txt": ".txt is no image that is read", "clip.mp4": "a video, which is predicted alone",
    }  # fmt: skip
    for name in ("in/d.png", "in/wide.png"):
        (tmp_path / name).unlink()
    predict("a.ckpt", "in", "--out", "out")  # nothing has failed: no error
    assert "3 labelled; 2 passed over" in capsys.readouterr().out


def test_images_go_through_the_network_in_batches(tmp_path: Path, predict: Any) -> None:
    for number in range(7):
        save(tmp_path / f"in/{number}.png", (4 + number, 4))
    segmenter = Halves()
    predict("a.ckpt", "in", "--batch_size", "3", segmenter=segmenter)
    assert segmenter.seen == [3, 3, 1]
    assert [row["width"] for row in summary(tmp_path / "predictions")] == [str(4 + number) for number in range(7)]


def test_a_network_that_fails_at_once_ends_the_run(tmp_path: Path, predict: Any) -> None:
    for number in range(9):
        save(tmp_path / f"in/{number}.png", (4, 4))
    segmenter = Breaks(width=None)
    with pytest.raises(RuntimeError, match="no room"):
        predict("a.ckpt", "in", segmenter=segmenter)
    assert len(segmenter.seen) == 6, "three images, each tried twice"
    assert not (tmp_path / "predictions").exists()


def test_nothing_that_can_be_read_is_an_error_without_any_file(tmp_path: Path, predict: Any) -> None:
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(ValueError, match=r"^nothing could be labelled: a\.png \(a\.png is no image"):
        predict("a.ckpt", "a.png")
    assert not (tmp_path / "predictions").exists()


def test_only_background_is_reported(tmp_path: Path, predict: Any, capsys: Any) -> None:
    save(tmp_path / "in/a.png", (4, 4))
    for number, said in ((0, False), (1, True)):
        save(tmp_path / f"in/b{number}.png", (4, 4))
        if not number:
            (tmp_path / "in/a.png").rename(tmp_path / "kept.png")
        else:
            (tmp_path / "kept.png").rename(tmp_path / "in/a.png")
        predict("a.ckpt", "in", segmenter=Nothing())
        assert ("all of them only background" in capsys.readouterr().out) is said


def test_names_of_any_bytes_and_length(tmp_path: Path, predict: Any, capsys: Any) -> None:
    save(tmp_path / "in/a.png", (4, 4))
    odd = [b"caf\xe9.png", b"x" * 251 + b".png", "\u65e5".encode() * 83 + b".png", b"two\nlines.png"]
    for name in odd:
        (tmp_path / "in" / os.fsdecode(name)).write_bytes((tmp_path / "in/a.png").read_bytes())
    predict("a.ckpt", "in", "--out", "out")
    assert "5 labelled" in capsys.readouterr().out
    rows = [row["name"] for row in summary(tmp_path / "out")]
    assert {"a.png", "caf\\udce9.png", "x" * 251 + ".png", "\u65e5" * 83 + ".png", "two\nlines.png"} == set(rows)
    assert len(files(tmp_path / "out")) == 11
    assert all(len(os.fsencode(path.name)) <= 255 for path in (tmp_path / "out").iterdir())
    (tmp_path / "in" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    with pytest.raises(SystemExit):
        predict("a.ckpt", "in", "--out", "out")


def test_rows_are_sorted_and_a_second_run_changes_nothing_else(tmp_path: Path, predict: Any) -> None:
    for name in ("z.png", "a.bmp", "sub/m.tif"):
        save(tmp_path / "in" / name, (4, 4))
    out = tmp_path / "in/out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    predict("a.ckpt", "in", "--out", "in/out")
    first = {name: (out / name).read_bytes() for name in files(out)}
    assert [row["name"] for row in summary(out)] == ["a.bmp", "sub/m.tif", "z.png"]
    assert set(first) == {
        "a.png", "a_overlay.png", "z.png", "z_overlay.png", "sub/m.png", "sub/m_overlay.png", "summary.csv",
        "notes.txt",
    }  # fmt: skip
    predict("a.ckpt", "in", "--out", "in/out")
    assert first == {name: (out / name).read_bytes() for name in files(out)}


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (["a.jpg", "b.jpg", "s/a.jpg"], ["a", "b", "s/a"]),
        (["a.jpg", "a.png", "b.jpg"], ["a.jpg", "a.png", "b"]),
        (["a.jpg", "A.png"], ["a.jpg", "A.png"]),
        (["a.jpg", "a_overlay.jpg"], ["a.jpg", "a_overlay.jpg"]),
        (["a.jpg", "a.png", "a.jpg.gif"], ["a.jpg", "a.png", "a.jpg.gif"]),
        (["a.v1.jpg", "a.v2.jpg"], ["a.v1", "a.v2"]),
        (["noise"], ["noise"]),
        ([], []),
    ],
)
def test_output_stems(names: list[str], stems: list[str]) -> None:
    found = output_stems(names)
    assert list(found) == names
    assert list(found.values()) == stems
    written = [(stem + end).lower() for stem in found.values() for end in (".png", "_overlay.png")]
    assert len(set(written)) == len(written)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_predictions_before_an_interruption_are_kept(error: Any, tmp_path: Path, predict: Any) -> None:
    for name, width in (("a", 4), ("b", 4), ("c", 3), ("d", 4)):
        save(tmp_path / f"in/{name}.png", (width, 4))
    with pytest.raises(error):
        predict("a.ckpt", "in", "--out", "out", segmenter=Breaks(error=error))
    assert [row["name"] for row in summary(tmp_path / "out")] == ["a.png", "b.png"]
    assert files(tmp_path / "out") == ["a.png", "a_overlay.png", "b.png", "b_overlay.png", "summary.csv"]


def test_an_interruption_while_a_file_is_written_leaves_no_part_of_it(
    tmp_path: Path, predict: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "in/a.png", (4, 4))
    save(tmp_path / "in/b.png", (4, 4))
    kept, count = Image.Image.save, iter(range(9))

    def half(self: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        kept(self, file, *args, **kwargs)
        if next(count) == 3:  # the second overlay
            Path(file).write_bytes(Path(file).read_bytes()[:20])
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(KeyboardInterrupt):
        predict("a.ckpt", "in", "--out", "out")
    assert files(tmp_path / "out") == ["a.png", "a_overlay.png", "b.png", "summary.csv"]
    assert [row["name"] for row in summary(tmp_path / "out")] == ["a.png"]


def test_a_folder_that_cannot_be_made(tmp_path: Path, predict: Any) -> None:
    save(tmp_path / "in/a.png", (4, 4))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"no predictions can go to file/out \(Not a directory\); give another --out"):
        predict("a.ckpt", "in", "--out", "file/out")


@pytest.mark.slow
def test_ctrl_c_ends_the_command_in_one_line(tmp_path: Path) -> None:
    """The real command, interrupted as soon as it has written something."""
    from structseg.lightning_modules.fasseg_unet import FASSEGUNet
    from tests.data.tiny_runs import save_checkpoint

    network = class_modules()["ReadmeUNet"][0] + ".ReadmeUNet"
    method = class_modules()["FASSEGUNet"][0] + ".FASSEGUNet"
    save_checkpoint(tmp_path / "a.ckpt", FASSEGUNet(SPACE), method, network={"class_path": network})
    save(tmp_path / "in/0.png", (64, 64))
    for number in range(1, 3000):
        (tmp_path / f"in/{number}.png").hardlink_to(tmp_path / "in/0.png")
    words = [sys.executable, "-m", "structseg", "predict", "a.ckpt", "in", "--out", "out", "--device", "cpu"]
    running = subprocess.Popen(
        words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "out").glob("*.png"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert (running.returncode, said) == (130, "structseg: error: interrupted\n")
    masks = [name for name in files(tmp_path / "out") if name.endswith(".png") and "overlay" not in name]
    assert 0 < len(masks) < 3000
    assert len(masks) - len(summary(tmp_path / "out")) in (0, 1)
    for name in files(tmp_path / "out"):
        if name.endswith(".png"):
            Image.open(tmp_path / "out" / name).load()


av = pytest.importorskip("av", reason="PyAV is an extra: pip install structseg[video]")


def frames(count: int, size: tuple[int, int], interrupt_at: int = -1) -> Iterator[tuple[str, Image.Image]]:
    """Frames of one grey, (h, w)."""
    for number in range(count):
        if number == interrupt_at:
            raise KeyboardInterrupt
        yield f"clip/{number:06d}", Image.new("RGB", (size[1], size[0]), (100, 100, 100))


def write(out: Path, pictures: Iterator[tuple[str, Image.Image]], rate: Fraction | None) -> None:
    with PredictionWriter(out, SPACE, frame_rate=rate) as writer:
        for name, image in pictures:
            writer.add(name, Halves()(image))


def read_back(file: Path) -> tuple[list[np.ndarray], Sequence[float], Any]:
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        decoded = list(container.decode(stream))
        rate = Fraction(stream.average_rate.numerator, stream.average_rate.denominator)
    return [frame.to_ndarray(format="rgb24").astype(int) for frame in decoded], [frame.time for frame in decoded], rate


def test_a_video_file_becomes_an_overlay_video(tmp_path: Path, predict: Any) -> None:
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for _ in range(10):
            pixels = np.full((96, 128, 3), 100, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    predict("a.ckpt", "clip.mp4", "--out", "out")
    assert files(tmp_path / "out") == ["clip_overlay.mp4", "summary.csv"]
    found, times, rate = read_back(tmp_path / "out/clip_overlay.mp4")
    assert len(found) == 10
    assert rate == 25
    assert times == pytest.approx([i / 25 for i in range(10)])
    for number, frame in enumerate(found):
        assert frame.shape == (96, 128, 3)
        assert np.abs(frame[40:, 4:60] - 100).max() < 8  # the background keeps its colour
        assert np.abs(frame[40:, 68:] - (150, 100, 50)).max() < 8  # half of it and half of (200, 100, 0)
        corner = frame[:20, :60]
        if number == 0:
            assert np.abs(corner - 100).max() < 8  # one frame has no rate yet
        else:
            assert corner.max() > 200  # white digits
            assert corner.min() < 40  # with a black edge
    rows = summary(tmp_path / "out")
    assert [row["name"] for row in rows] == [f"clip/{number:06d}" for number in range(10)]
    assert {row["right_pixels"] for row in rows} == {str(64 * 96)}


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (49, 64), (48, 63)])
@pytest.mark.parametrize("codecs", ["all", "without H.264"])
def test_odd_sizes_and_both_codecs(
    size: tuple[int, int], codecs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if codecs != "all":
        monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    write(tmp_path, frames(4, size), Fraction(30000, 1001))
    found, _, rate = read_back(tmp_path / "clip_overlay.mp4")
    assert [frame.shape for frame in found] == [(*size, 3)] * 4
    assert rate == Fraction(30000, 1001)
    if min(size) > 40:
        assert np.abs(found[3][42:, 40:] - (150, 100, 50)).max() < 12


def test_a_camera_plays_at_the_time_at_which_its_frames_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5, 10.5, 11.0, 13.0])
    monkeypatch.setattr("structseg.prediction.overlay_video.time.perf_counter", lambda: next(clock))
    write(tmp_path, frames(5, (16, 16)), None)
    found, times, _ = read_back(tmp_path / "clip_overlay.mp4")
    assert len(found) == 5
    assert times == pytest.approx([0, 0.5, 0.501, 1.0, 3.0])  # two at one time would be refused


def test_an_interrupted_video_is_playable(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, frames(50, (48, 64), interrupt_at=6), Fraction(25))
    found, _, _ = read_back(tmp_path / "clip_overlay.mp4")
    assert len(found) == len(summary(tmp_path)) == 6
    assert files(tmp_path) == ["clip_overlay.mp4", "summary.csv"]


def test_the_legend_names_the_colours_and_replaces_no_mask(tmp_path, predict):
    for name in ("a.png", "overlay_legend.jpg"):
        save(tmp_path / "in" / name, (8, 8))
    predict("a.ckpt", "in", "--out", "out")
    assert Image.open(tmp_path / "out" / "overlay_legend.png").size[0] == 480
    assert Image.open(tmp_path / "out" / "overlay_legend.jpg.png").size == (8, 8)
