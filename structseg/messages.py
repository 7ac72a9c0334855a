"""Messages: an error in one line, and the nearest known name for a misspelt one."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from typing import NoReturn


class UsageError(ValueError):
    """The words of a command are wrong; the exit code is 2."""


def fail(message: str, code: int = 1) -> NoReturn:
    """Ends the program with one line on stderr."""
    sys.stderr.write(f"structseg: error: {printable(' '.join(message.split()))}\n")
    raise SystemExit(code)


def interrupted(error: BaseException | None) -> bool:
    """Whether an error came of Ctrl-C, as where the file that is being written cannot be ended any more."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def printable(text: str) -> str:
    """The text with bytes of file names that are not UTF-8 as escapes."""
    return text.encode(errors="backslashreplace").decode()


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean X?)`, or nothing where nothing is near."""
    near = difflib.get_close_matches(name, sorted(set(known) - {name}), 1, 0.55)
    return f" (did you mean {near[0]}?)" if near else ""
