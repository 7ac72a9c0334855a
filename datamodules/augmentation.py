"""On-device augmentation with kornia: image, mask and blobs move together, colour and noise touch the image alone."""

from __future__ import annotations

from dataclasses import dataclass, fields

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from datamodules.label_spaces import LabelSpace
from datamodules.samples import Batch


@dataclass
class Augmentation:
    """How a training batch is varied. Everything is off at 0.

    Attributes:
        flip: probability of a horizontal flip, which exchanges left and right classes.
        rotate: largest rotation, in degrees to either side.
        translate: largest shift, as a share of the width and height.
        scale: range of the zoom, 1 = as it is.
        shear: largest shear, in degrees.
        brightness: largest change of brightness, as a factor's distance from 1.
        contrast: likewise for contrast.
        saturation: likewise for saturation.
        hue: largest shift of the hue, as a share of the colour circle (0..0.5).
        grayscale: probability of a grey image.
        blur: probability of a Gaussian blur, sigma 0.1 to 2 pixels.
        noise: standard deviation of Gaussian noise, on images in 0..1, applied to half of the images.
        erase: probability that a rectangle of 2 to 20 % of the image is painted over; its labels stay.
    """

    flip: float = 0.0
    rotate: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        problems = [
            f"{f.name}={getattr(self, f.name)} (0 or more is needed)"
            for f in fields(self)
            if f.name != "scale" and getattr(self, f.name) < 0
        ]
        problems += [
            f"{name}={getattr(self, name)} (a probability, at most 1)"
            for name in ("flip", "grayscale", "blur", "erase")
            if getattr(self, name) > 1
        ]
        if self.hue > 0.5:
            problems.append(f"hue={self.hue} (at most 0.5)")
        if not 0 < self.scale[0] <= self.scale[1]:
            problems.append(f"scale={self.scale} (0 < smallest <= largest is needed)")
        if problems:
            raise ValueError("augmentation: " + ", ".join(problems))


class AugmentationPipeline(nn.Module):
    """Applies an `Augmentation` to batches whose labels are of one space; draws from torch's global generators.

    Pixels that come from outside the image are 0 in `image`, `ignore_index` in `mask` and 0 in `blobs`. Images without
    `mask` get one: 0, and `ignore_index` outside of them.
    """

    flip_lookup: Tensor

    def __init__(self, settings: Augmentation, space: LabelSpace) -> None:
        super().__init__()
        self.settings = settings
        self.ignore_index = space.ignore_index
        self.register_buffer("flip_lookup", space.flip_lookup(), persistent=False)
        s = settings
        moves = s.rotate or s.translate or s.shear or tuple(s.scale) != (1.0, 1.0)
        affine = K.RandomAffine(
            degrees=s.rotate,
            translate=(s.translate, s.translate),
            scale=(s.scale[0], s.scale[1]),
            shear=s.shear or None,
            p=1.0,
        )
        self.geometry = K.AugmentationSequential(affine, data_keys=None) if moves else None
        colour: list[nn.Module] = []
        if s.brightness or s.contrast or s.saturation or s.hue:
            colour.append(K.ColorJiggle(s.brightness, s.contrast, s.saturation, s.hue, p=1.0))
        if s.grayscale:
            colour.append(K.RandomGrayscale(p=s.grayscale))
        if s.blur:
            colour.append(K.RandomGaussianBlur((7, 7), (0.1, 2.0), p=s.blur))
        if s.noise:
            colour.append(K.RandomGaussianNoise(std=s.noise, p=0.5))
        if s.erase:
            colour.append(K.RandomErasing(scale=(0.02, 0.2), p=s.erase))
        self.colour = nn.Sequential(*colour)

    @torch.no_grad()
    def forward(self, batch: Batch) -> Batch:
        """A new batch: `image` (N, 3, H, W) in 0..1, with `mask` and `blobs` (N, H, W) where present."""
        image = batch["image"].float()
        batch = batch.copy()
        if "mask" not in batch:  # an image without labels: its mask says what lies outside of it
            batch["mask"] = torch.zeros(image.shape[0], *image.shape[-2:], dtype=torch.int64, device=image.device)
        keys = [key for key in ("mask", "blobs") if key in batch]
        # One tensor, so that all labels are warped alike; shifted by one, so that the zeros that a warp lets in from
        # outside can be told from class 0.
        labels = torch.stack([batch[key] + 1 for key in keys], 1).float() if keys else None
        if self.geometry is not None:
            moved = self.geometry({"image": image} if labels is None else {"image": image, "mask": labels})
            image, labels = moved["image"], moved.get("mask")
        out = batch.copy()
        flip = torch.rand(len(image)).to(image.device) < self.settings.flip
        image = torch.where(flip[:, None, None, None], image.flip(-1), image)
        for channel, key in enumerate(keys):
            assert labels is not None
            whole = labels[:, channel].round().long() - 1
            whole = whole.masked_fill(whole < 0, self.ignore_index if key == "mask" else 0)
            mirrored = whole.flip(-1)
            if key == "mask":
                mirrored = self.flip_lookup.to(mirrored.device)[mirrored]
            out[key] = torch.where(flip[:, None, None], mirrored, whole)
        out["image"] = self.colour(image).clamp(0, 1)
        return out
