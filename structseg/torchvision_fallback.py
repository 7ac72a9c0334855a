"""Makes `import torchvision` work with a torch build for which its extension cannot be loaded (a CPU-only torch).

`structseg/__init__.py` calls it before the first import of torchvision, directly or by timm, torchmetrics or Lightning.
Where the extension can be loaded, as on a GPU machine, nothing else is done.
"""

import importlib.util
from pathlib import Path

import torch

_kept: list[torch.library.Library] = []  # a Library removes its definitions when it is garbage-collected


def register_missing_operators() -> None:
    """Loads torchvision's extension, or registers the operators whose names torchvision asks for on import."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for extension in sorted(Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(extension))
            return
        except OSError:
            continue
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)
