"""The contract between datamodules and modules: the keys of a sample and of a batch, and how one becomes the other."""

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
    """One image with what belongs to it: the keys of `Batch`, without the leading N.

    superpixels: (H, W) raw numbers as a data set publishes them, of which `BlobDataset` makes blobs; not in a batch.
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
    """What flows from a datamodule to a module; a key that a task does not have is absent.

    image: float32 (N, 3, H, W), 0..1. mask: int64 (N, H, W), 255 = ignore. blobs: int64 (N, H, W), dense ids an image.
    tags: float32 (N, K), foreground classes. original: the full-size images, (3, h, w) each; `mask` is then of their
    size, not of `image`'s, and padded to the largest. name: N stable names.

    Of weak supervision: context: float32 (N, K, h, w) in 0..1, class probabilities, background first, of the whole of
    each image. crop: float32 (N, 2, 3), where `image` lies in the whole, as `F.affine_grid(crop, ...,
    align_corners=False)` takes it. cams: class activation maps of the whole, (K-1, h, w) in 0..1 each.
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
    """What modules and callbacks read of the datamodule that they run with, by `data_of`; the values are the defaults.

    Attributes:
        label_space: of the masks; it has no default.
        batch_size: images a training batch, on each device; None where it is not known.
        test_subsets: parts of the test set, by sample name, that are also scored apart.
        notices: what a reader of the figures has to know of the data.
        predict_out: the folder that predictions of a split are written to.
        predict_split: the split that is predicted; None: no prediction.
        unlabelled: a folder of training images without labels.
        masks: of training: None, `truth`, or a folder of an earlier stage.
        queries: folder of the last round's class probabilities.
        context_of: whose context each image gets.
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
        """Whether anything is held out for validation."""
        return True

    @property
    def query_origin(self) -> str | None:
        """What tells the queries from another prediction's; None where it is not known."""
        return None

    def class_pixels(self) -> Tensor:
        """(K,) int64, how many pixels of the training masks each class has; every mask is read once.

        Raises:
            ValueError: there are no masks to count.
        """
        raise ValueError("no datamodule counts the pixels of the training masks; give class weights as numbers")

    @property
    def query_notices(self) -> tuple[str, ...]:
        """What was noticed of the prediction that the queries are of."""
        return ()

    def names(self, split: Split) -> tuple[str, ...]:  # noqa: ARG002  # for children
        """The names of a split's images, where they are known before any is read."""
        return ()

    def train_samples(self, most: int) -> list[Sample]:  # noqa: ARG002  # for children
        """Up to so many training samples, evenly spread over the set, in order; none where there is no set."""
        return []

    def train_tags(self) -> Tensor:
        """(N, K - 1) of 0 and 1: the tags of all training images; none where there are no tags."""
        return torch.zeros(0, 0)


class _Defaults(DataSettings):
    """No datamodule: loaders that were given to the trainer."""


class _WithDefaults:
    def __init__(self, data: object) -> None:
        self._data = data

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self._data, name)
        except AttributeError:
            return getattr(_Defaults(), name)  # type: ignore[abstract]  # label_space alone has no default


def with_defaults(data: object) -> DataSettings:
    """A datamodule, or None, as modules read it: what it does not have has its default."""
    return cast(DataSettings, _WithDefaults(data))


def data_of(trainer: object) -> DataSettings:
    """The datamodule of a trainer, as by `with_defaults`."""
    return with_defaults(getattr(trainer, "datamodule", None))


def image_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) float32 in 0..1 from an RGB image; in numpy, as torch's threads get in each other's way in workers."""
    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    return torch.from_numpy(np.ascontiguousarray(pixels))


def mask_tensor(mask: NDArray[np.integer]) -> Tensor:
    """(H, W) int64 from an index mask."""
    return torch.from_numpy(np.array(mask, dtype=np.int64))


def shrink_by_majority(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Label maps at another size: each new pixel takes the label that covers most of its area.

    The nearest pixel's label, in its place, moves everything by up to half an old pixel to the left and up. Of a tie
    the fields of a chess board take the lower and the higher label in turn, so that no label grows.

    Args:
        labels: (N, H, W) int64; any value, 255 too, is a label like the others.
        size: (h, w) in pixels, also larger than (H, W).

    Returns:
        (N, h, w) int64.

    >>> shrink_by_majority(torch.tensor([[[0, 1, 1], [0, 0, 1]]]), (1, 2))  # 2.5 of 3 pixels, both
    tensor([[[0, 1]]])
    """
    covers = []
    for old, new in zip(labels.shape[-2:], size, strict=True):
        ends = torch.arange(new + 1, device=labels.device, dtype=torch.float64) * old / new
        pixels = torch.arange(old, device=labels.device)
        overlap = torch.minimum(ends[1:, None], pixels + 1) - torch.maximum(ends[:-1, None], pixels)
        covers.append(overlap.clamp(min=0))
    found = labels.unique()
    area = torch.stack([covers[0] @ (labels == label).double() @ covers[1].T for label in found], -1)
    rows, columns = (torch.arange(length, device=labels.device) for length in size)
    higher = ((rows[:, None] + columns) % 2 * 2 - 1)[..., None] * torch.arange(len(found), device=labels.device)
    return found[(area + 1e-9 * higher).argmax(-1)]


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
                    "one size a batch is needed: set --data.size, or batches of one"
                )
        batch[key] = torch.stack(tensors)
    if "original" in samples[0]:
        batch["original"] = [sample["original"] for sample in samples]
    if "cams" in samples[0]:
        batch["cams"] = [sample["cams"] for sample in samples]
    return batch
