"""The six windows of a face: their classes, their centres, and the channels by which they are pasted."""

from __future__ import annotations

import torch
from torch import Tensor

from structseg.datamodules.label_spaces import FACE_PARTS, STN
from structseg.lightning_modules.networks.spatial_transformer import label_centers, part_centers

# The parts of each network; the second one is mirrored before and after.
NETWORKS: dict[str, tuple[int, ...]] = {"brow": (0, 1), "eye": (2, 3), "nose": (4,), "mouth": (5,)}
CHANNELS = 1 + max(map(len, FACE_PARTS.values()))  # of a window: the whole part, then its classes


def class_count(network: str) -> int:
    """The number of classes of a part network, with the background."""
    return 1 + len(list(FACE_PARTS.values())[NETWORKS[network][0]])


def window_labels() -> Tensor:
    """(6, 256) int64: the class in each window of a class of the space `stn`; those of other parts are background."""
    table = torch.zeros(len(FACE_PARTS), 256, dtype=torch.int64)
    table[:, STN.ignore_index] = STN.ignore_index
    for row, classes in zip(table, FACE_PARTS.values(), strict=True):
        for position, index in enumerate(classes, 1):
            row[index] = position
    return table


def paste_channels() -> Tensor:
    """(6, CHANNELS) int64: the class in the mask of each channel of a window; 0 for the whole part, -1: none."""
    table = torch.full((len(FACE_PARTS), CHANNELS), -1, dtype=torch.int64)
    table[:, 0] = 0
    for row, classes in zip(table, FACE_PARTS.values(), strict=True):
        row[1 : 1 + len(classes)] = torch.tensor(classes)
    return table


def true_centers(mask: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The centres of the labelled parts.

    Args:
        mask: (N, H, W) int64, classes of the space `stn`.
        sizes: (N, 2), the height and width of each image in the upper left corner of its mask; default: all of it.

    Returns:
        centers (N, 6, 2), (x, y) in pixels from 0, the mean of the part's pixels, for the mouth the mean of the centres
        of its present classes, for an absent part the image's centre; and present (N, 6) bool.
    """
    if sizes is None:
        sizes = torch.tensor([mask.shape[-2:]], device=mask.device)
    centers, present = [], []
    for classes in FACE_PARTS.values():
        found = [label_centers(mask, index) for index in classes]
        classes_present = torch.stack([count > 0 for _, count in found], 1).sum(1)
        centers.append(torch.stack([center for center, _ in found]).sum(0) / classes_present.clamp(min=1)[:, None])
        present.append(classes_present > 0)
    middle = (sizes.flip(1)[:, None].float() - 1) / 2
    is_there = torch.stack(present, 1)
    return torch.where(is_there[..., None], torch.stack(centers, 1).float(), middle), is_there


def soft_centers(probabilities: Tensor) -> Tensor:
    """The centroids of the parts' probabilities in a soft mask (N, 9, H, W), (N, 6, 2) as (x, y).

    For the mouth the mean of its classes' centroids, as in the published code.
    """
    centers, _ = part_centers(probabilities)
    return torch.stack([centers[:, list(classes)].mean(1) for classes in FACE_PARTS.values()], 1)


def window_probabilities(logits: list[Tensor]) -> Tensor:
    """(N, 6, CHANNELS, h, w) of the six windows' logits (N, k, h, w): the whole part, its classes, zeros."""
    windows = []
    for part in logits:
        p = part.float().softmax(1)
        whole = torch.cat([1 - p[:, :1], p[:, 1:]], 1)
        windows.append(torch.nn.functional.pad(whole, (0, 0, 0, 0, 0, CHANNELS - whole.shape[1])))
    return torch.stack(windows, 1)


def with_background(pasted: Tensor) -> Tensor:
    """(N, 9, H, W) class scores of `window_probabilities` pasted by `paste_channels`.

    The background is 1 minus the largest probability, over the windows, of belonging to a part.
    """
    return torch.cat([1 - pasted[:, :1], pasted[:, 1:]], 1)
