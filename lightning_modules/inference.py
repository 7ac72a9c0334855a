"""From images to the classes of their pixels, without a trainer: what evaluation, prediction and `load` share.

Nothing here needs Lightning, so that a photograph is labelled without waiting for its import. A method's module
inherits its `Inference` and adds how it is trained.
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
    """What a network found in one image of (h, w) pixels; worked out at that size when it is asked for."""

    def classes(self) -> Tensor:
        """(h, w) uint8: the likeliest class of each pixel, the first of several."""

    def probabilities(self) -> Iterator[Tensor]:
        """(K, rows, w) float32, one band of rows below the other; each pixel's K values sum to 1."""


class LogitScores(NamedTuple):
    """`PixelScores` of logits (K, H, W) that are enlarged to `size`, bilinear."""

    logits: Tensor
    size: Size

    def classes(self) -> Tensor:
        """(h, w) uint8, in little memory."""
        return classes_at(self.logits[None], self.size)[0]

    def probabilities(self) -> Iterator[Tensor]:
        """All rows at once."""
        yield resize_logits(self.logits[None], self.size)[0].softmax(0)


class Probabilities(NamedTuple):
    """`PixelScores` of probabilities (K, h, w) that are there already."""

    whole: Tensor

    def classes(self) -> Tensor:
        """(h, w) uint8."""
        return self.whole.argmax(0).to(torch.uint8)

    def probabilities(self) -> Iterator[Tensor]:
        """All rows at once."""
        yield self.whole


class MeanScores(NamedTuple):
    """`PixelScores` of several networks: the average of their probabilities, at the photograph's size."""

    members: Sequence[PixelScores]

    def classes(self) -> Tensor:
        """(h, w) uint8; takes about 16 K bytes a pixel, where the members do not come in bands."""
        return torch.cat([band.argmax(0).to(torch.uint8) for band in self.probabilities()])

    def probabilities(self) -> Iterator[Tensor]:
        """In the bands of the members."""
        first, *others = [member.probabilities() for member in self.members]
        for band in first:
            total = band.clone()
            for other in others:  # one at a time: memory does not grow with their number
                total += next(other)
            yield total.div_(len(self.members))


class NormalizedNetwork(nn.Module):
    """A network with the classes that it knows and the normalisation of its images.

    Attributes:
        network: on normalised images (N, 3, H, W).
        label_space: the classes.
        mean: (3, 1, 1), of each channel, on images in 0..1.
        std: (3, 1, 1), deviation of each channel, on images in 0..1.
    """

    network: Any  # an nn.Module; each method knows what else it has
    label_space: LabelSpace
    mean: Tensor
    std: Tensor

    def set_network(
        self, network: nn.Module, label_space: LabelSpace, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """Takes over what the class's attributes say."""
        # Channels last halves the time of a bf16 step on a CPU.
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.label_space = label_space
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def normalized(self, image: Tensor) -> Tensor:
        """Images (N, 3, H, W) in 0..1 as the network takes them."""
        return ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


class Inference(NormalizedNetwork):
    """A network that labels pixels, as it is evaluated.

    Attributes:
        flip_test: average the class probabilities of each image and its mirror image.
        options: the names of what may be set otherwise for a prediction than for the training.
        wants_originals: whether a batch has to hold the images at their own size too, as `original`.
    """

    options: tuple[str, ...] = ("flip_test",)
    wants_originals: bool = False

    flip_test: bool
    mirrored_classes: Tensor

    @classmethod
    def from_card(cls, card: Mapping[str, Any], label_space: LabelSpace, options: Mapping[str, Any]) -> Self:
        """Made from a checkpoint's card, with weights that are still to be loaded.

        Args:
            card: as `read_card` returns it.
            label_space: its classes.
            options: what is set otherwise than in training; names of `options` alone.

        Raises:
            ValueError: settings that do not go together.
            ImportError: the class of a network is not found.
        """
        self = cls()
        settings = {**card["config"]["model"].get("init_args", {}), **options}
        self.set_network(self.make_network(settings, label_space), label_space, card["mean"], card["std"])
        self.set_flip(settings.get("flip_test", False))
        self.set_up(card, settings)
        return self

    def make_network(self, settings: Mapping[str, Any], label_space: LabelSpace) -> nn.Module:
        """The network of these settings of the method; a child makes its own."""
        return made(settings["network"], len(label_space))

    def set_up(self, card: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """What a child needs besides, from the card and from the settings of its method."""

    def set_flip(self, flip_test: bool) -> None:
        """Keeps whether to look at mirror images, and what the classes are in them."""
        self.flip_test = flip_test
        mirrored = self.label_space.flip_lookup()[: len(self.label_space)]
        self.register_buffer("mirrored_classes", mirrored, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (N, K, H, W) of images (N, 3, H, W) in 0..1.

        Raises:
            ValueError: the network gives another number of channels than there are classes.
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
        """As `forward`, in float32; with `flip_test`, log-probabilities of the image and its mirror image, averaged."""
        logits: Tensor = self(image).float()
        if not self.flip_test:
            return logits
        mirrored = self(image.flip(-1)).float().flip(-1)[:, self.mirrored_classes]
        return torch.logaddexp(logits.log_softmax(1), mirrored.log_softmax(1)) - math.log(2)

    def evaluated(self, batch: Mapping[str, Any]) -> Tensor:
        """`evaluate` of a batch's images.

        Raises:
            ValueError: logits are nan or infinite, which would pass for a class; the message names the images.
        """
        return require_finite(self.evaluate(batch["image"]), batch)

    def check_prediction(self) -> None:
        """Raises ValueError where the method cannot label photographs as it is set."""

    def label(self, batch: Mapping[str, Any], sizes: Sequence[Size]) -> Sequence[PixelScores]:
        """What is found in each photograph.

        Args:
            batch: `image` (N, 3, H, W) in 0..1 at the network's size, `name`, and `original` where `wants_originals`.
            sizes: (h, w) of each photograph.
        """
        return [LogitScores(one, size) for one, size in zip(self.evaluated(batch), sizes, strict=True)]


def made(given: Any, *arguments: Any) -> nn.Module:
    """A network from its settings in a card: its class's path, or `{class_path: ..., init_args: {...}}`.

    Args:
        given: the settings.
        *arguments: what the method gives the network, before the settings.

    Raises:
        ValueError: the path is no network's.
        ImportError: there is no such module.
    """
    path, settings = (given, {}) if isinstance(given, str) else (given["class_path"], given.get("init_args") or {})
    module, _, name = path.rpartition(".")
    kind = getattr(import_module(module), name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"{path} is no network; a card names the class of a torch.nn.Module")
    return kind(*arguments, **{key: _plain(value) for key, value in settings.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, dict) and "class_path" in value:
        return made(value)
    return tuple(map(_plain, value)) if isinstance(value, list) else value
