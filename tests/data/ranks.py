"""Tiny fits and tests of every method and loss, the same in one process and in several.

python -m tests.data.ranks FOLDER WORLD PLAN [CASE ...]
"""

from __future__ import annotations

import structseg  # noqa: F401  # isort: skip  # before Lightning, which imports torchvision

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from torch import nn
from torch.optim import SGD

from structseg.datamodules.batch import Split
from structseg.datamodules.label_spaces import PARTS, STN, label_space
from structseg.lightning_modules.base import TrainedModule
from structseg.lightning_modules.consensus import ConsensusSegmenter
from structseg.lightning_modules.conta.classifier import CONTAClassifier
from structseg.lightning_modules.conta.relation_network import CONTARelationNetwork
from structseg.lightning_modules.conta.segmenter import CONTASegmenter
from structseg.lightning_modules.fasseg_unet import FASSEGUNet
from structseg.lightning_modules.stn.stn_icnn import STNiCNN
from structseg.losses import ConsensusLoss, CrossEntropyDiceLoss, OneHotBCELoss
from tests.data.processes import run_ranks
from tests.data.tiny import TinyDataModule, TinyNetwork

PETS = label_space("voc[cat,dog]")
_BOXES = {1: (50, 20), 2: (20, 20), 3: (50, 30), 4: (20, 30), 5: (35, 42), 6: (35, 54), 7: (35, 57), 8: (35, 60)}


class RankData(TinyDataModule):
    """Images whose labelled shares differ much, one of them without any; what else a method wants with them."""

    def __init__(self, kind: str, batch: int, counts: tuple[int, int, int]) -> None:
        super().__init__({"face": "stn", "pets": PETS.name}.get(kind, "parts"), batch_size=batch)
        self.kind = kind
        self.counts = dict(zip(("train", "val", "test"), counts, strict=True))
        self.size = {"face": (36, 36), "pets": (40, 44)}.get(kind, (32, 32))

    def make_dataset(self, split: Split) -> Any:
        return [self._sample(split, index) for index in range(self.counts[split])]

    def train_tags(self) -> torch.Tensor:
        return torch.stack([sample["tags"] for sample in self.make_dataset("train")])

    def _sample(self, split: Split, index: int) -> dict[str, Any]:
        seed = index + 100 * ("train", "val", "test").index(split)
        generator = torch.Generator().manual_seed(seed)
        image = torch.rand(3, *self.size, generator=generator)
        name = f"{split}_{index}"
        if self.kind == "face":
            mask = torch.zeros(72, 72, dtype=torch.int64)
            for label, (x, y) in _BOXES.items():
                if (seed + label) % 5:
                    mask[y - 1 : y + 2, x - 3 + index : x + 4 + index] = label
            original = (mask / 10 + torch.rand(3, 72, 72, generator=generator)) / 2
            mask[:, : 9 * index] = 255
            return {
                "image": F.interpolate(original[None], self.size)[0],
                "original": original,
                "mask": mask,
                "name": name,
            }
        mask = torch.randint(0, 3, (4, 4), generator=generator).repeat_interleave(11, 0).repeat_interleave(11, 1)
        mask = mask[: self.size[0], : self.size[1]].clone()
        image = (image + mask / 2) / 2
        mask[:, : self.size[1] * (index % 8) // 7] = 255  # nothing at all is labelled in the eighth
        sample = {"image": image, "mask": mask, "name": name}
        if self.kind == "pets":
            sample["tags"] = torch.tensor([index % 2, (index + index // 3) % 2]).float()
        if self.kind in ("blobs", "shared"):
            rows = torch.arange(self.size[0])[:, None].expand_as(mask) // (8 if self.kind == "blobs" else 4 + index)
            sample["blobs"] = mask % 255 + 3 * rows
        return sample


@dataclass
class Case:
    make: Callable[[], TrainedModule]
    kind: str = "parts"
    rate: float = 0.05


def _unet(loss: Callable[[], nn.Module | None]) -> TrainedModule:
    return FASSEGUNet(PARTS, TinyNetwork, loss())


def _consensus(**settings: Any) -> TrainedModule:
    return ConsensusSegmenter(PARTS, TinyNetwork, ConsensusLoss(1.0, 1.0, **settings))


def _stn(stage: Any, **settings: Any) -> TrainedModule:
    network = partial(nn.Conv2d, 3, kernel_size=3, padding=1)
    made = STNiCNN(STN, stage, window=(21, 25), network=network, localizer=_Pool, **settings)
    made.trained = {"network", "localizer", "parts"}
    made._resumed = True
    return made


class _Pool(nn.Module):
    """A localizer without batch norm: each answer is linear in the mean of the classes over a coarse grid."""

    def __init__(self, classes: int, parts: int) -> None:
        super().__init__()
        self.answer = nn.Linear(classes * 9, parts * 4)
        nn.init.normal_(self.answer.weight, std=0.02)

    def forward(self, mask: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.answer(F.adaptive_avg_pool2d(mask, 3).flatten(1))
        return found.view(len(mask), -1, 4)


def _classifier() -> TrainedModule:
    return CONTAClassifier(PETS, "test_resnet", weights="random", batch_norm="frozen")


WEIGHTS = [0.01, 0.03, 0.005]
CASES = {
    "cross_entropy": Case(lambda: _unet(lambda: None)),
    "weighted_cross_entropy": Case(
        lambda: _unet(lambda: nn.CrossEntropyLoss(torch.tensor(WEIGHTS), ignore_index=255, label_smoothing=0.1))
    ),
    "cross_entropy_dice": Case(lambda: _unet(lambda: CrossEntropyDiceLoss(weight=WEIGHTS))),
    "one_hot_bce": Case(lambda: _unet(lambda: OneHotBCELoss(weight=WEIGHTS))),
    "consensus": Case(_consensus, "blobs"),
    "consensus_by_labels": Case(_consensus),
    "consensus_by_size": Case(lambda: _consensus(blob_weight="size", weight=WEIGHTS), "blobs"),
    "consensus_by_image": Case(lambda: _consensus(label_reduction="image", consensus_reduction="image"), "blobs"),
    "consensus_published": Case(lambda: _consensus(normalization="published"), "shared"),
    "consensus_published_by_image": Case(
        lambda: _consensus(normalization="published", label_reduction="image", consensus_reduction="image")
    ),
    "stn_coarse": Case(lambda: _stn("coarse"), "face"),
    "stn_localizer": Case(lambda: _stn("localizer"), "face"),
    "stn_parts": Case(lambda: _stn("parts"), "face"),
    "stn_parts_bce": Case(lambda: _stn("parts", loss=OneHotBCELoss()), "face"),
    "stn_end_to_end": Case(lambda: _stn("end_to_end", theta_weight=0.5), "face"),
    "stn_pasted": Case(lambda: _stn("end_to_end", loss_on="pasted"), "face"),
    "classifier": Case(_classifier, "pets", 0.01),
    "relation": Case(lambda: CONTARelationNetwork(PETS, "test_resnet", weights="random", radius=4), "pets", 0.01),
    "segmenter": Case(
        lambda: CONTASegmenter(PARTS, "tf_efficientnet_lite0", output_stride=16, class_weights=WEIGHTS), rate=0.001
    ),
}
PLANS = {  # images to train, validate and test on, and what is done with them
    "fit": ((8, 1, 5), True),  # one validation image on two processes
    "test": ((8, 5, 2), False),  # two test images on three
}


def run_plan(folder: Path, world: int, plan: str, names: list[str]) -> None:
    counts, fits = PLANS[plan]
    for name in names:
        case = CASES[name]
        torch.manual_seed(0)
        module = case.make()
        module.optimizer = partial(SGD, lr=case.rate)
        if isinstance(module, STNiCNN):
            module.learning_rates = dict.fromkeys(module.learning_rates, case.rate)
        module.lr_scheduler = None
        with torch.no_grad():  # so that no ReLU stands on its edge
            for parameter in module.parameters():
                parameter += 1e-3 * torch.randn_like(parameter)
        start = {key: value.detach().clone() for key, value in module.named_parameters()}
        data = RankData(case.kind, 2 // min(world, 2), counts)
        data.score_at = "native"  # one image a batch: the loss of an image has no neighbours
        trainer = Trainer(
            accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", max_epochs=2, logger=False,
            use_distributed_sampler=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, default_root_dir=folder, num_sanity_val_steps=0,
        )  # fmt: skip
        scores: dict[str, Any] = {}
        if fits:
            trainer.fit(module, data)
        else:
            scores |= trainer.validate(module, data, verbose=False)[0]
        scores |= {key: float(value) for key, value in trainer.callback_metrics.items()}
        scores |= trainer.test(module, data, verbose=False)[0]
        scored = getattr(module, "test_scores", None)
        confusion = getattr(scored, "confusion", None)
        if confusion is not None:
            with scored.sync_context(should_sync=world > 1):
                scores["confusion"] = scored.confusion.tolist()
        if trainer.is_global_zero:
            weights = {key: value.detach().clone() for key, value in module.named_parameters()}
            moved = max(float((weights[key] - start[key]).abs().max()) for key in weights)
            torch.save(weights, folder / f"{name}.pt")
            (folder / f"{name}.json").write_text(json.dumps({"scores": scores, "moved": moved}))


def start(folder: Path, world: int, plan: str, *names: str) -> None:
    """Runs the plan in so many processes and waits for them; in this one where one is enough."""
    if world == 1:
        folder.mkdir()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        run_plan(folder, world, plan, list(names) or list(CASES))
        torch.set_num_threads(threads)
    else:
        run_ranks(world, folder, ["-m", "tests.data.ranks", str(folder), str(world), plan, *names])


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_plan(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:] or list(CASES))
