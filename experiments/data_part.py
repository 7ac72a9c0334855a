"""The data part of a configuration as a datamodule, for tools that train nothing."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from datamodules.base import SegmentationDataModule
from experiments.parser import StructsegParser
from experiments.yaml_files import load_yaml


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
