"""SyntheticFaces as a datamodule: every image is drawn from the seed."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from structseg.datamodules.batch import SPLITS, Sample, Split
from structseg.datamodules.faces import FaceDataModule
from structseg.datamodules.label_spaces import CELEBAMASK_HQ
from structseg.datamodules.synthetic_faces.dataset import SyntheticFacesDataset
from structseg.datamodules.wrappers.occluders import OCCLUDED, OccludedDataset


class SyntheticFacesDataModule(FaceDataModule):
    """Faces drawn from a seed at `size`, or at `originals.max_side`, with exact labels; the splits share no face.

    Args:
        train: number of training images.
        val: number of validation images.
        test: number of test images.
        label_space: any space that CelebAMask-HQ's classes map to, such as fasseg, parts, occlusion or stn.
        size: (H, W) in pixels that faces are drawn at without originals.
        **kwargs: settings of `FaceDataModule` and `SegmentationDataModule`.

    Raises:
        ValueError: a count below 1, a label space that CelebAMask-HQ does not map to, occluders in another space than
            occlusion, or settings that do not go together, all named.
    """

    def __init__(
        self,
        train: int = 2000,
        val: int = 200,
        test: int = 200,
        label_space: str = CELEBAMASK_HQ.name,
        size: tuple[int, int] = (128, 128),
        **kwargs: Any,
    ) -> None:
        if min(train, val, test) < 1:
            raise ValueError(f"train={train}, val={val}, test={test}; at least 1 image each is needed")
        super().__init__(label_space, size, **kwargs)
        without = "originals without max_side (set it to the side, in pixels, that faces are drawn at)"
        self.check_settings([without] if self.originals is not None and self.originals.max_side is None else [])
        self.counts = dict(zip(SPLITS, (train, val, test), strict=True))

    def make_dataset(self, split: Split) -> Dataset[Sample]:
        """The faces of a split."""
        count, number = self.counts[split], SPLITS.index(split)
        if self.occluders is None:
            side = None if self.originals is None else self.originals.max_side
            drawn = None if side is None else (side, side)
            return SyntheticFacesDataset(count, self.seed, self.size, self.label_space, number, original_size=drawn)
        faces = SyntheticFacesDataset(count, self.seed, self.size, CELEBAMASK_HQ, number, OCCLUDED)
        return OccludedDataset(faces, self.occluders, self.seed, number, vary=split == "train")
