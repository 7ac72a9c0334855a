"""Faces with hidden parts, to measure how robust a method is to missing ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from structseg.datamodules.batch import Sample, image_tensor
from structseg.datamodules.images import resize_image, resize_mask
from structseg.datamodules.label_spaces import LabelSpace
from structseg.datamodules.samplers import set_epoch

# The parts of a face in the order of the STN-iCNN paper, each with its classes.
HIDEABLE_PARTS: dict[str, tuple[str, ...]] = {
    "left_brow": ("left_brow",),
    "right_brow": ("right_brow",),
    "left_eye": ("left_eye",),
    "right_eye": ("right_eye",),
    "nose": ("nose",),
    "mouth": ("upper_lip", "inner_mouth", "lower_lip"),
}

_MARGIN = 0.04  # margin around a part that is painted over, as a share of the shorter side: lashes, blurred edges
_ROUNDS = 16  # of smoothing at each scale


def parts_problem(space: LabelSpace) -> str | None:
    """Why parts of faces cannot be hidden in a label space, for an error message; None if they can."""
    names = [name for classes in HIDEABLE_PARTS.values() for name in classes]
    lacking = [name for name in names if name not in space.classes]
    return f"with label_space={space.name} (stn or helen is needed: it has no {lacking[0]})" if lacking else None


class HiddenPartsDataset(Dataset[Sample]):
    """The samples of another data set with parts painted over, in `image` and `original`; masks keep them.

    The choice depends on (seed, index) alone, and a larger count hides more parts in addition to those of a smaller
    one. A face with fewer parts than `count` loses all.

    Args:
        data: samples with `original` (3, h, w), `image` (3, H, W), both 0..1, and `mask` of `space`, of any size.
        count: parts to hide, 0 to 6.
        space: label space of the masks: STN or HELEN.
        seed: of the choice, 0 or more.

    Raises:
        ValueError: a count out of its range, or a space without these parts.
    """

    def __init__(self, data: Dataset[Sample], count: int, space: LabelSpace, seed: int = 0) -> None:
        if not 0 <= count <= len(HIDEABLE_PARTS):
            raise ValueError(f"{count} parts to hide; expected 0 to {len(HIDEABLE_PARTS)}")
        if problem := parts_problem(space):
            raise ValueError(f"hidden parts {problem}")
        self.data, self.count, self.seed = data, count, seed
        self._classes = [[space.classes.index(name) for name in classes] for classes in HIDEABLE_PARTS.values()]

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sample:
        """The sample with `image` and `original` painted over."""
        sample = self.data[index].copy()
        original = sample["original"]
        pixels = (original * 255).round().byte().permute(1, 2, 0).numpy()
        mask = resize_mask(sample["mask"].numpy().astype(np.uint8), (pixels.shape[0], pixels.shape[1]))
        parts = [np.isin(mask, classes) for classes in self._classes]
        present = [number for number, part in enumerate(parts) if part.any()]
        order = np.random.default_rng([self.seed, index % len(self)]).permutation(len(parts))
        hidden = [number for number in order if number in present][: self.count]
        if not hidden:
            return sample
        covered = np.any([parts[number] for number in hidden], axis=0)
        seen = np.any([parts[number] for number in present if number not in hidden] or [covered & False], axis=0)
        painted = Image.fromarray(cover(pixels, covered, seen))
        height, width = sample["image"].shape[-2:]
        sample["original"] = image_tensor(painted)
        sample["image"] = image_tensor(resize_image(painted, (height, width)))
        return sample

    def set_epoch(self, epoch: int) -> None:
        """Passes the epoch on to the data set."""
        set_epoch(self.data, epoch)


def cover(pixels: NDArray[np.uint8], hidden: NDArray[np.bool_], seen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """An image with pixels, and a margin around them, painted over smoothly with the surrounding colours.

    Args:
        pixels: (h, w, 3); not changed.
        hidden: (h, w) pixels to paint over.
        seen: (h, w) pixels to keep, whose colours are not used either.
    """
    from scipy import ndimage

    margin = max(1, round(_MARGIN * min(hidden.shape)))
    covered = (ndimage.distance_transform_edt(~hidden) <= margin) & ~seen
    rows, columns = (_span(covered.any(axis), 2 * margin) for axis in (1, 0))
    painted = pixels.copy()
    hole = covered[rows, columns]
    filled = _fill(pixels[rows, columns].astype(np.float32), hole | seen[rows, columns])
    painted[rows, columns][hole] = filled[hole].round().astype(np.uint8)
    return painted


def _span(inside: NDArray[np.bool_], margin: int) -> slice:
    """The slice from the first true to the last, with a margin."""
    places = np.flatnonzero(inside)
    return slice(max(0, int(places[0]) - margin), int(places[-1]) + margin + 1)


def _fill(pixels: NDArray[np.float32], hole: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Fills the hole from a half-size copy, filled first, and then repeatedly with the mean of the neighbours."""
    if not hole.any() or hole.all():
        return pixels
    height, width = hole.shape
    if max(height, width) > 1:
        pad = ((0, height % 2), (0, width % 2))
        known = np.pad(~hole, pad).reshape((height + 1) // 2, 2, (width + 1) // 2, 2)
        colours = np.pad(np.where(hole[..., None], 0, pixels), (*pad, (0, 0))).reshape(*known.shape, 3)
        counts = known.sum((1, 3))
        small = _fill((colours.sum((1, 3)) / np.maximum(counts, 1)[..., None]).astype(np.float32), counts == 0)
        large = small.repeat(2, 0).repeat(2, 1)[:height, :width]
        pixels = np.where(hole[..., None], large, pixels)
    for _ in range(_ROUNDS):
        around = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
        mean = (around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:]) / 4
        pixels = np.where(hole[..., None], mean, pixels)
    return pixels
