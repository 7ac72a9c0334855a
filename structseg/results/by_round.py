"""Results of pipelines by round: what rows measured in each, with the seeds that all of them have."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from structseg.messages import nearest
from structseg.metric_names import flat_metrics
from structseg.pipelines.stages import round_and_arm
from structseg.results.files import Result
from structseg.results.manifest import Row
from structseg.tables import TextTable

ROUND = "round"
METRICS = ("cams.cam_miou", "pseudo_masks.pseudo_miou", "segmenter.without_crf.miou")

_NOTICES = f"{ROUND}_0.notices"  # a count, no score


@dataclass(frozen=True)
class Rounds:
    """Metrics of several rows by round.

    Attributes:
        seeds: those that all rows are measured with.
        values: of each metric, each row's values by round, one for each seed that has one.
        mismatch: what `round_0_mismatch` says of the results.
    """

    seeds: tuple[int, ...]
    values: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]]
    mismatch: str = ""

    def table(self) -> TextTable:
        """Means over the seeds, and their sample standard deviations."""
        numbers = sorted({number for rows in self.values.values() for curve in rows.values() for number in curve})
        lines = [
            (metric, name, *(_cell(curve.get(number, ()), len(self.seeds)) for number in numbers))
            for metric, rows in self.values.items()
            for name, curve in rows.items()
        ]
        title = f"mean{' ± sd' if len(self.seeds) > 1 else ''} of seed {', '.join(map(str, self.seeds))}"
        title = ". ".join(filter(None, (title, self.mismatch)))
        return TextTable(("metric", "row", *(f"{ROUND} {number}" for number in numbers)), lines, 2, title)


def by_round(rows: Sequence[Row], results: Sequence[Result], metrics: Sequence[str]) -> Rounds:
    """What rows of pipelines measured in each round.

    Args:
        rows: of pipelines with rounds.
        results: what is measured; every row needs one of them.
        metrics: dotted names in a round: `cams.cam_miou` for `round_0.cams.cam_miou`, `round_1.cams.cam_miou`, ...

    Raises:
        ValueError: a row is not measured, the rows share no seed, or no round of a row has such a metric.
    """
    measured = {row.name: measured_of(row, results) for row in rows}
    seeds = set.intersection(*({result.seed for result in own} for own in measured.values()))
    if not seeds:
        raise ValueError(f"{', '.join(measured)} have no seed in common; measure the seed of one with the others")
    own = {name: [result for result in found if result.seed in seeds] for name, found in measured.items()}
    values = {metric: {name: _curve(found, metric) for name, found in own.items()} for metric in metrics}
    pairs = [(row, result) for row in rows for result in own[row.name]]
    return Rounds(tuple(sorted(seeds)), values, round_0_mismatch(pairs))


def round_0_mismatch(measured: Sequence[tuple[Row, Result]]) -> str:
    """Which results of one pipeline and seed differ in round 0, which the arms share, so that they cannot be compared.

    Args:
        measured: results, each with its row; of any pipelines and seeds.

    Returns:
        A sentence; "" where no results differ.
    """
    firsts: dict[tuple[str, int], Result] = {}
    sentences = []
    for row, result in measured:
        if (row.stage or "").startswith(f"{ROUND}_0_"):
            continue  # the arms differ from round 0 on
        first = firsts.setdefault((row.source, result.seed), result)
        start, other = _start(first), _start(result)
        if any(start[key] != other[key] for key in start.keys() & other.keys()):
            sentences.append(f"{result.row}.{result.seed} began with another round 0 than {first.row}.{first.seed}")
    return f"{'; '.join(sentences)}: other settings, code or hardware" if sentences else ""


def other_rounds(first: Row, second: Row) -> str:
    """Whether two rows are tested after different rounds: a sentence; "" where they are not, or have no rounds."""
    after = [round_and_arm((row.stage or "").partition("/")[0]) for row in (first, second)]
    if after[0] is None or after[1] is None or after[0][0] == after[1][0]:
        return ""
    return f"{first.name} is tested after round {after[0][0]}, {second.name} after round {after[1][0]}"


def _start(result: Result) -> dict[str, str]:
    scores = flat_metrics(result.content["metrics"])
    return {key: str(value) for key, value in scores.items() if key.startswith(f"{ROUND}_0.") and key != _NOTICES}


def measured_of(row: Row, results: Sequence[Result]) -> list[Result]:
    """The results of a row's seeds.

    Raises:
        ValueError: the row has no results.
    """
    own = [result for result in results if result.row == row.name and result.seed in row.seeds]
    if not own:
        raise ValueError(f"{row.name} is not measured; measure it with `structseg results --run {row.name}`")
    return own


def _curve(results: Sequence[Result], metric: str) -> dict[int, list[float]]:
    curve: dict[int, list[float]] = {}
    names: set[str] = set()
    for result in results:
        for key, value in flat_metrics(result.content["metrics"]).items():
            folder, _, name = key.partition(".")
            found = round_and_arm(folder)
            if found:
                names.add(name)
            if found and name == metric and not math.isnan(value):
                curve.setdefault(found[0], []).append(value)
    if metric not in names:
        raise ValueError(f"{results[0].path} has no metric {metric} in any round{nearest(metric, names)}")
    return dict(sorted(curve.items()))


def _cell(values: Sequence[float], seeds: int) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    of = f" ({len(values)} of {seeds})" if len(values) < seeds else ""
    return f"{statistics.fmean(values):.3f}{spread}{of}" if values else ""
