"""Evaluation of STN-iCNN: a coarse mask, six windows, a network for each part, and the pasted mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structseg.datamodules.label_spaces import FACE_PARTS, LabelSpace
from structseg.lightning_modules.inference import Inference, PixelScores, network_from_spec
from structseg.lightning_modules.logits import classes_at, require_finite, resize_logits
from structseg.lightning_modules.networks.spatial_transformer import (
    crop_parts,
    paste_labels,
    paste_parts,
    theta_from_centers,
)
from structseg.lightning_modules.stn.face_windows import (
    NETWORKS,
    class_count,
    paste_channels,
    soft_centers,
    window_probabilities,
    with_background,
)
from structseg.lightning_modules.stn.padded_originals import Size, pad_originals, size_of

Stage = Literal["coarse", "localizer", "parts", "end_to_end"]
Cropper = Literal["stn", "baseline", "true"]

NETWORK_NAMES = ("network", "localizer", "parts")  # of the state: coarse network, localizer, part networks
NEEDS: dict[str, tuple[str, ...]] = {"stn": ("network", "localizer"), "baseline": ("network",), "true": ()}
_MOST_ZOOM = math.log(2)  # the localizer's windows are half to twice as large


class WindowScores(NamedTuple):
    """`PixelScores` of the windows of one face.

    Attributes:
        windows: (1, 6, CHANNELS, h, w), as `window_probabilities` gives them.
        theta: (1, 6, 2, 3), their positions in the padded image.
        frame: (H, W) of the padded image.
        paste_to: the class of each channel.
        inside: (h, w) of the image in its upper left corner.
        size: (h, w) of the photograph that the image was scaled from.
    """

    windows: Tensor
    theta: Tensor
    frame: Size
    paste_to: Tensor
    inside: Size
    size: Size

    def classes(self) -> Tensor:
        """(h, w) uint8."""
        height, width = self.inside
        if self.inside == self.size:
            return paste_labels(self.windows, self.theta, self.frame, self.paste_to)[0, :height, :width].byte()
        return classes_at(self._scores(), self.size)[0]

    def probabilities(self) -> Iterator[Tensor]:
        """All rows at once: the classes' scores, divided by their sum."""
        scores = resize_logits(self._scores(), self.size)[0]
        yield scores / scores.sum(0)

    def _scores(self) -> Tensor:
        pasted = paste_parts(self.windows, self.theta, self.frame, self.paste_to)
        return with_background(pasted)[..., : self.inside[0], : self.inside[1]]


class STNInference(Inference):
    """The coarse network, the localizer and the part networks; the attributes are those of `STNiCNN`."""

    options = ("flip_test", "cropper")

    localizer: nn.Module
    parts: nn.ModuleDict
    stage: Stage
    window: Size
    zoom: bool
    cropper: Cropper
    sides: tuple[int, int] | None  # shortest and longest longer side of the training photographs
    trained: set[str]  # names of the networks that a stage has trained
    paste_to: Tensor

    def make_network(self, settings: Mapping[str, Any], label_space: LabelSpace) -> nn.Module:
        """The coarse network; the networks of the other stages are attributes of this one."""
        network, localizer = (partial(network_from_spec, settings[name]) for name in ("network", "localizer"))
        self.make_parts(network, localizer, len(label_space))
        return network(len(label_space))

    def make_parts(
        self, network: Callable[[int], nn.Module], localizer: Callable[[int, int], nn.Module], classes: int
    ) -> None:
        """Makes the localizer, and a network for each kind of part."""
        self.localizer = localizer(classes, len(FACE_PARTS))
        self.parts = nn.ModuleDict({name: network(class_count(name)) for name in NETWORKS})
        self.parts.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.paste_to = paste_channels()  # read as integers: kept on the CPU

    def set_up(self, card: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Sets the windows, and the card's facts about the training."""
        self.stage, self.cropper, self.zoom = settings["stage"], settings["cropper"], settings["zoom"]
        self.window, self.trained = (card["window"][0], card["window"][1]), set(card["trained"])
        self.sides = (card["sides"][0], card["sides"][1]) if card.get("sides") else None
        self.wants_originals = self.parses

    @property
    def parses(self) -> bool:
        """Whether this stage's masks come from windows."""
        return self.stage in ("parts", "end_to_end")

    def require_trained(self, needed: set[str], what: str, remedy: str) -> None:
        """Raises ValueError if a needed network was never trained; `remedy` is the option that takes one."""
        missing = [name for name in NETWORK_NAMES if name in needed - self.trained]
        if missing:
            words = {"network": "coarse network", "localizer": "localizer", "parts": "part networks"}
            raise ValueError(
                f"{what} needs a trained {' and '.join(words[name] for name in missing)}; give {remedy} a checkpoint "
                "of the stage that trains it"
            )

    def require_all(self, what: str) -> None:
        """Raises ValueError if a network that makes the masks was never trained."""
        needed = {"network"} if self.stage == "coarse" else set(NEEDS[self.cropper])
        self.require_trained(needed | ({"parts"} if self.parses else set()), what, "--ckpt_path")

    def check_prediction(self) -> None:
        """Raises ValueError if a network was never trained, or if the windows would need labels."""
        self.require_all("prediction")
        if self.parses and self.cropper == "true":
            raise ValueError("there are no true windows without labels; set the cropper to stn or baseline")

    # From an image to its windows

    def stn_theta(self, coarse: Tensor, sizes: Tensor, size: Size) -> Tensor:
        """The localizer's windows from coarse logits, (N, 6, 2, 3) in a padded image of `size` (equation 15).

        Its output is relative to each image: centres in -1..1 over the outermost pixels, and the zoom, which is 1 if a
        window's pixel is a pixel of the image.
        """
        with torch.autocast(coarse.device.type, enabled=False):  # bf16 would round positions to whole pixels
            found = self.localizer(coarse.float().softmax(1)).float()
        centers = (found[..., :2] + 1) / 2 * (sizes.flip(1)[:, None] - 1)
        theta = theta_from_centers(centers, self.window, size)
        if not self.zoom:
            return theta
        zoom = found[..., 2:].clamp(-_MOST_ZOOM, _MOST_ZOOM).exp()
        return torch.cat([theta[..., :2] * zoom[..., None], theta[..., 2:]], -1)

    def _baseline_theta(self, coarse: Tensor, sizes: Tensor, size: Size) -> Tensor:
        """The windows of `integer_crop` around the soft centres of the coarse mask."""
        small = torch.tensor([coarse.shape[-1], coarse.shape[-2]], device=coarse.device)
        centers = (soft_centers(coarse.softmax(1)) + 0.5) * sizes.flip(1)[:, None] / small - 0.5
        even = torch.tensor([side % 2 == 0 for side in self.window[::-1]], device=coarse.device)
        return theta_from_centers(centers.round() - even / 2, self.window, size)

    def found_theta(self, coarse: Tensor, sizes: Tensor, size: Size) -> Tensor:
        """The windows of the cropper, which needs no labels."""
        find = self._baseline_theta if self.cropper == "baseline" else self.stn_theta
        return find(coarse, sizes, size)

    def label_windows(self, frame: Tensor, theta: Tensor) -> list[Tensor]:
        """The logits of the six windows, (N, 2, h, w), and (N, 4, h, w) of the mouth."""
        crops = (crop_parts(frame, theta, self.window) - self.mean) / self.std
        logits: list[Tensor] = []
        for name, members in NETWORKS.items():
            sides = [crops[:, part].flip(-1) if at else crops[:, part] for at, part in enumerate(members)]
            stacked = torch.cat(sides).to(self.mean.dtype).contiguous(memory_format=torch.channels_last)
            found = self.parts[name](stacked)
            logits += [side.flip(-1) if at else side for at, side in enumerate(found.chunk(len(members)))]
        return logits

    def label(self, batch: Mapping[str, Any], sizes: Sequence[Size]) -> Sequence[PixelScores]:
        """The scores of each photograph; the coarse stages label like `Inference`."""
        if not self.parses:
            return super().label(batch, sizes)
        batch = {**batch, "original": [self._at_scale(image) for image in batch["original"]]}
        frame, inside = pad_originals(batch, self.window)
        theta = self.found_theta(self.evaluated(batch), inside, size_of(frame))
        windows = window_probabilities([require_finite(one, batch) for one in self.label_windows(frame, theta)])
        places = zip(windows.split(1), theta.split(1), map(size_of, batch["original"]), sizes, strict=True)
        return [WindowScores(one, at, size_of(frame), self.paste_to, own, size) for one, at, own, size in places]

    def _at_scale(self, image: Tensor) -> Tensor:
        """A photograph (3, h, w) resized so that its longer side, and so its parts, are of a size seen in training."""
        height, width = size_of(image)
        if self.sides is None or self.sides[0] <= max(height, width) <= self.sides[1]:
            return image
        factor = min(max(max(height, width), self.sides[0]), self.sides[1]) / max(height, width)
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
