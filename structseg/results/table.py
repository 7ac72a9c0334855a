"""Tables of the results: claims, the rows of a method, one row; for the terminal and for `docs/results.md`."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from structseg.messages import nearest
from structseg.results.claims import HEADER, RULE, Found, runs_of
from structseg.results.dots import dot_plot
from structseg.results.files import Run
from structseg.results.manifest import Recipes, Row
from structseg.tables import TextTable

WIDTH = 100  # columns of the tables in a terminal
STALE = "† measured with settings that have changed since; `structseg results --run ROW` measures it again"
DIRTY = "* measured with uncommitted changes"
_CLAIM_WIDTH = 33  # leaves room for the other columns
_COLUMNS = ("row", "metric", "mean", "range", "n", "minutes")
BY_SEED = ("claim", "what is compared", "by seed", "together", "verdict")
_NAMES = {
    "conta": "CONTA",
    "consensus": "Structure via consensus",
    "stn_icnn": "STN-iCNN",
    "fasseg_unet": "FASSEG U-Net",
}
_MORE = "n seeds; 95 % t interval. `structseg results METHOD` has the rows, `--details ROW` all of one."


def method_name(method: str) -> str:
    """The name of a method, given its folder."""
    return _NAMES.get(method, method)


def claims_table(found: Sequence[Found]) -> str:
    """The claims of all methods, for a terminal."""
    lines: list[tuple[str, ...]] = []
    for method in dict.fromkeys(item.method for item in found):
        lines.append((method_name(method),))
        for item in (item for item in found if item.method == method):
            claim, *cells = item.cells
            first, *rest = textwrap.wrap(claim, _CLAIM_WIDTH - 1) or [""]
            lines += [(f" {first}", *cells), *((f" {part}",) for part in rest)]
    return TextTable(HEADER, lines, 2, notes=_wrapped(["", *_apart(found), _MORE])).text()


def method_table(rows: Mapping[str, Row], runs: Sequence[Run], found: Sequence[Found]) -> str:
    """The claims of a method with the differences by seed, and its rows, for a terminal."""
    table, notes, missing = _rows_table(rows, runs)
    notes += [f"not measured yet (`structseg results --missing`): {', '.join(missing)}"] * bool(missing)
    lines = []
    for item in found:
        what, seeds, together = item.by_seed
        lines += [f"{item.claim.claim}: {item.verdict}", f"  {what}", f"  by seed {seeds}; {together}", ""]
    rows_text = TextTable(table.header, table.lines, 2, notes=_wrapped(["", *notes])).text()
    return "\n".join([*_wrapped(lines), rows_text])


def details(row: Row, runs: Sequence[Run]) -> TextTable:
    """All kept values of a row, a column for each seed.

    Raises:
        ValueError: no seed of the row is measured.
    """
    own = runs_of(row, runs)
    if not own:
        raise ValueError(f"{row.name} is not measured; `structseg results --run {row.name}` measures it")
    lines = []
    for key in dict.fromkeys(key for run in own for key in run.metrics):
        values = [run.metrics.get(key, math.nan) for run in own]
        known = [value for value in values if not math.isnan(value)]
        lines.append((key, *(number(value, 4) for value in values), number(_mean(known), 4)))
    for key in ("commit", "date", "hardware", "threads", "minutes", "recipe", "train_images", "test_images"):
        lines.append((key, *(str(getattr(run, key))[: 24 if key == "hardware" else 10] for run in own), ""))
    text = f"{row.name}: {row.what}" + (f" Decides: {row.decides}" if row.decides else "")
    header = ("metric", *(f"seed {run.seed}" for run in own), "mean")
    return TextTable(header, lines, title="\n".join(textwrap.wrap(text, WIDTH)))


def page(rows: Mapping[str, Row], runs: Sequence[Run], found: Sequence[Found]) -> tuple[str, dict[str, str]]:
    """The generated part of `docs/results.md`, and an SVG for each method."""
    lines = [(method_name(item.method), *item.cells) for item in found]
    parts = [TextTable(("method", *HEADER), lines, 3, notes=[RULE, *_apart(found)]).markdown()]
    pictures = {}
    for method in dict.fromkeys(row.method for row in rows.values()):
        own = rows_of_method(rows, method)
        table, notes, _ = _rows_table(own, runs)
        pictures[method] = dot_plot(own.values(), runs)
        claims = [(item.claim.claim, *item.by_seed, item.verdict) for item in found if item.method == method]
        parts += [f"## {method_name(method)}", TextTable(BY_SEED, claims, 5).markdown()]
        parts.append(TextTable(table.header, table.lines, 2, notes=notes).markdown())
        parts.append(f"![{method_name(method)}: a dot for each seed of each row](results/{method}.svg)")
    return "\n\n".join(parts), pictures


def readme_lines(found: Sequence[Found]) -> str:
    """The README's table: the first claim of each method."""
    firsts = {item.method: item for item in reversed(found)}
    lines = []
    for method in reversed(firsts):
        claim, published, ours, difference, n, verdict = firsts[method].cells
        lines.append((method_name(method), claim, published, ours, difference, n, f"**{verdict}**"))
    return TextTable(("method", *HEADER), lines, 3).markdown()


def rows_of_method(rows: Mapping[str, Row], method: str) -> dict[str, Row]:
    """The rows of a method, given as `stn_icnn` or `STN-iCNN`.

    Raises:
        ValueError: there is no such method; the message has the nearest name.
    """
    wanted = method.lower().replace("-", "_").replace(" ", "_")
    found = {name: row for name, row in rows.items() if row.method == wanted}
    if not found:
        if method in rows:
            raise ValueError(f"{method} is a row, not a method; `structseg results --details {method}` has its figures")
        methods = dict.fromkeys(row.method for row in rows.values())
        hint = nearest(wanted, methods) or nearest(method, rows) or f"; there are {', '.join(methods)}"
        raise ValueError(f"no method {method} in the manifest{hint}")
    return found


def stale_seeds(row: Row, runs: Iterable[Run], recipes: Recipes) -> set[int]:
    """Seeds of a row that were measured with other settings than the row has now."""
    measured = {run.seed: run.recipe for run in runs_of(row, runs)}
    current = recipes.of(row) if measured else ""  # avoids reading files
    return {seed for seed, recipe in measured.items() if recipe != current}


def _rows_table(rows: Mapping[str, Row], runs: Sequence[Run]) -> tuple[TextTable, list[str], list[str]]:
    """The table of the measured rows, its notes, and the rows that are not measured."""
    recipes, lines, marks, missing = Recipes(), [], set(), []
    for row in rows.values():
        own = runs_of(row, runs)
        if not own:
            missing.append(row.name)
            continue
        mark = "*" * any(run.commit.endswith("-dirty") for run in own) + "†" * bool(stale_seeds(row, own, recipes))
        marks |= set(mark)
        values = [run.value(row.headline) for run in own]
        metric = row.headline if row.scored_on == "test" else f"{row.headline} (validation)"
        spread = f"{number(min(values))} to {number(max(values))}" if len(values) > 1 else ""
        minutes = statistics.fmean(run.minutes for run in own)
        lines.append((row.name + mark, metric, number(_mean(values)), spread, str(len(own)), f"{minutes:.0f}"))
    notes = [note for note in (DIRTY, STALE) if note[0] in marks]
    return TextTable(_COLUMNS, lines, 2), notes, missing


def _apart(found: Iterable[Found]) -> list[str]:
    """A note on the rows with seeds that were left out."""
    names = {f"{item.claim.row} and {item.claim.control}" for item in found if item.paired.left_out}
    return [f"Seeds left out, measured on different processors: {', '.join(sorted(names))}."] if names else []


def _wrapped(notes: Iterable[str]) -> list[str]:
    return [line for note in notes for line in (textwrap.wrap(note, WIDTH, subsequent_indent="  ") or [""])]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def number(value: float, digits: int = 3) -> str:
    """A number for a table; a dash for nan."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
