"""Structured segmentation with PyTorch Lightning: four published methods, tested and measured."""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported at first use, so that `import structseg` loads no torch
    from structseg.api import Segmenter as Segmenter
    from structseg.api import load as load
    from structseg.datamodules.label_spaces import LabelSpace as LabelSpace
    from structseg.losses.consensus import ConsensusLoss as ConsensusLoss
    from structseg.losses.consensus import consensus_loss as consensus_loss

    __version__: str

_MODULES = {
    "ConsensusLoss": "structseg.losses.consensus",
    "LabelSpace": "structseg.datamodules.label_spaces",
    "Segmenter": "structseg.api",
    "consensus_loss": "structseg.losses.consensus",
    "load": "structseg.api",
}
__all__ = ["ConsensusLoss", "LabelSpace", "Segmenter", "__version__", "consensus_loss", "load"]

# Read once, when torch starts its threads: waiting threads sleep. Busy-waiting ones, with another job on the same
# cores, make a training step take 30 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_ROOT = Path(__file__).resolve().parents[1]
if (_ROOT / "pyproject.toml").is_file():  # in a checkout the rooms lie beside this folder, in a wheel inside it
    __path__.append(str(_ROOT))


class _BeforeTorchvision:
    """An import finder that registers torchvision's operators just before torchvision is first imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:  # noqa: ARG002  # a finder's arguments
        torch = sys.modules.get("torch")
        if name != "torchvision" or getattr(getattr(torch, "__spec__", None), "_initializing", False):
            return
        sys.meta_path.remove(self)
        from structseg.torchvision_fallback import register_missing_operators

        register_missing_operators()


if "torchvision" not in sys.modules:
    sys.meta_path.insert(0, _BeforeTorchvision())


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("structseg")
    elif name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
