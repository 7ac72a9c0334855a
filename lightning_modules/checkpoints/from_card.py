"""Builds modules from the card of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from structseg.datamodules.label_spaces import LabelSpace
from structseg.lightning_modules.base import TrainedModule
from structseg.lightning_modules.checkpoints.card import read_card
from structseg.lightning_modules.segmentation import SegmentationModule

set_parsing_settings(subclasses_enabled=[LabelSpace])  # one value, not a group of options, as on the command line

Module = TypeVar("Module", bound=TrainedModule)


def module_from_card(kind: type[Module], card: dict[str, Any], label_space: LabelSpace) -> Module:
    """Builds a module, with its initial weights, from the configuration in a checkpoint's card.

    Raises:
        Exception: any error of jsonargparse or the module, for a configuration of another version.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "model")
    config = card["config"].get("model", {})
    linked = {"label_space": label_space, "mean": card["mean"], "std": card["std"]}
    parsed = parser.parse_object({"model": {**config, "init_args": {**config.get("init_args", {}), **linked}}})
    module: Module = parser.instantiate_classes(parsed).model
    return module


def load_teacher(path: Path, label_space: LabelSpace) -> SegmentationModule:
    """The model of a checkpoint, frozen and in evaluation mode.

    Args:
        path: a checkpoint that `structseg fit` wrote, of any method.
        label_space: the classes that it must have.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, no checkpoint of this suite, written without its configuration, or of other classes.
    """
    card = read_card(path)
    if tuple(card["classes"]) != label_space.classes:
        raise ValueError(
            f"teacher {path} has the classes of {card['label_space']} ({', '.join(card['classes'])}), not those of "
            f"{label_space.name} ({', '.join(label_space.classes)}); use a teacher of the same classes"
        )
    if not card["config"]:
        raise ValueError(f"teacher {path} holds no configuration; use a checkpoint that `structseg fit` wrote")
    try:
        module = module_from_card(SegmentationModule, card, label_space)
        content = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(content["state_dict"])
    except (ArgumentError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise ValueError(f"teacher {path} cannot be built again ({reason}); use a checkpoint of this version") from None
    return module.requires_grad_(False).eval()
