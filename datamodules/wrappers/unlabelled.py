"""Images without labels, for a student that learns a teacher's predictions."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from PIL import Image

from structseg.datamodules.batch import Sample, image_tensor
from structseg.datamodules.files.decoded import DecodedDataset
from structseg.datamodules.folder.pairs import images_below
from structseg.datamodules.images import read_image, resize_image


class UnlabelledDataset(DecodedDataset):
    """The images below a folder without the labelled ones; their names are paths below it, without suffix.

    Args:
        folder: searched with its subfolders.
        size: (H, W) that images are resized to.
        paths: resolved paths of images to leave out.
        stems: file stems of images to leave out.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no unlabelled image, or two of one name.
    """

    def __init__(
        self, folder: Path, size: tuple[int, int], paths: Set[Path] = frozenset(), stems: Set[str] = frozenset()
    ) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}; give a folder of images as --data.unlabelled")
        found: dict[str, Path] = {}
        for path in images_below(folder):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if path.stem in stems or path.resolve() in paths:
                continue
            if name in found:
                raise ValueError(f"{found[name]} and {path.name} have the same stem; keep one of them")
            found[name] = path
        if not found:
            raise ValueError(f"{folder} holds no image beyond the labelled ones; give a folder that does")
        super().__init__(tuple(found), size)
        self.files = tuple(found.values())

    def __getitem__(self, index: int) -> Sample:
        """`image` (3, H, W) in 0..1 and `name`; raises as `read_image`."""
        return {"image": image_tensor(self.decoded(index)[0]), "name": self.names[index]}

    def decode(self, index: int) -> tuple[Image.Image]:
        """The resized image."""
        return (resize_image(read_image(self.files[index]), self.size),)
