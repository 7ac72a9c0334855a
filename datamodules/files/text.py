"""Lists, tables and JSON as files have them; errors name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_text(path: Path) -> str:
    """The text of a file, UTF-8 with or without its mark.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not text; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; check the path")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text (byte {error.start}); copy it again or save it as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{path} is no text (it holds zero bytes); copy it again")
    return text


def read_json(path: Path) -> Any:
    """What a JSON file holds; raises as `read_text`."""
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError(f"{path} is no JSON that can be read (nested too deep); copy it again") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}); copy it again") from None
    except ValueError as error:
        # Of numbers with thousands of digits, beside what `read_text` says.
        reason = " ".join(str(error).split())
        raise ValueError(reason if str(path) in reason else f"{path} is no JSON ({reason}); copy it again") from None
