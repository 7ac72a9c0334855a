"""Every data set of files as a small tree: for tests of what all readers promise alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from structseg.datamodules.base import SegmentationDataModule
from structseg.datamodules.celebamask_hq.datamodule import CelebAMaskHQDataModule
from structseg.datamodules.coco.datamodule import COCODataModule
from structseg.datamodules.fasseg.datamodule import FASSEGDataModule
from structseg.datamodules.folder.datamodule import FolderDataModule, WeakFolderDataModule
from structseg.datamodules.helen.datamodule import HelenDataModule
from structseg.datamodules.lfw_parts.datamodule import LFWPartsDataModule
from structseg.datamodules.voc.datamodule import VOCDataModule
from tests.data.celebamask_hq import make_celebamask_hq
from tests.data.coco import make_coco
from tests.data.fasseg import make_fasseg
from tests.data.helen import make_helen
from tests.data.lfw import make_lfw
from tests.data.voc import make_voc

Make = Callable[..., SegmentationDataModule]


def _folder(root: Path) -> Path:
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for i in range(6):
        mask = np.random.default_rng(i).integers(0, 3, (12, 10)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
        Image.fromarray(np.stack([mask * 100] * 3, -1)).save(root / "images" / f"{i}.jpg", quality=95)
    (root / "dataset.yaml").write_text(
        "images: images\nmasks: masks\nsplit: {seed: 0, test: 0.3}\nclasses: [background, one, two]\n"
    )
    return root


_FULL = {"size": (48, 40), "layout": "full"}
_SETS: dict[str, tuple[Callable[[Path], Path], Make, dict[str, Any]]] = {
    "fasseg": (make_fasseg, FASSEGDataModule, {}),
    "helen": (make_helen, HelenDataModule, {"originals": None}),
    "lfw": (lambda root: make_lfw(root, size=(50, 40)), LFWPartsDataModule, {}),
    "celebamask_hq": (lambda root: make_celebamask_hq(root, **_FULL), CelebAMaskHQDataModule, {}),
    "celebamask_hq_compact": (lambda root: make_celebamask_hq(root, size=(48, 40)), CelebAMaskHQDataModule, {}),
    "voc": (make_voc, VOCDataModule, {"masks": "truth"}),
    "coco": (make_coco, COCODataModule, {"masks": "truth"}),
    "folder": (_folder, FolderDataModule, {}),
    "weak_folder": (_folder, WeakFolderDataModule, {"masks": "truth"}),
}
SETS = tuple(_SETS)


def make_set(name: str, root: Path) -> Make:
    """Writes a data set below `root`; the result makes a new DataModule of it, of masks at their own size."""
    write, module, settings = _SETS[name]
    root.mkdir(parents=True, exist_ok=True)
    write(root)
    return lambda **more: module(root, score_at="native", **settings | more)
