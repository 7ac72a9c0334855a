"""The frames of a video file or of a camera, as inputs of `predict`."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
CAMERA = "camera:"


def load_av() -> ModuleType:
    """PyAV.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import av
    except ImportError:
        raise ValueError(
            "videos and cameras need PyAV, which is not installed; pip install 'structseg[video]'"
        ) from None
    return av  # type: ignore[no-any-return, unused-ignore]


class PredictFrames:
    """The frames of a video or camera, upright and in order.

    A camera runs until Ctrl-C, which finishes the current frame first; a second Ctrl-C interrupts as usual.

    Args:
        source: a video file, or `camera:N` with N from 0.

    Attributes:
        stem: beginning of the frames' names: the file's stem, or `camera_N`.
        frame_rate: average number of frames per second of the file; None for a camera.

    Raises:
        ValueError: PyAV is missing, there is no such camera, or the file has no readable video.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._av = load_av()
        self.camera: int | None = None
        self.frame_rate: Fraction | None = None
        if source.startswith(CAMERA):
            number = source.removeprefix(CAMERA)
            if not (number.isascii() and number.isdigit()):
                raise ValueError(f"{source} is no camera; give camera:0 for the first, camera:1 for the next")
            self.camera = int(number)
            self.stem = f"camera_{self.camera}"
            return
        self.stem = Path(source).stem
        with self._naming(0), self._open() as container:
            if not container.streams.video:
                raise ValueError(f"{source} holds no pictures, only {', '.join(s.type for s in container.streams)}")
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            self.frame_rate = Fraction(rate.numerator, rate.denominator)

    def __iter__(self) -> Iterator[tuple[str, Image.Image]]:
        """The name of each frame, `stem/000123`, counted from 0, and its RGB image."""
        with self._naming(0), self._open() as container:
            frames = _waiting(container)
            with _until_interrupted(self.camera is not None) as stopped:
                count = 0
                while not stopped.is_set():
                    with self._naming(count):
                        frame = next(frames, None)
                    if frame is None:
                        break
                    pixels = upright(frame.to_ndarray(format="rgb24"), frame.rotation)
                    yield f"{self.stem}/{count:06d}", Image.fromarray(pixels)
                    count += 1
        if count == 0 and self.camera is None:
            raise ValueError(f"{self.source} holds no frame that can be decoded; copy it again")

    def _open(self) -> Any:
        if self.camera is None:
            return self._av.open(self.source)
        kind, device, options = camera_input(self.camera, sys.platform)
        if kind == "dshow":
            cameras = [d.name for d in self._av.enumerate_input_devices(kind) if "video" in d.media_types]
            if self.camera >= len(cameras):
                raise ValueError(f"no {self.source}; {len(cameras)} cameras were found, counted from 0")
            device += cameras[self.camera]
        return self._av.open(device, format=kind, options=options)

    @contextmanager
    def _naming(self, count: int) -> Iterator[None]:
        """Turns PyAV's errors into one line that names the source and the frame."""
        try:
            yield
        except self._av.FFmpegError as error:
            where = f" at frame {count}" if count else ""
            mend = "copy it again" if self.camera is None else "check that it is connected and not in use"
            raise ValueError(f"{self.source} cannot be read{where} ({error.strerror}); {mend}") from None
        except (UnicodeError, OverflowError, MemoryError) as error:  # of damaged metadata and sizes
            raise ValueError(f"{self.source} is damaged ({type(error).__name__}); copy it again") from None


def camera_input(number: int, platform: str) -> tuple[str, str, dict[str, str]]:
    """FFmpeg's input format, device and options for a camera on a `sys.platform`."""
    if platform == "darwin":
        return "avfoundation", f"{number}:none", {"framerate": "30"}  # most cameras refuse its default of 29.97
    if platform == "win32":
        return "dshow", "video=", {}  # followed by the camera's name
    return "v4l2", f"/dev/video{number}", {}


def upright(pixels: NDArray[np.uint8], degrees: int) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) turned counterclockwise by `degrees`, rounded to a right angle, as players do."""
    return np.ascontiguousarray(np.rot90(pixels, round(degrees / 90)))


def _waiting(container: Any) -> Iterator[Any]:
    while True:
        try:
            yield from container.decode(video=0)
        except BlockingIOError:  # from a camera on macOS that has no new frame yet
            time.sleep(0.005)
        else:
            return


@contextmanager
def _until_interrupted(wanted: bool) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, if `wanted`; the second one interrupts."""
    stopped = threading.Event()
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the form of a signal's handler
        stopped.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
