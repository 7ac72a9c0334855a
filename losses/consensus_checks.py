"""Checks of the consensus loss's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor


def check_shapes(logits: Tensor, target: Tensor, blobs: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Checked target and blobs: int64 (N, 1, H, W); a soft target in its own shape, without gradient."""
    for name, given in (("logits", logits), ("target", target), ("blobs", blobs)):
        if not isinstance(given, Tensor) and not (name == "blobs" and given is None):
            raise TypeError(f"{name} is a {type(given).__name__}; a torch.Tensor is needed")
    if logits.ndim != 4 or not logits.is_floating_point():
        raise ValueError(f"logits are {_described(logits)}; (N, C, H, W) of a float type are needed")
    n, c, h, w = logits.shape
    if min(n, c, h, w) == 0:
        raise ValueError(f"logits are {_described(logits)}; at least one image, class and pixel are needed")
    maps = {"target": target} | ({} if blobs is None else {"blobs": blobs})
    for name, given in maps.items():
        if given.device != logits.device:
            raise ValueError(f"{name} is on {given.device}, the logits on {logits.device}; move it there")
        soft = name == "target" and given.is_floating_point()
        if soft and given.shape != logits.shape:
            raise ValueError(
                f"target is {_described(given)}; class indices (N, H, W), or probabilities of the logits' shape "
                f"{tuple(logits.shape)}, are needed"
            )
        if not soft and (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool):
            raise TypeError(f"{name} has dtype {given.dtype}; integers are needed")
        if not soft and given.shape not in ((n, h, w), (n, 1, h, w)):
            raise ValueError(
                f"{name} is {tuple(given.shape)}; {(n, h, w)} or {(n, 1, h, w)} fit logits {tuple(logits.shape)}"
            )
        maps[name] = given.detach() if soft else given.long().reshape(n, 1, h, w).contiguous()
    return maps["target"], maps.get("blobs")


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def check_range(what: str, values: Tensor, end: int | None, names: Sequence[str] | None) -> None:
    """Raises ValueError if a value is below 0, or `end` or above; the message names the image."""
    wrong = values < 0 if end is None else (values < 0) | (values >= end)
    if bool(wrong.any()):
        i, _, y, x = wrong.nonzero()[0].tolist()
        expected = "ids from 0" if end is None else f"classes 0..{end - 1} or ignore_index"
        raise ValueError(f"{what} of {_name(i, names)} holds {int(values[i, 0, y, x])}; expected {expected}")


def check_probabilities(target: Tensor, names: Sequence[str] | None) -> None:
    """Raises ValueError if a soft target is outside 0..1."""
    wrong = (~((target >= 0) & (target <= 1.001))).nonzero()
    if len(wrong):
        i, k, y, x = wrong[0].tolist()
        raise ValueError(
            f"target of {_name(i, names)} holds {float(target[i, k, y, x]):g} (class {k}, row {y}, column {x}); "
            "class probabilities 0..1 are expected: take the softmax of logits first"
        )


def refuse_conflict(
    ids: Tensor, target: Tensor, blobs: Tensor, ignore_index: int, shared: bool, names: Sequence[str] | None
) -> NoReturn:
    """Raises ValueError for a blob that has two labels: in one image or, with `shared` ids, in two images."""
    known: dict[int, tuple[int, int]] = {}
    for i, (image_ids, labels) in enumerate(zip(ids, target, strict=True)):
        counted = labels != ignore_index
        pairs = torch.stack((image_ids[counted], labels[counted])).unique(dim=1)
        in_image: dict[int, int] = {}
        for k, label in pairs.T.tolist():
            blob = int(blobs[i][image_ids == k][0])
            if k in in_image:
                raise ValueError(
                    f"blob {blob} of {_name(i, names)} holds labels {in_image[k]} and {label}; a blob has one label: "
                    "split the blobs by the labels"
                )
            in_image[k] = label
        for k, label in in_image.items() if shared else ():
            before = known.setdefault(k, (i, label))
            if before[1] != label:
                blob = int(blobs[i][image_ids == k][0])
                raise ValueError(
                    f"blob {blob} has label {before[1]} in {_name(before[0], names)} and {label} in {_name(i, names)}; "
                    "with the published normalization an id in two images is one blob: give each blob its own id"
                )
    raise AssertionError("no blob has two labels")


def refuse_logits(logits: Tensor, names: Sequence[str] | None) -> None:
    """Raises ValueError if logits are not finite."""
    wrong = (~torch.isfinite(logits)).nonzero()
    if len(wrong):
        i, k, y, x = wrong[0].tolist()
        raise ValueError(
            f"logits of {_name(i, names)} hold {float(logits[i, k, y, x])} (class {k}, row {y}, column {x}); finite "
            "ones are needed: lower the learning rate, or look for the first step that gave it"
        )


def _name(image: int, names: Sequence[str] | None) -> str:
    return f"image {image} of the batch" if names is None or image >= len(names) else str(names[image])
