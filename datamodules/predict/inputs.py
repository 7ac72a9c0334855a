"""The inputs of `predict`: images, folders of images, a video or a camera, and the files that it skips."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from structseg.datamodules.images import IMAGE_SUFFIXES
from structseg.datamodules.predict.video import CAMERA, VIDEO_SUFFIXES, PredictFrames


class PredictImages(NamedTuple):
    """Image files, none of which has been opened.

    Attributes:
        files: by the names of their predictions, in order.
        passed_over: the reasons why other files are skipped, by their names.
    """

    files: dict[str, Path]
    passed_over: dict[str, str]


def predict_inputs(sources: Sequence[str], out: Path) -> PredictImages | PredictFrames:
    """The images, or the video or camera, that the sources name.

    Args:
        sources: images, and folders to search with their subfolders, links too; or one video file, or `camera:N`. Names
            that begin with a dot are left out. An image is named by its path below the given folder, or, where that
            would give two images one name, below the folder that holds all images.
        out: the folder of the predictions; it is not searched, and neither are earlier predictions.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: no image, a video beside other sources, or predictions that would be written among the images.
    """
    videos = [source for source in sources if source.startswith(CAMERA) or _is_video(Path(source))]
    if videos and len(sources) > 1:
        raise ValueError(f"{videos[0]} is a video or a camera, which is predicted alone; leave the rest out")
    if videos:
        return PredictFrames(videos[0])
    found: dict[Path, tuple[Path, Path]] = {}  # an image that is given twice is predicted once
    others: dict[Path, tuple[Path, Path]] = {}
    for source in map(Path, sources):
        files = [source] if source.is_file() else sorted(_files_below(source, out))
        images = [file for file in files if file == source or file.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise ValueError(
                f"{source} holds no images ({', '.join(IMAGE_SUFFIXES)}); give a video by the path of its file"
            )
        root = source.parent if source.is_file() else source
        for file in files:
            (found if file in images else others).setdefault(file.absolute(), (file, root))
    tops = {file: root for file, (_, root) in (found | others).items()}
    names = {file: file.relative_to(root.absolute()).as_posix() for file, root in tops.items()}
    if len({names[file] for file in found}) < len(found):
        top = os.path.commonpath([path.parent for path in found])
        names = {file: os.path.relpath(file, top).replace(os.sep, "/") for file in names}
    result = PredictImages(
        {names[path]: file for path, (file, _) in found.items()},
        {names[path]: _reason(file) for path, (file, _) in others.items()},
    )
    folders = {folder.resolve() for folder in {file.parent for file in found}}
    if folders & {folder.resolve() for folder in {(out / name).parent for name in result.files}}:
        raise ValueError(f"predictions in {out} would lie among the images that are read; give another --out")
    return result


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def _reason(file: Path) -> str:
    if file.suffix.lower() in VIDEO_SUFFIXES:
        return "a video, which is predicted alone"
    return f"{file.suffix or 'a name without a suffix'} is no image that is read"


def _files_below(folder: Path, out: Path) -> Iterator[Path]:
    """The files below a folder, links followed, each folder once, without `out` and earlier predictions.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no file or folder {folder}; give images, folders, a video or camera:0")
    seen = {folder.resolve()}
    if not folder.resolve().is_relative_to(out.resolve()):
        seen.add(out.resolve())
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place)
        if here != folder and "summary.csv" in files and _is_summary(here / "summary.csv"):
            folders.clear()
            continue
        inner = {name: (here / name).resolve() for name in sorted(folders) if not name.startswith(".")}
        folders[:] = []
        for name, real in inner.items():
            if real not in seen:
                seen.add(real)
                folders.append(name)
        yield from (here / name for name in files if not name.startswith(".") and (here / name).is_file())


def _is_summary(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(18) == b"name,width,height,"
