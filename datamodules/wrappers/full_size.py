"""Samples with full-size photographs: a small `image` for networks on whole images, and its `original`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from structseg.datamodules.batch import MaskFilter, Sample, image_tensor, mask_tensor
from structseg.datamodules.checks import raise_problems
from structseg.datamodules.images import resize_image, resize_mask
from structseg.datamodules.label_spaces import LabelSpace
from structseg.datamodules.wrappers.blobs import BlobKind
from structseg.datamodules.wrappers.hidden_parts import HIDEABLE_PARTS, parts_problem


@dataclass
class Originals:
    """The full-size photographs, `original`, for methods that crop from them; masks then have their size.

    Attributes:
        max_side: largest length of the longer side in pixels, to which larger photographs are shrunk; None: no limit.
        hide_parts: number of a face's six parts, 0 to 6, that are painted over in validation and test images, drawn by
            seed and image; masks keep them. It needs label_space stn or helen.
    """

    max_side: int | None = None
    hide_parts: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.max_side is not None and self.max_side < 1:
            problems.append(f"max_side={self.max_side} (pixels, 1 or more, or null)")
        if not 0 <= self.hide_parts <= len(HIDEABLE_PARTS):
            problems.append(f"hide_parts={self.hide_parts} (0 to {len(HIDEABLE_PARTS)})")
        raise_problems("originals", problems)

    def size_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (h, w) to which a photograph of (h, w) is shrunk, each 1 or more."""
        longer = max(size)
        if self.max_side is None or longer <= self.max_side:
            return size
        return max(1, round(size[0] * self.max_side / longer)), max(1, round(size[1] * self.max_side / longer))

    def shrink(
        self,
        photograph: Image.Image,
        mask: NDArray[np.uint8],
        native_mask: bool = False,
        mask_filter: MaskFilter = "nearest",
    ) -> tuple[Image.Image, NDArray[np.uint8]]:
        """The photograph shrunk to `max_side`, and its index mask resized to the same size.

        Args:
            photograph: RGB, of any size.
            mask: (h, w) of any size; both show the whole picture.
            native_mask: keep the mask as it is.
            mask_filter: how the mask is resized.
        """
        original = resize_image(photograph, self.size_of((photograph.height, photograph.width)))
        size = (original.height, original.width)
        return original, mask if native_mask else resize_mask(mask, size, mask_filter)


def originals_problems(
    originals: Originals | None, space: LabelSpace, blobs: BlobKind | None, occluders: object | None = None
) -> list[str]:
    """The problems of these settings, for the error message of a datamodule."""
    if originals is None:
        return []
    problems = []
    if blobs is not None:
        problems.append(f"blobs={blobs} with originals (which have no blobs)")
    if occluders is not None:
        problems.append("occluders with originals (give one of them)")
    if originals.hide_parts and (problem := parts_problem(space)):
        problems.append(f"originals.hide_parts={originals.hide_parts} {problem}")
    return problems


def sample_with_original(original: Image.Image, mask: NDArray[np.uint8], size: tuple[int, int], name: str) -> Sample:
    """A sample with a photograph and mask of `Originals.shrink`.

    Returns:
        `image` (3, H, W), the original resized to `size`; `original` (3, h, w), both 0..1; `mask` as it is; `name`.
    """
    return {
        "image": image_tensor(resize_image(original, size)),
        "original": image_tensor(original),
        "mask": mask_tensor(mask),
        "name": name,
    }
