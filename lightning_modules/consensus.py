"""Structure via consensus: segmentation of faces and occlusions with a loss for the agreement of pixels in a region."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from structseg.datamodules.batch import data_of
from structseg.datamodules.label_spaces import LabelSpace
from structseg.lightning_modules.base import Split, StepOutput
from structseg.lightning_modules.checkpoints.from_card import load_teacher
from structseg.lightning_modules.metrics.structure import SuperpixelAccuracy
from structseg.lightning_modules.metrics.structured import StructuredMetrics
from structseg.lightning_modules.networks.face_occ_net import FaceOccNet
from structseg.lightning_modules.segmentation import SegmentationModule
from structseg.losses.consensus import ConsensusLoss


class ConsensusSegmenter(SegmentationModule):
    """A network trained with the consensus loss (or another one, for the ablation), also scored for structure.

    The regions are the batch's `blobs` if the datamodule makes them (`--data.blobs`), else the labels.

    Source: Masi, Mathai, AbdAlmageed, "Towards Learning Structure via Consensus for Face Segmentation and Parsing",
    CVPR 2020.

    Args:
        label_space: the classes; the command line sets them from the data.
        network: makes the network from the number of classes: `FaceOccNet`, or `SMPNetwork` for every architecture and
            encoder of segmentation-models-pytorch.
        loss: logits (N, K, H, W) and target (N, H, W) to a scalar; default: `ConsensusLoss` as in the paper.
            `torch.nn.CrossEntropyLoss` with the labels' `ignore_index` is the ablation.
        teacher_ckpt: checkpoint of a model of the same classes, whose predictions on the augmented images replace the
            training labels, as for faces without labels. Read when a fit starts; not part of this model's checkpoints.
        teacher: `hard` uses the teacher's likeliest classes, `soft` its probabilities.
        **kwargs: settings of `SegmentationModule`.

    Raises:
        ValueError: a soft teacher without a checkpoint, or with a loss other than `ConsensusLoss`.
    """

    scores_class = StructuredMetrics

    def __init__(
        self,
        label_space: LabelSpace,
        network: Callable[[int], nn.Module] = FaceOccNet,
        loss: nn.Module | None = None,
        teacher_ckpt: str | None = None,
        teacher: Literal["hard", "soft"] = "hard",
        **kwargs: Any,
    ) -> None:
        loss = loss or ConsensusLoss(ignore_index=label_space.ignore_index)
        super().__init__(network(len(label_space)), loss, label_space, **kwargs)
        if teacher == "soft" and teacher_ckpt is None:
            raise ValueError("teacher is soft, but no teacher is given; set --model.teacher_ckpt")
        if teacher == "soft" and not isinstance(loss, ConsensusLoss):
            raise ValueError(
                f"a soft teacher needs ConsensusLoss, not {type(loss).__name__}; with beta 0 it has no consensus term"
            )
        self.teacher_ckpt = None if teacher_ckpt is None else Path(teacher_ckpt)
        self.soft_teacher = teacher == "soft"
        self._teacher: list[SegmentationModule] = []  # in a list, which keeps it out of this module's state
        self.test_superpixels = SuperpixelAccuracy(label_space.ignore_index)
        self._scores_superpixels = False

    def on_fit_start(self) -> None:
        """Also loads the teacher.

        Raises:
            ValueError: no teacher for images without labels, a file that is not a checkpoint of structseg, or a
                teacher of other classes.
        """
        super().on_fit_start()
        if self.teacher_ckpt is not None:
            self._teacher = [load_teacher(self.teacher_ckpt, self.label_space).to(self.device)]

    def _loss(self, logits: Tensor, batch: dict[str, Any]) -> Tensor:
        if not isinstance(self.loss, ConsensusLoss):
            return super()._loss(logits, batch)
        loss: Tensor = self.loss(logits, batch["mask"], batch.get("blobs"), names=batch.get("name"))
        return loss

    def _step(self, batch: dict[str, Any], split: Split) -> StepOutput:
        if split == "train" and self._teacher:
            batch = self._with_teacher_labels(batch)
        output = super()._step(batch, split)
        if split == "test" and self._scores_superpixels:
            self.test_superpixels.update(output["prediction"], batch["mask"], batch["blobs"])
        return output

    def on_test_start(self) -> None:
        """Also resets the superpixel accuracy."""
        super().on_test_start()
        self.test_superpixels.reset()
        # Kept, as the datamodule reads every file of the test set to answer.
        self._scores_superpixels = data_of(self.trainer).tests_superpixels

    @torch.no_grad()
    def _with_teacher_labels(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with the teacher's labels; blobs are split by these, so that each has one label."""
        ignore = self.label_space.ignore_index
        probabilities = self._teacher[0].evaluate(batch["image"]).softmax(1)
        classes = probabilities.argmax(1)
        padding = batch["mask"] == ignore  # outside the augmented image: stays unlabelled
        if self.soft_teacher:
            labels = probabilities.masked_fill(padding[:, None], 0)
        else:
            labels = classes.masked_fill(padding, ignore)
        labelled = {**batch, "mask": labels}
        if "blobs" in batch:
            labelled["blobs"] = batch["blobs"] * len(self.label_space) + classes
        return labelled

    def on_test_epoch_end(self) -> None:
        """Also logs `test/superpixel_accuracy` if the data's blobs are the published superpixels."""
        super().on_test_epoch_end()
        if self._scores_superpixels:
            for key, value in self.test_superpixels.compute().items():
                self.log(f"test/{key}", value)
