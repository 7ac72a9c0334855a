"""A few coloured rectangles with labels, made in memory, and a network that learns them in a few steps."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from structseg.datamodules.base import SegmentationDataModule
from structseg.datamodules.batch import Sample, Split, image_tensor, mask_tensor
from structseg.datamodules.images import resize_mask

NATIVE = (48, 40)  # (h, w) of evaluation masks with `score_at="native"`


class Rectangles(Dataset[Sample]):
    """One rectangle of each foreground class on the background, each class of one colour; a corner is ignored."""

    def __init__(self, split: Split, count: int, classes: int, size: tuple[int, int], seed: int, native: bool) -> None:
        self.split, self.count, self.classes, self.size, self.native = split, count, classes, size, native
        self.seed = [seed, ("train", "val", "test").index(split)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        random = np.random.default_rng([*self.seed, index])
        height, width = self.size
        mask = np.zeros(self.size, np.uint8)
        for label in range(1, self.classes):
            top, left = int(random.integers(0, height * 2 // 3)), int(random.integers(0, width * 2 // 3))
            mask[top : top + height // 3, left : left + width // 3] = label
        image = np.clip(_colours(self.classes)[mask] + random.integers(-12, 13, (*self.size, 3)), 0, 255).astype(
            np.uint8
        )
        mask[: height // 8, : width // 8] = 255
        if self.native:
            mask = resize_mask(mask, NATIVE)
        return {"image": image_tensor(image), "mask": mask_tensor(mask), "name": f"{self.split}_{index:03d}"}  # type: ignore[arg-type]


def _colours(classes: int) -> NDArray[np.int64]:
    """Grey for the background, the colours of the rainbow for the others: (classes, 3)."""
    rainbow = [colorsys.hsv_to_rgb(i / max(1, classes - 1), 0.8, 0.8) for i in range(classes - 1)]
    return (255 * np.array([(0.3, 0.3, 0.3), *rainbow])).astype(np.int64)


class TinyDataModule(SegmentationDataModule):
    """8 training, 4 validation and 4 test images of rectangles; `val_images=0` holds nothing out."""

    def __init__(
        self,
        label_space: str = "parts",
        size: tuple[int, int] = (32, 32),
        batch_size: int = 4,
        train_images: int = 8,
        val_images: int = 4,
        test_images: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(label_space, size, batch_size, **kwargs)
        self.counts: dict[Split, int] = {"train": train_images, "val": val_images, "test": test_images}

    def make_dataset(self, split: Split) -> Rectangles:
        native = split != "train" and self.score_at == "native"
        return Rectangles(split, self.counts[split], len(self.label_space), self.size, self.seed, native)

    @property
    def has_validation(self) -> bool:
        return self.counts["val"] > 0


class TinyNetwork(nn.Module):
    """Two convolutions: images (N, 3, H, W) to logits (N, K, H, W)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, classes, 1))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.layers(image)
        return logits


def config_text(train_images: int = 8, max_epochs: int = 4, more: str = "") -> str:
    """YAML of the real command line on the rectangles, with dropout, augmentation and a schedule; `more` of trainer."""
    return f"""
model:
  class_path: FASSEGUNet
  init_args:
    network: {{class_path: ReadmeUNet}}
    loss: {{class_path: CrossEntropyDiceLoss}}
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 0.003}}}}
    lr_scheduler: {{class_path: OneCycle}}
data:
  class_path: tests.data.tiny.TinyDataModule
  init_args:
    train_images: {train_images}
    augmentation: {{flip: 0.5, rotate: 20, scale: [0.8, 1.2], brightness: 0.2}}
trainer:
  accelerator: cpu
  max_epochs: {max_epochs}
  enable_progress_bar: false
  enable_model_summary: false
{more}"""
