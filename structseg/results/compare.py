"""Compares two rows: differences paired by seed, and a bootstrap over the images of one seed."""

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
_CHUNK = 500  # resamples at once, to limit the memory
_SHARED = "round_0."  # start of the metrics that the arms of a pipeline share

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Images:
    """The scores of the N images of one test in one run.

    Attributes:
        names: of the images, sorted.
        pixels: for each class (3, N) true positives, false positives and false negatives.
        values: (N,) values of each other score; nan where an image has none.
    """

    names: tuple[str, ...]
    pixels: Mapping[str, Floats]
    values: Mapping[str, Floats]

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[str]], path: Path) -> Images:
        """From the columns of a file.

        Raises:
            ValueError: an image is listed twice, or a cell is not a number.
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
        """Every score of the data set, (R,) each, with images counted by the weights (R, N).

        `miou` and `iou/CLASS` come from summed pixels; a class without pixels is nan and left out of the mean. The
        other scores are means over the images that have one.
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
    """The second row minus the first: by seed, over seeds, and over the images of one seed if their scores are kept.

    Args:
        first: a row.
        second: another row.
        runs: the measured runs.
        folder: of the results, with the scores of images.
        seeds: only these; None: all that both have.
        across: whether to compare runs of different processors.

    Raises:
        ValueError: no seed or metric in common, different processors, or scores of different images.
    """
    by_seed = [
        {run.seed: run for run in runs_of(row, runs) if seeds is None or run.seed in seeds} for row in (first, second)
    ]
    common = sorted(by_seed[0].keys() & by_seed[1].keys())
    if not common:
        measured = [", ".join(map(str, sorted(row))) or "nothing" for row in by_seed]
        raise ValueError(
            f"no seed of both rows is measured ({first.name}: {measured[0]}; {second.name}: {measured[1]}); run one"
        )
    pairs = [(by_seed[0][seed], by_seed[1][seed]) for seed in common]
    differing = [(one, other) for one, other in pairs if one.processor != other.processor]
    if differing and not across:
        one, other = differing[0]
        raise ValueError(
            f"{one} was measured on {one.processor}, {other} on {other.processor}, and processors change figures; "
            f"measure both on one, leave out seeds with --seeds, or compare them anyway with --across"
        )
    metrics = [key for key in second.kept if key in first.kept]
    if first.scored_on != second.scored_on or not metrics:
        raise ValueError(
            f"{first.name} is scored on {first.scored_on} by {first.headline}, {second.name} on {second.scored_on} by "
            f"{second.headline}; compare rows that share a test"
        )
    notes = []
    if differing:
        numbers = ", ".join(str(one.seed) for one, _ in differing)
        notes = [f"ACROSS PROCESSORS, seed {numbers}: the difference is not only that of the rows."]
    images = _over_images(pairs, folder)
    notes += ["No interval over images: no seed has the images' scores of both rows."] * (not images)
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
    note = f"No interval with fewer than {FEWEST} seeds."
    if interval:
        note = f"95 % t interval over the {len(found.values)} seeds: {interval[0]:+.4f} to {interval[1]:+.4f}."
    header = ("", pairs[0][0].row, pairs[0][1].row, "difference", "processor")
    return TextTable(
        header, lines, title=f"{metric}: {pairs[0][1].row} minus {pairs[0][0].row}, by seed", notes=[note, *notes]
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
        header, lines, title="other metrics: means over seeds, the difference with its t interval from three seeds on"
    )


def _over_images(pairs: Sequence[tuple[Run, Run]], folder: Path) -> list[TextTable]:
    """Bootstrap tables of the first seed for which the images' scores of both rows are kept."""
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
    """The second test minus the first, paired by image, with a bootstrap interval.

    Args:
        first: name and image scores of a test.
        second: of another test.
        where: for the title.

    Raises:
        ValueError: the scores are of different images, labels or classes.
    """
    _check_paired(first, second)
    title = f"image bootstrap {where}: {len(first[1].names)} images"
    note = f"{RESAMPLES:,} resamples of images; the interval does not include the differences between seeds."
    header = ("score", first[0], second[0], "difference", "95 % interval over images")
    return TextTable(header, _bootstrap(first[1], second[1]), title=title, notes=[note])


def _bootstrap(first: Images, second: Images) -> list[tuple[str, str, str, str, str]]:
    count = len(first.names)
    random = np.random.default_rng(_SEED)
    parts: dict[str, list[Floats]] = {}
    for start in range(0, RESAMPLES, _CHUNK):
        resamples = min(_CHUNK, RESAMPLES - start)
        weights = random.multinomial(count, np.full(count, 1 / count), resamples).astype(float)
        scores = [images.scores(weights) for images in (first, second)]
        for score in (score for score in scores[0] if score in scores[1]):
            parts.setdefault(score, []).append(scores[1][score] - scores[0][score])
    whole = [images.scores(np.ones((1, count))) for images in (first, second)]
    lines = []
    for score, differences in parts.items():
        spread = np.concatenate(differences)
        known = spread[np.isfinite(spread)]
        low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (math.nan, math.nan)
        one, other = (float(scores[score][0]) for scores in whole)
        lines.append((score, f"{one:.4f}", f"{other:.4f}", f"{other - one:+.4f}", f"{low:+.4f} to {high:+.4f}"))
    return lines


def _remarks(first: Row, second: Row, pairs: Sequence[tuple[Run, Run]]) -> list[str]:
    """Notes on differences between the rows that are not compared."""
    rounds = [round_and_arm((row.stage or "").partition("/")[0]) for row in (first, second)]
    remarks = []
    if rounds[0] and rounds[1] and rounds[0][0] != rounds[1][0]:
        remarks.append(f"{first.name} is tested after round {rounds[0][0]}, {second.name} after round {rounds[1][0]}.")
    shares = first.source == second.source and not any(
        (row.stage or "").startswith(f"{_SHARED[:-1]}_") for row in (first, second)
    )
    for one, other in pairs if shares else ():
        shared = [key for key in one.metrics.keys() & other.metrics.keys() if key.startswith(_SHARED)]
        if any(one.value(key) != other.value(key) for key in shared):
            remarks.append(f"{other} and {one} have different rounds 0: other settings, code or hardware.")
    return remarks


def _check_paired(first: tuple[str, Images], second: tuple[str, Images]) -> None:
    (one, images), (other, others) = first, second
    if images.pixels.keys() != others.pixels.keys():
        raise ValueError(
            f"{one} has the classes {', '.join(images.pixels)}, {other} {', '.join(others.pixels)}; compare rows of "
            f"one label space"
        )
    unpaired = [sorted(set(images.names) - set(others.names)), sorted(set(others.names) - set(images.names))]
    if any(unpaired):
        counts = ", ".join(
            f"{len(names)} only in {row}{f' ({names[0]}, …)' if names else ''}"
            for row, names in zip((one, other), unpaired, strict=True)
        )
        raise ValueError(f"{one} and {other} were not scored on the same images: {counts}; nothing can be paired")
    for name, pixels in images.pixels.items():  # true positives and false negatives are the pixels of the label
        differ = pixels[0] + pixels[2] != others.pixels[name][0] + others.pixels[name][2]
        if differ.any():
            raise ValueError(
                f"{one} and {other} were scored on other labels: {int(differ.sum())} images "
                f"({images.names[int(differ.argmax())]}, …) differ in {name}; nothing can be paired"
            )


def _ratio(part: Floats, whole: Floats) -> Floats:
    """The quotient; nan where the divisor is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
