"""The card that every checkpoint carries: what it is, in plain values, so that the file alone can predict."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from datamodules.label_spaces import LabelSpace

KEY = "structseg"


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
    """The card of a checkpoint file, with `epoch`, the last one that it has seen; nothing in the file is run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, holding more than plain values and tensors, or no checkpoint of this suite.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; check --ckpt_path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"{path} holds more than tensors and plain values and was not loaded ({reason})") from None
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        reason = "" if "mmap" in str(error) else f" ({str(error).splitlines()[0]})"
        raise ValueError(f"{path} is damaged or no checkpoint{reason}; use another") from None
    if not isinstance(content, dict) or KEY not in content:
        raise ValueError(f"{path} is no checkpoint of structseg: it has no card; use one that `structseg fit` wrote")
    return {**content[KEY], "epoch": content.get("epoch", 0)}
