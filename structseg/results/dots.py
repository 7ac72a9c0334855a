"""Plots the headline metrics of rows as a small SVG, with a dot for each seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from html import escape

from structseg.results.claims import runs_of
from structseg.results.files import Run
from structseg.results.manifest import Row

_WIDTH, _LABELS, _RIGHT, _LINE = 760, 250, 24, 17  # pixels
_COLOURS = ("#1f77b4", "#d95f02", "#2ca02c", "#9467bd", "#8c564b")


def dot_plot(rows: Iterable[Row], runs: Sequence[Run]) -> str:
    """An SVG: a panel for each headline metric, a line for each measured row, a dot for each seed, a tick at the mean.

    The colours tell processors apart, as runs of different ones are not comparable.
    """
    measured = [(row, own) for row in rows if (own := [run for run in runs_of(row, runs) if _finite(row, run)])]
    processors = sorted({run.processor for _, own in measured for run in own})
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(processors)}
    parts, top = [], 4
    for headline in dict.fromkeys((row.headline, row.scored_on) for row, _ in measured):
        panel = [(row, own) for row, own in measured if (row.headline, row.scored_on) == headline]
        values = [run.value(row.headline) for row, own in panel for run in own]
        low, high = min(values), max(values)
        margin = (high - low or abs(high) or 1) * 0.05
        low, high = low - margin, high + margin

        def x(value: float, low: float = low, high: float = high) -> float:
            return _LABELS + (value - low) / (high - low) * (_WIDTH - _LABELS - _RIGHT)

        top += 16
        title = headline[0] if headline[1] == "test" else f"{headline[0]} (validation)"
        parts.append(f'<text x="{_LABELS}" y="{top}" font-weight="bold">{escape(title)}</text>')
        bottom = top + 6 + _LINE * len(panel)
        for value in _ticks(low, high):
            parts.append(f'<path d="M{x(value):.1f} {top + 5}V{bottom}" stroke="#ddd"/>')
            parts.append(f'<text x="{x(value):.1f}" y="{bottom + 12}" text-anchor="middle">{value:.6g}</text>')
        for row, own in panel:
            top += _LINE
            parts.append(f'<text x="{_LABELS - 8}" y="{top + 4}" text-anchor="end">{escape(row.name)}</text>')
            mean = statistics.fmean(run.value(row.headline) for run in own)
            parts.append(f'<path d="M{x(mean):.1f} {top - 6}v12" stroke="#333"/>')
            for run in own:
                value = run.value(row.headline)
                label = escape(f"{run}: {value:.4f}, {run.processor}")
                dot = f'cx="{x(value):.1f}" cy="{top}" r="3.5" fill="{colours[run.processor]}" fill-opacity=".75"'
                parts.append(f"<circle {dot}><title>{label}</title></circle>")
        top = bottom + 16
    for name, colour in colours.items():
        top += 15
        parts.append(f'<circle cx="{_LABELS + 4}" cy="{top - 4}" r="3.5" fill="{colour}"/>')
        parts.append(f'<text x="{_LABELS + 14}" y="{top}">{escape(name)}</text>')
    size = f'width="{_WIDTH}" height="{top + 8}" viewBox="0 0 {_WIDTH} {top + 8}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>", ""])


def _ticks(low: float, high: float) -> list[float]:
    """About four to nine round numbers from `low` to `high`."""
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= max(factor for factor in (1, 2, 5) if factor * step <= (high - low) / 3)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _finite(row: Row, run: Run) -> bool:
    return math.isfinite(run.metrics.get(row.headline, math.nan))
