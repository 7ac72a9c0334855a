"""DeepLab-v2: a dilated trunk at output stride 8, four dilated 3x3 convolutions summed, several scales at once."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import ResNet101_Weights

from structseg.lightning_modules.networks.backbones import Backbone, Triple

RESNET101 = "resnet101"
ASPP_DILATIONS = (6, 12, 18, 24)
SCALES = (0.5, 0.75)

_BLOCKS = (3, 4, 23, 3)
_WIDTHS = (64, 128, 256, 512)
_STRIDES = (1, 2, 1, 1)
_DILATIONS = (1, 1, 2, 4)
_EXPANSION = 4

# The file names of torchvision end with the start of the hash.
_TORCHVISION_FILES = frozenset(weights.url.removesuffix(".pth")[-8:] for weights in ResNet101_Weights)


class DeepLabV2(nn.Module):
    """A trunk and the sum of four dilated 3x3 convolutions on its last stage; logits at an eighth of the image's size.

    `resnet101` is the network as published for Caffe: the strides sit in the 1x1 reductions, the stem's pooling rounds
    up, stages 3 and 4 are dilated by 2 and 4; 44,048,532 parameters for 21 classes. The ResNets of timm and torchvision
    have their strides in the 3x3 convolutions. Any other name is a `Backbone` under the same head
    (`torchvision/resnet101` for torchvision's form with its own weights).

    Files for `resnet101` have tensors under torchvision's names (`conv1.weight`, `layer1.0.bn1.bias`, ...), for RGB.
    The MSRA weights of the ResNet paper and weights trained from them, such as MMDetection's `resnet101_caffe`, are for
    strides in the 1x1; they expect BGR in 0..255, so flip the input channels of `conv1.weight` and set `--data.mean` to
    (0.485, 0.458, 0.408) and `--data.std` to 1/255 each.

    Source: Chen, Papandreou, Kokkinos, Murphy, Yuille, "DeepLab", IEEE TPAMI 2018.

    Args:
        classes: channels of the output.
        backbone: `resnet101`, or what `Backbone` takes.
        weights: `random`, or for `resnet101` a file `.pth` or `.safetensors`, which `read_weights` reads; for others
            `packaged`, `pretrained` or `random`.
        output_stride: of a `Backbone`: 8, 16 or 32; `resnet101` has 8.

    Attributes:
        initial_weights: the source of the trunk's weights.
        mean: per-channel mean on 0..1 that the weights expect; None if unknown.
        std: per-channel standard deviation, likewise.
        caution: a warning about the weights that were read, or an empty string.

    Raises:
        ValueError: weights that this backbone cannot have.
    """

    def __init__(
        self, classes: int, backbone: str = RESNET101, weights: str = "random", output_stride: int = 8
    ) -> None:
        super().__init__()
        self.mean: Triple | None = None
        self.std: Triple | None = None
        self.caution = ""
        self.initial_weights = "random"
        self.weights_file: Path | None = None
        self.backbone: nn.Module
        if backbone == RESNET101:
            if output_stride != 8:
                raise ValueError(f"output_stride is {output_stride}; {RESNET101} has 8, name another backbone")
            if weights != "random":
                self.weights_file = _named_file(weights)
                self.initial_weights = f"file {self.weights_file.name}"
            self.backbone, channels = CaffeResNet101(), _WIDTHS[-1] * _EXPANSION
        else:
            if weights not in ("packaged", "pretrained", "random"):
                raise ValueError(f"weights is {weights!r}; {backbone} takes packaged, pretrained or random")
            trunk = Backbone(backbone, output_stride, weights)  # type: ignore[arg-type]  # narrowed above, not for mypy
            self.initial_weights, self.mean, self.std = trunk.initial_weights, trunk.mean, trunk.std
            self.backbone, channels = trunk, trunk.channels[-1]
        self.aspp = nn.ModuleList(
            nn.Conv2d(channels, classes, 3, padding=dilation, dilation=dilation) for dilation in ASPP_DILATIONS
        )
        for parameter in self.aspp.parameters():
            nn.init.normal_(parameter, std=0.01) if parameter.ndim > 1 else nn.init.zeros_(parameter)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W), normalised, to logits (N, classes, h, w): 41 for 321 with `resnet101`."""
        stages: list[Tensor] = self.backbone(image)
        features = stages[-1]
        logits: Tensor = self.aspp[0](features)
        for branch in list(self.aspp)[1:]:
            logits = logits + branch(features)
        return logits

    def read_weights(self) -> None:
        """Reads the trunk's weights from the file that `weights` names, if any.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is damaged, or of another network; the message names the first tensor.
        """
        path = self.weights_file
        if path is None:
            return
        found = _tensors(path)
        own = self.backbone.state_dict()
        found = {key: tensor for key, tensor in found.items() if not key.startswith("fc.")}
        counters = {key for key in own if key.endswith("num_batches_tracked")}  # older files have none
        unknown, missing = found.keys() - own.keys(), own.keys() - found.keys() - counters
        shapes = {key for key in found.keys() & own.keys() if found[key].shape != own[key].shape}
        problems = [
            f"{len(keys)} tensors {what}, such as {min(keys)}"
            for keys, what in ((missing, "missing"), (unknown, "unknown"), (shapes, "of other shapes"))
            if keys
        ]
        if problems:
            raise ValueError(f"{path} is no ResNet-101 under torchvision's names: {'; '.join(problems)}")
        self.backbone.load_state_dict(found, strict=False)
        if hashlib.sha256(path.read_bytes()).hexdigest()[:8] in _TORCHVISION_FILES:
            self.caution = (
                f"{path.name} is torchvision's, whose strides sit in the 3x3 convolutions: this network "
                "computes something else; use backbone: torchvision/resnet101 with weights: pretrained, or a file made "
                "for Caffe's form"
            )


class CaffeResNet101(nn.Module):
    """The trunk of ResNet-101 as first published, at output stride 8 by dilation 2 and 4 in its last two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = _norm(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        channels = 64
        stages = []
        for count, width, stride, dilation in zip(_BLOCKS, _WIDTHS, _STRIDES, _DILATIONS, strict=True):
            blocks = [_Bottleneck(channels, width, stride, dilation)]
            channels = width * _EXPANSION
            blocks += [_Bottleneck(channels, width, 1, dilation) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, image: Tensor) -> list[Tensor]:
        """(N, 3, H, W) to the features of the stem and of four stages; strides 2, 4, 8, 8, 8."""
        features = [F.relu(self.bn1(self.conv1(image)))]
        step = self.maxpool(features[0])
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            step = stage(step)
            features.append(step)
        return features


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        wide = width * _EXPANSION
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, stride, bias=False), _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = _norm(width)
        self.conv3, self.bn3 = nn.Conv2d(width, wide, 1, bias=False), _norm(wide)
        self.downsample: nn.Sequential | None = None
        if channels != wide or stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(channels, wide, 1, stride, bias=False), _norm(wide))

    def forward(self, features: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(features)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        shortcut = features if self.downsample is None else self.downsample(features)
        return F.relu(self.bn3(self.conv3(inner)) + shortcut)


class MultiScale(nn.Module):
    """A network run on the image and on smaller copies of it, and the pixelwise maximum over all of them.

    Args:
        network: images to logits of less than their size.
        scales: of the smaller copies; empty: the network alone.
    """

    def __init__(self, network: nn.Module, scales: tuple[float, ...] = SCALES) -> None:
        super().__init__()
        self.network, self.scales = network, scales
        self.initial_weights = getattr(network, "initial_weights", "random")
        self.mean: Triple | None = getattr(network, "mean", None)
        self.std: Triple | None = getattr(network, "std", None)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """(N, 3, H, W) to the maximum of the logits (N, K, h, w); in training to all logits and their maximum.

        In training: the logits of the image, those of each scale at their own size, and the maximum; 41, 21, 31 and 41
        pixels for DeepLabV2 and 321.
        """
        logits: list[Tensor] = [self.network(image)]
        if not self.scales:
            return logits if self.training else logits[0]
        size = logits[0].shape[-2:]
        for scale in self.scales:
            small = F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)
            logits.append(self.network(small))
        enlarged = [F.interpolate(one, size, mode="bilinear", align_corners=False) for one in logits[1:]]
        best = torch.stack([logits[0], *enlarged]).amax(0)
        return [*logits, best] if self.training else best


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.001)


def _named_file(weights: str) -> Path:
    if Path(weights).suffix not in (".pth", ".safetensors"):
        raise ValueError(
            f"weights is {weights!r}, but no package or hub has {RESNET101} with strides in the 1x1; give random or a "
            "file .pth or .safetensors, or take backbone: torchvision/resnet101 with weights: pretrained"
        )
    return Path(weights)


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; set --model.weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} holds no readable weights ({reason}); get the file again") from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state dict of tensors; save one with torch.save(model.state_dict(), PATH)")
    return content
