"""What `predict` works through: an image, every image below a folder, a video, or a camera."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils.data import Dataset

from structseg.datamodules.batch import Sample, image_tensor
from structseg.datamodules.images import IMAGE_SUFFIXES, check_image, read_image, resize_image
from structseg.datamodules.predict.video import CAMERA, VIDEO_SUFFIXES, PredictFrames

_SHOWN = 10  # unreadable files that an error names


class PredictImages(Dataset[Sample]):
    """Images of any size and mode. All are checked when the data set is made, so that a long run does not end early.

    Args:
        source: an image file, or a folder that is searched with its subfolders; names that begin with a dot are
            passed over. Or several of these: their images are named below the folder that holds them all where two
            would have one name.
        size: (H, W) that the network sees.
        out: the folder that predictions go to, if any; nothing below it is read.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a folder without images, predictions that would lie among the images, or images that cannot be
            read; the message names them.
    """

    def __init__(self, source: Path | Sequence[Path], size: tuple[int, int], out: Path | None = None) -> None:
        self.size = size
        found: dict[Path, tuple[Path, str]] = {}  # an image that is given twice is predicted once
        for one in [source] if isinstance(source, Path) else source:
            root, files = (one.parent, [one]) if one.is_file() else (one, _images_below(one, out))
            found |= {file.absolute(): (file, file.relative_to(root).as_posix()) for file in files}
        self.files = [file for file, _ in found.values()]
        self.names = [name for _, name in found.values()]
        if len(set(self.names)) < len(self.names):
            top = os.path.commonpath([path.parent for path in found])
            self.names = [path.relative_to(top).as_posix() for path in found]
        folders = {file.parent.resolve() for file in self.files}
        if out is not None and folders & {(out / name).parent.resolve() for name in self.names}:
            raise ValueError(f"predictions in {out} would lie among the images that are read; set --data.predict_out")
        _check_all(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        """`image` (3, H, W) at `size`, `original` (3, h, w), both 0..1, and `name`: the path below the folder."""
        image = read_image(self.files[index])
        return {
            "image": image_tensor(resize_image(image, self.size)),
            "original": image_tensor(image),
            "name": self.names[index],
        }


def predict_inputs(source: str | Sequence[str], size: tuple[int, int], out: Path) -> PredictImages | PredictFrames:
    """The data set that `source` names.

    Args:
        source: an image, a folder of images, a video file, or `camera:N`; or several images and folders.
        size: (H, W) that the network sees.
        out: the folder that predictions go to.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: nothing that can be read; the message says what and why.
    """
    sources = [source] if isinstance(source, str) else list(source)
    videos = [one for one in sources if one.startswith(CAMERA) or _is_video(Path(one))]
    if videos and len(sources) > 1:
        raise ValueError(f"{videos[0]} is a video or a camera, which is predicted alone; leave the rest out")
    if videos:
        return PredictFrames(videos[0], size)
    return PredictImages([Path(one) for one in sources], size, out)


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def _images_below(folder: Path, out: Path | None) -> list[Path]:
    """The images to predict: none of `out`, and none that an earlier prediction wrote below the folder.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it holds no images.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no file or folder {folder}; check --data.predict_dir")
    written = {summary.parent for summary in folder.glob("**/summary.csv") if _is_summary(summary)} - {folder}
    left_out = out.resolve() if out is not None and out.resolve() != folder.resolve() else None
    found = []
    for file in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if hidden or file.suffix.lower() not in IMAGE_SUFFIXES or not file.is_file() or written & set(file.parents):
            continue
        if left_out is None or folder.resolve().is_relative_to(left_out) or left_out not in file.resolve().parents:
            found.append(file)
    if not found:
        raise ValueError(
            f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}); check --data.predict_dir, and give a video "
            "by the path of its file"
        )
    return sorted(found)


def _is_summary(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(18) == b"name,width,height,"


def _problem(file: Path) -> str | None:
    try:
        check_image(file)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None


def _check_all(files: list[Path]) -> None:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        problems = [problem for problem in pool.map(_problem, files) if problem]
    if len(problems) == 1:
        raise ValueError(problems[0])
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(f"{len(problems)} of {len(files)} images cannot be read: {'; '.join(problems[:_SHOWN])}{more}")
