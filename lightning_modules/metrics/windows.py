"""The distance of STN-iCNN's windows from their parts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from structseg.datamodules.label_spaces import FACE_PARTS
from structseg.lightning_modules.networks.spatial_transformer import label_centers

# Sums of distances are integers, in billionths of a pixel: equal for any batch order and number of processes.
_UNIT = 10**9
# Tolerance in pixels, so that rounding of theta does not move an edge across a pixel's centre.
_SLACK = 1e-3


class WindowError(Metric):
    """The distance of each window's centre from its part's, and the share of the part's pixels inside the window.

    The true centre of a part is the mean of its pixels; for a part of several classes (the mouth) the mean of the
    centres of its present classes. A pixel is inside a window if its centre lies within the window's outermost samples
    or at most half a pixel of the image beyond them.

    - `center_error`, `part_center_error/PART`: mean over the images' parts, in pixels of the given masks.
    - `inside`, `part_inside/PART`: pooled over all pixels of all parts, or of the part.
    - `absent_parts`: number of absent parts over all images, which are not counted otherwise, like pixels of other
      classes, of the background, or ignored ones (255).

    nan without parts.

    Args:
        parts: the classes of each window by its name, in the order of theta.

    Raises:
        ValueError: no parts, or one without classes.

    >>> metric = WindowError({"nose": (1,)})
    >>> theta = torch.tensor([[[[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]]])  # columns 1 to 3 of 0 to 4, row 0
    >>> metric.update(theta, torch.tensor([[[0, 0, 0, 1, 1]]]))
    >>> {key: float(value) for key, value in metric.compute().items() if "/" not in key}
    {'center_error': 1.5, 'inside': 0.5, 'absent_parts': 0.0}
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    distances: Tensor
    present: Tensor
    images: Tensor
    pixels: Tensor
    held: Tensor

    def __init__(self, parts: Mapping[str, tuple[int, ...]] = FACE_PARTS) -> None:
        super().__init__()
        self.parts = {name: tuple(classes) for name, classes in parts.items()}
        if not self.parts or not all(self.parts.values()):
            raise ValueError(f"parts are {self.parts}; give one name or more, each with its classes")
        for state in ("distances", "present", "pixels", "held"):
            self.add_state(state, torch.zeros(len(self.parts), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def metric_keys(self) -> tuple[str, ...]:
        """The names of all values that `compute` returns, known before any data is seen."""
        by_part = (f"{score}/{name}" for score in ("part_center_error", "part_inside") for name in self.parts)
        return ("center_error", "inside", "absent_parts", *by_part)

    def update(self, theta: Tensor, mask: Tensor) -> None:
        """Counts a batch.

        Args:
            theta: (N, P, 2, 3), [[sx, 0, tx], [0, sy, ty]] with align_corners=True relative to the mask.
            mask: (N, H, W) integer class indices, 255 right of and below the smaller images of a batch.

        Raises:
            ValueError: shapes do not match, or theta is not finite; then nothing is counted.
            TypeError: the mask is not of integers.
        """
        size = len(self.parts)
        if mask.is_floating_point():
            raise TypeError(f"mask is {mask.dtype}; expected integer class indices")
        if mask.ndim != 3 or theta.shape != (len(mask), size, 2, 3):
            raise ValueError(
                f"theta is {tuple(theta.shape)} and mask {tuple(mask.shape)}; expected (N, {size}, 2, 3) and (N, H, W)"
            )
        if not theta.isfinite().all():
            raise ValueError("theta holds nan or infinity; see what the localizer was given, or its learning rate")
        last = torch.tensor((mask.shape[2] - 1, mask.shape[1] - 1), device=theta.device, dtype=torch.float64)
        theta = theta.detach().double()
        centers = (theta[..., 2] + 1) / 2 * last
        reach = theta[..., :2].diagonal(dim1=-2, dim2=-1).abs() * last / 2 + 0.5 + _SLACK
        for index, classes in enumerate(self.parts.values()):
            self._count(index, classes, centers[:, index], reach[:, index], mask)
        self.images += len(mask)

    def _count(self, index: int, classes: tuple[int, ...], centers: Tensor, reach: Tensor, mask: Tensor) -> None:
        """One part: (N, 2) centres and half widths, x and y, of its windows, and the (N, H, W) mask."""
        x, y = (torch.arange(length, device=mask.device, dtype=torch.float64) for length in mask.shape[:0:-1])
        in_x, in_y = ((axis - centers[:, i, None]).abs() <= reach[:, i, None] for i, axis in enumerate((x, y)))
        total = torch.zeros_like(centers)
        occurring = torch.zeros_like(mask[:, 0, 0])
        for label in classes:
            mean, count = label_centers(mask, label)
            total += mean
            occurring += count > 0
            self.pixels[index] += count.sum()
            self.held[index] += ((mask == label) & in_y[:, :, None] & in_x[:, None]).sum()
        distance = (centers - total / occurring.clamp(min=1)[:, None]).norm(dim=1)
        self.distances[index] += (distance * (occurring > 0) * _UNIT).round().long().sum()
        self.present[index] += (occurring > 0).sum()

    def compute(self) -> dict[str, Tensor]:
        """All values as float32 scalars on the CPU, under the names of `metric_keys`."""
        distances, present = self.distances.cpu().double() / _UNIT, self.present.cpu()
        pixels, held = self.pixels.cpu().double(), self.held.cpu()
        values = (
            distances.sum() / present.sum(),
            held.sum() / pixels.sum(),
            self.images.cpu() * len(self.parts) - present.sum(),
            *(distances / present),
            *(held / pixels),
        )
        return {key: value.float() for key, value in zip(self.metric_keys, values, strict=True)}
