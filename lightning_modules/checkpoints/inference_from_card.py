"""Builds the network that labels pixels from a checkpoint; without Lightning for the suite's own methods."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from structseg.lightning_modules.checkpoints.card import read_checkpoint, space_of
from structseg.lightning_modules.inference import Inference

_ROOM = "structseg.lightning_modules."
# The `Inference` class of each method; None: it labels no pixels. Other methods are built with their training code.
_PLAIN: Mapping[str, str | None] = {
    "fasseg_unet.FASSEGUNet": "inference.Inference",
    "consensus.ConsensusSegmenter": "inference.Inference",
    "stn.stn_icnn.STNiCNN": "stn.inference.STNInference",
    "conta.segmenter.CONTASegmenter": "conta.inference.CONTAInference",
    "conta.classifier.CONTAClassifier": None,
    "conta.relation_network.CONTARelationNetwork": None,
}


def load_inference(path: Path, options: Mapping[str, Any]) -> tuple[Inference, dict[str, Any]]:
    """The network of a checkpoint with its weights, in evaluation mode, and its card.

    Args:
        path: a checkpoint that `structseg fit` wrote.
        options: settings that differ from training, by the method's option; None keeps that of the training.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no checkpoint of this suite, one that labels no pixels or cannot be built again, or an option that
            its method does not have.
    """
    card, state = read_checkpoint(path)
    if not card["config"]:
        raise ValueError(f"{path} holds no configuration; use a checkpoint that `structseg fit` wrote")
    if card["size"] is None:
        raise ValueError(f"{path} does not say what size its images had; use a checkpoint that `structseg fit` wrote")
    method = card["config"].get("model", {}).get("class_path", card["method"])
    names = {name: plain for path, plain in _PLAIN.items() for name in (_ROOM + path, path.rpartition(".")[2])}
    plain = names.get(method, "")
    options = {name: value for name, value in options.items() if value is not None}
    try:
        if plain:
            module, _, name = plain.rpartition(".")
            with _without_wandb():
                kind: type[Inference] = getattr(import_module(_ROOM + module), name)
        else:
            kind = _class_of(method) if plain == "" else object
        if not issubclass(kind, Inference):
            raise _Refused(f"{path} is of {card['method']}, which labels no pixels; give the checkpoint of a segmenter")
        if unknown := options.keys() - set(kind.options):
            raise _Refused(f"{card['method']} has no {', '.join(sorted(unknown))}; it takes {', '.join(kind.options)}")
        if plain:
            with _without_wandb():
                inference = kind.from_card(card, space_of(card), options)
            own = {name for name, _ in inference.named_children()}
            state = {key: weights for key, weights in state.items() if key.partition(".")[0] in own}
        else:
            inference = _whole_module(kind, card, options)
        inference.load_state_dict(state)
        inference.check_prediction()
    except _Refused as refused:
        raise ValueError(str(refused)) from None
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())[:400]
        raise ValueError(f"{path} cannot be used ({reason}); use a checkpoint of this version") from None
    return inference.requires_grad_(False).eval(), card


@contextmanager
def _without_wandb() -> Iterator[None]:
    """Keeps timm from importing W&B, which takes a second, for its own training log."""
    if "wandb" in sys.modules:
        yield
        return
    sys.modules["wandb"] = None  # type: ignore[assignment]  # so that an import of it fails
    try:
        yield
    finally:
        del sys.modules["wandb"]


class _Refused(ValueError):
    """A valid checkpoint or option that cannot be used here."""


def _class_of(path: str) -> type:
    module, _, name = path.rpartition(".")
    found: type = getattr(import_module(module), name)
    return found


def _whole_module(kind: type[Inference], card: Mapping[str, Any], options: Mapping[str, Any]) -> Inference:
    """Builds a module of a user's own method."""
    from structseg.lightning_modules.checkpoints.from_card import module_from_card

    model = card["config"]["model"]
    config = {**card["config"], "model": {**model, "init_args": {**model.get("init_args", {}), **options}}}
    module: Inference = module_from_card(kind, {**card, "config": config}, space_of(dict(card)))  # type: ignore[type-var]
    return module
