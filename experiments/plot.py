"""Plots of results: metrics of several rows over a setting in which the rows differ, or over the rounds of each."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.manifest import Row
from experiments.parser import nearest
from experiments.result_files import Result, flat_metrics

ROUND = "round"
_ROUND_OF = re.compile(rf"{ROUND}_(\d+)\.(.+)")


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
            are mixed; the picture is no `.png`.
    """
    _check_name(png_path)
    points: dict[float, list[Result]] = {}
    for row in rows:
        for result in _measured(row, results):
            points.setdefault(_setting(result, x), []).append(result)
    for value, found in points.items():
        names = list(dict.fromkeys(result.row for result in found))
        if len(names) > 1:
            raise ValueError(f"{' and '.join(names)} have {x} {value:g} alike; name one row for each value")
    if len(points) < 2:
        raise ValueError(f"{x} is {next(iter(points)):g} in all results; give --x a setting in which the rows differ")
    splits = {result.scored_on for found in points.values() for result in found}
    if len(splits) > 1:
        raise ValueError("some rows are scored on validation images, some on the test set; plot them apart")

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


def plot_rounds(rows: Sequence[Row], results: Sequence[Result], ys: Sequence[str], png_path: Path) -> None:
    """Draws a panel for each metric over the rounds of pipelines: a line through a row's means, a point for each seed.

    The seeds are those that all rows are measured with, so that the lines compare.

    Args:
        rows: of pipelines with rounds.
        results: what is measured; every row needs one of them.
        ys: dotted names of metrics in a round: `pseudo_masks.pseudo_miou` for `round_0.pseudo_masks.pseudo_miou`, ...
        png_path: the picture; its folder is made.

    Raises:
        ValueError: a row is not measured, or no seed of all, or no round of it has such a metric; the picture is no
            `.png`.
    """
    _check_name(png_path)
    measured = {row.name: _measured(row, results) for row in rows}
    seeds = set.intersection(*({result.seed for result in own} for own in measured.values()))
    if not seeds:
        raise ValueError(f"{', '.join(measured)} have no seed in common; measure the seed of one with the others")
    figure = _figure(ys)
    for number, (name, found) in enumerate(measured.items()):
        own = [result for result in found if result.seed in seeds]
        for axes, y in zip(figure.axes, ys, strict=True):
            curve = _by_round(own, y)
            means = [statistics.fmean(values) for values in curve.values()]
            axes.plot(list(curve), means, color=f"C{number}", label=name)
            for value, scores in curve.items():
                axes.plot([value] * len(scores), scores, ".", color=f"C{number}")
            axes.set(xlabel=ROUND, ylabel=y)
            axes.locator_params(axis="x", integer=True)
            axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False, title=f"seeds {', '.join(map(str, sorted(seeds)))}")
    _save(figure, png_path)


def _by_round(results: Sequence[Result], y: str) -> dict[int, list[float]]:
    """A metric of all seeds by round."""
    curve: dict[int, list[float]] = {}
    names: set[str] = set()
    for result in results:
        for key, value in flat_metrics(result.content["metrics"]).items():
            found = _ROUND_OF.fullmatch(key)
            if found:
                names.add(found[2])
            if found and found[2] == y:
                curve.setdefault(int(found[1]), []).append(value)
    if not curve:
        raise ValueError(f"{results[0].path} has no metric {y} in any round{nearest(y, names)}")
    return dict(sorted(curve.items()))


def _measured(row: Row, results: Sequence[Result]) -> list[Result]:
    own = [result for result in results if result.row == row.name and result.seed in row.seeds]
    if not own:
        raise ValueError(f"{row.name} is not measured; measure it with `structseg results --run {row.name}`")
    return own


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
