"""The results table: what the rows' result files amount to, for the terminal and as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from structseg.metric_names import flat_metrics
from structseg.results.files import Result
from structseg.results.manifest import Row, recipe

HEADER = ("row", "what", "seeds", "headline", "range", "IoU of each class", "aim", "hardware", "min")
DIRTY_NOTE = "\\* measured with changes that were not committed"
STALE_NOTE = "† measured with settings that have changed since; `structseg results --run ROW` measures it anew"


@dataclass(frozen=True)
class Summary:
    """A row's figures over its measured seeds.

    Attributes:
        row: the row.
        seeds: those that are measured.
        values: the headline metric of each.
        classes: mean IoU of each class over the seeds in which it occurs; nan where in none.
        beside: means of the metrics that the row shows beside its headline.
        minutes: mean of fit and test together.
        hardware: each that was used.
        dirty: whether any seed was measured with changes that were not committed.
        stale: whether any was measured with other settings than the row has now.
    """

    row: Row
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    classes: Mapping[str, float]
    beside: Mapping[str, float]
    minutes: float
    hardware: tuple[str, ...]
    dirty: bool
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
    def aim_is_met(self) -> bool:
        """Whether the mean, as it is printed, reaches the row's aim; false where it has none."""
        return self.row.aim is not None and round(self.mean, 3) >= self.row.aim

    def cells(self) -> tuple[str, ...]:
        """The texts of a line, in the order of `HEADER`."""
        row = self.row
        mark = ("\\*" if self.dirty else "") + ("†" if self.stale else "")
        spread = "" if len(self.values) == 1 else f" ± {self.spread:.3f}"
        low_high = "" if len(self.values) == 1 else f"{min(self.values):.3f} to {max(self.values):.3f}"
        aim = "" if row.aim is None else f"{row.aim:g}: {'met' if self.aim_is_met else 'not met'}"
        return (
            row.name + mark,
            row.what,
            str(len(self.seeds)) if set(self.seeds) == set(row.seeds) else f"{len(self.seeds)} of {len(row.seeds)}",
            f"{_scored_on(row)}{row.headline} {self.mean:.3f}{spread}"
            + "".join(f"<br>{name} {value:.3f}" for name, value in self.beside.items()),
            low_high,
            ", ".join(f"{name} {'-' if math.isnan(value) else f'{value:.3f}'}" for name, value in self.classes.items()),
            aim,
            "; ".join(self.hardware),
            f"{self.minutes:.1f}",
        )


def summarise(row: Row, results: Iterable[Result]) -> Summary | None:
    """The figures of a row; None where no seed of it is measured.

    Raises:
        ValueError: a result does not have the row's headline metric, or was not scored on what the row says.
    """
    own = [result for result in results if result.row == row.name and result.seed in row.seeds]
    if not own:
        return None
    for result in own:
        if result.scored_on != row.scored_on:
            raise ValueError(
                f"{result.path} was scored on {result.scored_on}, its row says {row.scored_on}; measure it"
            )
    return Summary(
        row,
        tuple(result.seed for result in own),
        tuple(result.value(row.headline) for result in own),
        _class_ious(row, own),
        {name: statistics.fmean(result.value(name) for result in own) for name in row.also},
        statistics.fmean(result.minutes for result in own),
        tuple(dict.fromkeys(result.hardware for result in own)),
        any(result.dirty for result in own),
        bool(stale_seeds(row, own)),
    )


def stale_seeds(row: Row, results: Iterable[Result]) -> set[int]:
    """Seeds of a row that were measured with other settings than it has now; of results without a recipe none."""
    told = {result.seed: result.recipe for result in results if result.row == row.name and result.recipe is not None}
    now = recipe(row) if told else None  # it reads files
    return {seed for seed, then in told.items() if then != now}


def _class_ious(row: Row, results: Sequence[Result]) -> dict[str, float]:
    """From the part of the metrics that the headline is in."""
    found: dict[str, list[float]] = {}
    for result in results:
        branch: Any = result.content["metrics"]
        for name in row.headline.split(".")[:-1]:
            branch = branch if name == "iou" else branch[name]
        for name, value in branch.get("iou", {}).items():
            found.setdefault(name, []).extend([] if value is None else [value])
    return {name: statistics.fmean(values) if values else math.nan for name, values in found.items()}


def not_measured(row: Row) -> str:
    """The words for a row without results: how long it would take where."""
    words = {"cpu": "on 2 cores", "gpu": "on a GPU"}
    times = [f"≈ {row.minutes[key]:g} min {words[key]}" for key in words if row.minutes.get(key) is not None]
    return f"not measured ({', '.join(times)})" if times else "not measured"


def _scored_on(row: Row) -> str:
    """What stands before the figure of a row that never saw the test set."""
    return "" if row.scored_on == "test" else "validation: "


def _lines(rows: Mapping[str, Row], results: Sequence[Result]) -> tuple[list[tuple[str, ...]], list[str]]:
    """The cells of each line, and the notes below."""
    summaries = {name: summarise(row, results) for name, row in rows.items()}
    lines = []
    for name, row in rows.items():
        summary = summaries[name]
        aim = "" if row.aim is None else f"{row.aim:g}"
        empty = (name, row.what, f"0 of {len(row.seeds)}", _scored_on(row) + not_measured(row), "", "", aim, "", "")
        lines.append(empty if summary is None else summary.cells())
    found = [summary for summary in summaries.values() if summary]
    marked = {DIRTY_NOTE: any(own.dirty for own in found), STALE_NOTE: any(own.stale for own in found)}
    notes = [note for note, said in marked.items() if said]
    foreign = [result.path.name for result in results if not _belongs(result, rows)]
    if foreign:
        notes.append(f"of no row or seed of the manifest: {', '.join(foreign)}")
    return lines, notes


def _belongs(result: Result, rows: Mapping[str, Row]) -> bool:
    return result.row in rows and result.seed in rows[result.row].seeds


def rich_table(rows: Mapping[str, Row], results: Sequence[Result]) -> tuple[Table, list[str]]:
    """The table for a terminal, and the notes below it."""
    lines, notes = _lines(rows, results)
    table = Table(show_lines=True)
    for title in HEADER:
        table.add_column(title, justify="right" if title == "min" else "left", no_wrap=title == "row")
    for line in lines:
        table.add_row(*(cell.replace("\\*", "*").replace("<br>", "\n") for cell in line))
    return table, [note.replace("\\*", "*") for note in notes]


def markdown(rows: Mapping[str, Row], results: Sequence[Result]) -> str:
    """The measured rows as a Markdown table, with the notes below it; how many are not measured is said there."""
    measured = {name: row for name, row in rows.items() if summarise(row, results)}
    lines, notes = _lines(measured, [result for result in results if result.row in measured or result.row not in rows])
    if len(measured) < len(rows):
        notes.append(f"{len(rows) - len(measured)} further rows are not measured: `structseg results --missing`")
    return "\n\n".join([markdown_table(HEADER, ("---",) * (len(HEADER) - 1) + ("---:",), lines), *notes])


def markdown_table(header: Sequence[str], rules: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of texts; `rules` (`---`, `---:`) align the columns."""
    cells = ([cell.replace("|", "\\|") for cell in line] for line in (header, rules, *lines))
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def details(row: Row, results: Sequence[Result]) -> Table:
    """Every metric of a row, a column for each seed, and their mean and spread.

    Raises:
        ValueError: no seed of the row is measured.
    """
    own = [result for result in results if result.row == row.name]
    if not own:
        raise ValueError(f"{row.name} is {not_measured(row)}; measure it with `structseg results --run {row.name}`")
    table = Table(title=row.name)
    table.add_column("metric")
    for result in own:
        table.add_column(f"seed {result.seed}{'*' if result.dirty else ''}", justify="right")
    table.add_column("mean ± spread", justify="right")
    metrics = [flat_metrics(result.content["metrics"]) for result in own]
    for key in dict.fromkeys(key for found in metrics for key in found):
        values = [found.get(key, math.nan) for found in metrics]
        known = [value for value in values if not math.isnan(value)]
        spread = f" ± {statistics.stdev(known):.4f}" if len(known) > 1 else ""
        mean = f"{statistics.fmean(known):.4f}{spread}" if known else "-"
        table.add_row(key, *("-" if math.isnan(value) else f"{value:.4f}" for value in values), mean)
    table.add_section()
    kept = ("commit", "date", "hardware", "wall_seconds", "test_seconds", "train_images", "val_images", "test_images")
    for key in (key for key in kept if any(key in result.content for result in own)):
        said = [str(result.content.get(key, "-")) for result in own]
        table.add_row(key, *(text[:10] if key in ("commit", "date") else text for text in said), "")
    return table
