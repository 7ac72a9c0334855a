"""CONTA's last stage: DeepLab-v2, which learns from pseudo-masks and whose masks the next round starts from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm
from torch import Tensor
from torch.optim import Optimizer

from structseg.datamodules.batch import data_of
from structseg.datamodules.label_spaces import LabelSpace
from structseg.datamodules.round_files import TRUE_MASKS
from structseg.lightning_modules.base import NO_TRUTH, Split, StepOutput
from structseg.lightning_modules.conta.dense_crf import CRFPool, DenseCRF, require_pydensecrf, workers_here
from structseg.lightning_modules.conta.inference import CONTAInference
from structseg.lightning_modules.logits import resize_logits
from structseg.lightning_modules.metrics.faults import FaultMetrics, checked_pairs
from structseg.lightning_modules.metrics.segmentation import SegmentationMetrics
from structseg.lightning_modules.networks.deeplab_v2 import RESNET101, SCALES, DeepLabV2, MultiScale
from structseg.lightning_modules.segmentation import SegmentationModule
from structseg.losses.class_weights import ClassWeights
from structseg.losses.multi_scale import MultiScaleCrossEntropy

QUERY_SIZE = (32, 32)  # (h, w) of the class probabilities that the next round's classifier is given
AVERAGED_STEPS = 20


class CONTASegmenter(CONTAInference, SegmentationModule):
    """DeepLab-v2, trained on pseudo-masks or true masks (`--data.masks`).

    The loss is the sum of the cross-entropies at full size, at each of `scales` and of their maximum, each on labels at
    the logits' size; evaluation takes the maximum. The optimiser's learning rate is that of the trunk; the
    head's weights have 10 times it, its biases 20 times. With accumulated batches the gradient is that of their mean.
    `train/loss_average` is the loss over the last 20 optimiser steps.

    A test with `crf` scores the masks after the CRF as `test/...` and, from the same pass, those before it as
    `test/without_crf/...`; `test/crf` is 1 then, else 0. Validation is always before it.

    Prediction of a split gives what the next round starts from, `masks` and `queries`.

    Sources: Chen et al., "DeepLab", TPAMI 2018; Zhang et al., "Causal Intervention for Weakly-Supervised Semantic
    Segmentation", NeurIPS 2020, with the settings of deeplab-pytorch.

    Args:
        label_space: the classes, those of the data; background first.
        backbone: `resnet101` as published, or any network that `Backbone` knows.
        weights: where the trunk starts: `packaged`, `pretrained` or `random`, or for `resnet101` a file or `random`.
        output_stride: of the trunk: 8 as published, 16 or 32; EfficientNet-Lite is four times as fast at 16.
        scales: of smaller copies of the image that the network also sees, in (0, 1); published: half and three
            quarters. Without any, `[]`, the loss is the plain cross-entropy and a step takes a third of the time.
        batch_norm: `frozen` keeps statistics, scales and shifts. `sync` trains them over all devices together, `train`
            on each device separately.
        test_scales: sizes at which an image is evaluated, as factors; the class probabilities are averaged.
        crf: refine the probabilities by the dense CRF with DeepLab's settings, in test and prediction.
        crf_workers: processes for the CRF on each device, one for each image of the batch (a single one is busy with
            `--data.score_at native`); None: the cores, divided among the devices; 0: this process.
        use_tags: in a prediction of the training split (`--data.predict_split train`), exclude classes that are not
            among an image's tags. Tags of other splits are not used: at test time they are unknown.
        confounders_from: in a prediction of the training split, the masks whose means are the confounder set: `masks`,
            the predicted class probabilities, or `pseudo_masks`, the training masks (--data.masks).
        class_weights: of each class in the loss: a list, by class name, or `balanced` (`ClassWeighted`).
        pairs: names (A, B) of classes whose confusion is scored separately, as `on/A/B` and `goes_to/A/B`.
        **kwargs: settings of `SegmentationModule`; `flip_test` at each of `test_scales`. Published: `PolyLR` with
            every 10, and a batch of 10.

    Raises:
        ValueError: settings out of range, or unknown names.
    """

    scores_class = FaultMetrics
    wants_weights = True

    def __init__(
        self,
        label_space: LabelSpace,
        backbone: str = RESNET101,
        weights: str = "random",
        output_stride: int = 8,
        scales: tuple[float, ...] = SCALES,
        batch_norm: Literal["frozen", "sync", "train"] = "frozen",
        test_scales: tuple[float, ...] = (1.0,),
        crf: bool = False,
        crf_workers: int | None = None,
        use_tags: bool = True,
        confounders_from: Literal["masks", "pseudo_masks"] = "masks",
        class_weights: ClassWeights = None,
        pairs: list[tuple[str, str]] | None = None,
        **kwargs: Any,
    ) -> None:
        if batch_norm not in ("frozen", "sync", "train"):
            raise ValueError(f"batch_norm is {batch_norm!r}; expected frozen, sync or train")
        if confounders_from not in ("masks", "pseudo_masks"):
            raise ValueError(f"confounders_from is {confounders_from!r}; expected masks or pseudo_masks")
        if any(not 0 < scale < 1 for scale in scales):
            raise ValueError(f"scales are {tuple(scales)}; each is above 0 and below 1, or none is given: []")
        self.pairs = checked_pairs(pairs or (), label_space.classes)  # the parent makes the scores
        network = MultiScale(DeepLabV2(len(label_space), backbone, weights, output_stride), tuple(scales))
        loss = MultiScaleCrossEntropy(label_space.ignore_index, class_weights)
        super().__init__(network, loss, label_space, **kwargs)
        self.batch_norm = batch_norm
        self.set_scales(test_scales)
        self.crf, self.crf_workers, self.use_tags = crf, crf_workers, use_tags
        self.confounders_from = confounders_from
        self.scores_without_crf = self._scores()
        if batch_norm == "frozen":
            for norm in self.norms():
                norm.requires_grad_(False)
        self.train()  # the trainer leaves the modes of submodules unchanged
        self._resumed = False  # whether the weights are a checkpoint's
        self._foreground = False  # whether a prediction has any
        self._losses: list[Tensor] = []  # of the batches since the last optimiser step
        self._last_losses: deque[Tensor] = deque(maxlen=AVERAGED_STEPS)
        self._open = ExitStack()
        self._crf_pool: CRFPool | None = None

    def _scores(self) -> SegmentationMetrics:
        space = self.label_space
        return FaultMetrics(space.classes, space.ignore_index, space.groups, self.pairs)

    # Training

    @property
    def deeplab(self) -> DeepLabV2:
        """The network that is run at several scales."""
        deeplab: DeepLabV2 = self.network.network
        return deeplab

    def setup(self, stage: str) -> None:
        """Checks for the CRF package, and synchronises the batch norm of several devices.

        Raises:
            ValueError: the CRF is not installed, or batch norm cannot be synchronised on these devices.
        """
        if self.crf:
            require_pydensecrf()
        if stage == "fit" and self.batch_norm == "sync" and self.trainer.world_size > 1:
            if self.trainer.strategy.root_device.type == "cpu":
                raise ValueError(
                    "batch_norm sync needs accelerators, CPU processes cannot synchronise it; "
                    "set --model.batch_norm frozen or train"
                )
            # torch's own conversion drops the activations that timm's batch norm holds.
            self.network = convert_sync_batchnorm(self.network)

    def on_fit_start(self) -> None:
        """Reads the file of initial weights, unless the fit is resumed.

        Raises:
            FileNotFoundError: it is missing.
            ValueError: it holds another network.
        """
        super().on_fit_start()
        self._losses.clear()
        self._last_losses.clear()
        if not self._resumed:
            self.deeplab.read_weights()
        if self.deeplab.caution:
            self.notice(self.deeplab.caution)
        if data_of(self.trainer).masks == "truth":
            self.notice(TRUE_MASKS)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks the checkpoint, see `TrainedModule`."""
        super().on_load_checkpoint(checkpoint)
        self._resumed = True

    def _parameter_groups(self) -> Iterator[dict[str, Any]]:
        trunk, head = self.deeplab.backbone, self.deeplab.aspp
        yield {"params": [p for p in trunk.parameters() if p.requires_grad], "lr_factor": 1}
        yield {"params": [p for p in head.parameters() if p.ndim > 1], "lr_factor": 10}
        yield {"params": [p for p in head.parameters() if p.ndim == 1], "lr_factor": 20, "weight_decay": 0.0}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> StepOutput:
        """The loss of an augmented batch."""
        output = super().training_step(batch, batch_idx)
        self._losses.append(output["loss"].detach())
        return output

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Logs the moving average of the loss."""
        self._last_losses.append(torch.stack(self._losses).mean())
        self._losses.clear()
        self.log("train/loss_average", torch.stack(tuple(self._last_losses)).mean(), sync_dist=True)

    def logged_keys(self) -> set[str]:
        """Every key that a fit logs."""
        return super().logged_keys() | {"train/loss_average"}

    # Evaluation

    def _step(self, batch: dict[str, Any], split: Split) -> StepOutput:
        if "mask" not in batch:
            remedy = "set --data.masks to the folder of pseudo_masks, or to truth" if split == "train" else NO_TRUTH
            raise ValueError(f"the {split} batch has no masks, which CONTASegmenter needs; {remedy}")
        if split != "test" or not self.crf:
            return super()._step(batch, split)
        mask = batch["mask"]
        size = (mask.shape[-2], mask.shape[-1])
        logits = resize_logits(self.evaluated(batch), size)
        self.scores_without_crf.update(logits.argmax(1), mask)
        images = resize_logits(batch["image"], size)
        prediction = torch.stack([one.argmax(0) for one in self.refined(images, list(logits.softmax(1)))])
        return self._score(split, self._loss(logits, batch), prediction, batch)

    def on_test_start(self) -> None:
        """Resets the scores; gives a notice if the CRF is left out."""
        super().on_test_start()
        self.scores_without_crf.reset()
        if not self.crf:
            self.notice("the test is scored without the dense CRF, which the method has; set --model.crf true")

    def on_validation_epoch_end(self) -> None:
        """Logs the scores; gives a notice if only background was predicted."""
        if not self.trainer.sanity_checking:
            self._look_for_foreground("validation", self.val_scores)
        super().on_validation_epoch_end()

    def on_test_epoch_end(self) -> None:
        """Logs the scores, also those before the CRF; gives a notice if only background was predicted."""
        self._look_for_foreground("the test", self.test_scores)
        super().on_test_epoch_end()
        self.log("test/crf", float(self.crf))
        if self.crf:
            self._log_scores("test/without_crf/", self.scores_without_crf)

    def _look_for_foreground(self, what: str, scores: SegmentationMetrics) -> None:
        with scores.sync_context():
            true, found = scores.confusion[1:].sum(), scores.confusion[:, 1:].sum()
        text = f"{what} predicts only background, at every pixel of the split; look at the loss, masks and weights"
        if true and not found:
            self.notice(text)
        elif text in self.notices:
            self.notices.remove(text)  # no longer true: the card describes the current state

    # Prediction

    def on_predict_start(self) -> None:
        """Resets what the prediction has found."""
        self._foreground = False

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        """The masks and queries that the next round starts from.

        Returns:
            `masks`, (H, W) uint8 at the size that is evaluated, and `queries`, (K, 32, 32) float32 class probabilities,
            area averages. Both are after the CRF where there is one.
        """
        logits = self.evaluated(batch)
        height, width = batch.get("mask", batch["image"]).shape[-2:]
        allowed = self._allowed(batch)
        logits = resize_logits(logits, (height, width))
        each = [one[classes].softmax(0) for one, classes in zip(logits, allowed, strict=True)]
        if self.crf:
            each = self.refined(resize_logits(batch["image"], (height, width)), each)
        whole = torch.zeros_like(logits)
        for one, classes, probabilities in zip(whole, allowed, each, strict=True):
            one[classes] = probabilities
        masks = whole.argmax(1).to(torch.uint8)
        self._foreground = self._foreground or bool(masks.any())
        return {"masks": list(masks), "queries": list(F.interpolate(whole, QUERY_SIZE, mode="area"))}

    def _allowed(self, batch: dict[str, Any]) -> list[Tensor]:
        """The indices of the classes that each image may hold."""
        everything = torch.ones(len(batch["image"]), len(self.label_space), dtype=torch.bool, device=self.device)
        split = data_of(self._trainer).predict_split
        if self.use_tags and split == "train" and "tags" in batch:
            everything[:, 1:] = batch["tags"] > 0
        return [row.nonzero()[:, 0] for row in everything]

    def on_predict_epoch_end(self) -> None:
        """Gives a notice if only background was predicted."""
        strategy = self.trainer.strategy
        if not strategy.reduce_boolean_decision(self._foreground, all=False):
            self.notice("the prediction finds only background in the whole split; look at the training and its masks")

    def crf_pool(self) -> CRFPool:
        """The CRF pool of this device, with its processes."""
        if self._crf_pool is None:
            devices = 1 if self._trainer is None else self._trainer.num_devices
            pool = CRFPool(DenseCRF.deeplab(), workers_here(self.crf_workers, devices))
            self._crf_pool = self._open.enter_context(pool)
        return self._crf_pool

    def teardown(self, stage: str) -> None:
        """Ends the processes of the CRF."""
        self._open.close()
        self._crf_pool = None
