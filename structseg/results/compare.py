"""Two rows of the results table on the same images: paired differences and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from structseg.files import sha256
from structseg.lightning_modules.callbacks.image_scores import PIXELS, VALUES, read_table
from structseg.results.by_round import ROUND, other_rounds, round_0_mismatch
from structseg.results.files import Result, images_path
from structseg.results.manifest import Row
from structseg.tables import TextTable

RESAMPLES = 10_000
_SEED = 0
_CHUNK = 500  # resamples at once: bounds the memory
_ERRORS = ("component_error", "component_error_relative")  # less is better; the others are better where more

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Images:
    """What the images of one test scored with the S seeds of a row.

    Attributes:
        names: of the N images, sorted.
        classes: names of the K classes.
        pixels: (3, S, N, K) true positives, false positives and false negatives.
        values: (3, S, N) component error, the relative one, and boundary F1 with nan where an image has none.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    pixels: Floats
    values: Floats

    def scores(self, weights: Floats) -> dict[str, Floats]:
        """Every score of the data set, the mean over seeds, with images counted as often as the weights say.

        Args:
            weights: (R, N), each row a resample.

        Returns:
            (R,) each: `miou` and `iou/CLASS` from summed pixels, a class without any being nan and left out of the
            mean; plain means over images of the others.
        """
        hits, extra, missed = np.einsum("rn,psnk->prsk", weights, self.pixels, optimize=True)
        iou = _ratio(hits, hits + extra + missed)
        return {"miou": _nanmean(_nanmean(iou, 2), 1)} | self._named(_nanmean(iou, 1), self._means(weights))

    def same(self, other: Images) -> bool:
        """Whether each image scored the same, as in a round that two rows share."""
        return np.array_equal(self.pixels, other.pixels) and np.array_equal(self.values, other.values, equal_nan=True)

    def _means(self, weights: Floats) -> Floats:
        """(3, R) of the values, over images and then seeds."""
        sums = np.einsum("rn,vsn->vrs", weights, np.nan_to_num(self.values), optimize=True)
        known = np.einsum("rn,vsn->vrs", weights, np.isfinite(self.values).astype(float), optimize=True)
        return _nanmean(_ratio(sums, known), 2)

    def of_each(self) -> dict[str, Floats]:
        """The same scores of each image alone, (N,) each, the mean over seeds; nan where an image has none."""
        iou = _ratio(self.pixels[0], self.pixels.sum(0))
        return {"miou": _nanmean(_nanmean(iou, 2), 0)} | self._named(_nanmean(iou, 0), _nanmean(self.values, 1))

    def _named(self, iou: Floats, values: Floats) -> dict[str, Floats]:
        return {f"iou/{name}": iou[:, k] for k, name in enumerate(self.classes)} | dict(
            zip(VALUES, values, strict=True)
        )


@dataclass(frozen=True)
class Line:
    """One score of two rows.

    Attributes:
        metric: its name.
        means: of the first and the second row.
        interval: 95 % bootstrap interval of the second minus the first, over images.
        better: shares of the images, 0..1, in which the first is better, and the second.
    """

    metric: str
    means: tuple[float, float]
    interval: tuple[float, float]
    better: tuple[float, float]

    @property
    def difference(self) -> float:
        """Second minus first."""
        return self.means[1] - self.means[0]

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.interval[0] > 0 or self.interval[1] < 0

    def cells(self) -> tuple[str, ...]:
        """The texts of a line of the table."""
        first, second = self.means
        relative = f"{self.difference / first:+.1%}" if self.metric in _ERRORS and first else ""
        return (
            self.metric,
            f"{first:.4f}",
            f"{second:.4f}",
            f"{self.difference:+.4f}",
            f"{self.interval[0]:+.4f} to {self.interval[1]:+.4f}",
            "yes" if self.excludes_zero else "no",
            relative,
            *(f"{share:.1%}" for share in self.better),
        )


@dataclass(frozen=True)
class Comparison:
    """Two rows on the images of one test."""

    rows: tuple[str, str]
    test: str
    seeds: tuple[int, ...]
    images: int
    lines: tuple[Line, ...]
    remarks: str = ""  # how the rows differ apart from what they compare
    alike: tuple[str, ...] = ()  # tests left out, as each image scored the same in both

    def table(self) -> TextTable:
        """A line for each metric."""
        first, second = self.rows
        test = self.test if "." in self.test else f"test {self.test}"  # the masks of a round are of training images
        header = ("metric", first, second, "difference", "95 % interval", "excludes 0", "relative")
        note = (
            f"All {self.images} images; means over the seeds {', '.join(map(str, self.seeds))}. The interval is of the "
            f"difference, by {RESAMPLES:,} resamples of images; how trainings with other seeds differ is not in it. "
            f"Better: share of the images; in the others both are equal."
        )
        alike = f"Each image the same in both: {', '.join(self.alike)}." if self.alike else ""
        return TextTable(
            (*header, f"{first} better", f"{second} better"),
            [line.cells() for line in self.lines],
            title=f"{first} and {second}{f', {test}' if self.test else ''}",
            notes=[" ".join(filter(None, (note, self.remarks and f"{self.remarks}.", alike)))],
        )


def compare_rows(first: Row, second: Row, results: Sequence[Result]) -> list[Comparison]:
    """Compares two rows by the seeds that both have measured, once for each test that both have.

    Raises:
        ValueError: no seed or test in common, other images, other classes, or no scores of the images.
    """
    measured = [{r.seed: r for r in results if r.row == row.name and r.seed in row.seeds} for row in (first, second)]
    seeds = tuple(sorted(measured[0].keys() & measured[1].keys()))
    if not seeds:
        said = [", ".join(map(str, sorted(found))) or "none" for found in measured]
        raise ValueError(
            f"no seed of both rows is measured ({first.name}: {said[0]}; {second.name}: {said[1]}); run them first"
        )
    one, other = (_by_test([found[seed] for seed in seeds]) for found in measured)
    tests = [test for test in one if test in other]
    if not tests or first.scored_on != second.scored_on:
        said = [f"{row.scored_on} {', '.join(found)}".strip() for row, found in ((first, one), (second, other))]
        raise ValueError(
            f"{first.name} is scored on {said[0]}, {second.name} on {said[1]}; compare rows that share a test"
        )
    mismatch = round_0_mismatch(
        [(row, own[seed]) for row, own in zip((first, second), measured, strict=True) for seed in seeds]
    )
    for test in tests:
        _check_paired((first.name, one[test]), (second.name, other[test]))
    alike = tuple(test for test in tests if one[test].same(other[test]))
    shown = [test for test in tests if test not in alike] or tests
    remarks = ". ".join(filter(None, (other_rounds(first, second), mismatch)))
    return [
        Comparison(
            (first.name, second.name), test, seeds, len(one[test].names), tuple(_compare(one[test], other[test])),
            mismatch if test.startswith(ROUND) else remarks, alike if len(shown) < len(tests) else (),
        )
        for test in shown
    ]  # fmt: skip


def _compare(first: Images, second: Images) -> Iterator[Line]:
    count = len(first.names)
    random = np.random.default_rng(_SEED)
    parts: dict[str, list[Floats]] = {}
    for start in range(0, RESAMPLES, _CHUNK):
        resamples = min(_CHUNK, RESAMPLES - start)
        weights = random.multinomial(count, np.full(count, 1 / count), resamples).astype(float)
        one, other = first.scores(weights), second.scores(weights)
        for metric, values in one.items():
            parts.setdefault(metric, []).append(other[metric] - values)
    whole = [images.scores(np.ones((1, count))) for images in (first, second)]
    each = [images.of_each() for images in (first, second)]
    for metric, differences in parts.items():
        spread = np.concatenate(differences)
        known = spread[np.isfinite(spread)]
        low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (math.nan, math.nan)
        more = [float((each[i][metric] > each[1 - i][metric]).mean()) for i in (0, 1)]
        better = (more[1], more[0]) if metric in _ERRORS else (more[0], more[1])
        means = (float(whole[0][metric][0]), float(whole[1][metric][0]))
        yield Line(metric, means, (float(low), float(high)), better)


def _by_test(results: Sequence[Result]) -> dict[str, Images]:
    """The images of each test of a row, the seeds in the order of the results."""
    seeds = [_read(result) for result in results]
    for result, tests in zip(results, seeds, strict=True):
        if list(tests) != list(seeds[0]):
            raise ValueError(f"{result.path} has other tests than {results[0].path}; measure the row again")
        for test, images in tests.items():
            _check_paired((str(results[0].path), seeds[0][test]), (str(result.path), images))
    return {
        test: Images(
            images.names,
            images.classes,
            np.concatenate([tests[test].pixels for tests in seeds], 1),
            np.concatenate([tests[test].values for tests in seeds], 1),
        )
        for test, images in seeds[0].items()
    }


def _read(result: Result) -> dict[str, Images]:
    """Of one seed."""
    path = images_path(result.path)
    again = f"measure it with `structseg results --run {result.row} --seeds {result.seed} --again`"
    if not path.is_file():
        raise ValueError(f"{result.path} has no scores of its images beside it; {again}")
    if sha256(path) != result.content.get("images"):
        raise ValueError(f"{path} does not belong to {result.path}; {again}")
    header, *rows = read_table(path)
    tests: dict[str, list[list[str]]] = {}
    for row in rows:
        tests.setdefault(row[0] if header[0] == "test" else "", []).append(row[1:] if header[0] == "test" else row)
    columns = header[header.index("name") + 1 :]
    classes = tuple(column.split("/", 1)[1] for column in columns if column.startswith(f"{PIXELS[0]}/"))
    return {test: _images(classes, sorted(rows), path) for test, rows in tests.items()}


def _images(classes: tuple[str, ...], rows: Sequence[Sequence[str]], path: object) -> Images:
    names = tuple(row[0] for row in rows)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path} holds {twice} twice; give each sample its own name")
    cells = np.array([row[1:] for row in rows], float)
    split = len(PIXELS) * len(classes)
    pixels = cells[:, :split].reshape(len(names), len(PIXELS), 1, len(classes)).transpose(1, 2, 0, 3)
    return Images(names, classes, pixels, cells[:, split:].T[:, None])


def _check_paired(first: tuple[str, Images], second: tuple[str, Images]) -> None:
    (one, images), (other, others) = first, second
    if images.classes != others.classes:
        raise ValueError(
            f"{one} has the classes {', '.join(images.classes)}, {other} {', '.join(others.classes)}; compare rows of "
            f"one label space"
        )
    only = [sorted(set(images.names) - set(others.names)), sorted(set(others.names) - set(images.names))]
    if any(only):
        said = ", ".join(
            f"{len(names)} in {row} alone{f' ({names[0]}, …)' if names else ''}"
            for row, names in zip((one, other), only, strict=True)
        )
        raise ValueError(f"{one} and {other} were not scored on the same images: {said}; nothing can be paired")
    truths = [found.pixels[0] + found.pixels[2] for found in (images, others)]  # hits and misses: the truth's pixels
    differ = (truths[0][0] != truths[1][0]).any(1)
    if differ.any():
        name = images.names[int(differ.argmax())]
        raise ValueError(
            f"{one} and {other} were scored on other labels: {int(differ.sum())} images ({name}, …) differ; "
            f"nothing can be paired"
        )


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Nan where the divisor is 0."""
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole > 0)


def _nanmean(values: Floats, axis: int) -> Floats:
    """Mean of the finite values; nan without any, and no warning."""
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0).sum(axis), known.sum(axis))
