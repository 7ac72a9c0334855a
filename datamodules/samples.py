"""Reading and writing the pixels of samples: images of any mode, masks, and errors that name the file."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Sample(TypedDict, total=False):
    """One image with what belongs to it: the keys of `Batch`, without the leading N."""

    image: Tensor
    mask: Tensor
    blobs: Tensor
    tags: Tensor
    original: Tensor
    name: str


class Batch(TypedDict, total=False):
    """What flows from a datamodule to a module; a key that a task does not have is absent.

    image: float32 (N, 3, H, W), 0..1. mask: int64 (N, H, W), 255 = ignore. blobs: int64 (N, H, W), dense ids an image.
    tags: float32 (N, K), foreground classes. original: the full-size images, (3, h, w) each. name: N stable names.
    """

    image: Tensor
    mask: Tensor
    blobs: Tensor
    tags: Tensor
    original: list[Tensor]
    name: list[str]


def open_image(path: Path) -> Image.Image:
    """The decoded image as PIL has it, whatever its mode.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is empty, truncated or no image; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no image at {path}; check the path")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes); copy it again")
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except UnidentifiedImageError:
        raise ValueError(f"{path} is no image that Pillow can read; copy it again or remove it") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be decoded ({error}); copy it again or remove it") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as upright 8-bit RGB: EXIF rotation applied, alpha laid on white, 16 bits and floats scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode != "F" or values.max(initial=0.0) > 255.0 else 255.0
        if image.mode == "F" and values.max(initial=0.0) <= 1.0:
            top = 1.0
        image = Image.fromarray(np.clip(values * (255.0 / top), 0, 255).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
    return image.convert("RGB")


def read_image(path: Path) -> Image.Image:
    """The image as upright 8-bit RGB; raises as `open_image`."""
    return to_rgb(open_image(path))


def read_mask(path: Path, classes: int, space: str) -> NDArray[np.uint8]:
    """An index mask, (H, W) uint8 in 0..classes-1 or 255.

    Raises:
        ValueError: not one channel of indices, or an index that the label space does not have; the message names it.
    """
    image = open_image(path)
    if image.mode not in ("L", "P", "1"):
        raise ValueError(f"{path} has mode {image.mode}; a mask needs one 8-bit channel of class indices")
    mask = np.asarray(image, dtype=np.uint8)
    found = np.unique(mask)
    wrong = found[(found >= classes) & (found != 255)]
    if wrong.size:
        raise ValueError(f"mask {path} holds class {wrong[0]}; {space} has classes 0..{classes - 1}; map or mend it")
    return mask


def resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image squeezed to (H, W), bilinear with antialiasing."""
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def resize_mask(mask: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The index mask resized to (H, W) with the nearest filter; no class is made that was not there."""
    height, width = size
    if mask.shape == (height, width):
        return mask
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def image_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) float32 in 0..1 from an RGB image."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous().float().div_(255)


def mask_tensor(mask: NDArray[np.uint8]) -> Tensor:
    """(H, W) int64 from an index mask."""
    return torch.from_numpy(np.array(mask, dtype=np.int64))


def collate(samples: list[Sample]) -> Batch:
    """Samples stacked to a batch; names and originals stay lists.

    Raises:
        ValueError: images or masks of different sizes, named.
    """
    batch: Batch = {"name": [sample["name"] for sample in samples]}
    for key in ("image", "mask", "blobs", "tags"):
        if key not in samples[0]:
            continue
        tensors = [sample[key] for sample in samples]  # type: ignore[literal-required]
        shapes = [tuple(tensor.shape) for tensor in tensors]
        for sample, shape in zip(samples, shapes, strict=True):
            if shape != shapes[0]:
                raise ValueError(
                    f"{key} of {sample['name']} has shape {shape}, that of {samples[0]['name']} {shapes[0]}; "
                    "one size a batch is needed: set --data.size, or batches of one"
                )
        batch[key] = torch.stack(tensors)  # type: ignore[literal-required]
    if "original" in samples[0]:
        batch["original"] = [sample["original"] for sample in samples]
    return batch
