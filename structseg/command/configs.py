"""Turns a configuration into objects, in this process: resolves it, or makes its datamodule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import yaml

from structseg.command.lightning import StructsegCLI
from structseg.command.saved_config import changes
from structseg.datamodules.base import SegmentationDataModule
from structseg.lightning_modules.base import TrainedModule
from structseg.options.arguments import as_options
from structseg.options.class_index import import_named
from structseg.options.config_files import load_config
from structseg.options.option_names import with_pairs
from structseg.options.parser import StructsegParser, shorten


def parse_data(options: Sequence[str], tool: str) -> SegmentationDataModule:
    """The datamodule of a configuration, with further options: `--config PATH --data.root FOLDER`.

    Raises:
        ValueError: the configuration has no data part; the message names the `tool` that needs one.
    """
    _, path, *further = options
    import_named(options)
    content = with_pairs(load_config(Path(path)))
    data = content.get("data") if isinstance(content, dict) else None
    if not data:
        raise ValueError(f"{path} has no data part; {tool} needs a datamodule")
    parser = StructsegParser(prog=f"structseg {tool}")
    parser.add_subclass_arguments(SegmentationDataModule, "data", fail_untyped=False)
    parser.set_defaults({"data": data})
    made: SegmentationDataModule = parser.instantiate_classes(parser.parse_args(further)).data
    return made


class _Refused(Exception):
    """Carries the parser's error in one line."""


class _Resolved(Exception):
    """Carries the text that `--print_config` would print; required options may be missing."""


class _ResolvingParser(StructsegParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a nested parser, whose error the outer one handles
            super().error(message, ex)
        raise _Refused(shorten(message))

    def dump(self, *args: Any, **kwargs: Any) -> str:
        text: str = super().dump(*args, **kwargs)
        if not self.exit_on_error:
            return text
        raise _Resolved(text)


class _ParserMade(Exception):
    """Carries the command line's parser."""


class _ParserOnly(StructsegCLI):
    def parse_arguments(self, parser: Any, args: Any) -> NoReturn:  # noqa: ARG002  # Lightning's hook
        raise _ParserMade(parser)


def _new_parser(subcommand: str) -> StructsegParser:
    try:
        _ParserOnly([subcommand], _ResolvingParser)
    except _ParserMade as made:
        parser: StructsegParser = made.args[0]
    return parser


_parser = cache(_new_parser)


def resolved_config(args: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration of a command line such as `["fit", "--config", "fasseg_v2", ...]`.

    Raises:
        ValueError: the arguments are refused; the message is the line that the command would print.
        OSError: a configuration does not exist or cannot be read.
    """
    args = as_options(args)
    import_named(args)
    try:
        _parser(args[0]).parse_args([*args, "--print_config"])
    except _Resolved as resolved:
        config: dict[str, Any] = yaml.safe_load(str(resolved))
    except _Refused as refused:
        raise ValueError(str(refused)) from None
    return config


def make_model_and_data(options: Sequence[str]) -> tuple[TrainedModule, SegmentationDataModule]:
    """The module and the datamodule that `fit` would make of options as `parse_tool` gives them; nothing is written.

    Raises:
        ValueError: the options are refused; the message is the line that the command prints.
    """
    args = ["fit", *options]
    import_named(args)
    parser = _new_parser("fit")  # one that has printed a configuration cannot parse another
    try:
        made = parser.instantiate_classes(parser.parse_args(args))
    except _Refused as refused:
        raise ValueError(str(refused)) from None
    return made.fit.model, made.fit.data


def differences(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Options of a resolved configuration of a fit that differ from the defaults, with their values."""
    subcommands: Any = _parser("fit")._subcommands_action
    usual = subcommands.choices["fit"].get_defaults().as_dict()
    return [(key, str(value)) for key, value in changes(config, usual)]


def make_datamodule(config: Mapping[str, Any]) -> SegmentationDataModule:
    """The datamodule of a resolved configuration."""
    parser = StructsegParser()
    parser.add_subclass_arguments(SegmentationDataModule, "data")
    made: SegmentationDataModule = parser.instantiate_classes(parser.parse_object({"data": config["data"]})).data
    return made
