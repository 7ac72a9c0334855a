"""SyntheticFaces as a datamodule: nothing to download, every image made from the seed."""

from __future__ import annotations

from typing import Literal

from torch.utils.data import Dataset

from structseg.datamodules.augmentation import Augmentation
from structseg.datamodules.base import SegmentationDataModule, Split
from structseg.datamodules.batch import Sample
from structseg.datamodules.label_spaces import CELEBAMASK_HQ
from structseg.datamodules.synthetic_faces.dataset import SyntheticFacesDataset
from structseg.datamodules.wrappers.blobs import BlobKind
from structseg.datamodules.wrappers.full_size import Originals, originals_problems
from structseg.datamodules.wrappers.occluders import OCCLUDED, OccludedDataset, Occluders, check_space

_SPLITS: tuple[Split, ...] = ("train", "val", "test")


class SyntheticFacesDataModule(SegmentationDataModule):
    """Faces drawn from a seed, with exact labels; the splits share no face.

    Args:
        train: number of training images.
        val: number of validation images.
        test: number of test images.
        label_space: any space that CelebAMask-HQ's classes map to, such as fasseg, parts, occlusion or stn.
        size: (H, W) in pixels that the faces are drawn at.
        batch_size: images a training batch, on each device.
        num_workers: processes that draw; 0 draws in the main process.
        augmentation: how training batches are varied.
        mean: mean of each channel, on images in 0..1.
        std: deviation of each channel, on images in 0..1.
        score_at: `size` or `native`; the same here, as faces are drawn at `size`.
        seed: of the faces.
        predict_dir: an image, a folder of images, a video file, or `camera:N`, for `predict`.
        predict_out: the folder that predictions are written to.
        occluders: further things pasted before the faces, others each epoch in training, the same always in validation
            and test; they need label_space occlusion. None pastes none.
        blobs: regions that a loss asks to agree.
        originals: draw each face at `max_side` x `max_side`, which must be given, and let it come along as `original`,
            with a mask of its size; neither blobs nor occluders go with it. None draws faces at `size`.
        versions: how often each training image occurs in an epoch.

    Raises:
        ValueError: a count below 1, a label space that CelebAMask-HQ does not map to, occluders in another than
            occlusion, or settings that do not go together; these are all named.
    """

    def __init__(
        self,
        train: int = 2000,
        val: int = 200,
        test: int = 200,
        label_space: str = "celebamask_hq",
        size: tuple[int, int] = (128, 128),
        batch_size: int = 16,
        num_workers: int = 0,
        augmentation: Augmentation = Augmentation(),  # noqa: B008  # frozen by use: nothing writes to it
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        score_at: Literal["size", "native"] = "size",
        seed: int = 0,
        predict_dir: str | None = None,
        predict_out: str = "predictions",
        occluders: Occluders | None = None,
        blobs: BlobKind | None = None,
        originals: Originals | None = None,
        versions: int = 1,
    ) -> None:
        if min(train, val, test) < 1:
            raise ValueError(f"train={train}, val={val}, test={test}; at least 1 image each is needed")
        super().__init__(
            label_space, size, batch_size, num_workers, augmentation, mean, std, score_at, seed, predict_dir,
            predict_out, blobs,
        )  # fmt: skip
        check_space(occluders, self.label_space)
        problems = originals_problems(originals, self.label_space, blobs, occluders)
        if originals is not None and originals.max_side is None:
            problems.append("originals without max_side (set it to the side, in pixels, that faces are drawn at)")
        if versions < 1:
            problems.append(f"versions={versions} (1 or more)")
        if problems:
            raise ValueError("data: " + ", ".join(problems))
        self.occluders = occluders
        self.originals = originals
        self.versions = versions
        self.counts = dict(zip(_SPLITS, (train, val, test), strict=True))

    def make_dataset(self, split: Split) -> Dataset[Sample]:
        """The faces of a split."""
        count, number = self.counts[split], _SPLITS.index(split)
        if self.occluders is None:
            side = None if self.originals is None else self.originals.max_side
            drawn = None if side is None else (side, side)
            return SyntheticFacesDataset(count, self.seed, self.size, self.label_space, number, original_size=drawn)
        faces = SyntheticFacesDataset(count, self.seed, self.size, CELEBAMASK_HQ, number, OCCLUDED)
        return OccludedDataset(faces, self.occluders, self.seed, number, vary=split == "train")
