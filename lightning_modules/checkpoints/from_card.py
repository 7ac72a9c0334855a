"""A module made again from the card of a file that it was saved in."""

from __future__ import annotations

from typing import Any, TypeVar

from jsonargparse import ArgumentParser, set_parsing_settings

from structseg.datamodules.label_spaces import LabelSpace
from structseg.lightning_modules.base import TrainedModule

set_parsing_settings(subclasses_enabled=[LabelSpace])  # one value, not a group of options; the command line does it too

Module = TypeVar("Module", bound=TrainedModule)


def rebuilt(kind: type[Module], card: dict[str, Any], label_space: LabelSpace) -> Module:
    """With first weights, as the card's configuration says; what the data gave it is in the card too.

    Raises:
        Exception: whatever a configuration that does not fit this version makes jsonargparse or the module raise.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "model")
    config = card["config"].get("model", {})
    linked = {"label_space": label_space, "mean": card["mean"], "std": card["std"]}
    parsed = parser.parse_object({"model": {**config, "init_args": {**config.get("init_args", {}), **linked}}})
    module: Module = parser.instantiate_classes(parsed).model
    return module
