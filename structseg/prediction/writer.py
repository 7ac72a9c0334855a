"""Writes the results of `predict`: index PNG, overlay and areas of images; overlay video and areas of frames."""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from structseg.api import Prediction
from structseg.datamodules.label_spaces import LabelSpace
from structseg.lightning_modules.drawing.label_sheets import legend
from structseg.prediction.overlay_video import OverlayVideo

SUMMARY, LEGEND = "summary.csv", "overlay_legend.png"
_ENDS = (".png", "_overlay.png")
_LEGEND_WIDTH = 480  # pixels
_LONGEST = 255 - max(map(len, _ENDS))  # bytes of a file name without its end, at most


class Areas(NamedTuple):
    """A row of the summary: the number of pixels of each class in an image."""

    name: str
    width: int
    height: int
    pixels: tuple[int, ...]


class PredictionWriter:
    """Writes the predictions of images or of a video into a folder; to be used in a `with` block.

    An image `sub/a.jpg` gives `OUT/sub/a.png` (class indices with the palette) and `OUT/sub/a_overlay.png`, of its own
    size; a video or camera gives one `OUT/STEM_overlay.mp4`. `OUT/overlay_legend.png` names the colours.
    `OUT/summary.csv`, of the last run only, has a row for each image or frame, sorted by name: the share of each class,
    0..1, and its pixels; and a row with the reason for each file that was passed over. Files are written atomically;
    those made before an error or Ctrl-C are kept.

    Args:
        out: the folder, made with the first file.
        label_space: the classes.
        names: of all images; empty for a video.
        frame_rate: frames a second of a video; None gives each frame the time at which it was added.
    """

    def __init__(
        self, out: Path, label_space: LabelSpace, names: Sequence[str] = (), frame_rate: Fraction | None = None
    ) -> None:
        self.out, self.label_space = out, label_space
        self.rows: list[Areas] = []
        self.passed_over: dict[str, str] = {}
        self._stems, self._frame_rate = output_stems(names), frame_rate
        self._video: OverlayVideo | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._video is not None:
            self._video.close()
        if self.rows:
            with written_whole(self.out / SUMMARY) as beside:
                write_areas(beside, sorted(set(self.rows)), self.label_space, self.passed_over)
            with written_whole(self.out / LEGEND) as beside:
                legend(range(len(self.label_space)), self.label_space, _LEGEND_WIDTH).save(beside, "PNG")

    def add(self, name: str, prediction: Prediction) -> None:
        """Writes the prediction of an image, or of the next frame.

        Raises:
            OSError: the folder cannot be made, or a file cannot be written.
        """
        picture = prediction.overlay()
        if self._stems:
            self._write(name, prediction.mask, picture)
        else:
            if self._video is None:
                self._make(self.out)
                self._video = OverlayVideo(self.out / f"{PurePosixPath(name).parent}_overlay.mp4", self._frame_rate)
            self._video.add(np.asarray(picture))
        height, width = prediction.mask.shape
        counts = np.bincount(prediction.mask.ravel(), minlength=len(self.label_space))
        self.rows.append(Areas(name, width, height, tuple(int(count) for count in counts)))

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"no predictions can go to {folder} ({error.strerror}); give another --out") from None

    def _write(self, name: str, classes: NDArray[np.uint8], picture: Image.Image) -> None:
        target = self.out / self._stems[name]
        self._make(target.parent)
        index = Image.fromarray(classes)
        colours = [value for colour in self.label_space.palette for value in colour]
        index.putpalette(colours + [0] * (768 - len(colours)))  # Pillow packs a short palette into fewer than 8 bits
        for end, image in zip(_ENDS, (index, picture), strict=True):
            with written_whole(target.with_name(target.name + end)) as beside:
                image.save(beside, "PNG", compress_level=1)  # twice as fast as the default, for a tenth more bytes


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary file, which is renamed to `path` if the block succeeds and removed otherwise."""
    beside = path.with_name(f".{os.getpid()}.part")  # `path` may already have the longest possible name
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def output_stems(names: Sequence[str]) -> dict[str, str]:
    """The names of each image's outputs, without `.png` and `_overlay.png`: the image's name without its suffix.

    Where two images would write the same file, they keep their suffixes: `a.jpg` becomes `a.jpg.png`. A name that is
    too long for a file system is shortened and ends with a hash.

    >>> output_stems(["a.jpg", "a.png", "b.jpg"])
    {'a.jpg': 'a.jpg', 'a.png': 'a.png', 'b.jpg': 'b'}
    """
    stems = {name: _short(PurePosixPath(name).with_suffix("")) for name in names}
    while True:
        # The file systems of Windows and macOS ignore case.
        files = Counter((stem + end).casefold() for stem in stems.values() for end in _ENDS) + Counter([LEGEND])
        whole = {name: _short(PurePosixPath(name)) for name in names}
        clashing = {
            name: whole[name]
            for name, stem in stems.items()
            if stem != whole[name] and any(files[(stem + end).casefold()] > 1 for end in _ENDS)
        }
        if not clashing:
            return stems
        stems.update(clashing)


def _short(path: PurePosixPath) -> str:
    name = os.fsencode(path.name)
    if len(name) <= _LONGEST:
        return path.as_posix()
    digest = hashlib.sha256(name).hexdigest()[:8]
    return path.with_name(f"{name[: _LONGEST - 9].decode(errors='ignore')}-{digest}").as_posix()


def write_areas(path: Path, rows: Sequence[Areas], space: LabelSpace, passed_over: Mapping[str, str]) -> None:
    """Writes rows as CSV: name, width, height, the share (0..1) of each class, and its pixels as `CLASS_pixels`.

    Files that were passed over add a last column, `passed_over`, with the reason. Bytes of a name that are not UTF-8
    are written as escapes.
    """
    more = ["passed_over"] if passed_over else []
    columns = ["name", "width", "height", *space.classes, *(f"{name}_pixels" for name in space.classes), *more]
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            total = row.width * row.height
            shares = (f"{count / total:.6f}" for count in row.pixels)
            writer.writerow([row.name, row.width, row.height, *shares, *row.pixels, *("" for _ in more)])
        for name, reason in sorted(passed_over.items()):
            writer.writerow([name, *[""] * (len(columns) - 2), reason])
