"""`structseg.load`: a checkpoint as a function from photographs to the classes of their pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from structseg.datamodules.batch import image_tensor
from structseg.datamodules.images import read_image, resize_image, to_rgb
from structseg.datamodules.label_spaces import LabelSpace
from structseg.lightning_modules.checkpoints.card import read_card, space_of
from structseg.lightning_modules.checkpoints.inference_from_card import load_inference
from structseg.lightning_modules.drawing.label_sheets import overlay
from structseg.lightning_modules.inference import Inference, MeanScores, PixelScores, Size
from structseg.options.class_index import refuse_moved
from structseg.tiles import TiledScores

Photograph = str | Path | Image.Image | NDArray[np.uint8] | Tensor

_HUB = "hf://"
_LEAST_TILE, _MOST_OVERLAP = 16, 0.9


class Prediction:
    """The labelled photograph.

    Attributes:
        image: the photograph, upright RGB.
        mask: (H, W) uint8, the class of each pixel at the photograph's own size.
        label_space: the classes.
    """

    def __init__(self, image: Image.Image, scores: PixelScores, label_space: LabelSpace) -> None:
        self.image, self.label_space = image, label_space
        self.mask: NDArray[np.uint8] = scores.classes().cpu().numpy()
        self._scores = scores

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """(K, H, W) float32, the K values of each pixel sum to 1; computed at each access."""
        with torch.inference_mode():
            bands = [band.float().cpu().numpy() for band in self._scores.probabilities()]
        return np.concatenate(bands, 1) if len(bands) > 1 else bands[0]

    def overlay(self, alpha: float = 0.5) -> Image.Image:
        """The photograph tinted with the classes' colours, by `alpha` from 0 to 1; the background keeps its own."""
        return Image.fromarray(overlay(np.asarray(self.image), self.mask, self.label_space, alpha))


class _Member(NamedTuple):
    """One of the networks whose probabilities are averaged, with its image size."""

    inference: Inference
    size: Size


class Segmenter:
    """A trained network, or several, as a function from photographs to `Prediction`s; made by `load`.

    Attributes:
        card: the checkpoint's description of itself in plain values; of several checkpoints that of the first.
        label_space: the classes with their colours.
        device: device of the networks.
    """

    def __init__(
        self, members: Sequence[_Member], card: dict[str, Any], batch_size: int, tile: int | None, overlap: float
    ) -> None:
        self.card, self.label_space = card, space_of(card)
        self.device = torch.device("cpu")
        self._members, self._batch_size, self._overlap = members, batch_size, overlap
        height, width = members[0].size
        longer = max(height, width)
        self._tile = None if tile is None else (round(tile * height / longer), round(tile * width / longer))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; the values of a mask are positions in this tuple."""
        return self.label_space.classes

    def to(self, device: str | torch.device) -> Self:
        """Moves the networks to `cpu`, `cuda`, `cuda:1`, `mps` or, with `auto`, to a GPU where there is one.

        Raises:
            ValueError: this machine has no such device.
        """
        try:
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "cpu"
            self.device = torch.zeros(1, device=device).device
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(f"no device {device} here ({str(error).splitlines()[0]}); use cpu or auto") from None
        for member in self._members:
            member.inference.to(self.device)
        return self

    @overload
    def __call__(self, images: Photograph) -> Prediction: ...
    @overload
    def __call__(self, images: list[Photograph] | tuple[Photograph, ...]) -> list[Prediction]: ...
    def __call__(self, images: Photograph | list[Photograph] | tuple[Photograph, ...]) -> Prediction | list[Prediction]:
        """Labels a photograph, or each of a list.

        Args:
            images: a path, a PIL image, an (H, W, 3) uint8 array, or a (3, H, W) tensor, uint8 or float in 0..1, of any
                size; or a list of them. EXIF orientation is applied.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a file that cannot be read, an array of another form, or logits that are not finite.
        """
        if isinstance(images, list | tuple):
            return list(self.each(images))
        return next(self.each([images]))

    def each(self, images: Iterable[Photograph]) -> Iterator[Prediction]:
        """Like a call with a list, but yields one prediction after the other, so that memory stays bounded."""
        rest = iter(images)
        while batch := [(_name(image), as_photograph(image)) for image in islice(rest, self._batch_size)]:
            names, photographs = [name for name, _ in batch], [photograph for _, photograph in batch]
            with torch.inference_mode():
                by_member = [self._scores(member, photographs, names) for member in self._members]
                predictions = [
                    Prediction(image, scores[0] if len(scores) == 1 else MeanScores(scores), self.label_space)
                    for image, *scores in zip(photographs, *by_member, strict=True)
                ]
            yield from predictions

    def _scores(self, member: _Member, images: list[Image.Image], names: list[str]) -> Sequence[PixelScores]:
        if not any(map(self._is_large, images)):
            sizes = [(image.height, image.width) for image in images]
            return member.inference.label(self._batch(member, images, names), sizes)
        return [
            self._tiled(member, image, name) if self._is_large(image) else self._scores(member, [image], [name])[0]
            for image, name in zip(images, names, strict=True)
        ]

    def _tiled(self, member: _Member, image: Image.Image, name: str) -> TiledScores:
        def logits_of(tiles: list[Image.Image]) -> Tensor:
            return member.inference.evaluated(self._batch(member, tiles, [name] * len(tiles)))

        assert self._tile is not None
        return TiledScores(logits_of, image, self._tile, self._overlap, self._batch_size)

    def _is_large(self, image: Image.Image) -> bool:
        return self._tile is not None and (image.height > self._tile[0] or image.width > self._tile[1])

    def _batch(self, member: _Member, images: list[Image.Image], names: list[str]) -> dict[str, Any]:
        resized = torch.stack([image_tensor(resize_image(image, member.size)) for image in images])
        batch: dict[str, Any] = {"image": resized.to(self.device), "name": names}
        if member.inference.wants_originals:
            batch["original"] = [image_tensor(image).to(self.device) for image in images]
        return batch


def load(
    checkpoint: str | Path | Sequence[str | Path],
    *,
    device: str = "auto",
    batch_size: int = 1,
    tile: int | None = None,
    overlap: float = 0.25,
    **options: Any,
) -> Segmenter:
    """Loads a checkpoint, or several, as the function from photographs to masks that `structseg predict` uses.

    Args:
        checkpoint: a file; the folder of a run, of its checkpoints, or of a published model; `hf://organisation/name`;
            or a list of these with the same classes, whose probabilities are averaged.
        device: as `Segmenter.to` takes it.
        batch_size: photographs or tiles that go through the network together; it may change the last bit of a logit.
        tile: photographs with more than this many pixels a side are labelled in tiles of that size, at their own
            resolution; None: every photograph is scaled to the size of the training images.
        overlap: of neighbouring tiles, as a share of a tile, 0..0.9.
        **options: settings that override those of the training: `flip_test`; of CONTA's segmenter `test_scales` and
            `crf`; of STN-iCNN `cropper`.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: not a checkpoint of this suite, one that labels no pixels, or options that do not fit.
    """
    named = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    if not named:
        raise ValueError("no checkpoint is given; give one, or several of the same classes")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give 1 or more")
    if tile is not None and tile < _LEAST_TILE:
        raise ValueError(f"tile is {tile}; give {_LEAST_TILE} pixels or more")
    if not 0 <= overlap <= _MOST_OVERLAP:
        raise ValueError(f"overlap is {overlap}; give 0 to {_MOST_OVERLAP}")
    paths = [find_checkpoint(name) for name in named]
    loaded = [_load(path, options) for path in paths]
    card = loaded[0][1]
    for path, (inference, other) in zip(paths, loaded, strict=True):
        if other["classes"] != card["classes"]:
            raise ValueError(
                f"{path} has the classes {', '.join(other['classes'])}, {paths[0]} has {', '.join(card['classes'])}; "
                "average checkpoints of the same classes"
            )
        if tile is not None and inference.wants_originals:
            raise ValueError(f"{path} looks at whole photographs (STN-iCNN's windows, or the CRF); leave tile out")
    members = [_Member(inference, (card["size"][0], card["size"][1])) for inference, card in loaded]
    return Segmenter(members, card, batch_size, tile, overlap).to(device)


def _load(path: Path, options: dict[str, Any]) -> tuple[Inference, dict[str, Any]]:
    try:
        return load_inference(path, options)
    except ValueError:
        refuse_moved(read_card(path)["config"], f"{path} was written before its classes moved: ")
        raise


def find_checkpoint(given: str | Path) -> Path:
    """The file of a checkpoint given by its path, its folder, or `hf://organisation/name`.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the folder holds several.
    """
    if str(given).startswith(_HUB):
        folder = _from_hub(str(given).removeprefix(_HUB))
    elif Path(given).is_file():
        return Path(given)
    else:
        folder = Path(given)
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint at {given}; give its file, or the folder of its run")
    for place in (folder / "checkpoints", folder):
        for name in ("best.ckpt", "last.ckpt"):
            if (place / name).is_file():
                return place / name
    found = sorted(folder.glob("*.ckpt")) or sorted(folder.glob("*/checkpoints/best.ckpt"))
    if not found:
        raise FileNotFoundError(f"no checkpoint in {given}; give its file, or the folder of its run")
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found[:5])
        raise ValueError(f"{given} holds {len(found)} checkpoints ({names}{', ...' * (len(found) > 5)}); give one")
    return found[0]


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.ckpt"]))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FileNotFoundError(f"no checkpoint at {_HUB}{name} ({reason}); check the name and the network") from None


def _name(image: Photograph) -> str:
    return str(image) if isinstance(image, str | Path) else "the photograph"


def as_photograph(image: Any) -> Image.Image:
    """What `Segmenter` takes, as an upright 8-bit RGB image.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that cannot be read, or an array or tensor of another form.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, Tensor):
        floating = image.is_floating_point()
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape or not (floating or image.dtype == torch.uint8):
            raise ValueError(f"a tensor of shape {tuple(image.shape)} and {image.dtype}; give (3, H, W), {_VALUES}")
        image = image.detach().cpu()
        if floating:
            if not bool(((image >= 0) & (image <= 1)).all()):
                raise ValueError(f"a tensor with values from {image.min():g} to {image.max():g}; give {_VALUES}")
            image = (image.float() * 255).round().to(torch.uint8)
        image = image.permute(1, 2, 0).numpy()
    elif not isinstance(image, np.ndarray):
        raise ValueError(f"a {type(image).__name__} is not a photograph; give a path, PIL image, array or tensor")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape or image.dtype != np.uint8:
        raise ValueError(f"an array of shape {image.shape} and {image.dtype}; give (H, W, 3) of uint8")
    return Image.fromarray(np.ascontiguousarray(image))


_VALUES = "uint8 or float from 0 to 1"
