"""On-device augmentation with kornia: geometry changes image, mask and blobs alike, colour and noise only the image."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor, nn

from structseg.datamodules.batch import Batch
from structseg.datamodules.checks import raise_problems
from structseg.datamodules.label_spaces import LabelSpace


@dataclass
class Augmentation:
    """How a training batch is varied. Everything is off at 0.

    Attributes:
        flip: probability of a horizontal flip, which also swaps left and right classes.
        rotate: largest rotation, in degrees to either side.
        translate: largest shift, as a share of the width and height.
        scale: range of the zoom; 1 keeps the size.
        shear: largest shear, in degrees.
        brightness: largest change of brightness, as a factor's distance from 1.
        contrast: largest change of contrast, as brightness.
        saturation: largest change of saturation, as brightness.
        hue: largest shift of the hue, as a share of the colour circle (0..0.5).
        grayscale: probability of a grey image.
        blur: probability of a Gaussian blur, sigma 0.1 to 2 pixels.
        noise: standard deviation of Gaussian noise, on images in 0..1, applied to half of the images.
        erase: probability that a rectangle of 2 to 20 % of the image is painted over; its labels stay.
        random_subset: each image gets a random subset, of random size 0 to 4, of rotation, shift, zoom and noise
            instead of all of them, and pixels from outside of it are labelled background. From the STN-iCNN paper,
            section 2.5.1: rotate 15, translate 0.2, scale [0.2, 1.2].
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
    random_subset: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"{f.name}={getattr(self, f.name)} (0 or more is needed)"
            for f in fields(self)
            if f.name not in ("scale", "random_subset") and getattr(self, f.name) < 0
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
        if self.random_subset and self.shear:
            problems.append(f"shear={self.shear} with random_subset=true (which has no shear; leave it at 0)")
        raise_problems("augmentation", problems)


class AugmentationPipeline(nn.Module):
    """Applies an `Augmentation` to batches of one label space; draws from torch's global generators.

    Pixels from outside the image are 0 in `image`, `ignore_index` in `mask` (0, background, with `random_subset`) and 0
    in `blobs`. Images without `mask` get one that is 0 inside the image.
    """

    flip_lookup: Tensor

    def __init__(self, settings: Augmentation, space: LabelSpace) -> None:
        super().__init__()
        self.settings = settings
        self.outside = 0 if settings.random_subset else space.ignore_index
        self.register_buffer("flip_lookup", space.flip_lookup(), persistent=False)
        s = settings
        if s == Augmentation():  # kornia takes a while to load
            self.geometry, self.colour = None, nn.Sequential()
            return
        import kornia.augmentation as K

        moves = s.rotate or s.translate or s.shear or tuple(s.scale) != (1.0, 1.0)
        affine = K.RandomAffine(
            degrees=s.rotate,
            translate=(s.translate, s.translate),
            scale=(s.scale[0], s.scale[1]),
            shear=s.shear or None,
            p=1.0,
        )
        self.geometry = K.AugmentationSequential(affine, data_keys=None) if moves and not s.random_subset else None
        colour: list[nn.Module] = []
        if s.brightness or s.contrast or s.saturation or s.hue:
            colour.append(K.ColorJiggle(s.brightness, s.contrast, s.saturation, s.hue, p=1.0))
        if s.grayscale:
            colour.append(K.RandomGrayscale(p=s.grayscale))
        if s.blur:
            colour.append(K.RandomGaussianBlur((7, 7), (0.1, 2.0), p=s.blur))
        if s.noise and not s.random_subset:
            colour.append(K.RandomGaussianNoise(std=s.noise, p=0.5))
        if s.erase:
            colour.append(K.RandomErasing(scale=(0.02, 0.2), p=s.erase))
        self.colour = nn.Sequential(*colour)

    @torch.no_grad()
    def forward(self, batch: Batch) -> Batch:
        """A new batch: `image` (N, 3, H, W) in 0..1, with `mask` and `blobs` (N, H, W) where present."""
        image = batch["image"].float()
        batch = batch.copy()
        if "mask" not in batch:  # so that pixels from outside the image can be ignored
            batch["mask"] = torch.zeros(image.shape[0], *image.shape[-2:], dtype=torch.int64, device=image.device)
        keys = [key for key in ("mask", "blobs") if key in batch]
        # One tensor, so that all labels are warped alike; shifted by one, so that the zeros from outside the image
        # differ from class 0.
        labels = torch.stack([batch[key] + 1 for key in keys], 1).float()
        if self.settings.random_subset:
            image, labels = self._random_subset(image, labels)
        elif self.geometry is not None:
            moved = self.geometry({"image": image, "mask": labels})
            image, labels = moved["image"], moved["mask"]
        out = batch.copy()
        flip = torch.rand(len(image)).to(image.device) < self.settings.flip
        image = torch.where(flip[:, None, None, None], image.flip(-1), image)
        for channel, key in enumerate(keys):
            whole = labels[:, channel].round().long() - 1
            whole = whole.masked_fill(whole < 0, self.outside if key == "mask" else 0)
            mirrored = whole.flip(-1)
            if key == "mask":
                mirrored = self.flip_lookup.to(mirrored.device)[mirrored]
            out[key] = torch.where(flip[:, None, None], mirrored, whole)
        out["image"] = self.colour(image).clamp(0, 1)
        return out

    def _random_subset(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Applies a random subset of rotation, shift, zoom and noise to each image: random size, then members."""
        from kornia.geometry.transform import get_affine_matrix2d, warp_affine

        s, count = self.settings, len(image)
        order = torch.rand(count, 4).argsort(1).argsort(1)
        rotated, shifted, zoomed, noisy = (order < torch.randint(0, 5, (count, 1))).unbind(1)
        height, width = image.shape[-2:]
        angle = (2 * torch.rand(count) - 1) * s.rotate * rotated
        reach = s.translate * torch.tensor([width, height])
        shift = (2 * torch.rand(count, 2) - 1) * reach * shifted[:, None]
        zoom = torch.where(zoomed, s.scale[0] + (s.scale[1] - s.scale[0]) * torch.rand(count), 1.0)
        middle = torch.tensor([(width - 1) / 2, (height - 1) / 2]).expand(count, 2)
        moves = get_affine_matrix2d(shift, middle, zoom[:, None].expand(count, 2), angle)[:, :2]
        # Only images that move are resampled: the others keep their exact values.
        which = ((angle != 0) | (shift != 0).any(1) | (zoom != 1)).nonzero()[:, 0].to(image.device)
        if len(which):
            warp = partial(warp_affine, M=moves.to(image.device)[which], dsize=(height, width), align_corners=True)
            image = image.index_copy(0, which, warp(image[which], mode="bilinear"))
            labels = labels.index_copy(0, which, warp(labels[which], mode="nearest"))
        if s.noise:
            strength = s.noise * noisy.to(image)[:, None, None, None]
            image = (image + strength * torch.randn_like(image)).clamp(0, 1)
        return image, labels
