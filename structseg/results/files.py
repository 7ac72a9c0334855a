"""The files that runs leave for the results tables: `ROW.SEED.json` and the scores of the images."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from structseg.files import ROOT, sha256
from structseg.messages import nearest
from structseg.metric_names import flat_metrics

RELIABILITY = "reliability.json"  # failures that were injected and what survived them, in the same folder
_NAME = re.compile(r"(?P<row>\w+)\.(?P<seed>\d+)\.json")


@dataclass(frozen=True)
class Result:
    """One measured seed of a row.

    Attributes:
        path: the file.
        row: name of the row.
        seed: the seed.
        content: all that the file holds.
    """

    path: Path
    row: str
    seed: int
    content: Mapping[str, Any]

    @property
    def minutes(self) -> float:
        """Of the fit and all tests together."""
        return float(self.content["wall_seconds"] + self.content.get("test_seconds", 0.0)) / 60

    @property
    def hardware(self) -> str:
        """What it was measured on."""
        return str(self.content["hardware"])

    @property
    def dirty(self) -> bool:
        """Whether the code held changes that the commit does not have."""
        return bool(self.content["dirty"])

    @property
    def recipe(self) -> str | None:
        """Hash of the row's settings at the time; None in results from before it was kept."""
        return self.content.get("recipe")

    @property
    def scored_on(self) -> str:
        """`test` or `val`."""
        return str(self.content.get("scored_on", "test"))

    def value(self, key: str) -> float:
        """A metric by its dotted name; nan where the file has null.

        Raises:
            ValueError: there is no such metric; the message has the nearest name.
        """
        known = flat_metrics(self.content["metrics"])
        if key not in known:
            raise ValueError(f"{self.path} has no metric {key}{nearest(key, known)}; change the row's headline")
        return known[key]


def result_path(folder: Path, row: str, seed: int) -> Path:
    """Where the result of a row and seed belongs."""
    return folder / f"{row}.{seed}.json"


def images_path(result: Path) -> Path:
    """Where the scores of each image belong, beside the result."""
    return result.with_suffix(".images.csv.gz")


def read_results(folder: Path) -> list[Result]:
    """Every result in a folder, by row and seed.

    Raises:
        ValueError: a file is damaged or not of this form; the message names it.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        if path.name == RELIABILITY:
            continue
        named = _NAME.fullmatch(path.name)
        if not named:
            raise ValueError(f"{path} is not a result: expected a name like ROW.SEED.json; move it away")
        found.append(_read(path, named["row"], int(named["seed"])))
    return sorted(found, key=lambda result: (result.row, result.seed))


def _read(path: Path, row: str, seed: int) -> Result:
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and measure the row again") from None
    wanted = {"row": str, "seed": int, "hardware": str, "wall_seconds": int | float, "dirty": bool, "metrics": dict}
    keys = content if isinstance(content, dict) else {}
    wrong = [key for key, kind in wanted.items() if not isinstance(keys.get(key), kind)]
    if wrong:
        raise ValueError(f"{path} is damaged (no proper {', '.join(wrong)}); remove it and measure the row again")
    if (content["row"], content["seed"]) != (row, seed):
        raise ValueError(f"{path} holds row {content['row']}, seed {content['seed']}; give it its own name back")
    return Result(path, row, seed, content)


def write_images(path: Path, tables: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """Writes the scores of each image as one table, with a first column `test` where the tests have names.

    Args:
        path: the file, as `images_path` says.
        tables: what `ImageScores` wrote, header first, by the name of the test; "" = the only test.

    Returns:
        The file's SHA-256, for the result that it belongs to.

    Raises:
        ValueError: the tables do not have the same columns.
    """
    from structseg.lightning_modules.callbacks.image_scores import write_table  # loads torch, which tables do without

    headers = {tuple(table[0]) for table in tables.values()}
    if len(headers) != 1:
        raise ValueError(f"the tests {', '.join(tables)} have different classes; make a row for each")
    lines = [[test, *line] for test, table in tables.items() for line in table[1:]]
    lines.insert(0, ["test", *headers.pop()])
    write_table(path, [line[1:] for line in lines] if set(tables) == {""} else lines)
    return sha256(path)


def portable(config: Any, data_root: Path | None) -> Any:
    """A configuration without this machine's folders: data below `$STRUCTSEG_DATA`, the rest from the repository."""
    if isinstance(config, dict):
        return {key: portable(value, data_root) for key, value in config.items()}
    if isinstance(config, list):
        return [portable(value, data_root) for value in config]
    if not isinstance(config, str) or not Path(config).is_absolute():
        return config
    for folder, name in ((data_root, "$STRUCTSEG_DATA"), (ROOT, "."), (Path.cwd(), "."), (Path.home(), "~")):
        if folder is not None and Path(config).is_relative_to(folder.resolve()):
            return (Path(name) / Path(config).relative_to(folder.resolve())).as_posix()
    return f".../{Path(config).name}"
