"""The settings that datamodules of faces share: occluders, full-size originals, repeated training images."""

from __future__ import annotations

from typing import Any

from structseg.datamodules.base import SegmentationDataModule
from structseg.datamodules.checks import raise_problems
from structseg.datamodules.wrappers.full_size import Originals, originals_problems
from structseg.datamodules.wrappers.occluders import Occluders, check_space


class FaceDataModule(SegmentationDataModule):
    """Base of the datamodules of faces: optional occluders, full-size originals and repeated training images.

    Args:
        label_space: label space of the masks and of a checkpoint's classes.
        size: (H, W) in pixels that images are resized to.
        batch_size: training images per batch on each device.
        occluders: objects pasted in front of the faces, new ones each epoch in training, the same ones in validation
            and test; they need label_space occlusion. None: no occluders.
        originals: also give each photograph at its full size, as `original`, with a mask of that size; not with blobs
            or occluders. None: images and masks at `size` only.
        repeats: how often each training image occurs in an epoch, augmented anew each time.
        **kwargs: settings of `SegmentationDataModule`.
    """

    def __init__(
        self,
        label_space: str = "celebamask_hq",
        size: tuple[int, int] = (128, 128),
        batch_size: int = 16,
        occluders: Occluders | None = None,
        originals: Originals | None = None,
        repeats: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(label_space, size, batch_size, **kwargs)
        check_space(occluders, self.label_space)
        self.occluders, self.originals, self.repeats = occluders, originals, repeats

    def check_settings(self, problems: list[str]) -> None:
        """Raises a ValueError with these problems and those of the settings that all faces share."""
        shared = originals_problems(self.originals, self.label_space, self.blobs, self.occluders)
        if self.repeats < 1:
            problems = [*problems, f"repeats={self.repeats} (1 or more)"]
        raise_problems("data", shared + problems)
