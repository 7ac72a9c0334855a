"""The parser of the other subcommands: argparse with errors in one line and an example."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from structseg.messages import fail, nearest


class PlainParser(argparse.ArgumentParser):
    """ArgumentParser whose errors are one line and exit with 2.

    Args:
        name: the subcommand.
        examples: of its arguments; all are in the help, the first also in the error for a missing argument.
        description: of the subcommand.
        **settings: of ArgumentParser.
    """

    def __init__(self, name: str, examples: Sequence[str] = (), description: str = "", **settings: Any) -> None:
        self._name, self._examples = name, examples
        shown = "\n".join(["examples:", *(f"  structseg {name} {example}".rstrip() for example in examples)])
        super().__init__(
            description=textwrap.fill(description, 100),
            prog=f"structseg {name}",
            epilog=shown if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **settings,
        )

    def error(self, message: str) -> NoReturn:
        """Exits with code 2 and one line: the missing argument and an example, or the nearest option."""
        required = re.search(r"arguments are required: (.+)", message)
        if required and self._examples:
            message = f"{required[1]} is missing, as in: structseg {self._name} {self._examples[0]}"
        unknown = re.search(r"unrecognized arguments: (-\S+)", message)
        if unknown:
            name = unknown[1].partition("=")[0]
            message = f"unknown option {name}{nearest(name, self._option_string_actions)}; -h shows all"
        fail(f"{self._name}: {message}", 2)
