"""The images that `predict` works through: one file, or every image below a folder."""

from __future__ import annotations

from pathlib import Path

from torch.utils.data import Dataset

from datamodules.samples import IMAGE_SUFFIXES, Sample, image_tensor, read_image, resize_image


class PredictImages(Dataset[Sample]):
    """Images of any size and mode.

    Args:
        source: an image file, or a folder that is searched with its subfolders.
        size: (H, W) that the network sees.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a folder without images.
    """

    def __init__(self, source: Path, size: tuple[int, int]) -> None:
        self.size = size
        if source.is_file():
            self.root, self.files = source.parent, [source]
        elif source.is_dir():
            self.root = source
            self.files = sorted(f for f in source.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file())
        else:
            raise FileNotFoundError(f"no file or folder {source}; check --data.predict_dir")
        if not self.files:
            raise ValueError(f"{source} holds no images ({', '.join(IMAGE_SUFFIXES)}); check --data.predict_dir")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        """`image` (3, H, W) at `size`, `original` (3, h, w), both 0..1, and `name`: the path below the folder."""
        image = read_image(self.files[index])
        return {
            "image": image_tensor(resize_image(image, self.size)),
            "original": image_tensor(image),
            "name": self.files[index].relative_to(self.root).as_posix(),
        }
