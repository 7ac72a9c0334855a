"""Loads networks that earlier stages of a method have trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from structseg.lightning_modules.checkpoints.card import read_card


def load_trained_parts(
    networks: Mapping[str, nn.Module], paths: Sequence[Path], expected: Mapping[str, Any]
) -> set[str]:
    """Loads the trained networks of checkpoints into networks of the same names.

    Args:
        networks: by their names in a checkpoint's state.
        paths: checkpoints whose cards list the names of their `trained` networks.
        expected: values that each card must have, by key; `window` does not matter if only `network` is trained.

    Returns:
        The names of the networks that were loaded.

    Raises:
        FileNotFoundError: a checkpoint is missing.
        ValueError: a checkpoint is damaged or has other values, a network has other layers, or two checkpoints have
            different networks of one name; the message names the files.
    """
    origin: dict[str, Path] = {}
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint at {path}; fit the earlier stage, or correct --model.init_from")
        card = read_card(path)
        for key, wanted in expected.items():
            indifferent = key == "window" and set(card.get("trained", ())) <= {"network"}
            if card.get(key) != wanted and not indifferent:
                raise ValueError(f"{path} has {key} {card.get(key)}, not {wanted}; give a checkpoint that fits")
        unknown = [name for name in card.get("trained", ()) if name not in networks]
        if unknown or not card.get("trained"):
            raise ValueError(
                f"{path} has trained {', '.join(unknown) or 'nothing'}; expected some of {', '.join(networks)}: give a "
                "checkpoint of an earlier stage"
            )
        state = torch.load(path, map_location="cpu", weights_only=True).get("state_dict", {})
        for name in card["trained"]:
            network = networks[name]
            weights = {key.removeprefix(f"{name}."): w for key, w in state.items() if key.startswith(f"{name}.")}
            before = {key: value.cpu().clone() for key, value in network.state_dict().items()}
            try:
                network.load_state_dict(weights)
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:400]
                raise ValueError(
                    f"the {name} of {path} has other layers: {reason}; use the settings of that checkpoint"
                ) from None
            if name in origin and any(not torch.equal(value, weights[key]) for key, value in before.items()):
                raise ValueError(f"{path} and {origin[name]} hold different trained {name}s; give stages of one run")
            origin[name] = path
    return set(origin)
