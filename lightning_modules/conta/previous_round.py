"""Reads the results of an earlier round for a classifier: confounders, and the mean of the activation maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from structseg.datamodules.round_files import ABOUT, confounder_origin, read_confounders, read_kept_cams, read_manifest

_NAMED = 5


def load_confounders(path: Path, classes: Sequence[str], size: tuple[int, int]) -> tuple[Tensor, list[str]]:
    """Reads the confounders of a round.

    Args:
        path: of `confounders.npz`.
        classes: names of the n foreground classes.
        size: (h, w).

    Returns:
        (n, h, w) float32, and the names of the classes without images.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or has other classes or another size.
    """
    maps, images, _, _ = read_confounders(path, classes)
    if maps.shape[1:] != size:
        raise ValueError(
            f"{path} has confounders of shape {maps.shape}, expected {(len(classes), *size)}; set --model.context.size"
        )
    absent = [name for name, count in zip(classes, images, strict=True) if count == 0]
    return torch.from_numpy(maps), absent


def check_origin(path: Path, queries: str | None) -> None:
    """Checks that confounders are the means of the given queries, if both record their origin.

    Args:
        path: of `confounders.npz`.
        queries: the origin of the queries; None: unknown.

    Raises:
        ValueError: they were made from the queries of another prediction.
    """
    own = confounder_origin(path)
    if own and queries and own != queries:
        raise ValueError(
            f"{path} is of masks {own}, --data.queries of {queries}; give the confounders and queries of one round"
        )


def global_mean_cams(folder: Path, classes: Sequence[str], size: tuple[int, int]) -> tuple[Tensor, list[str]]:
    """C2AM's global mean activation map: the mean of the normalised maps over all images, absent classes counting as 0.

    Args:
        folder: `cams/` of an earlier round.
        classes: names of the n foreground classes.
        size: (h, w) that each map is resized to.

    Returns:
        (n, *size) float32 in 0..1, and the names of the classes without a map in any image.

    Raises:
        FileNotFoundError: no such folder, or an unfinished or empty one.
        ValueError: it holds something else or another label space, or a file is damaged.

    Source: github.com/yiping-wang/c2am, `sum_cams` in misc/pyutils.py, at ae1639f.
    """
    paths = sorted(folder.glob("*.npz"))
    if not (folder / ABOUT).is_file() or not paths:
        round_ = folder.absolute().parent.name
        raise FileNotFoundError(f"{folder} holds no finished cams; run structseg pipeline FILE --until {round_}/cams")
    content = read_manifest(folder)
    kind, names = content.get("kind"), content.get("classes")
    found = [str(name) for name in names][1:] if isinstance(names, list) else []
    if (kind, found) != ("cams", list(classes)):
        raise ValueError(
            f"{folder} holds {kind} of {', '.join(found)}, expected cams of {', '.join(classes)}; give --model."
            "global_cams the cams of an earlier round"
        )
    total = torch.zeros(len(classes), *size)
    for path in paths:
        kept, indices = read_kept_cams(path, classes, "these classes")
        if kept.size:
            scaled = F.interpolate(torch.from_numpy(kept)[None], size, mode="bilinear", align_corners=False)[0]
            total[torch.tensor(indices) - 1] += scaled
    absent = [name for name, mean in zip(classes, total.mean((1, 2)).tolist(), strict=True) if mean == 0]
    return total / len(paths), absent


def listed(names: Sequence[str]) -> str:
    """Names of classes, the first ones of many: `cat, dog, cow, horse, sheep and 3 more`."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
