"""Writers of the results of CONTA's stages: activation maps and seeds, pseudo-masks, masks and confounders."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from structseg.datamodules.batch import DataSettings, with_defaults
from structseg.datamodules.label_spaces import LabelSpace
from structseg.datamodules.round_files import (
    check_folder,
    origin_of,
    read_artefact_mask,
    read_cams,
    write_cams,
    write_confounders,
    write_mask,
    write_query,
)
from structseg.lightning_modules.callbacks.round_folder_writer import ArtefactWriter, Truths, some
from structseg.lightning_modules.conta.classifier import CONTAClassifier
from structseg.lightning_modules.conta.dense_crf import CRFPool, DenseCRF, workers_here
from structseg.lightning_modules.conta.relation_network import CONTARelationNetwork
from structseg.lightning_modules.conta.seeds import combine, seed_maps
from structseg.lightning_modules.conta.segmenter import CONTASegmenter
from structseg.lightning_modules.drawing.confounders import confounder_figure
from structseg.lightning_modules.drawing.label_sheets import as_pixels
from structseg.lightning_modules.metrics.cam_thresholds import CAMThresholds
from structseg.lightning_modules.metrics.confounder_set import Confounders, ConfounderSet, class_shares
from structseg.lightning_modules.metrics.faults import FAULTS, FaultMetrics, checked_pairs, fault_scores
from structseg.lightning_modules.metrics.manipulation import ManipulationCheck, manipulation_notice
from structseg.lightning_modules.metrics.relation_labels import RelationLabelScores

Pairs = Sequence[tuple[str, str]]
_IRNET = DenseCRF.irnet()


class CAMWriter(ArtefactWriter):
    """Writes `cams/` and `relation_labels/`: the maps, and their seeds by two thresholds and a CRF.

    The CRF runs in worker processes while the next batches are predicted. Scores: `cam_miou` at the best
    `cam_threshold`, `cam_iou/CLASS`; `relation_precision`, `relation_coverage` and the others of `RelationLabelScores`;
    with a tag offset `company/TAG/CLASS`, its coefficients; with a context map `m_zeroed`,
    `m_swapped` and `m_tested`, see `ManipulationCheck`.

    The relation labels of an image without tags, or with empty maps only, are background, as in the published code;
    notices name both.

    Args:
        out: the round's folder.
        label_space: the classes.
        crf: settings of the CRF.
        foreground: threshold; a pixel above it is a seed of its class.
        background: threshold; a pixel up to it is a seed of the background.
        relative: take both as multiples of the threshold at which the maps are best; keeps all images in memory.
        workers: processes of the CRF on each device; None divides the cores among the devices, 0 uses none.
        pairs: names of classes whose confusion is scored separately.
    """

    kinds: tuple[str, ...] = ("cams", "relation_labels")
    headline: tuple[str, ...] = ("cam_miou", "cam_threshold", "relation_precision", "relation_coverage")

    def __init__(
        self,
        out: Path,
        label_space: LabelSpace,
        crf: DenseCRF = _IRNET,
        foreground: float = 0.30,
        background: float = 0.05,
        workers: int | None = None,
        pairs: Pairs = (),
        relative: bool = False,
    ) -> None:
        super().__init__(out, label_space)
        seed_maps(np.zeros((1, 1, 1)), (1, 1), foreground, background)  # raises for wrong thresholds
        self.crf, self.foreground, self.background, self.workers = crf, foreground, background, workers
        self.relative = relative
        self._waiting: list[
            tuple[str, NDArray[np.uint8], Tensor | None]
        ] = []  # images whose thresholds are not known yet
        self.pairs = checked_pairs(pairs, label_space.classes)
        classes, ignored = label_space.classes, label_space.ignore_index
        self.metrics = {"cam": CAMThresholds(classes, ignored), "relation": RelationLabelScores(classes, ignored)}
        self._stack = ExitStack()
        self._under_way: deque[_Seeds] = deque()
        self._manipulation, self._moved = ManipulationCheck(), ""
        self._about: Callable[[], dict[str, float]] = dict

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the folders, and starts the CRF's processes.

        Raises:
            ValueError: no package for the CRF; no folder is made then.
        """
        self._about = getattr(pl_module, "about", dict)
        self._manipulation.reset()
        self._manipulation.to(pl_module.device)
        pool = CRFPool(self.crf, workers_here(self.workers, trainer.num_devices))
        self._stack, self._under_way, self._waiting = ExitStack(), deque(), []
        super().on_predict_start(trainer, pl_module)
        self._pool = self._stack.enter_context(pool)

    def write_batch(self, outputs: dict[str, Any], batch: dict[str, Any], truths: Truths) -> None:
        """Writes the maps, and submits the seeds to the CRF."""
        if "moved" in outputs:
            self._manipulation.update(*outputs["moved"])
        rows = zip(batch["name"], batch["image"], outputs["cams"], batch["tags"], truths, strict=True)
        for name, image, maps, tags, truth in rows:
            size = (int(image.shape[-2]), int(image.shape[-1]))
            cams = maps.float().cpu().numpy()
            present = [index + 1 for index, held in enumerate(tags.tolist()) if held]
            write_cams(self.part("cams"), name, cams, size, present)
            empty = [self.label_space.classes[index] for index in present if not cams[index - 1].any()]
            if not present:
                self.note("without tags", name)
            if empty:
                self.note("empty", f"{name}: {' and '.join(empty)}")
            if truth is not None:
                self.metrics["cam"].update(maps.to(truth.device), truth)
            if self.relative:
                self._waiting.append((name, as_pixels(image), truth))
            else:
                self._seed(name, as_pixels(image), cams, truth, 1.0)
        while self._under_way and self._under_way[0].done:
            self._write_seeds(self._under_way.popleft())

    def _seed(
        self, name: str, pixels: NDArray[np.uint8], cams: NDArray[np.float32], truth: Tensor | None, factor: float
    ) -> None:
        thresholds = (min(factor * threshold, 1.0) for threshold in (self.foreground, self.background))
        size = (pixels.shape[0], pixels.shape[1])
        strict, lenient = (
            self._pool.submit_labels(pixels, labels, len(self.label_space))
            for labels in seed_maps(cams, size, *thresholds)
        )
        self._under_way.append(_Seeds(name, strict, lenient, truth))

    def finish_images(self) -> None:
        """Submits the seeds whose thresholds are known only now, and waits for the CRF.

        Raises:
            ValueError: no image has a true mask, by which relative thresholds are chosen.
        """
        best = float(self.metrics["cam"].compute()["threshold"]) if self.relative else 1.0
        if math.isnan(best):
            raise ValueError("cam.relative chooses thresholds by true masks, the split has none; set it to false")
        for name, pixels, truth in self._waiting:
            self._seed(name, pixels, read_cams(self.part("cams"), name, self.label_space).maps, truth, best)
        while self._under_way:
            self._write_seeds(self._under_way.popleft())
        self._stack.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Also ends the processes of the CRF."""
        self._stack.__exit__(type(exception), exception, exception.__traceback__)
        super().on_exception(trainer, pl_module, exception)

    def measured(self, has_truth: bool) -> dict[str, float]:
        """The scores, the faults of the maps at their best threshold, and the values of `CONTAClassifier.about`."""
        scores = super().measured(has_truth) | self._about()
        moved = {key: float(value) for key, value in self._manipulation.compute().items()}
        self._moved = manipulation_notice(moved)
        if not math.isnan(moved["zeroed"]):
            scores |= {f"m_{key}": value for key, value in moved.items() if not math.isnan(value)}
        if has_truth:
            confusion = self.metrics["cam"].compute()["confusion"]
            faults = fault_scores(confusion, self.label_space.classes, self.pairs)
            scores |= {f"cam_{key}": float(value) for key, value in faults.items() if value.isfinite()}
        return scores

    def notices(self, cases: dict[str, set[str]], images: int) -> list[str]:
        """Notices of images without tags, of empty maps, and of seeds with hardly any background."""
        found = [self._moved] if self._moved else []
        if "without tags" in cases:
            found.append(f"{some(cases['without tags'])} without tags: relation labels are all background there")
        if "empty" in cases:
            found.append(
                f"empty maps of a class that the tags name, in {some(cases['empty'])}: it has no seeds there, and an "
                f"image of nothing else is labelled background"
            )
        return found + _no_background("relation_labels", cases, images)

    def _write_seeds(self, seeds: _Seeds) -> None:
        labels = combine(seeds.strict.result(), seeds.lenient.result())
        write_mask(self.part("relation_labels"), seeds.name, labels, self.label_space)
        if labels.all():
            self.note("no background", seeds.name)
        if seeds.truth is not None:
            self.metrics["relation"].update(_on(labels, seeds.truth), seeds.truth)


class _Seeds(NamedTuple):
    """An image whose two label maps are in the CRF."""

    name: str
    strict: Future[NDArray[np.uint8]]
    lenient: Future[NDArray[np.uint8]]
    truth: Tensor | None

    @property
    def done(self) -> bool:
        return self.strict.done() and self.lenient.done()


class LabelMapWriter(ArtefactWriter):
    """Base of the writers of pseudo-masks and masks: writes and scores one label map an image.

    Scores: those of `FaultMetrics`, as `PREFIX_miou` and so on.

    Args:
        out: the round's folder.
        label_space: the classes.
        pairs: names of classes whose confusion is scored separately.
    """

    prefix = ""

    def __init__(self, out: Path, label_space: LabelSpace, pairs: Pairs = ()) -> None:
        super().__init__(out, label_space)
        self.metrics[self.prefix] = FaultMetrics(label_space.classes, label_space.ignore_index, pairs=pairs)

    def write_batch(self, outputs: dict[str, Any], batch: dict[str, Any], truths: Truths) -> None:
        """Writes and scores the masks."""
        kind = self.kinds[0]
        for name, mask, truth in zip(batch["name"], outputs[kind], truths, strict=True):
            labels = mask.cpu().numpy()
            write_mask(self.part(kind), name, labels, self.label_space)
            if truth is not None:
                found = _on(labels, truth)
                self.metrics[self.prefix].update(found[None], truth[None])
                self.score_image(name, found, truth)
            if not labels.any():
                self.note("background", name)
            if labels.all():
                self.note("no background", name)
        for name, tags in zip(batch["name"], batch.get("tags", ()), strict="tags" in batch):
            if not tags.any():
                self.note("without tags", name)

    def notices(self, cases: dict[str, set[str]], images: int) -> list[str]:
        """Notices of predictions that are only background, or have hardly any."""
        empty = cases.get("background", set())
        if len(empty) == images:
            return [
                f"every one of the {images} {self.kinds[0]} is only background; look at the loss, the learning rate "
                f"and initial weights, or at the maps of the stage before"
            ]
        wrong = empty - cases.get("without tags", set())
        found = [f"{self.kinds[0]} that are only background though tagged: {some(wrong)}"] if wrong else []
        return found + _no_background(self.kinds[0], cases, images)


class PseudoMaskWriter(LabelMapWriter):
    """Writes `pseudo_masks/`, the result of the random walk.

    Scores: those of `FaultMetrics`, as `pseudo_miou`; and at the best score of the background, as the maps
    are scored, `walk_miou`, `walk_threshold` and `walk_iou/CLASS`.

    Args:
        out: the round's folder.
        label_space: the classes.
        pairs: names of classes whose confusion is scored separately.
    """

    kinds: tuple[str, ...] = ("pseudo_masks",)
    headline: tuple[str, ...] = (
        "pseudo_miou",
        "pseudo_mean_fp_object",
        "pseudo_mean_fp_background",
        "pseudo_mean_miss",
    )
    prefix = "pseudo"

    def __init__(self, out: Path, label_space: LabelSpace, pairs: Pairs = ()) -> None:
        super().__init__(out, label_space, pairs)
        self.metrics["walk"] = CAMThresholds(label_space.classes, label_space.ignore_index)

    def write_batch(self, outputs: dict[str, Any], batch: dict[str, Any], truths: Truths) -> None:
        """Writes and scores the masks, and scores the walk before the threshold."""
        super().write_batch(outputs, batch, truths)
        for objects, scores, truth in zip(outputs["objects"], outputs["scores"], truths, strict=True):
            if truth is not None:
                maps = scores.new_zeros(len(self.label_space) - 1, *scores.shape)
                maps.scatter_(0, (objects.long() - 1).clamp(min=0)[None], scores[None])
                self.metrics["walk"].update(maps.to(truth.device), truth)


class MaskWriter(LabelMapWriter):
    """Writes `masks/`, `queries/`, and for the training split `confounders.npz` and `.png`, for the next round.

    Scores: those of `FaultMetrics`, as `mask_miou`.

    Args:
        out: the round's folder.
        label_space: the classes.
        pairs: names of classes whose confusion is scored separately.
        confounders: whether to make the confounder set, as for the training images.
        pseudo_masks: a folder of masks from which the set is made instead.
    """

    kinds: tuple[str, ...] = ("masks", "queries")
    headline: tuple[str, ...] = ("mask_miou", *(f"mask_mean_{fault}" for fault in FAULTS))
    prefix = "mask"

    def __init__(
        self,
        out: Path,
        label_space: LabelSpace,
        pairs: Pairs = (),
        confounders: bool = True,
        pseudo_masks: Path | None = None,
    ) -> None:
        super().__init__(out, label_space, pairs)
        self.pseudo_masks = pseudo_masks
        self._sum = ConfounderSet(label_space.classes) if confounders else None
        self._found: Confounders | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the folders, and resets the confounder set."""
        super().on_predict_start(trainer, pl_module)
        if self._sum is not None:
            self._sum.reset()
            self._sum.to(pl_module.device)

    def write_batch(self, outputs: dict[str, Any], batch: dict[str, Any], truths: Truths) -> None:
        """Writes and scores the masks, writes the queries and adds them up."""
        super().write_batch(outputs, batch, truths)
        for i, (name, query) in enumerate(zip(batch["name"], outputs["queries"], strict=True)):
            probabilities = query.float().clamp(0, 1)  # a softmax may exceed 1 by its last digit
            write_query(self.part("queries"), name, probabilities.cpu().numpy())
            if self._sum is not None:
                averaged = self._averaged(name, probabilities, self._sum.size).to(self._sum.device)
                self._sum.update(averaged, batch["tags"][i].to(self._sum.device))

    def _averaged(self, name: str, probabilities: Tensor, size: tuple[int, int]) -> Tensor:
        if self.pseudo_masks is None:
            return probabilities
        mask = torch.tensor(read_artefact_mask(self.pseudo_masks, name, self.label_space))
        return class_shares(mask, len(self.label_space), size)

    def measured(self, has_truth: bool) -> dict[str, float]:
        """The scores; also sums the confounder set over the processes."""
        self._found = None if self._sum is None else self._sum.compute()
        return super().measured(has_truth)

    def origin(self) -> str:
        """The origin of the queries, whose means the confounders are."""
        return origin_of(self.part("queries"))

    def write_more(self, origin: str) -> None:
        """Writes `confounders.npz` and `confounders.png`."""
        if self._found is None:
            return
        maps, images = self._found.confounders.numpy(), self._found.images.numpy()
        write_confounders(self.out, maps, images, self.label_space, origin)
        part = self.out / ".confounders.png.part"
        confounder_figure(maps, images, self.label_space.classes[1:]).savefig(part, dpi=80, format="png")
        part.replace(self.out / "confounders.png")

    def notices(self, cases: dict[str, set[str]], images: int) -> list[str]:
        """The notices of masks, and of classes without images."""
        found = super().notices(cases, images)
        if self._found is None:
            return found
        counts = zip(self.label_space.classes[1:], self._found.images.tolist(), strict=True)
        missing = [name for name, count in counts if not count]
        if missing:
            found.append(f"no training image holds {', '.join(missing)}: the confounder stays zero")
        return found


def artefact_writer(model: LightningModule, datamodule: DataSettings) -> ArtefactWriter:
    """The writer for a method of CONTA that predicts a split, into `predict_out`.

    Raises:
        ValueError: the method writes no artefacts.
    """
    datamodule = with_defaults(datamodule)
    out, space = Path(datamodule.predict_out), datamodule.label_space
    pairs: Pairs = getattr(model, "pairs", ())
    if isinstance(model, CONTAClassifier):
        foreground, background = model.cam.relation_thresholds
        relative = model.cam.relative
        return CAMWriter(out, space, pairs=pairs, foreground=foreground, background=background, relative=relative)
    if isinstance(model, CONTARelationNetwork):
        return PseudoMaskWriter(out, space, pairs)
    if isinstance(model, CONTASegmenter):
        training = datamodule.predict_split in (None, "train")
        return MaskWriter(out, space, pairs, training, _pseudo_masks(model, datamodule) if training else None)
    raise ValueError(
        f"{type(model).__name__} makes no artefacts of a split, only CONTAClassifier, CONTARelationNetwork and "
        f"CONTASegmenter do; leave out --data.predict_split"
    )


def _pseudo_masks(model: CONTASegmenter, datamodule: DataSettings) -> Path | None:
    """The folder of masks for the confounder set, checked as in training; None: the set is made of the prediction."""
    if model.confounders_from == "masks":
        return None
    masks = datamodule.masks
    if masks is None or masks == "truth":
        raise ValueError(
            f"confounders_from=pseudo_masks averages --data.masks, which is {masks}; give the folder of pseudo_masks"
        )
    folder = Path(masks)
    check_folder(folder, ("pseudo_masks",), datamodule.names("train"), datamodule.label_space, "train")
    return folder


def _no_background(kind: str, cases: dict[str, set[str]], images: int) -> list[str]:
    """A notice if most images of a kind have no pixel of background."""
    without = cases.get("no background", set())
    if len(without) <= images / 2:
        return []
    return [
        f"{kind} of {len(without)} of {images} images have no background: the maps lie above the threshold everywhere; "
        f"compare cam_threshold, and raise --model.cam.relation_thresholds or --model.walk_background"
    ]


def _on(labels: NDArray[np.uint8], truth: Tensor) -> Tensor:
    """The labels as int64 on the truth's device."""
    return truth.new_tensor(labels.astype(np.int64))
