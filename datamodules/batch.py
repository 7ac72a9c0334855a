"""The contract between datamodules and modules: the keys of samples and batches, collation, and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypedDict, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from structseg.datamodules.label_spaces import LabelSpace


class Sample(TypedDict, total=False):
    """One image and its labels: the keys of `Batch`, without the leading N.

    superpixels: (H, W) numbers as a data set publishes them, from which `BlobDataset` makes blobs; not in a batch.
    """

    image: Tensor
    mask: Tensor
    blobs: Tensor
    superpixels: Tensor
    tags: Tensor
    context: Tensor
    crop: Tensor
    cams: Tensor
    original: Tensor
    name: str


class Batch(TypedDict, total=False):
    """A batch as a datamodule passes it to a module; a key that a task does not have is absent.

    image: float32 (N, 3, H, W), 0..1. mask: int64 (N, H, W), 255 = ignore. blobs: int64 (N, H, W), ids from 0 without
    gaps in each image. tags: float32 (N, K), foreground classes. original: the full-size images, (3, h, w) each; `mask`
    then has their size, not that of `image`, padded to the largest. name: N stable names.

    In weak supervision: context: float32 (N, K, h, w) in 0..1, class probabilities of each whole image, background
    first. crop: float32 (N, 2, 3), where `image` lies in the whole image, for `F.affine_grid(crop, ...,
    align_corners=False)`. cams: class activation maps of the whole image, (K-1, h, w) in 0..1 each.
    """

    image: Tensor
    mask: Tensor
    blobs: Tensor
    tags: Tensor
    context: Tensor
    crop: Tensor
    cams: list[Tensor]
    original: list[Tensor]
    name: list[str]


Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
MaskFilter = Literal["nearest", "majority"]


class DataSettings(Protocol):
    """What modules and callbacks read from their datamodule, through `data_of`; the values are the defaults.

    Attributes:
        label_space: of the masks; it has no default.
        batch_size: training images per batch on each device; None if unknown.
        test_subsets: parts of the test set, by sample name, that are also scored separately.
        notices: caveats about the data that have to be read with the results.
        predict_out: the folder that predictions of a split are written to.
        predict_split: the split to predict; None: no prediction.
        unlabelled: a folder of training images without labels.
        masks: training masks: None, `truth`, or a folder of an earlier stage.
        queries: folder of the last round's class probabilities.
        context_of: which image's context each image gets.
        tests_superpixels: whether test blobs are published superpixels, on which accuracy is reported.
        mask_filter: how labels are resized: by `nearest`, or by `majority` (`shrink_by_majority`).
    """

    label_space: LabelSpace
    batch_size: int | None = None
    test_subsets: Mapping[str, frozenset[str]] = {}
    notices: Sequence[str] = ()
    predict_split: Split | None = None
    predict_out: str = "predictions"
    unlabelled: Any = None
    masks: str | None = None
    queries: str | None = None
    context_of: str = "own"
    tests_superpixels: bool = False
    mask_filter: MaskFilter = "nearest"

    @property
    def has_validation(self) -> bool:
        """Whether there are validation images."""
        return True

    @property
    def query_origin(self) -> str | None:
        """Identifies the prediction that made the queries; None if unknown."""
        return None

    def class_pixels(self) -> Tensor:
        """(K,) int64, how many pixels of the training masks each class has; every mask is read once.

        Raises:
            ValueError: there are no masks to count.
        """
        raise ValueError("no datamodule counts the pixels of the training masks; give class weights as numbers")

    @property
    def query_notices(self) -> tuple[str, ...]:
        """The notices of the prediction that made the queries."""
        return ()

    def names(self, split: Split) -> tuple[str, ...]:  # noqa: ARG002  # for subclasses
        """The names of a split's images, if they are known before any is read."""
        return ()

    def train_samples(self, most: int) -> list[Sample]:  # noqa: ARG002  # for subclasses
        """At most `most` training samples, evenly spread over the set, in order; empty without a training set."""
        return []

    def train_tags(self) -> Tensor:
        """(N, K - 1) of 0 and 1: the tags of all training images; empty without tags."""
        return torch.zeros(0, 0)


class _Defaults(DataSettings):
    """The settings where the trainer was given loaders instead of a datamodule."""


class _WithDefaults:
    def __init__(self, data: object) -> None:
        self._data = data

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self._data, name)
        except AttributeError:
            return getattr(_Defaults(), name)  # type: ignore[abstract]  # label_space alone has no default


def with_defaults(data: object) -> DataSettings:
    """The settings of a datamodule, or of None, with the defaults for those that it does not have."""
    return cast(DataSettings, _WithDefaults(data))


def data_of(trainer: object) -> DataSettings:
    """The datamodule of a trainer, as by `with_defaults`."""
    return with_defaults(getattr(trainer, "datamodule", None))


def image_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) float32 in 0..1 from an RGB image."""
    # In numpy: torch's threads would compete with those of other workers.
    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    return torch.from_numpy(np.ascontiguousarray(pixels))


def mask_tensor(mask: NDArray[np.integer]) -> Tensor:
    """(H, W) int64 from an index mask."""
    return torch.from_numpy(np.array(mask, dtype=np.int64))


def shrink_by_majority(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Label maps resized so that each new pixel takes the label that covers most of its area.

    The label of the nearest pixel would shift everything by up to half an old pixel to the left and up. Ties go to the
    lower and the higher label in a checkerboard pattern, so that no label grows.

    Args:
        labels: (N, H, W) int64; 255 is a label like the others.
        size: (h, w) in pixels, also larger than (H, W).

    Returns:
        (N, h, w) int64.

    >>> shrink_by_majority(torch.tensor([[[0, 1, 1], [0, 0, 1]]]), (1, 2))  # 2.5 of 3 pixels, both
    tensor([[[0, 1]]])
    """
    overlaps = []
    for old, new in zip(labels.shape[-2:], size, strict=True):
        ends = torch.arange(new + 1, device=labels.device, dtype=torch.float64) * old / new
        pixels = torch.arange(old, device=labels.device)
        overlap = torch.minimum(ends[1:, None], pixels + 1) - torch.maximum(ends[:-1, None], pixels)
        overlaps.append(overlap.clamp(min=0))
    values = labels.unique()
    area = torch.stack([overlaps[0] @ (labels == value).double() @ overlaps[1].T for value in values], -1)
    rows, columns = (torch.arange(length, device=labels.device) for length in size)
    higher = ((rows[:, None] + columns) % 2 * 2 - 1)[..., None] * torch.arange(len(values), device=labels.device)
    return values[(area + 1e-9 * higher).argmax(-1)]


def pad_masks(masks: Sequence[Tensor], ignore_index: int = 255) -> Tensor:
    """Masks (h, w) of any sizes as one (N, H, W), padded on the right and below with the ignore index."""
    height, width = (max(mask.shape[axis] for mask in masks) for axis in (0, 1))
    return torch.stack(
        [F.pad(mask, (0, width - mask.shape[1], 0, height - mask.shape[0]), value=ignore_index) for mask in masks]
    )


def collate(samples: list[Sample]) -> Batch:
    """Samples stacked to a batch; names, originals and cams stay lists.

    Masks of samples with originals may differ in size: they are padded to the largest, as by `pad_masks`.

    Raises:
        ValueError: images or masks of different sizes, named.
    """
    batch: Batch = {"name": [sample["name"] for sample in samples]}
    for key in ("image", "mask", "blobs", "tags", "context", "crop"):
        if key not in samples[0]:
            continue
        tensors = [sample[key] for sample in samples]
        if key == "mask" and "original" in samples[0]:
            batch["mask"] = pad_masks(tensors)
            continue
        shapes = [tuple(tensor.shape) for tensor in tensors]
        for sample, shape in zip(samples, shapes, strict=True):
            if shape != shapes[0]:
                raise ValueError(
                    f"{key} of {sample['name']} has shape {shape}, that of {samples[0]['name']} {shapes[0]}; "
                    "a batch needs one size: set --data.size, or --data.batch_size 1"
                )
        batch[key] = torch.stack(tensors)
    if "original" in samples[0]:
        batch["original"] = [sample["original"] for sample in samples]
    if "cams" in samples[0]:
        batch["cams"] = [sample["cams"] for sample in samples]
    return batch
