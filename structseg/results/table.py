"""The results tables: what the rows' result files amount to, for the terminal and as Markdown."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from structseg.messages import nearest
from structseg.metric_names import flat_metrics
from structseg.results.files import Result
from structseg.results.manifest import Recipes, Row
from structseg.tables import TextTable

HEADER = ("row", "what", "seeds", "headline", "range", "IoU of each class", "aim", "hardware", "min")
DIRTY_NOTE = "* measured with changes that were not committed"
STALE_NOTE = "† measured with settings that have changed since; `structseg results --run ROW` measures it again"
WIDTH = 100  # columns of the tables in a terminal
_COLUMNS = ("row", "metric", "mean ± sd", "seeds")
_HINT = "All of a row: `structseg results --details ROW`."
_METRIC_WIDTH = 34  # leaves room for a row's name of 36 characters


@dataclass(frozen=True)
class Summary:
    """A row's figures over its measured seeds.

    Attributes:
        row: the row.
        results: one for each measured seed.
        values: the headline metric of each.
        stale: whether any was measured with other settings than the row has now.
    """

    row: Row
    results: tuple[Result, ...]
    values: tuple[float, ...]
    stale: bool

    @property
    def mean(self) -> float:
        """Of the headline metric."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Sample standard deviation of the headline metric; nan of a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 and not math.isnan(self.mean) else math.nan

    @property
    def dirty(self) -> bool:
        """Whether any seed was measured with changes that were not committed."""
        return any(result.dirty for result in self.results)

    @property
    def marks(self) -> str:
        """Refer to the notes."""
        return ("*" if self.dirty else "") + ("†" if self.stale else "")

    @property
    def figure(self) -> str:
        """Mean ± standard deviation."""
        return f"{self.mean:.3f}" + ("" if len(self.values) == 1 else f" ± {self.spread:.3f}")

    @property
    def classes(self) -> dict[str, float]:
        """Mean IoU of each class over the seeds in which it occurs; nan where in none.

        From the part of the metrics that the headline is in.
        """
        found: dict[str, list[float]] = {}
        for result in self.results:
            branch: Any = result.content["metrics"]
            for name in self.row.headline.split(".")[:-1]:
                branch = branch if name == "iou" else branch[name]
            for name, value in branch.get("iou", {}).items():
                found.setdefault(name, []).extend([] if value is None else [value])
        return {name: statistics.fmean(values) if values else math.nan for name, values in found.items()}

    def cells(self) -> tuple[str, ...]:
        """The texts of a line, in the order of `HEADER`."""
        row, several = self.row, len(self.values) > 1
        beside = {name: statistics.fmean(result.value(name) for result in self.results) for name in row.also}
        reached = row.aim is not None and round(self.mean, 3) >= row.aim  # as it is printed
        return (
            row.name + self.marks.replace("*", "\\*"),
            row.what,
            _seeds(row, len(self.values)).removesuffix(f" of {len(self.values)}"),
            f"{'' if row.scored_on == 'test' else 'validation: '}{row.headline} {self.figure}"
            + "".join(f"<br>{name} {value:.3f}" for name, value in beside.items()),
            f"{min(self.values):.3f} to {max(self.values):.3f}" if several else "",
            ", ".join(f"{name} {'-' if math.isnan(value) else f'{value:.3f}'}" for name, value in self.classes.items()),
            "" if row.aim is None else f"{row.aim:g}: {'met' if reached else 'not met'}",
            "; ".join(dict.fromkeys(result.hardware for result in self.results)),
            f"{statistics.fmean(result.minutes for result in self.results):.1f}",
        )


def summarise(row: Row, results: Iterable[Result], recipes: Recipes | None = None) -> Summary | None:
    """The figures of a row; None where no seed of it is measured.

    Raises:
        ValueError: a result does not have the row's headline metric, or was not scored on what the row says.
    """
    own = tuple(result for result in results if result.row == row.name and result.seed in row.seeds)
    if not own:
        return None
    for result in own:
        if result.scored_on != row.scored_on:
            raise ValueError(
                f"{result.path} was scored on {result.scored_on}, its row says {row.scored_on}; measure it"
            )
    values = tuple(result.value(row.headline) for result in own)
    return Summary(row, own, values, bool(stale_seeds(row, own, recipes)))


def stale_seeds(row: Row, results: Iterable[Result], recipes: Recipes | None = None) -> set[int]:
    """Seeds of a row that were measured with other settings than it has now.

    A result from before recipes were kept counts as measured with the row's settings.
    """
    measured = {result.seed: result.recipe for result in results if result.row == row.name and result.recipe}
    now = (recipes or Recipes()).of(row) if measured else None  # it reads files
    return {seed for seed, then in measured.items() if then != now}


def _seeds(row: Row, measured: int) -> str:
    return f"{measured} of {len(row.seeds)}"


def not_measured(row: Row) -> str:
    """The words for a row without results, with the time that it would take."""
    words = {"cpu": "on 2 cores", "gpu": "on a GPU"}
    times = [f"≈ {row.minutes[key]:g} min {words[key]}" for key in words if row.minutes.get(key) is not None]
    return f"not measured ({', '.join(times)})" if times else "not measured"


def overview(rows: Mapping[str, Row], results: Sequence[Result]) -> str:
    """The shown rows of each method, for a terminal; of a method that shows none, all of them."""
    recipes = Recipes()
    lines: list[tuple[str, ...]] = []
    summaries = []
    for method in dict.fromkeys(row.method for row in rows.values()):
        own = [row for row in rows.values() if row.method == method]
        own = [row for row in own if row.shown] or own
        found = [summarise(row, results, recipes) for row in own]
        lines += [("",), (method,), *(_line(row, summary, "  ") for row, summary in zip(own, found, strict=True))]
        summaries += found
    notes = [*_notes(summaries), *_foreign(rows, results)]
    return _terminal(lines, [*notes, "All rows of a method: `structseg results METHOD`. " + _HINT])


def method_table(rows: Mapping[str, Row], results: Sequence[Result]) -> str:
    """Rows of a method, for a terminal: the measured ones with what they are, then the names of the others."""
    recipes = Recipes()
    lines: list[tuple[str, ...]] = []
    found = {name: summarise(row, results, recipes) for name, row in rows.items()}
    for name, summary in found.items():
        if summary:
            lines.append(_line(rows[name], summary))
            lines += [(f"    {part}",) for part in textwrap.wrap(rows[name].what, WIDTH - 4)]
    others = ", ".join(name for name, summary in found.items() if not summary)
    notes = [f"not measured (how to: `structseg results --missing`): {others}"] if others else []
    return _terminal(lines, [*_notes(found.values()), *notes, _HINT])


def _terminal(lines: Sequence[Sequence[str]], notes: Iterable[str]) -> str:
    wrapped = [line for note in notes for line in textwrap.wrap(note, WIDTH, subsequent_indent="  ")]
    return TextTable(_COLUMNS, lines, 2, notes=["", *wrapped]).text()


def rows_of_method(rows: Mapping[str, Row], method: str) -> dict[str, Row]:
    """The rows of a method, by the name of its folder: `stn_icnn`, `STN-iCNN`.

    Raises:
        ValueError: there is no such method; the message has the nearest name.
    """
    wanted = method.lower().replace("-", "_").replace(" ", "_")
    found = {name: row for name, row in rows.items() if row.method == wanted}
    if not found:
        if method in rows:
            raise ValueError(f"{method} is a row, not a method; `structseg results --details {method}` has its figures")
        methods = dict.fromkeys(row.method for row in rows.values())
        hint = nearest(wanted, methods) or f"; there are {', '.join(methods)}"
        raise ValueError(f"no method {method} in the manifest{hint}")
    return found


def _line(row: Row, summary: Summary | None, indent: str = "") -> tuple[str, ...]:
    metric = row.headline if row.scored_on == "test" else f"{row.headline} (validation)"
    if len(metric) > _METRIC_WIDTH:
        metric = f"{metric[: _METRIC_WIDTH - 1]}…"
    if summary is None:
        return f"{indent}{row.name}", metric, "-", _seeds(row, 0)
    return f"{indent}{row.name}{summary.marks}", metric, summary.figure, _seeds(row, len(summary.values))


def _notes(found: Iterable[Summary | None]) -> list[str]:
    known = [summary for summary in found if summary]
    marked = {DIRTY_NOTE: any(own.dirty for own in known), STALE_NOTE: any(own.stale for own in known)}
    return [note for note, needed in marked.items() if needed]


def _foreign(rows: Mapping[str, Row], results: Iterable[Result]) -> list[str]:
    names = [
        result.path.name for result in results if result.row not in rows or result.seed not in rows[result.row].seeds
    ]
    return [f"of no row or seed of the manifest: {', '.join(names)}"] if names else []


def markdown(rows: Mapping[str, Row], results: Sequence[Result]) -> str:
    """The measured rows as a Markdown table; a note below it has the number of those that are not measured."""
    recipes = Recipes()
    found = [summary for row in rows.values() if (summary := summarise(row, results, recipes))]
    notes = [note.replace("*", "\\*") for note in _notes(found)] + _foreign(rows, results)
    if len(found) < len(rows):
        notes.append(f"{len(rows) - len(found)} further rows are not measured: `structseg results --missing`")
    return TextTable(HEADER, [own.cells() for own in found], len(HEADER) - 1, notes=notes).markdown()


def details(row: Row, results: Sequence[Result]) -> TextTable:
    """Every metric of a row, a column for each seed, and their mean and spread.

    Raises:
        ValueError: no seed of the row is measured.
    """
    own = [result for result in results if result.row == row.name]
    if not own:
        raise ValueError(f"{row.name} is {not_measured(row)}; measure it with `structseg results --run {row.name}`")
    lines = []
    metrics = [flat_metrics(result.content["metrics"]) for result in own]
    for key in dict.fromkeys(key for found in metrics for key in found):
        values = [found.get(key, math.nan) for found in metrics]
        known = [value for value in values if not math.isnan(value)]
        spread = f" ± {statistics.stdev(known):.4f}" if len(known) > 1 else ""
        mean = f"{statistics.fmean(known):.4f}{spread}" if known else "-"
        lines.append((key, *("-" if math.isnan(value) else f"{value:.4f}" for value in values), mean))
    kept = ("commit", "date", "hardware", "wall_seconds", "test_seconds", "train_images", "val_images", "test_images")
    for key in (key for key in kept if any(key in result.content for result in own)):
        values_of_key = [str(result.content.get(key, "-")) for result in own]
        lines.append((key, *(text[:10] if key in ("commit", "date") else text for text in values_of_key), ""))
    seeds = (f"seed {result.seed}{'*' if result.dirty else ''}" for result in own)
    return TextTable(("metric", *seeds, "mean ± sd"), lines, title=row.name)
