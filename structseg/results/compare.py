"""Two rows: differences paired by seed, and how sure one seed's difference is over images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from structseg.pipelines.stages import round_and_arm
from structseg.results.claims import runs_of
from structseg.results.files import Run, images_path, read_images
from structseg.results.inference import FEWEST, paired
from structseg.results.manifest import Row
from structseg.tables import TextTable

RESAMPLES = 10_000
PIXELS = ("tp", "fp", "fn")
_SEED = 0
_CHUNK = 500  # resamples at once: bounds the memory
_SHARED = "round_0."  # metrics of what the arms of a pipeline share

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Images:
    """What the N images of one test scored in one run.

    Attributes:
        names: of the images, sorted.
        pixels: (3, N) true positives, false positives and false negatives by class.
        values: (N,) of the other scores; nan where an image has none.
    """

    names: tuple[str, ...]
    pixels: Mapping[str, Floats]
    values: Mapping[str, Floats]

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[str]], path: Path) -> Images:
        """From a file's columns.

        Raises:
            ValueError: an image stands twice, or a cell is no number.
        """
        names = columns.get("name", ())
        if len(set(names)) < len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise ValueError(f"{path} holds {twice} twice; give each sample its own name")
        order = np.argsort(names, kind="stable")
        try:
            cells = {key: np.array(column, float)[order] for key, column in columns.items() if key != "name"}
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); measure the row again") from None
        classes = dict.fromkeys(key.partition("/")[2] for key in cells if "/" in key)
        pixels = {name: np.stack([cells[f"{count}/{name}"] for count in PIXELS]) for name in classes}
        return cls(tuple(sorted(names)), pixels, {key: cell for key, cell in cells.items() if "/" not in key})

    def scores(self, weights: Floats) -> dict[str, Floats]:
        """Every score of the data set with images counted as often as the weights (R, N) say; (R,) each.

        `miou` and `iou/CLASS` are from summed pixels, a class without any being nan and left out of the mean; the
        others are means over the images that have one.
        """
        iou = {}
        for name, pixels in self.pixels.items():
            hits, extra, missed = pixels @ weights.T
            iou[f"iou/{name}"] = _ratio(hits, hits + extra + missed)
        values = {
            key: _ratio(weights @ np.nan_to_num(cells), weights @ np.isfinite(cells).astype(float))
            for key, cells in self.values.items()
        }
        stacked = np.stack(list(iou.values()))
        return {"miou": _ratio(np.nansum(stacked, 0), np.isfinite(stacked).sum(0)), **iou, **values}


def compare_rows(
    first: Row,
    second: Row,
    runs: Sequence[Run],
    folder: Path,
    seeds: Sequence[int] | None = None,
    across: bool = False,
) -> list[TextTable]:
    """The second row minus the first: by seed, over seeds, and over the images of one seed where they are kept.

    Args:
        first: a row.
        second: another.
        runs: what is measured.
        folder: of the results, with the images' scores.
        seeds: only these; None = all that both have.
        across: also compare what was measured on different processors.

    Raises:
        ValueError: no seed or metric in common, different processors, or scores of different images.
    """
    mine, others = (
        {run.seed: run for run in runs_of(row, runs) if seeds is None or run.seed in seeds} for row in (first, second)
    )
    common = sorted(mine.keys() & others.keys())
    if not common:
        said = [", ".join(map(str, sorted(found))) or "nothing" for found in (mine, others)]
        raise ValueError(
            f"no seed of both rows is measured ({first.name}: {said[0]}; {second.name}: {said[1]}); run them first"
        )
    apart = [seed for seed in common if mine[seed].processor != others[seed].processor]
    if apart and not across:
        one, other = mine[apart[0]], others[apart[0]]
        raise ValueError(
            f"{one} was measured on {one.processor}, {other} on {other.processor}, and processors alone move figures; "
            f"measure both on one, leave seeds out with --seeds, or compare them all the same with --across"
        )
    metrics = [key for key in second.kept if key in first.kept]
    if first.scored_on != second.scored_on or not metrics:
        raise ValueError(
            f"{first.name} is scored on {first.scored_on} by {first.headline}, {second.name} on {second.scored_on} by "
            f"{second.headline}; compare rows that share a test"
        )
    notes = [f"ACROSS PROCESSORS, seed {', '.join(map(str, apart))}: the difference is not of the rows alone."] * bool(
        apart
    )
    pairs = [(mine[seed], others[seed]) for seed in common]
    images = _over_images(pairs, folder)
    notes += ["No scores of images are kept for a seed of both: no interval over images."] * (not images)
    tables = [_by_seed(pairs, metrics[0], notes + _remarks(first, second, pairs))]
    if len(metrics) > 1:
        tables.append(_over_seeds(pairs, metrics[1:]))
    return tables + images


def _by_seed(pairs: Sequence[tuple[Run, Run]], metric: str, notes: Sequence[str]) -> TextTable:
    found = paired([other for _, other in pairs], [one for one, _ in pairs], metric, across=True)
    lines = [
        (f"seed {one.seed}", f"{one.value(metric):.4f}", f"{other.value(metric):.4f}",
         f"{other.value(metric) - one.value(metric):+.4f}",
         one.processor if one.processor == other.processor else f"{one.processor} | {other.processor}")
        for one, other in pairs if metric in one.metrics and metric in other.metrics
    ]  # fmt: skip
    if len(lines) > 1:
        means = [statistics.fmean(values.values()) for values in (found.controls, found.values)]
        lines.append(("mean", f"{means[0]:.4f}", f"{means[1]:.4f}", f"{means[1] - means[0]:+.4f}", ""))
    interval = found.interval
    said = f"No interval of fewer than {FEWEST} seeds."
    if interval:
        said = f"95 % t interval over the {len(found.values)} seeds: {interval[0]:+.4f} to {interval[1]:+.4f}."
    header = ("", pairs[0][0].row, pairs[0][1].row, "difference", "processor")
    return TextTable(
        header, lines, title=f"{metric}: {pairs[0][1].row} minus {pairs[0][0].row}, by seed", notes=[said, *notes]
    )


def _over_seeds(pairs: Sequence[tuple[Run, Run]], metrics: Sequence[str]) -> TextTable:
    lines = []
    for metric in metrics:
        found = paired([other for _, other in pairs], [one for one, _ in pairs], metric, across=True)
        if found.values:
            means = (f"{statistics.fmean(values.values()):.4f}" for values in (found.controls, found.values))
            lines.append((metric, *means, found.text(4), str(len(found.values))))
    header = ("metric", pairs[0][0].row, pairs[0][1].row, "difference", "n")
    return TextTable(
        header, lines, title="other metrics: means over seeds, the difference with its t interval from three on"
    )


def _over_images(pairs: Sequence[tuple[Run, Run]], folder: Path) -> list[TextTable]:
    """Of the first seed whose images' scores are kept of both."""
    for one, other in pairs:
        paths = [images_path(folder, run.row, run.seed) for run in (one, other)]
        if all(path.is_file() for path in paths):
            break
    else:
        return []
    read = [{test: Images.of(columns, path) for test, columns in read_images(path).items()} for path in paths]
    tables = []
    for test in (test for test in read[0] if test in read[1]):
        title = f"inside seed {one.seed}{f', {test}' if test else ''}"
        tables.append(compare_images((one.row, read[0][test]), (other.row, read[1][test]), title))
    return tables


def compare_images(first: tuple[str, Images], second: tuple[str, Images], where: str) -> TextTable:
    """The second test minus the first, image by image; each with its name.

    Raises:
        ValueError: scores of different images, labels or classes.
    """
    _check_paired(first, second)
    title = f"image bootstrap {where}: {len(first[1].names)} images"
    note = f"{RESAMPLES:,} resamples of images; how trainings with other seeds differ is not in the interval."
    header = ("score", first[0], second[0], "difference", "95 % interval over images")
    return TextTable(header, _bootstrap(first[1], second[1]), title=title, notes=[note])


def _bootstrap(first: Images, second: Images) -> list[tuple[str, str, str, str, str]]:
    count = len(first.names)
    random = np.random.default_rng(_SEED)
    parts: dict[str, list[Floats]] = {}
    for start in range(0, RESAMPLES, _CHUNK):
        resamples = min(_CHUNK, RESAMPLES - start)
        weights = random.multinomial(count, np.full(count, 1 / count), resamples).astype(float)
        one, other = first.scores(weights), second.scores(weights)
        for score in (score for score in one if score in other):
            parts.setdefault(score, []).append(other[score] - one[score])
    whole = [images.scores(np.ones((1, count))) for images in (first, second)]
    lines = []
    for score, differences in parts.items():
        spread = np.concatenate(differences)
        known = spread[np.isfinite(spread)]
        low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (math.nan, math.nan)
        mine, others = (float(scores[score][0]) for scores in whole)
        lines.append((score, f"{mine:.4f}", f"{others:.4f}", f"{others - mine:+.4f}", f"{low:+.4f} to {high:+.4f}"))
    return lines


def _remarks(first: Row, second: Row, pairs: Sequence[tuple[Run, Run]]) -> list[str]:
    """How the rows differ apart from what they compare."""
    after = [round_and_arm((row.stage or "").partition("/")[0]) for row in (first, second)]
    remarks = []
    if after[0] and after[1] and after[0][0] != after[1][0]:
        remarks.append(f"{first.name} is tested after round {after[0][0]}, {second.name} after round {after[1][0]}.")
    shares = first.source == second.source and not any(
        (row.stage or "").startswith(f"{_SHARED[:-1]}_") for row in (first, second)
    )
    for one, other in pairs if shares else ():
        shared = [key for key in one.metrics.keys() & other.metrics.keys() if key.startswith(_SHARED)]
        if any(one.value(key) != other.value(key) for key in shared):
            remarks.append(f"{other} began with another round 0 than {one}: other settings, code or hardware.")
    return remarks


def _check_paired(first: tuple[str, Images], second: tuple[str, Images]) -> None:
    (one, images), (other, others) = first, second
    if images.pixels.keys() != others.pixels.keys():
        raise ValueError(
            f"{one} has the classes {', '.join(images.pixels)}, {other} {', '.join(others.pixels)}; compare rows of "
            f"one label space"
        )
    only = [sorted(set(images.names) - set(others.names)), sorted(set(others.names) - set(images.names))]
    if any(only):
        said = ", ".join(
            f"{len(names)} in {row} alone{f' ({names[0]}, …)' if names else ''}"
            for row, names in zip((one, other), only, strict=True)
        )
        raise ValueError(f"{one} and {other} were not scored on the same images: {said}; nothing can be paired")
    for name, pixels in images.pixels.items():  # hits and misses are the truth's pixels
        differ = pixels[0] + pixels[2] != others.pixels[name][0] + others.pixels[name][2]
        if differ.any():
            raise ValueError(
                f"{one} and {other} were scored on other labels: {int(differ.sum())} images "
                f"({images.names[int(differ.argmax())]}, …) differ in {name}; nothing can be paired"
            )


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Nan where the divisor is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
