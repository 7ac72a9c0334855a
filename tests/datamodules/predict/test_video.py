"""Frames against the video that they were written to, and errors for unreadable sources."""

from __future__ import annotations

import os
import signal
import struct
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structseg.datamodules.predict.inputs import predict_inputs
from structseg.datamodules.predict.video import PredictFrames, camera_input, upright

av = pytest.importorskip("av", reason="PyAV is an extra: pip install structseg[video]")


def make_video(file: Path, count: int = 10, size: tuple[int, int] = (48, 64), rate: Fraction | int = 24) -> Path:
    """`count` frames of (h, w): the left half red, the right half a grey of 20 times the frame's number."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for number in range(count):
            pixels = np.full((*size, 3), 20 * number, np.uint8)
            pixels[:, : size[1] // 2] = (200, 0, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return file


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mov", "mkv", "m4v"])
def test_frames_in_order(suffix: str, tmp_path: Path) -> None:
    frames = predict_inputs([str(make_video(tmp_path / f"clip.{suffix}"))], tmp_path)
    assert isinstance(frames, PredictFrames)
    assert frames.frame_rate == 24
    samples = list(frames)
    assert [name for name, _ in samples] == [f"clip/{number:06d}" for number in range(10)]
    for number, (_, image) in enumerate(samples):
        assert (image.mode, image.size) == ("RGB", (64, 48))
        pixels = np.asarray(image).astype(int)
        assert np.abs(pixels[10:40, 40:60] - 20 * number).max() < 6
        assert pixels[10:40, 5:25, 0].min() > 190
        assert pixels[10:40, 5:25, 1:].max() < 12
    assert len(list(frames)) == 10  # a second pass restarts


def test_a_fractional_rate(tmp_path: Path) -> None:
    file = make_video(tmp_path / "clip.mp4", 3, rate=Fraction(30000, 1001))
    assert PredictFrames(str(file)).frame_rate == Fraction(30000, 1001)


def test_upright_turns_counterclockwise_by_right_angles() -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    assert upright(pixels, 0)[..., 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert upright(pixels, 90)[..., 0].tolist() == [[2, 5], [1, 4], [0, 3]]
    assert upright(pixels, -90)[..., 0].tolist() == [[3, 0], [4, 1], [5, 2]]
    assert upright(pixels, 179)[..., 0].tolist() == [[5, 4, 3], [2, 1, 0]]
    assert upright(pixels, -90).flags["C_CONTIGUOUS"]


def test_a_telephones_portrait(tmp_path: Path) -> None:
    file = make_video(tmp_path / "clip.mp4", 2)
    data = file.read_bytes()
    lies = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 0x40000000)
    # ISO 14496-12, 8.3.2: this matrix has the player turn the stored picture clockwise by a quarter.
    stands = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 0x40000000)
    track = data.index(b"tkhd")
    at = data.index(lies, track)
    file.write_bytes(data[:at] + stands + data[at + 36 :])
    _, image = next(iter(PredictFrames(str(file))))
    assert image.size == (48, 64)
    assert np.asarray(image)[:30, :, 0].min() > 190  # the red left half is on top now
    assert np.asarray(image)[34:, :, 0].max() < 12


def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("a list of things to do\n")
    with pytest.raises(ValueError, match=r"text\.mp4 cannot be read \(Invalid data.*\); copy it again"):
        predict_inputs([str(tmp_path / "text.mp4")], tmp_path)
    whole = make_video(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])  # MP4 has its index at the end
    with pytest.raises(ValueError, match=r"half\.mp4 cannot be read") as error:
        predict_inputs([str(tmp_path / "half.mp4")], tmp_path)
    assert "\n" not in str(error.value)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"sound\.mp4 holds no pictures, only audio"):
        PredictFrames(str(tmp_path / "sound.mp4"))


def test_without_pyav_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").touch()
    for source in (str(tmp_path / "clip.mp4"), "camera:0"):
        with pytest.raises(ValueError, match=r"need PyAV, which is not installed; pip install 'structseg\[video\]'$"):
            predict_inputs([source], tmp_path)


@pytest.mark.parametrize("source", ["camera:", "camera:front", "camera:-1", "camera:1.5"])
def test_a_camera_has_a_number(source: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no camera; give camera:0 for the first"):
        predict_inputs([source], tmp_path)


def test_each_systems_camera() -> None:
    assert camera_input(2, "linux") == ("v4l2", "/dev/video2", {})
    assert camera_input(0, "darwin") == ("avfoundation", "0:none", {"framerate": "30"})
    assert camera_input(1, "win32") == ("dshow", "video=", {})


def test_a_camera_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    frames = predict_inputs(["camera:97"], tmp_path)
    with pytest.raises(ValueError, match=r"camera:97 cannot be read \(.*\); check that it is connected and not in use"):
        next(iter(frames))


class Camera:
    """A substitute for an open device: endless frames, some of which are not available yet."""

    def __init__(self) -> None:
        self.delivered, self.closed = 0, False

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True

    def decode(self, video: int) -> Iterator[Any]:
        while True:
            if self.delivered % 3 == 2:
                self.delivered += 1
                raise BlockingIOError
            pixels = np.full((4, 6, 3), self.delivered, np.uint8)
            self.delivered += 1
            yield av.VideoFrame.from_ndarray(pixels, format="rgb24")


@pytest.mark.parametrize(
    ("platform", "device", "kind"),
    [("linux", "/dev/video1", "v4l2"), ("darwin", "1:none", "avfoundation"), ("win32", "video=second", "dshow")],
)
def test_a_camera_runs_until_interrupted(
    platform: str, device: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera, opened = Camera(), []

    class Device:
        def __init__(self, name: str, *kinds: str) -> None:
            self.name, self.media_types = name, list(kinds)

    def opener(file: str, format: str, options: dict[str, str]) -> Camera:
        opened.append((file, format))
        return camera

    devices = [Device("microphone", "audio"), Device("first", "video"), Device("second", "video", "audio")]
    monkeypatch.setattr(av, "open", opener)
    monkeypatch.setattr(av, "enumerate_input_devices", lambda kind: devices)
    monkeypatch.setattr(sys, "platform", platform)
    before = signal.getsignal(signal.SIGINT)
    frames = predict_inputs(["camera:1"], tmp_path)
    assert isinstance(frames, PredictFrames)
    assert frames.frame_rate is None
    seen = []
    for name, image in frames:
        seen.append((name, int(np.asarray(image).max())))
        if len(seen) == 5:
            os.kill(os.getpid(), signal.SIGINT)
    assert seen == [(f"camera_1/{i:06d}", value) for i, value in enumerate([0, 1, 3, 4, 6])]
    assert opened == [(device, kind)]
    assert camera.closed
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_interrupt_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    camera = Camera()
    monkeypatch.setattr(av, "open", lambda *_, **__: camera)
    monkeypatch.setattr(sys, "platform", "linux")
    frames = iter(predict_inputs(["camera:0"], tmp_path))
    next(frames)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    frames.close()
    assert camera.closed


def test_too_few_cameras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(av, "enumerate_input_devices", lambda kind: [])
    with pytest.raises(ValueError, match="no camera:0; 0 cameras were found, counted from 0"):
        next(iter(predict_inputs(["camera:0"], tmp_path)))
