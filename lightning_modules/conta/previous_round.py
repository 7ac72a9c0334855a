"""What a classifier reads of an earlier round: its confounders, and the global mean of its activation maps."""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_NAMED = 5
_DAMAGE = (
    AttributeError, EOFError, LookupError, MemoryError, OSError, OverflowError, RuntimeError, SyntaxError, TypeError,
    ValueError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
_LARGEST = 256 << 20  # bytes of an array


def load_confounders(path: Path, classes: Sequence[str], size: tuple[int, int]) -> tuple[Tensor, list[str]]:
    """The confounders of a round.

    Args:
        path: of `confounders.npz`, with `confounders` (n, h, w), `images` (n,) and `classes` (n,).
        classes: n names, of the foreground.
        size: (h, w).

    Returns:
        (n, h, w) float32, and the names of the classes without images.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or of other classes or of another size.
    """
    arrays = _read(path, "confounders", "images", "classes")
    maps, images, names = arrays["confounders"], arrays["images"], [str(name) for name in arrays["classes"].ravel()]
    if names != list(classes):
        raise ValueError(
            f"{path} has the classes {', '.join(names)}, the data {', '.join(classes)}; give the confounders of this "
            "label space"
        )
    if maps.shape != (len(names), *size) or images.shape != (len(names),):
        raise ValueError(
            f"{path} has confounders of shape {maps.shape}, expected {(len(names), *size)}; set --model.context.size"
        )
    if images.dtype.kind not in "iu":
        raise ValueError(f"{path} has counts of images that are none; run the stage that writes it again")
    if maps.dtype.kind != "f" or not np.isfinite(maps).all() or maps.min() < 0 or maps.max() > 1:
        raise ValueError(f"{path} has confounders that are not in 0..1; run the stage that writes it again")
    absent = [name for name, count in zip(names, images, strict=True) if count == 0]
    return torch.from_numpy(maps.astype(np.float32)), absent


def check_origin(path: Path, queries: str | None) -> None:
    """Makes sure that confounders are the means of the queries that come with them, as far as both say.

    Args:
        path: of `confounders.npz`, which `load_confounders` could read.
        queries: the origin of the queries; None: unknown.

    Raises:
        ValueError: they are of another prediction's.
    """
    own = str(_read(path, "origin", optional=True).get("origin", ""))
    if own and queries and own != queries:
        raise ValueError(
            f"{path} is of masks {own}, --data.queries of {queries}; give the confounders and queries of one round"
        )


def global_mean_cams(folder: Path, classes: Sequence[str], size: tuple[int, int]) -> tuple[Tensor, list[str]]:
    """C2AM's global mean activation map: the mean of the normalised maps over all images, absent classes counting as 0.

    Args:
        folder: `cams/` of an earlier round.
        classes: n names, of the foreground.
        size: (h, w) that each map is brought to.

    Returns:
        (n, *size) float32 in 0..1, and the names of the classes that no image has a map of.

    Raises:
        FileNotFoundError: no such folder, or an unfinished or empty one.
        ValueError: it holds something else or another label space, or a file is damaged.

    Source: github.com/yiping-wang/c2am, `sum_cams` in misc/pyutils.py, at ae1639f.
    """
    about, paths = folder / "about.json", sorted(folder.glob("*.npz"))
    if not about.is_file() or not paths:
        round_ = folder.absolute().parent.name
        raise FileNotFoundError(f"{folder} holds no finished cams; run structseg pipeline FILE --until {round_}/cams")
    try:
        content = json.loads(about.read_text())
        found = (content.get("kind"), [str(name) for name in content.get("classes", ())][1:])
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{about} is damaged ({reason}); run the stage that writes it again") from None
    if found != ("cams", list(classes)):
        raise ValueError(
            f"{folder} holds {found[0]} of {', '.join(found[1])}, expected cams of {', '.join(classes)}; give --model."
            "global_cams the cams of an earlier round"
        )
    total = torch.zeros(len(classes), *size)
    for path in paths:
        arrays = _read(path, "cams", "classes")
        kept, indices = arrays["cams"], arrays["classes"]
        good = (
            kept.ndim == 3 and kept.dtype == np.uint8 and indices.shape == (len(kept),) and indices.dtype.kind in "iu"
        )
        if not good or len(set(indices)) < len(indices) or not all(1 <= index <= len(classes) for index in indices):
            raise ValueError(f"{path} is damaged (not maps of these classes); run the stage that writes it again")
        if not kept.size:
            continue
        maps = torch.from_numpy(kept.astype(np.float32) / 255)
        scaled = F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
        total[torch.from_numpy(indices.astype(np.int64)) - 1] += scaled
    absent = [name for name, mean in zip(classes, total.mean((1, 2)).tolist(), strict=True) if mean == 0]
    return total / len(paths), absent


def listed(names: Sequence[str]) -> str:
    """Names of classes, the first ones of many: `cat, dog, cow, horse, sheep and 3 more`."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _read(path: Path, *names: str, optional: bool = False) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        stage = "cams" if path.parent.name == "cams" else "masks"
        round_ = (path.parent if stage == "cams" else path).absolute().parent.name
        raise FileNotFoundError(f"no file {path}; run structseg pipeline FILE --until {round_}/{stage}")
    try:
        with zipfile.ZipFile(path) as packed:
            there = packed.namelist()
            return {name: _array(packed, name) for name in names if not optional or f"{name}.npy" in there}
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is damaged ({reason}); run the stage that writes it again") from None


def _array(packed: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """An array of an archive; as in `structseg.datamodules.round_files`, which no module may import."""
    info = packed.getinfo(f"{name}.npy")
    if info.file_size > _LARGEST:
        raise ValueError(f"{name} is of {info.file_size >> 20} MiB, {_LARGEST >> 20} at most are expected")
    content = io.BytesIO(packed.read(info))
    if np.lib.format.read_magic(content) != (1, 0):
        raise ValueError(f"{name} is not of numpy's format 1.0")
    shape, columns_first, dtype = np.lib.format.read_array_header_1_0(content)
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects, which are not loaded")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != info.file_size - content.tell():
        raise ValueError(f"{name} of shape {shape} does not fit its {info.file_size} bytes")
    order: Literal["C", "F"] = "F" if columns_first else "C"
    array: NDArray[Any] = np.ndarray(shape, dtype, content.getvalue(), content.tell(), order=order).copy()
    return array
