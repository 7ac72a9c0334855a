"""A trained model, made again from its checkpoint alone, to label images for another one."""

from __future__ import annotations

from pathlib import Path

import torch
from jsonargparse import ArgumentError

from structseg.datamodules.label_spaces import LabelSpace
from structseg.lightning_modules.checkpoints.card import read_card
from structseg.lightning_modules.checkpoints.from_card import rebuilt
from structseg.lightning_modules.segmentation import SegmentationModule


def load_teacher(path: Path, label_space: LabelSpace) -> SegmentationModule:
    """The model of a checkpoint, frozen and in evaluation mode.

    Args:
        path: a checkpoint that `structseg fit` wrote, of any method.
        label_space: the classes that it has to have.

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
        module = rebuilt(SegmentationModule, card, label_space)
        content = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(content["state_dict"])
    except (ArgumentError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise ValueError(f"teacher {path} cannot be built anew ({reason}); use a checkpoint of this version") from None
    return module.requires_grad_(False).eval()
