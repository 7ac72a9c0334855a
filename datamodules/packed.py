"""Compact copies of data folders: which files go in, and how a datamodule knows that it reads one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from structseg.datamodules.files.text import read_json

MARKER = "packed.json"
_LARGEST = 65535  # pixels a side


class PackedFile(NamedTuple):
    """A file that a datamodule reads; a datamodule whose data can be packed gives a list of them, `files_to_pack()`.

    Attributes:
        source: the file.
        place: where it belongs below the copy's root, `V2/Train_RGB/7.bmp`, in a layout that the datamodule reads.
        size: (H, W) in pixels, for an image that is always resized to it at once; None = the file is copied as it is.
    """

    source: Path
    place: str
    size: tuple[int, int] | None = None


def packed_copy(root: Path) -> dict[str, Any] | None:
    """What the marker in `root` says; None where `root` is no compact copy.

    `size` is the [H, W] of the images that were shrunk, null where none was; `quality` that of JPEG, null = lossless.

    Raises:
        ValueError: the marker is damaged.
    """
    path = root / MARKER
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        size = content["size"]
        if content["format"] != 1 or not (size is None or (isinstance(size, list) and len(size) == 2)):
            raise ValueError("not format 1")
        if size is not None and not all(isinstance(side, int) and 1 <= side <= _LARGEST for side in size):
            raise ValueError(f"size {size}")
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = str(error).replace(f"{path} ", "").partition(";")[0]
        raise ValueError(f"{path} is damaged ({reason}); pack the data again") from None
    return dict(content)


def packed_size(root: Path, size: tuple[int, int] | None = None) -> tuple[int, int] | None:
    """The (H, W) that images in `root` may have been shrunk to; None where `root` is no such copy.

    Args:
        root: the data folder.
        size: (H, W) that the images are wanted in.

    Raises:
        ValueError: the copy is for another size, or its marker is damaged.
    """
    copy = packed_copy(root)
    if copy is None or copy["size"] is None:
        return None
    height, width = copy["size"]
    if size is not None and tuple(size) != (height, width):
        raise ValueError(
            f"{root} is a copy for images of {height}x{width}, not {size[0]}x{size[1]}; "
            f"set --data.size [{height}, {width}] or read the original"
        )
    return height, width
