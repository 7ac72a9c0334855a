"""The settings that datamodules of faces share: occluders, full-size originals, repeated training images."""

from __future__ import annotations

from typing import Any

from structseg.datamodules.base import SegmentationDataModule
from structseg.datamodules.checks import raise_problems
from structseg.datamodules.wrappers.full_size import Originals, originals_problems
from structseg.datamodules.wrappers.occluders import Occluders, check_space


class FaceDataModule(SegmentationDataModule):
    """Faces, with occluders, full-size originals and repeats where they are asked for; a child gives the data sets.

    Args:
        label_space: name of the space of the labels (and of a checkpoint's classes).
        size: (H, W) in pixels that images are resized to.
        batch_size: images a training batch, on each device.
        occluders: things pasted before the faces, new ones each epoch in training, the same ones in validation and
            test; they need label_space occlusion. None pastes none.
        originals: give each photograph also at its full size, as `original`, with a mask of that size; neither blobs
            nor occluders go with it. None gives images and masks at `size` alone.
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
        """Raises a ValueError that names a child's problems and those of the settings that all faces share."""
        shared = originals_problems(self.originals, self.label_space, self.blobs, self.occluders)
        if self.repeats < 1:
            problems = [*problems, f"repeats={self.repeats} (1 or more)"]
        raise_problems("data", shared + problems)
