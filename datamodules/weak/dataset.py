"""The samples of weak supervision: cropped images with tags, and with masks and maps of earlier stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from structseg.datamodules.batch import Sample, image_tensor, mask_tensor
from structseg.datamodules.label_spaces import LabelSpace
from structseg.datamodules.round_files import read_artefact_mask, read_cams, read_query
from structseg.datamodules.weak.crops import CropSettings

Read = tuple[Image.Image, NDArray[np.uint8] | None, NDArray[np.float32] | None]  # image, true mask and tags
Donors = Mapping[str, str] | Mapping[str, Mapping[int, str]]  # by image, or by image and class index


class Sources(NamedTuple):
    """The sources of a sample's masks, context, activation maps and tags.

    Attributes:
        masks: `truth`: the reader's, if it has one; a folder of artefacts; None: no masks.
        queries: folder of class probabilities, for `context`.
        cams: folder of class activation maps.
        blank: whether an image without a true mask gets one of ignored pixels, so that all samples have the same keys.
        tags: whether samples have tags.
    """

    masks: Path | Literal["truth"] | None = None
    queries: Path | None = None
    cams: Path | None = None
    blank: bool = False
    tags: bool = True


class WeakDataset(Dataset[Sample]):
    """Images by name, whole or cropped.

    Args:
        names: of the images.
        read: returns an image, its true mask and its tags; the last two may be None.
        size: (H, W) of the samples; None: the size of each image.
        label_space: of masks and tags.
        sources: of masks, context and activation maps.
        crops: how images are cropped, differently each epoch (`set_epoch`); None: whole images.
        mean: colour in 0..1 outside an image.
        seed: of the crops.
        donors: the image whose context each image, or each of its classes, gets instead of its own; the remaining
            probability is background. None: its own.
        displace: seed of random shifts of each class in an image's context; None: no shifts.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        read: Callable[[str], Read],
        size: tuple[int, int] | None,
        label_space: LabelSpace,
        sources: Sources,
        crops: CropSettings | None = None,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        seed: int = 0,
        donors: Donors | None = None,
        displace: int | None = None,
    ) -> None:
        self.names, self.read, self.size, self.label_space = names, read, size, label_space
        self.sources = sources
        self.training = crops is not None
        self.crops = CropSettings() if crops is None else crops
        self.vary = not self.crops.whole or self.crops.flip > 0
        red, green, blue = (round(255 * value) for value in mean)
        self.fill = (red, green, blue)
        self.seed = seed
        self.donors, self.displace = donors, displace
        # Shared, so that persistent workers see the next epoch.
        self._epoch: Tensor = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """`image` (3, H, W) in 0..1, `crop` (2, 3), `name`, and the other keys that are known; see `batch.Batch`.

        Raises:
            FileNotFoundError: an image or artefact is missing.
            ValueError: a file is damaged, or a true mask that training needs is missing; the message names it.
        """
        name = self.names[index]
        image, truth, tags = self.read(name)
        own = (image.height, image.width)
        random = np.random.default_rng([self.seed, int(self._epoch), index % len(self)])
        crop = self.crops.draw(own, self.size or own, random)
        sample: Sample = {"image": image_tensor(crop.image(image, self.fill)), "crop": crop.affine(), "name": name}
        if tags is not None and self.sources.tags:
            sample["tags"] = torch.from_numpy(tags)
        mask = self._mask(name, own, truth)
        if mask is not None:
            sample["mask"] = mask_tensor(crop.mask(mask, self.label_space.ignore_index))
        if self.sources.queries is not None:
            sample["context"] = torch.from_numpy(self._context(self.sources.queries, index % len(self)))
        if self.sources.cams is not None:
            sample["cams"] = torch.from_numpy(read_cams(self.sources.cams, name, self.label_space).maps)
        return sample

    def _mask(self, name: str, size: tuple[int, int], truth: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
        if self.sources.masks is None:
            return None
        if self.sources.masks != "truth":
            return read_artefact_mask(self.sources.masks, name, self.label_space)
        if truth is None and self.training:
            raise ValueError(f"{name} has no true mask; train with --data.masks of an earlier stage")
        if truth is None and self.sources.blank:
            return np.full(size, self.label_space.ignore_index, dtype=np.uint8)
        return truth

    def _context(self, folder: Path, index: int) -> NDArray[np.float32]:
        name = self.names[index]
        donor = name if self.donors is None else self.donors[name]
        if not isinstance(donor, str):
            context = np.zeros_like(read_query(folder, name, self.label_space))
            for k, other in donor.items():
                context[k] = read_query(folder, other, self.label_space)[k]
        else:
            context = read_query(folder, donor, self.label_space)
            if self.displace is None:
                return context
            random = np.random.default_rng([self.displace, index])
            for k in range(1, len(context)):
                context[k] = np.roll(context[k], random.integers(context.shape[1:]), (0, 1))
        context[0] = (1 - context[1:].sum(0)).clip(min=0)
        return context

    def set_epoch(self, epoch: int) -> None:
        """Chooses the crops of an epoch, in this process and its workers."""
        self._epoch.fill_(epoch)
