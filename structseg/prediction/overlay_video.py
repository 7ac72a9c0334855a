"""Writes a video frame by frame, with the current frame rate drawn on each frame."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_INERTIA = 0.9  # of the displayed frame rate, a mean over about the last ten frames
_MILLISECOND = Fraction(1, 1000)


class OverlayVideo:
    """An MP4 file, H.264 where that codec is installed and MPEG-4 otherwise; it can be played after `close`.

    Args:
        path: the file; until `close` it is called `.NAME.part`.
        frame_rate: frames a second; None gives each frame the time at which it was added.
    """

    def __init__(self, path: Path, frame_rate: Fraction | None) -> None:
        self.path, self.frame_rate = path, frame_rate
        self._beside = path.with_name(f".{path.name}.part")
        self._container: Any = None
        self._stream: Any = None
        self._times: tuple[float, float] | None = None  # of the first and the last frame, in seconds
        self._interval: float | None = None  # seconds from frame to frame, smoothed
        self._last_pts = -1

    def add(self, picture: NDArray[np.uint8]) -> None:
        """Adds a frame, (H, W, 3) uint8; all have the size of the first, or are scaled to it."""
        import av  # an extra, which reading the frames has already needed

        now = time.perf_counter()
        first, last = self._times or (now, now)
        if self._times is not None:
            passed = max(now - last, 1e-6)
            self._interval = passed if self._interval is None else _INERTIA * self._interval + (1 - _INERTIA) * passed
        self._times = (first, now)
        if self._container is None:
            self._open(picture.shape[1], picture.shape[0])
        drawn = draw_rate(picture, None if self._interval is None else 1 / self._interval)
        frame = av.VideoFrame.from_ndarray(drawn, format="rgb24")
        time_base = 1 / self.frame_rate if self.frame_rate else _MILLISECOND
        due = self._last_pts + 1 if self.frame_rate else round((now - first) / time_base)
        self._last_pts = max(due, self._last_pts + 1)
        frame.pts, frame.time_base = self._last_pts, time_base
        self._container.mux(self._stream.encode(frame))

    def _open(self, width: int, height: int) -> None:
        import av

        h264 = "libx264" in av.codecs_available
        self._container = av.open(str(self._beside), "w", format="mp4")
        if self.frame_rate:
            self.frame_rate = self.frame_rate.limit_denominator(1001)  # MPEG-4 counts time in 16 bits
        self._stream = self._container.add_stream(
            "libx264" if h264 else "mpeg4",
            rate=self.frame_rate or 30,
            options={"crf": "18", "preset": "veryfast"} if h264 else {},
        )
        self._stream.width, self._stream.height = width, height
        # Halved colour, which every player shows, needs even sizes from H.264.
        self._stream.pix_fmt = "yuv444p" if h264 and (width % 2 or height % 2) else "yuv420p"
        self._stream.codec_context.time_base = 1 / self.frame_rate if self.frame_rate else _MILLISECOND
        if not h264:
            self._stream.bit_rate = max(200_000, 5 * width * height)

    def close(self) -> None:
        """Completes the file and renames it; does nothing without frames, or a second time."""
        if self._container is None:
            return
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._container = None
        self._beside.replace(self.path)


def draw_rate(picture: NDArray[np.uint8], rate: float | None) -> NDArray[np.uint8]:
    """The picture (H, W, 3) with `RATE fps` in its upper left corner; as it is where the rate is not known yet."""
    if rate is None:
        return picture
    height = picture.shape[0]
    image = Image.fromarray(picture)
    font = ImageFont.load_default(max(10, height // 24))
    margin = max(2, height // 60)
    ImageDraw.Draw(image).text(
        (margin, margin), f"{rate:.1f} fps", (255, 255, 255), font, stroke_width=2, stroke_fill=(0, 0, 0)
    )
    return np.asarray(image)
