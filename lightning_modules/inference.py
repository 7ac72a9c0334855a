"""Inference without a trainer: the classes of an image's pixels, for evaluation, prediction and `structseg.load`.

Nothing here imports Lightning, which would delay a prediction. A method's module inherits from its `Inference` and adds
the training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from structseg.datamodules.label_spaces import LabelSpace
from structseg.lightning_modules.logits import classes_at, require_finite, resize_logits

Size = tuple[int, int]


class PixelScores(Protocol):
    """The prediction for one image of (h, w) pixels, computed on demand."""

    def classes(self) -> Tensor:
        """(h, w) uint8: the likeliest class of each pixel; of equal ones the first."""

    def probabilities(self) -> Iterator[Tensor]:
        """Bands (K, rows, w) float32 from top to bottom; each pixel's K values sum to 1."""


class LogitScores(NamedTuple):
    """`PixelScores` of logits (K, H, W), resized to `size` by bilinear interpolation."""

    logits: Tensor
    size: Size

    def classes(self) -> Tensor:
        """(h, w) uint8, in little memory."""
        return classes_at(self.logits[None], self.size)[0]

    def probabilities(self) -> Iterator[Tensor]:
        """All rows at once."""
        yield resize_logits(self.logits[None], self.size)[0].softmax(0)


class Probabilities(NamedTuple):
    """`PixelScores` of given probabilities (K, h, w)."""

    whole: Tensor

    def classes(self) -> Tensor:
        """(h, w) uint8."""
        return self.whole.argmax(0).to(torch.uint8)

    def probabilities(self) -> Iterator[Tensor]:
        """All rows at once."""
        yield self.whole


class MeanScores(NamedTuple):
    """`PixelScores` of several networks: the average of their probabilities at the image's size."""

    members: Sequence[PixelScores]

    def classes(self) -> Tensor:
        """(h, w) uint8; needs about 16 K bytes a pixel if the members return all rows at once."""
        return torch.cat([band.argmax(0).to(torch.uint8) for band in self.probabilities()])

    def probabilities(self) -> Iterator[Tensor]:
        """In the bands of the members."""
        first, *rest = [member.probabilities() for member in self.members]
        for band in first:
            total = band.clone()
            for bands in rest:  # one at a time: memory does not grow with their number
                total += next(bands)
            yield total.div_(len(self.members))


class NormalizedNetwork(nn.Module):
    """A network, its classes, and the normalisation of its images.

    Attributes:
        network: takes normalised images (N, 3, H, W).
        label_space: the classes.
        mean: (3, 1, 1), of each channel, for images in 0..1.
        std: (3, 1, 1), standard deviation of each channel, for images in 0..1.
    """

    network: Any  # an nn.Module, with further attributes in some methods
    label_space: LabelSpace
    mean: Tensor
    std: Tensor

    def set_network(
        self, network: nn.Module, label_space: LabelSpace, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """Sets the attributes of the class."""
        # Channels last halves the time of a bf16 step on a CPU.
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.label_space = label_space
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def normalized(self, image: Tensor) -> Tensor:
        """Normalised images, from images (N, 3, H, W) in 0..1."""
        return ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


class Inference(NormalizedNetwork):
    """A network that labels pixels, without its training.

    Attributes:
        flip_test: average the class probabilities of each image and its mirror image.
        options: names of the settings that a prediction may change.
        wants_originals: whether a batch also needs the full-size images, as `original`.
    """

    options: tuple[str, ...] = ("flip_test",)
    wants_originals: bool = False

    flip_test: bool
    mirrored_classes: Tensor

    @classmethod
    def from_card(cls, card: Mapping[str, Any], label_space: LabelSpace, options: Mapping[str, Any]) -> Self:
        """An instance with the settings of a checkpoint's card; its weights are still to be loaded.

        Args:
            card: as `read_card` returns it.
            label_space: the card's classes.
            options: settings that differ from those in training; only names of the attribute `options`.

        Raises:
            ValueError: settings that contradict each other.
            ImportError: the class of a network is not found.
        """
        self = cls()
        settings = {**card["config"]["model"].get("init_args", {}), **options}
        self.set_network(self.make_network(settings, label_space), label_space, card["mean"], card["std"])
        self.set_flip(settings.get("flip_test", False))
        self.set_up(card, settings)
        return self

    def make_network(self, settings: Mapping[str, Any], label_space: LabelSpace) -> nn.Module:
        """The network for the method's settings; for subclasses to override."""
        return network_from_spec(settings["network"], len(label_space))

    def set_up(self, card: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Reads further settings, from the card and from the method's settings; for subclasses to override."""

    def set_flip(self, flip_test: bool) -> None:
        """Sets `flip_test`, and the classes of mirror images."""
        self.flip_test = flip_test
        mirrored = self.label_space.flip_lookup()[: len(self.label_space)]
        self.register_buffer("mirrored_classes", mirrored, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (N, K, H, W) of images (N, 3, H, W) in 0..1.

        Raises:
            ValueError: the network's number of channels differs from that of the classes.
        """
        logits: Tensor = self.network(self.normalized(image))
        channels = (logits[-1] if isinstance(logits, list) else logits).shape[1]  # a list of several scales in training
        if channels != len(self.label_space):
            raise ValueError(
                f"the network gives {channels} channels, the label space {self.label_space.name} has "
                f"{len(self.label_space)} classes; give the network the number of classes, which comes first in its "
                f"__init__, or set --data.label_space to one of {channels} classes"
            )
        return logits

    def evaluate(self, image: Tensor) -> Tensor:
        """Float32 logits; with `flip_test`, the log of the probabilities averaged over image and mirror image."""
        logits: Tensor = self(image).float()
        if not self.flip_test:
            return logits
        mirrored = self(image.flip(-1)).float().flip(-1)[:, self.mirrored_classes]
        return torch.logaddexp(logits.log_softmax(1), mirrored.log_softmax(1)) - math.log(2)

    def evaluated(self, batch: Mapping[str, Any]) -> Tensor:
        """`evaluate` of a batch's images, checked.

        Raises:
            ValueError: logits are nan or infinite; the message names the images.
        """
        return require_finite(self.evaluate(batch["image"]), batch)

    def check_prediction(self) -> None:
        """Raises ValueError if the method cannot predict with these settings."""

    def label(self, batch: Mapping[str, Any], sizes: Sequence[Size]) -> Sequence[PixelScores]:
        """The prediction for each image.

        Args:
            batch: `image` (N, 3, H, W) in 0..1 at the network's size, `name`, and `original` if `wants_originals`.
            sizes: (h, w) of each original image.
        """
        return [LogitScores(logits, size) for logits, size in zip(self.evaluated(batch), sizes, strict=True)]


def network_from_spec(spec: Any, *arguments: Any) -> nn.Module:
    """A network from its settings in a card.

    Args:
        spec: the path of its class, or `{class_path: ..., init_args: {...}}`.
        *arguments: positional arguments of the class.

    Raises:
        ValueError: the path is not that of a network.
        ImportError: the module does not exist.
    """
    path, settings = (spec, {}) if isinstance(spec, str) else (spec["class_path"], spec.get("init_args") or {})
    module, _, name = path.rpartition(".")
    network_class = getattr(import_module(module), name, None)
    if not (isinstance(network_class, type) and issubclass(network_class, nn.Module)):
        raise ValueError(f"{path} is not a network; a card names a subclass of torch.nn.Module")
    return network_class(*arguments, **{key: _argument(value) for key, value in settings.items()})


def _argument(value: Any) -> Any:
    if isinstance(value, dict) and "class_path" in value:
        return network_from_spec(value)
    return tuple(map(_argument, value)) if isinstance(value, list) else value
