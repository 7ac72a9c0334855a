"""Plots of results: metrics of several rows over a setting in which the rows differ, or over their rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from structseg.messages import nearest
from structseg.results.by_round import ROUND, Rounds, measured_of
from structseg.results.files import Result
from structseg.results.manifest import Row

_BESIDE = 0.03  # of a round, between the points of two rows


def plot_rows(rows: Sequence[Row], results: Sequence[Result], x: str, ys: Sequence[str], png_path: Path) -> None:
    """Draws a panel for each metric: a point for each seed, a line through the rows' means.

    Args:
        rows: of different settings.
        results: what is measured; every row needs one of them.
        x: dotted key of the setting in the results' configurations, a number: `model.init_args.lr`.
        ys: dotted names of metrics.
        png_path: the picture; its folder is made.

    Raises:
        ValueError: a row is not measured, has no such setting or metric or shares it with another; validation and test
            are mixed; the picture does not end in `.png`.
    """
    _check_name(png_path)
    points: dict[float, list[Result]] = {}
    for row in rows:
        for result in measured_of(row, results):
            points.setdefault(_setting(result, x), []).append(result)
    for value, found in points.items():
        names = list(dict.fromkeys(result.row for result in found))
        if len(names) > 1:
            raise ValueError(f"{' and '.join(names)} have the same {x}, {value:g}; name one row for each value")
    if len(points) < 2:
        raise ValueError(f"{x} is {next(iter(points)):g} in all results; give --x a setting in which the rows differ")
    splits = {result.scored_on for found in points.values() for result in found}
    if len(splits) > 1:
        raise ValueError("some rows are scored on validation images, some on the test set; plot them separately")

    figure = _figure(ys)
    for axes, y in zip(figure.axes, ys, strict=True):
        curve = {value: [result.value(y) for result in points[value]] for value in sorted(points)}
        means = [statistics.fmean(values) for values in curve.values()]
        axes.plot(list(curve), means, color="tab:blue", label="mean")
        for i, (value, seeds) in enumerate(curve.items()):
            axes.plot([value] * len(seeds), seeds, ".", color="tab:orange", label=None if i else "a seed")
        axes.set(xlabel=x.replace(".init_args", ""), ylabel=f"{y} (validation)" if splits == {"val"} else y)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    _save(figure, png_path)


def plot_rounds(rounds: Rounds, png_path: Path) -> None:
    """Draws a panel for each metric over the rounds: a line through each row's means, a point for each seed.

    Args:
        rounds: what rows measured in each.
        png_path: the picture; its folder is made.

    Raises:
        ValueError: the picture does not end in `.png`.
    """
    _check_name(png_path)
    figure = _figure(list(rounds.values))
    for axes, (metric, rows) in zip(figure.axes, rounds.values.items(), strict=True):
        for number, (name, curve) in enumerate(rows.items()):
            axes.plot(list(curve), list(map(statistics.fmean, curve.values())), color=f"C{number}", label=name)
            beside = _BESIDE * (number - (len(rows) - 1) / 2)  # equal scores of several rows do not hide each other
            for value, scores in curve.items():
                axes.plot([value + beside] * len(scores), scores, ".", color=f"C{number}")
        axes.set(xlabel=ROUND, ylabel=metric)
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
    handles, names = figure.axes[0].get_legend_handles_labels()
    title = f"mean, and each of the seeds {', '.join(map(str, rounds.seeds))}"
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, title=title)
    if rounds.mismatch:
        figure.suptitle(rounds.mismatch, fontsize="small", wrap=True)
    _save(figure, png_path)


def _check_name(png_path: Path) -> None:
    if png_path.suffix != ".png":
        raise ValueError(f"--out is {png_path}; expected a file that ends in .png")


def _figure(ys: Sequence[str]) -> Figure:
    figure = Figure(figsize=(4.5 * len(ys), 3.5), layout="constrained")
    figure.subplots(1, len(ys))
    return figure


def _save(figure: Figure, png_path: Path) -> None:
    png_path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png_path, dpi=120)


def _setting(result: Result, key: str) -> float:
    """A number in the configuration of a result."""
    branch: Any = result.content.get("config")
    for name in key.split("."):
        if not isinstance(branch, Mapping) or name not in branch:
            known = branch if isinstance(branch, Mapping) else ()
            raise ValueError(f"{result.path}: its configuration has no {key}; there is no {name}{nearest(name, known)}")
        branch = branch[name]
    if isinstance(branch, bool) or not isinstance(branch, int | float) or not math.isfinite(branch):
        raise ValueError(f"{result.path}: {key} is {branch!r}; expected a number")
    return float(branch)
