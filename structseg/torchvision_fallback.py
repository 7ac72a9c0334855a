"""Make `import torchvision` work beside a torch build that its extension cannot load (a CPU-only torch).

Imported first by every package of the suite that needs torchvision, directly or through timm, torchmetrics or
Lightning. Where the extension loads, as on a GPU machine, it does nothing.
"""

import importlib.util
from pathlib import Path

import torch

_kept: list[torch.library.Library] = []  # a Library undoes its definitions when it is collected


def _register_missing_operators() -> None:
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


if not _kept:
    _register_missing_operators()
