"""Whether a context map M has an effect: the change of the logits without it, and with another image's."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

NEEDED = {"zeroed": 0.10, "swapped": 0.05}  # shares of the logits' deviation


class ManipulationCheck(Metric):
    """Mean absolute change of the logits, as a share of their standard deviation over images and classes.

    `compute` gives `zeroed` (with M = 0, its mean), `swapped` (with another image's M), nan where nothing was counted,
    and `tested`: 1 if each of them reaches its share in `NEEDED`, else 0; then an arm is no test of M.

    >>> check = ManipulationCheck()
    >>> check.update(torch.tensor([[-1.0], [1.0]]), torch.tensor([[-0.8], [1.2]]), torch.tensor([[-1.0], [1.02]]))
    >>> {key: round(float(value), 3) for key, value in check.compute().items()}
    {'zeroed': 0.2, 'swapped': 0.01, 'tested': 0.0}
    """

    is_differentiable = False
    full_state_update = False
    metric_keys = ("zeroed", "swapped", "tested")

    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(6, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, zeroed: Tensor, swapped: Tensor | None = None) -> None:
        """Counts images.

        Args:
            logits: (N, n) with the image's own M.
            zeroed: (N, n) with M = 0.
            swapped: (N, n) with another image's M; None if there is no other, or M is the same for all.

        Raises:
            ValueError: shapes that differ.
        """
        for other in (zeroed, swapped):
            if other is not None and other.shape != logits.shape:
                raise ValueError(f"logits are {tuple(logits.shape)} and {tuple(other.shape)}; expected (N, n) of each")
        own = logits.double()
        swaps = own.new_zeros(0) if swapped is None else (swapped - own).abs()
        counted: list[Tensor | int] = [
            own.numel(),
            own.sum(),
            own.square().sum(),
            (zeroed - own).abs().sum(),
            swaps.numel(),
            swaps.sum(),
        ]
        self.sums += torch.tensor([float(one) for one in counted], dtype=torch.float64, device=self.sums.device)

    def compute(self) -> dict[str, Tensor]:
        """The values of `metric_keys`."""
        count, total, squares, zeroed, swaps, swapped = self.sums.cpu().tolist()
        deviation = math.sqrt(max(squares / count - (total / count) ** 2, 0.0)) if count else math.nan
        moved = {
            name: change / number / deviation if number and deviation else math.nan
            for name, number, change in (("zeroed", count, zeroed), ("swapped", swaps, swapped))
        }
        tested = all(not moved[name] < needed for name, needed in NEEDED.items()) and not math.isnan(moved["zeroed"])
        return {name: torch.tensor(value) for name, value in {**moved, "tested": float(tested)}.items()}


def manipulation_notice(moved: dict[str, float]) -> str:
    """The notice on the values of `ManipulationCheck`; empty if M is tested or absent."""
    if math.isnan(moved["zeroed"]) or moved["tested"]:
        return ""
    words = {"zeroed": "zeroing it", "swapped": "another image's"}
    shares = ", ".join(
        f"{words[name]} moves the logits by {moved[name]:.1%} of their deviation ({needed:.0%} is needed)"
        for name, needed in NEEDED.items()
        if not math.isnan(moved[name])
    )
    return f"no test of the context map M: {shares}"
