"""Charts of a run: its curves over the epochs and its confusion matrix."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = list[tuple[float, float]]
_LOSSES = {"train/loss_epoch": "train/loss", "val/loss": "val/loss"}
_SCORE = "val/miou"
_COLOURS = {"train/loss": "tab:blue", "val/loss": "tab:orange", _SCORE: "tab:green"}


def read_curves(csv_path: Path) -> dict[str, Curve]:
    """`train/loss`, `val/loss` and `val/miou` over the epochs (counted from 1), as far as a `metrics.csv` has them.

    Missing, nan and infinite values are left out; of an epoch with several rows the last one counts.
    """
    points: dict[str, dict[float, float]] = {}
    with csv_path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for key, name in {**_LOSSES, _SCORE: _SCORE}.items():
                epoch, value = _number(row.get("epoch")), _number(row.get(key))
                if epoch is not None and value is not None:
                    points.setdefault(name, {})[epoch + 1] = value
    return {name: sorted(curve.items()) for name, curve in points.items()}


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def loss_curves(curves: Mapping[str, Curve], png_path: Path) -> None:
    """Draws the losses and, if there is one, the mean IoU; writes nothing without points.

    Args:
        curves: (epoch, value) points of `train/loss`, `val/loss`, `val/miou`; other names are ignored.
        png_path: the picture.
    """
    panels = [
        (title, names)
        for title, names in (("loss", [n for n in _LOSSES.values() if curves.get(n)]), ("mean IoU", [_SCORE]))
        if any(curves.get(name) for name in names)
    ]
    if not panels:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(panels), 3.6), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in names:
            epochs, values = zip(*curves[name], strict=True)
            axes.plot(epochs, values, label=name, color=_COLOURS[name], marker="." if len(epochs) < 40 else None)
        axes.set(xlabel="epoch", title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if title == "loss":
            axes.legend(frameon=False)
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        else:
            best, at = max((value, -epoch) for epoch, value in curves[_SCORE])
            axes.set(ylim=(0, 1), title=f"mean IoU (best {best:.4f}, epoch {-at:g})")
    figure.savefig(png_path, dpi=110)


def confusion_figure(confusion: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """The confusion matrix, each row in percent of the true class's pixels; a class without pixels has a blank row.

    Args:
        confusion: (K, K) pixel counts, rows truth, columns prediction.
        classes: the K names.

    Raises:
        ValueError: the matrix is not K by K.
    """
    size = len(classes)
    if confusion.shape != (size, size):
        raise ValueError(f"the confusion matrix is {confusion.shape}, but there are {size} classes; give K x K counts")
    pixels = confusion.sum(1, keepdims=True)
    percent = np.full((size, size), np.nan)
    np.divide(100.0 * confusion, pixels, out=percent, where=pixels > 0)
    cell, letters, digits = (0.62, 10, 1) if size <= 12 else (0.42, 8, 0) if size <= 30 else (0.26, 6, 0)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(cell * size + 2.2, cell * size + 1.6), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.9")
    drawn = axes.imshow(percent, vmin=0, vmax=100, cmap="Blues")
    least = 0.5 * 10**-digits if size <= 30 else 2.0  # thousands of numbers take seconds and are unreadable
    for row, column in np.argwhere(percent >= least):
        value = percent[row, column]
        ink = "white" if value > 55 else "black"
        text = axes.text(column, row, f"{value:.{digits}f}", ha="center", va="center", color=ink, fontsize=letters)
        text.set_in_layout(False)  # saves half the time
    ticks = range(size)
    axes.set_xticks(ticks, classes, rotation=90 if size > 6 else 30, ha="center" if size > 6 else "right")
    axes.set_yticks(ticks, classes)
    axes.set(xlabel="prediction", ylabel="truth", title="of each true class, %")
    axes.tick_params(labelsize=9 if size <= 30 else 6.5)
    figure.colorbar(drawn, ax=axes, shrink=0.7, fraction=0.03)
    return figure
