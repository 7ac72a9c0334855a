"""Statistics of differences: paired by seed, with a t interval over seeds from three seeds on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from structseg.results.files import Run

FEWEST = 3  # seeds that an interval needs


@dataclass(frozen=True)
class Paired:
    """The values of a row and of its control, or of a figure that it should reach, by seed.

    Attributes:
        values: of the row, by seed.
        controls: of its control, with the same seeds.
        left_out: seeds of both that were measured on different processors.
    """

    values: Mapping[int, float]
    controls: Mapping[int, float]
    left_out: tuple[int, ...] = ()

    @property
    def differences(self) -> dict[int, float]:
        """The row minus its control, by seed."""
        return {seed: value - self.controls[seed] for seed, value in self.values.items()}

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % t interval of the mean difference over seeds; None for fewer than three."""
        return t_interval(list(self.differences.values()))

    def text(self, digits: int = 3) -> str:
        """The mean difference with its interval; for one or two seeds the differences."""
        values, interval = list(self.differences.values()), self.interval
        if interval is None:
            return ", ".join(f"{value:+.{digits}f}" for value in values) or "-"
        return f"{statistics.fmean(values):+.{digits}f} ({interval[0]:+.{digits}f} to {interval[1]:+.{digits}f})"


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of independent values by Student's t; None for fewer than three, or with a nan."""
    if len(values) < FEWEST or not all(map(math.isfinite, values)):
        return None
    from scipy.special import stdtrit  # scipy.stats takes half a second to load

    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, 0.975)) * error
    return mean - half, mean + half


def paired(
    row: Iterable[Run], control: Iterable[Run] | float, metric: str, control_metric: str = "", across: bool = False
) -> Paired:
    """Pairs a row's runs with those of its control, or with a figure, by seed.

    Args:
        row: its runs.
        control: the control's runs, or one figure for all seeds.
        metric: path of the metric.
        control_metric: that of the control, where it has another.
        across: whether to pair seeds that were measured on different processors.

    Returns:
        The values of the seeds that have the metric in both.
    """
    runs = {run.seed: run for run in row if metric in run.metrics}
    if isinstance(control, float | int):
        return Paired({seed: run.value(metric) for seed, run in runs.items()}, dict.fromkeys(runs, float(control)))
    controls = {run.seed: run for run in control if (control_metric or metric) in run.metrics}
    common = sorted(runs.keys() & controls.keys())
    left_out = () if across else tuple(seed for seed in common if runs[seed].processor != controls[seed].processor)
    seeds = [seed for seed in common if seed not in left_out]
    return Paired(
        {seed: runs[seed].value(metric) for seed in seeds},
        {seed: controls[seed].value(control_metric or metric) for seed in seeds},
        left_out,
    )
