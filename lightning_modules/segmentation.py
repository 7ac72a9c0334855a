"""Base class of the methods that label pixels: steps, loss and scores."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from structseg.datamodules.batch import data_of
from structseg.datamodules.label_spaces import LabelSpace
from structseg.lightning_modules.base import Split, StepOutput, TrainedModule
from structseg.lightning_modules.inference import Inference
from structseg.lightning_modules.logits import resize_logits
from structseg.lightning_modules.metrics.segmentation import SegmentationMetrics
from structseg.losses.class_weights import ClassWeighted
from structseg.losses.cross_entropy import CrossEntropyLoss


class SegmentationModule(Inference, TrainedModule):
    """A network that labels pixels, trained with a loss, scored by one confusion matrix over each data set.

    Args:
        network: normalised images (N, 3, H, W) to logits (N, K, H, W).
        loss: logits (N, K, H, W) and target (N, H, W) to a scalar. The losses of structseg and torch's cross-entropy
            are computed over the batches of all processes together; any other loss over that of each process.
        label_space: the K classes.
        flip_test: average the class probabilities of each image and its mirror image in evaluation and prediction.
        **kwargs: settings of `TrainedModule`.
    """

    scores_class: type[SegmentationMetrics] = SegmentationMetrics  # for subclasses to override

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        label_space: LabelSpace,
        *,
        flip_test: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, label_space, **kwargs)
        self.loss = CrossEntropyLoss.like(loss) if type(loss) is nn.CrossEntropyLoss else loss
        if isinstance(self.loss, ClassWeighted):
            self.loss.set_classes(label_space.classes)
        self.set_flip(flip_test)
        ignored = getattr(loss, "ignore_index", label_space.ignore_index)
        if ignored != label_space.ignore_index:
            raise ValueError(
                f"{type(loss).__name__} ignores {ignored}, the labels' unlabelled pixels are "
                f"{label_space.ignore_index}; set --model.loss.ignore_index {label_space.ignore_index}"
            )
        self.val_scores, self.test_scores = self._scores(), self._scores()
        self.subset_scores = nn.ModuleDict()
        self._subsets: dict[str, frozenset[str]] = {}

    def _scores(self) -> SegmentationMetrics:
        space = self.label_space
        return self.scores_class(space.classes, space.ignore_index, space.groups)

    @property
    def _loss_over_ranks(self) -> bool:
        """Whether the loss is computed over the batches of all processes together, as those of structseg are."""
        return type(self.loss).__module__.startswith("structseg.losses.")

    def on_fit_start(self) -> None:
        """Also counts pixels for `balanced` weights; gives a notice for a loss that depends on the number of processes.

        Raises:
            ValueError: images without labels and without a teacher, or `balanced` weights without masks to count.
        """
        super().on_fit_start()
        if data_of(self.trainer).unlabelled and getattr(self, "teacher_ckpt", None) is None:
            raise ValueError(
                "training images without labels need a teacher; set --model.teacher_ckpt (ConsensusSegmenter)"
            )
        if isinstance(self.loss, ClassWeighted) and self.loss.needs_balance:
            self.loss.balance(data_of(self.trainer).class_pixels().to(self.device))
            rank_zero_info(f"balanced class weights: {self._class_weights()}")
        if self.trainer.world_size > 1 and not self._loss_over_ranks:
            self.notice(
                f"{type(self.loss).__name__} is computed on the batch of each of {self.trainer.world_size} processes "
                "separately: unless it is a mean over images, the training differs from one on a single process"
            )

    def _class_weights(self) -> dict[str, float]:
        """The loss's class weights by class name; empty if it has none."""
        weight = self.loss.weight if isinstance(self.loss, ClassWeighted) else None
        values = [] if weight is None else weight.tolist()
        return {name: round(value, 6) for name, value in zip(self.label_space.classes, values, strict=False)}

    def make_card(self) -> dict[str, Any]:
        """Also the loss's class weights, if it has any."""
        weights = self._class_weights()
        return {**super().make_card(), **({"class_weights": weights} if weights else {})}

    def on_train_start(self) -> None:
        """Also checks that the network can be trained if an epoch has a batch of one image.

        Raises:
            ValueError: a batch norm would have a single value for a channel.
        """
        super().on_train_start()
        data, sampler = data_of(self.trainer), getattr(self.trainer.train_dataloader, "sampler", None)
        images, batch_size = len(sampler) if isinstance(sampler, Sized) else 0, data.batch_size
        size = getattr(data, "size", None)
        if not batch_size or size is None or (images % batch_size != 1 and batch_size != 1):
            return
        before = {name: buffer.clone() for name, buffer in self.named_buffers()}
        try:
            with torch.no_grad(), torch.random.fork_rng():
                self.network(self.normalized(torch.zeros(1, 3, *size, device=self.device)))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"the last batch of an epoch has one image ({images} images, {batch_size} a batch), and this network's "
                "batch norm needs two; set another --data.batch_size"
            ) from None
        finally:
            for name, buffer in self.named_buffers():
                buffer.copy_(before[name])

    def _loss(self, logits: Tensor, batch: dict[str, Any]) -> Tensor:
        loss: Tensor = self.loss(logits, batch["mask"])
        return loss

    def _step(self, batch: dict[str, Any], split: Split) -> StepOutput:
        if split == "train":
            image = batch["image"]
            loss = self._loss(self(image), batch)
            self._log_train_loss(loss, image)
            return {"loss": loss}
        mask = batch["mask"]
        logits = resize_logits(self.evaluated(batch), (mask.shape[-2], mask.shape[-1]))
        return self._score(split, self._loss(logits, batch), logits.argmax(1), batch)

    def _score(self, split: Split, loss: Tensor, prediction: Tensor, batch: dict[str, Any]) -> StepOutput:
        """Updates loss and scores with the (N, H, W) predicted classes of a batch."""
        mask = batch["mask"]
        mean, scores = (self.val_loss, self.val_scores) if split == "val" else (self.test_loss, self.test_scores)
        mean.update(loss, len(prediction))
        scores.update(prediction, mask)
        if split == "test":
            for subset, members in self._subsets.items():
                inside = [i for i, name in enumerate(batch["name"]) if name in members]
                if inside:
                    self.subset_scores[subset].update(prediction[inside], mask[inside])  # type: ignore[operator]
        return {"loss": loss, "prediction": prediction}

    def on_validation_epoch_end(self) -> None:
        """Logs `val/loss` and every score as `val/...`."""
        self._log_scores("val/", self.val_scores, self.val_loss)

    def on_test_start(self) -> None:
        """Also resets the scores, and makes those of each named part of the test set."""
        super().on_test_start()
        self.test_scores.reset()
        self._subsets = dict(data_of(self.trainer).test_subsets)
        self.subset_scores = nn.ModuleDict({name: self._scores() for name in self._subsets}).to(self.device)

    def on_test_epoch_end(self) -> None:
        """Logs `test/loss`, every score as `test/...`, and as `test/PART/...` for each named part."""
        self._log_scores("test/", self.test_scores, self.test_loss)
        for name, scores in self.subset_scores.items():
            self._log_scores(f"test/{name}/", scores)  # type: ignore[arg-type]

    def logged_keys(self) -> set[str]:
        """Also all scores as `val/...`."""
        return super().logged_keys() | {f"val/{key}" for key in self.val_scores.metric_keys}
