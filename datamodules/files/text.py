"""Reading text, JSON and CSV tables; errors name the file."""

from __future__ import annotations

import csv
import io
import json
import math
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_text(path: Path) -> str:
    """The text of a file, UTF-8 with or without a byte order mark.

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
    """The content of a JSON file; raises as `read_text`, and a ValueError for text that is not JSON."""
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError(f"{path} is no JSON that can be read (nested too deep); copy it again") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}); copy it again") from None
    except ValueError as error:
        # Raised by `read_text`, or for numbers with thousands of digits.
        reason = " ".join(str(error).split())
        raise ValueError(reason if str(path) in reason else f"{path} is no JSON ({reason}); copy it again") from None


def read_tags(path: Path) -> dict[str, frozenset[str]]:
    """The tags of each image from a CSV file with the header `name,classes`.

    Classes are separated by spaces, or by `;` if their names have spaces.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not text, another header, a row with more cells than that, or an image listed twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of tags {path}; check --data.tags")
    tags: dict[str, frozenset[str]] = {}
    for name, cell in _table(path, "classes"):
        parts = cell.split(";") if ";" in cell else cell.split()
        tags[name] = frozenset(part.strip() for part in parts if part.strip())
    return tags


def read_number_table(path: Path) -> dict[str, float]:
    """The weight of each image from a CSV file with the header `name,weight`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as `read_tags`, or a weight that is not a finite number.
    """
    found: dict[str, float] = {}
    for name, cell in _table(path, "weight"):
        try:
            found[name] = float(cell)
        except ValueError:
            found[name] = math.nan
        if not math.isfinite(found[name]):
            raise ValueError(f"{path}: the weight of {name} is {cell!r}; give a number")
    return found


def _table(path: Path, column: str) -> Iterator[tuple[str, str]]:
    """The rows of a CSV file: `name` and the other column; raises as `read_tags`."""
    seen: set[str] = set()
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        if not {"name", column} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path} begins with {rows.fieldnames}; the header name,{column} is needed")
        for row in rows:
            if None in row:
                raise ValueError(f"{path}, line {rows.line_num} has more cells than the header; separate by spaces")
            name = unicodedata.normalize("NFC", row["name"] or "")
            if name in seen:
                raise ValueError(f"{path}, line {rows.line_num}: {name} is listed twice; keep one row")
            seen.add(name)
            yield name, row[column] or ""
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num} is damaged ({error}); mend it") from None
