"""The parser of Lightning's subcommands: errors in one line with the nearest name, no abbreviations."""

from __future__ import annotations

import os
import re
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import Namespace, set_parsing_settings
from pytorch_lightning.cli import LightningArgumentParser

from structseg.datamodules.label_spaces import LabelSpace
from structseg.messages import fail, nearest
from structseg.options.class_index import class_modules
from structseg.options.config_files import load_config
from structseg.options.option_names import nearest_option, with_pairs

# A saved configuration holds the values of enumerations, such as the default `interval` of Lightning's Timer.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, one: dumper.represent_data(one.value))
set_parsing_settings(subclasses_enabled=[LabelSpace])  # one value to link, not a group of options


class StructsegParser(LightningArgumentParser):
    """LightningArgumentParser with one-line errors, without abbreviations, and with `base:` in configurations."""

    _merged = ""  # the configuration being read, merged with its bases

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """Like the parent's, with the configuration merged with its bases."""
        self._merged = yaml.safe_dump(with_pairs(load_config(Path(path))), sort_keys=False)
        return super().parse_path(path, *args, **kwargs)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        """Like the parent's; called by `parse_path`, it parses the merged configuration."""
        content, self._merged = self._merged or content, ""
        return super().parse_string(content, *args, **kwargs)

    def _get_option_tuples(self, option_string: str) -> list[Any]:  # noqa: ARG002  # argparse's hook
        return []  # an abbreviated option is refused, not guessed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exits with code 2 and one line, which has the nearest known name to a misspelt one."""
        if not self.exit_on_error:  # a nested parser, whose error the outer one handles
            super().error(message, ex)
        fail(shorten(message), 2)


def shorten(message: str) -> str:
    """Shortens a nested error of jsonargparse to one line: the key, the value, what was expected, the nearest name."""
    key = ".".join(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', message)))
    where = f"{key}: " if key else ""
    grouped = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
    unknown = re.search(r"Option '([\w.]+)' is not accepted|accept option '([\w.]+)'", message)
    unknown = unknown or re.search(r"[Uu]nrecognized arguments: (?:'?--)?([\w.]+)", message)
    if grouped or unknown:
        found = [group for group in (grouped or unknown).groups() if group]  # type: ignore[union-attr]
        name = ".".join(found)
        full = name if not key or name.startswith(key) else f"{key}.{name}"
        return f"unknown option --{full[:100]}{nearest_option(full, {})}"
    required = re.findall(r"arguments are required: ([^\n]+)", message)
    if required:
        hint = ", or give --ckpt_path" if ".model" in required[-1] and "fit." not in required[-1] else ""
        option = f": --{key}.{required[-1]}" if key and re.fullmatch(r"\w+", required[-1]) else ""
        return f"{where}missing {required[-1]}; give it on the command line or in --config{option}{hint}"
    choice = re.search(r"Expected a typing\.Literal\[([^\]]+)\]\. Got value: (\S+)", message)
    if choice:
        return f"{where}expected one of {choice[1]}, got {choice[2]}"
    reasons = _reasons(message)
    if reasons:
        return where + "; ".join(reasons)
    types = re.findall(r"Expected an? (<class '[\w.]+'>|tuple with \d+ elements)", message)
    types = [t.removeprefix("<class '").removesuffix("'>") for t in types if "NoneType" not in t]
    if types:
        value = re.findall(r"(?:Given|Got) value: (.+?)(?:\. Got value|$)", message, re.MULTILINE)
        return f"{where}expected {' or '.join(dict.fromkeys(types))}, got {value[0] if value else 'something else'}"
    missing = re.search(r"Expected a dot import path string: (\S+)", message)
    if missing:
        return f"{where}there is no class {missing[1]}{nearest(missing[1], {*class_modules(), *torch.optim.__all__})}"
    return " ".join(line.strip(" -") for line in message.splitlines()[:3])


# Lines of jsonargparse's errors that are not reasons: their structure, and types that did not match.
_FRAME = re.compile(
    r"Parser key|Does not validate|Subtypes:|Errors:|Given value|Problem with given class_path|Expected an? <class"
    r"|Expected an? tuple|Expected a path but|Expected a dot import path|Type typing\."
)


def _reasons(message: str) -> list[str]:
    lines = [line.strip().removeprefix("- ").strip() for line in message.splitlines()]
    return list(dict.fromkeys(line for line in lines if line and not _FRAME.match(line)))
