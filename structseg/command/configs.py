"""The data part of a configuration as a datamodule, for tools that train nothing."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from structseg.command.lightning import run
from structseg.command.parser import StructsegParser
from structseg.datamodules.base import SegmentationDataModule
from structseg.yaml_files import load_yaml


def parse_data(parser: StructsegParser, args: list[str], tool: str) -> Namespace:
    """Adds the argument `config_file` and the options `--data...`, whose defaults the named file gives, and parses.

    Raises:
        FileNotFoundError: no such configuration.
        ValueError: the configuration is no YAML or has no data; the message names the `tool` that needs some.
    """
    parser.add_argument("config_file", type=str, help="the YAML of an experiment; its data part is used")
    parser.add_subclass_arguments(SegmentationDataModule, "data", fail_untyped=False)
    path = Path(next((arg for arg in args if arg.endswith((".yaml", ".yml"))), ""))
    if path.name:
        if not path.is_file():
            raise FileNotFoundError(f"no configuration {path}; give the YAML of an experiment")
        content, _ = load_yaml(path)
        data = content.get("data") if isinstance(content, dict) else None
        if not data:
            raise ValueError(f"{path} has no data part; {tool} needs a datamodule")
        parser.set_defaults({"data": data})
    return parser.parse_args(args)


def resolved_config(args: Sequence[str]) -> dict[str, Any]:
    """What one of Lightning's subcommands would run with, parsed in this process.

    Raises:
        ValueError: the arguments are refused.
    """
    out, refused = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(refused):
            run([*args, "--print_config"])
    except SystemExit as end:
        if end.code:
            raise ValueError(refused.getvalue().strip().rpartition("structseg: error: ")[2]) from None
    config: dict[str, Any] = yaml.safe_load(out.getvalue())
    return config


def make_datamodule(config: Mapping[str, Any]) -> SegmentationDataModule:
    """The datamodule of a resolved configuration."""
    parser = StructsegParser()
    parser.add_subclass_arguments(SegmentationDataModule, "data")
    made: SegmentationDataModule = parser.instantiate_classes(parser.parse_object({"data": config["data"]})).data
    return made
