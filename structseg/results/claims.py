"""The claims about the methods, `experiments/results/claims.yaml`, and their verdicts by the runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from structseg.messages import nearest
from structseg.results.files import Run
from structseg.results.inference import FEWEST, Paired, paired
from structseg.results.manifest import Row
from structseg.yaml_files import load_yaml

CLAIMS = "claims.yaml"  # next to the manifest
RULE = (
    "The difference is the row minus its control, paired by seed: its mean and 95 % t interval over n seeds, or the "
    f"differences alone with fewer than {FEWEST}. A claim holds where the interval lies wholly on the claimed side of "
    "0 (of the allowed loss, where it is that nothing is lost), does not hold where it lies wholly short of that or of "
    "the smallest gain that matters, and is not decided otherwise."
)


@dataclass(frozen=True)
class Claim:
    """A claim that a row is better than its control or than a figure, or not worse.

    Attributes:
        claim: a few words.
        row: the row that should be better.
        metric: path of a metric that the row keeps.
        better: whether `more` or `less` of it is better.
        published: the published figure, in a few words.
        control: the row that it is compared with.
        target: the figure that it should reach, instead of a control.
        control_metric: path of the control's metric, if it differs.
        row_less: a row that is subtracted from the row first, for a difference of differences; it needs a control.
        control_less: a row that is subtracted from the control first.
        allowed_loss: for a claim that nothing is lost, the loss that is tolerated.
        smallest_gain: the smallest gain that matters; an interval wholly below it decides against the claim.
    """

    claim: str
    row: str
    metric: str
    better: Literal["more", "less"]
    published: str = "-"
    control: str = ""
    target: float | None = None
    control_metric: str = ""
    row_less: str = ""
    control_less: str = ""
    allowed_loss: float = 0.0
    smallest_gain: float = 0.0

    def verdict(self, found: Paired) -> str:
        """`holds`, `does not hold` or `not decided`: see `RULE`."""
        interval = found.interval
        if interval is None:
            return "not decided"
        low, high = interval if self.better == "more" else (-interval[1], -interval[0])
        if low > -self.allowed_loss:
            return "holds"
        return "does not hold" if high < self.smallest_gain - self.allowed_loss else "not decided"


@dataclass(frozen=True)
class Found:
    """A claim with the method and the runs that it is judged by."""

    claim: Claim
    method: str
    paired: Paired

    @property
    def verdict(self) -> str:
        """`holds`, `does not hold` or `not decided`."""
        return self.claim.verdict(self.paired)

    @property
    def by_seed(self) -> tuple[str, str, str]:
        """Three texts: the rows that are compared, the difference of each seed, and the mean with its interval."""
        claim = self.claim
        row = f"({claim.row} - {claim.row_less})" if claim.row_less else claim.row
        control = f"({claim.control} - {claim.control_less})" if claim.control_less else claim.control
        other = control or f"{claim.target:g}"
        named = f"{claim.metric} - {claim.control_metric}" if claim.control_metric else claim.metric
        seeds = ", ".join(f"{value:+.3f}" for value in self.paired.differences.values()) or "-"
        together = f"mean {self.paired.text()}" if self.paired.interval else f"no interval of {len(self.paired.values)}"
        return f"{row} - {other}, {named}", seeds, together

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells of a line under `HEADER`."""
        values = list(self.paired.values.values())
        ours = f"{statistics.fmean(values):.3f}" if values else "-"
        return self.claim.claim, self.claim.published, ours, self.paired.text(), str(len(values)), self.verdict


HEADER = ("claim", "published", "ours", "difference to its control", "n", "verdict")


def load_claims(path: Path, rows: Mapping[str, Row]) -> list[Claim]:
    """Reads the claims in the order of the file; empty where there is no file.

    Raises:
        ValueError: the file has faults; the message lists all of them.
    """
    if not path.is_file():
        return []
    tree, _ = load_yaml(path)
    if not isinstance(tree, list):
        raise ValueError(f"{path} holds no list of claims; expected `- {{claim: ..., row: ..., metric: ...}}` for each")
    faults = [f"claim {number}: {fault}" for number, item in enumerate(tree, 1) for fault in _faults(item, rows)]
    if faults:
        raise ValueError(f"{path}: {'; '.join(faults)}")
    return [Claim(**item) for item in tree]


def _faults(item: Any, rows: Mapping[str, Row]) -> Iterable[str]:
    if not isinstance(item, dict):
        yield f"holds {item!r}, not keys and values"
        return
    known = {field.name: field for field in fields(Claim)}
    yield from (f"unknown key {key}{nearest(str(key), known)}" for key in item if key not in known)
    yield from (f"no {key}" for key, field in known.items() if field.default is MISSING and key not in item)
    for key, field in known.items():
        number = "float" in str(field.type)
        wanted = (int, float) if number else str
        if key in item and (not isinstance(item[key], wanted) or isinstance(item[key], bool)):
            yield f"{key} is {item[key]!r}, not a {'number' if number else 'string'}"
    if item.get("better", "more") not in ("more", "less"):
        yield f"better is {item['better']!r}, not more or less"
    if ("control" in item) == ("target" in item):
        yield "it needs either a control or a target"
    keys = {"row": "metric", "row_less": "metric", "control": "control_metric", "control_less": "control_metric"}
    for key, metric in keys.items():
        name, path = item.get(key), item.get(metric) or item.get("metric")
        if isinstance(name, str) and name not in rows:
            yield f"no row {name} in the manifest{nearest(name, rows)}"
        elif isinstance(name, str) and isinstance(path, str) and path not in rows[name].kept:
            yield f"{name} does not keep {path}{nearest(path, rows[name].kept)}; add it to its also"


def judge(claims: Sequence[Claim], rows: Mapping[str, Row], runs: Sequence[Run]) -> list[Found]:
    """Judges each claim by the runs; the claims of a method come together."""
    found = []
    for claim in claims:
        control_metric = claim.control_metric or claim.metric
        row = _less(runs, rows, claim.row, claim.row_less, claim.metric)
        control = (
            claim.target
            if claim.target is not None
            else _less(runs, rows, claim.control, claim.control_less, control_metric)
        )
        found.append(Found(claim, rows[claim.row].method, paired(row, control, claim.metric, control_metric)))
    methods = list(dict.fromkeys(item.method for item in found))
    return sorted(found, key=lambda item: methods.index(item.method))


def _less(runs: Sequence[Run], rows: Mapping[str, Row], row: str, less: str, metric: str) -> list[Run]:
    """The runs of a row, minus those of the row `less` by seed."""
    own = runs_of(rows[row], runs)
    if not less:
        return own
    by_seed = {run.seed: run for run in own}
    found = paired(own, runs_of(rows[less], runs), metric)
    return [replace(by_seed[seed], metrics={metric: value}) for seed, value in found.differences.items()]


def runs_of(row: Row, runs: Iterable[Run]) -> list[Run]:
    """The runs of a row with one of its seeds."""
    return [run for run in runs if run.row == row.name and run.seed in row.seeds]
