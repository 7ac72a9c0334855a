"""The card in every checkpoint: its description in plain values, by which the file alone can predict."""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from structseg.datamodules.label_spaces import LabelSpace

KEY = "structseg"
_KINDS: dict[str, type] = {
    "method": str, "label_space": str, "classes": list, "palette": list, "flip_pairs": list, "groups": dict,
    "ignore_index": int, "mean": list, "std": list, "initial_weights": str, "config": dict,
}  # fmt: skip
# Errors of torch.load for damaged files.
_DAMAGE = (
    AttributeError, EOFError, LookupError, MemoryError, OSError, OverflowError, RuntimeError, TypeError, ValueError,
    struct.error, zipfile.BadZipFile,
)  # fmt: skip


def space_of(card: dict[str, Any]) -> LabelSpace:
    """The label space that a card describes."""
    return LabelSpace(
        card["label_space"],
        tuple(card["classes"]),
        tuple((r, g, b) for r, g, b in card["palette"]),
        tuple((a, b) for a, b in card["flip_pairs"]),
        {name: tuple(members) for name, members in card["groups"].items()},
        card["ignore_index"],
    )


def describe_space(space: LabelSpace) -> dict[str, Any]:
    """A label space as the plain values of a card."""
    return {
        "label_space": space.name,
        "classes": list(space.classes),
        "palette": [list(colour) for colour in space.palette],
        "flip_pairs": [list(pair) for pair in space.flip_pairs],
        "groups": {name: list(members) for name, members in space.groups.items()},
        "ignore_index": space.ignore_index,
    }


def read_card(path: Path) -> dict[str, Any]:
    """The card of a checkpoint file, with `epoch`, its last one; raises as `read_checkpoint`."""
    return read_checkpoint(path)[0]


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The card of a checkpoint file, as `read_card` gives it, and its weights; runs no code of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, with more than plain values and tensors, or no checkpoint of this suite.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; check --ckpt_path")
    try:
        _refuse_bombs(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"{path} holds more than tensors and plain values and was not loaded ({reason})") from None
    except _DAMAGE as error:
        reason = "" if "mmap" in str(error) else f" ({' '.join(str(error).split())[:200] or type(error).__name__})"
        raise ValueError(f"{path} is damaged or no checkpoint{reason}; use another") from None
    if not isinstance(content, dict) or KEY not in content:
        raise ValueError(f"{path} is no checkpoint of structseg: it has no card; use one that `structseg fit` wrote")
    card, epoch, state = content[KEY], content.get("epoch", 0), content.get("state_dict", {})
    fault = _fault(card)
    if not isinstance(epoch, int) or not isinstance(state, dict) or not all(torch.is_tensor(w) for w in state.values()):
        fault = fault or f"epoch {epoch!r}, or weights that are not tensors"
    if fault:
        raise ValueError(f"{path} has a damaged card ({' '.join(fault.split())[:200]}); use another checkpoint")
    return {**card, "epoch": epoch}, state


def _refuse_bombs(path: Path) -> None:
    """Raises for content that `torch.save` never writes and for which `torch.load` would reserve memory."""
    with zipfile.ZipFile(path) as packed:
        for info in packed.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > path.stat().st_size:
                raise ValueError(f"{info.filename} is compressed or longer than the file")
            if info.filename.endswith("data.pkl") and b"bytearray" in packed.read(info):
                raise ValueError("it asks for memory by a bytearray")


def _fault(card: Any) -> str:
    """The fault of a card; empty if it is as `TrainedModule` writes it."""
    if not isinstance(card, dict):
        return f"it is {card!r}"
    for key, kind in _KINDS.items():
        if not isinstance(card.get(key), kind):
            return f"{key} is {card.get(key, 'missing')!r}"
    for key in ("mean", "std"):
        if len(card[key]) != 3 or not all(isinstance(value, float) and math.isfinite(value) for value in card[key]):
            return f"{key} is {card[key]!r}"
    size, trained = card.get("size"), card.get("trained", [])
    if size is not None and not (_whole(size, 1) and len(size) == 2):
        return f"size is {size!r}"
    if not isinstance(trained, list) or not all(isinstance(name, str) for name in trained):
        return f"trained is {trained!r}"
    for key in card["config"]:
        part = card["config"][key]
        if not isinstance(part, dict) or not isinstance(part.get("class_path"), str):
            return f"config.{key} is {part!r}"
    try:
        space = space_of(card)
    except (ValueError, TypeError, AttributeError) as error:
        return f"its classes: {error}"
    if not all(isinstance(name, str) for name in space.classes) or not _whole(sum(space.palette, ()), 0, 255):
        return f"classes are {space.classes!r}, palette {space.palette!r}"
    indices = [*sum(space.flip_pairs, ()), *sum(space.groups.values(), ())]
    if not _whole(indices, 0, len(space) - 1):
        return f"flip pairs or groups name the classes {indices!r}"
    return ""


def _whole(values: Any, least: int, most: int = 1 << 20) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(v, int) and least <= v <= most for v in values)
