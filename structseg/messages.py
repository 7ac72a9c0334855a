"""Error messages in one line, and the nearest known name to a misspelt one."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from typing import NoReturn


class UsageError(ValueError):
    """The command line is wrong; the exit code is 2."""


def fail(message: str, code: int = 1) -> NoReturn:
    """Ends the program with one line on stderr."""
    sys.stderr.write(f"structseg: error: {printable(' '.join(message.split()))}\n")
    raise SystemExit(code)


def interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C caused an error, directly or through the error of a file that could not be completed."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def counted(number: int, what: str) -> str:
    """`1 fault`, `2 faults`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """The text with escapes for bytes of file names that are not UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean X?)`, or an empty text where no known name is similar."""
    near = difflib.get_close_matches(name, sorted(set(known) - {name}), 1, 0.55)
    return f" (did you mean {near[0]}?)" if near else ""
