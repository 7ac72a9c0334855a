"""CONTA's second stage: IRNet's relation network, which spreads class activation maps to pseudo-masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from structseg.datamodules.label_spaces import LabelSpace
from structseg.lightning_modules.base import NO_TRUTH, Split, StepOutput, TrainedModule
from structseg.lightning_modules.checkpoints.card import KEY, read_card
from structseg.lightning_modules.conta.random_walk import random_walk, walk_scores
from structseg.lightning_modules.logits import require_finite, resize_logits
from structseg.lightning_modules.metrics.faults import checked_pairs
from structseg.lightning_modules.networks.backbones import Backbone, Weights
from structseg.lightning_modules.networks.relation_net import RelationNet
from structseg.losses.affinity_displacement import (
    AffinityDisplacement,
    AffinityDisplacementLoss,
    affinity_displacement_loss,
)
from structseg.losses.multi_scale import resized_labels

_CLASSIFIER = "CONTAClassifier"
_TERMS = AffinityDisplacement._fields[1:]


class CONTARelationNetwork(TrainedModule):
    """Learns edges between classes from relation labels; then spreads class activation maps up to these edges.

    A fit takes the masks of the batch (`--data.masks`, a folder of `relation_labels`) at a quarter of the image's size
    and logs the loss as `train/loss` with its four terms beside; the optimiser's learning rate is that of the edge
    branch. `val/loss` and `test/loss` are the loss on the true masks of those splits; how good the edges are shows in
    the pseudo-masks.

    The mean displacement is that of all training batches since the epoch began, taken over the devices before each
    validation and at the end of the epoch, so before either saves a checkpoint. (IRNet runs through the images once
    more after training; with a learning rate that falls to 0, the weights hardly change where the mean is taken.)

    Prediction of a split gives the pseudo-masks of its images from their class activation maps (`--data.cams`).

    Sources: Ahn, Cho, Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR
    2019; CONTA (Zhang et al., NeurIPS 2020) uses it as it is.

    Args:
        label_space: the classes, linked to the data's; background first.
        backbone: any network that `Backbone` knows; published: `resnet50`.
        output_stride: of the backbone, 8, 16 or 32.
        weights: where the backbone starts: `packaged`, `pretrained` or `random`. It does not learn.
        init_from: checkpoint of a `CONTAClassifier` of the same backbone, whose weights take their place, without its
            context. Read when a fit starts. IRNet does not: None.
        radius: training uses pairs of pixels nearer than this, in pixels of the map.
        walk_radius: one step of the random walk is shorter than this, in pixels of the map.
        beta: power of the affinities in the walk.
        log2_steps: the walk takes 2 to the power of this many steps.
        walk_background: score of the background; the maps have a maximum of 1.
        displacement_lr_factor: learning rate of the displacement branch divided by that of the edge branch.
        pairs: names (A, B) of classes whose confusion in the pseudo-masks is scored separately, as `on/A/B`.
        **kwargs: settings of `TrainedModule`; published: `PolyLR` and a batch of 32.

    Raises:
        ValueError: settings out of range, or an unknown backbone.
    """

    wants_weights = True

    def __init__(
        self,
        label_space: LabelSpace,
        backbone: str = "resnet50",
        output_stride: int = 16,
        weights: Weights = "pretrained",
        init_from: str | None = None,
        radius: int = 10,
        walk_radius: int = 5,
        beta: float = 10.0,
        log2_steps: int = 8,
        walk_background: float = 0.25,
        displacement_lr_factor: float = 10.0,
        pairs: list[tuple[str, str]] | None = None,
        **kwargs: Any,
    ) -> None:
        if min(radius, walk_radius) < 2 or beta <= 0 or log2_steps < 0 or displacement_lr_factor <= 0:
            raise ValueError(
                f"radius {radius}, walk_radius {walk_radius}, beta {beta}, log2_steps {log2_steps}, "
                f"displacement_lr_factor {displacement_lr_factor}; radii of 2 or more, steps of 0 or more, the others "
                "above 0 are needed"
            )
        if not 0 <= walk_background < 1:
            raise ValueError(
                f"walk_background is {walk_background}; from 0 up to below 1, the maps' maximum, is needed"
            )
        network = RelationNet(Backbone(backbone, output_stride, weights))
        super().__init__(network, label_space, **kwargs)
        # The numbers of pairs are those of all devices: the loss is that of the whole batch.
        self.loss = AffinityDisplacementLoss(radius, len(label_space), counts_over_ranks=True)
        self.init_from = None if init_from is None else Path(init_from)
        self.radius, self.walk_radius, self.beta, self.log2_steps = radius, walk_radius, beta, log2_steps
        self.walk_background, self.displacement_lr_factor = walk_background, displacement_lr_factor
        self.pairs = checked_pairs(pairs or (), label_space.classes)
        self._resumed = False  # whether the weights are a checkpoint's
        # This rank's epoch so far: summed dy, summed dx, pixels of the maps, foreground pixels of the labels.
        self._sums = torch.zeros(4, dtype=torch.float64)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Edge logits (N, 1, h, w) and displacements (N, 2, h, w) of images (N, 3, H, W) in 0..1."""
        edges, displacement = self.network(self.normalized(image))
        return edges, displacement

    # Initial weights, parameters

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks the checkpoint, see `TrainedModule`."""
        super().on_load_checkpoint(checkpoint)
        self.network.backbone.initial_weights = checkpoint[KEY]["initial_weights"]
        self._resumed = True

    def on_fit_start(self) -> None:
        """Loads the classifier's backbone, unless the fit is resumed.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: it is of another method, backbone or normalisation.
        """
        if self.init_from is not None and not self._resumed:
            self._take_backbone(self.init_from)
        super().on_fit_start()

    def _take_backbone(self, path: Path) -> None:
        card = read_card(path)
        if card["method"] != _CLASSIFIER:
            raise ValueError(f"{path} is of method {card['method']}; --model.init_from takes one of {_CLASSIFIER}")
        for key, own in (("mean", self.mean), ("std", self.std)):
            if not torch.allclose(torch.tensor(card[key]), own.flatten().cpu()):
                raise ValueError(
                    f"{path} was trained with {key} {card[key]}, not {own.flatten().tolist()}; set --data.{key}"
                )
        state, prefix = torch.load(path, map_location="cpu", weights_only=True)["state_dict"], "network.backbone."
        weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        try:
            self.network.backbone.load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise ValueError(f"the backbone of {path} is another one: {reason}; set --model.backbone") from None
        self.network.backbone.initial_weights = f"{_CLASSIFIER}, from {card['initial_weights']}"

    def _parameter_groups(self) -> Iterator[dict[str, Any]]:
        edge, displacement = self.network.branches()
        yield {"params": edge, "lr_factor": 1}
        yield {"params": displacement, "lr_factor": self.displacement_lr_factor}

    # Training

    def _terms(
        self,
        batch: dict[str, Any],
        split: Split,
        found: tuple[Tensor, Tensor],
        loss: Callable[[Tensor, Tensor, Tensor], AffinityDisplacement],
    ) -> AffinityDisplacement:
        if "mask" not in batch:
            remedy = "set --data.masks to the folder of relation_labels" if split == "train" else NO_TRUTH
            raise ValueError(f"the {split} batch has no masks, which CONTARelationNetwork needs; {remedy}")
        edges, displacement = found
        height, width = edges.shape[-2:]
        if height < self.radius or width < 2 * self.radius - 1:
            raise ValueError(
                f"images of {batch['image'].shape[-2]} x {batch['image'].shape[-1]} have maps of {height} x {width}; "
                f"pairs of radius {self.radius} need {self.radius} x {2 * self.radius - 1}, so images of "
                f"{4 * self.radius - 3} x {8 * self.radius - 7} or more; enlarge them, or set --model.radius"
            )
        return loss(edges, displacement, resized_labels(batch["mask"], (height, width)))

    def _add(self, displacement: Tensor, labels: Tensor) -> None:
        dy, dx = displacement.double().sum((0, 2, 3))
        foreground = ((labels > 0) & (labels < len(self.label_space))).sum()
        sums = [dy, dx, dy.new_tensor(displacement.numel() // 2), foreground.double()]
        self._sums = self._sums.to(self.device) + torch.stack(sums)

    def _settle_displacement(self) -> None:
        """Stores the mean displacement of the epoch so far, over all devices, in the network."""
        dy, dx, pixels, _ = self._reduced_sums()
        if pixels > 0:
            self.network.mean_shift.copy_(torch.stack([dy, dx]) / pixels)

    def _reduced_sums(self) -> Tensor:
        sums: Tensor = self.trainer.strategy.reduce(self._sums.to(self.device, copy=True), reduce_op="sum")
        return sums

    def on_train_epoch_start(self) -> None:
        """Resets the sums of the epoch."""
        self._sums.zero_()

    def on_validation_start(self) -> None:
        """Stores the mean displacement, as the validated weights may be saved."""
        super().on_validation_start()
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._settle_displacement()

    def on_train_epoch_end(self) -> None:
        """Stores the mean displacement; gives a notice if no label was foreground."""
        super().on_train_epoch_end()
        self._settle_displacement()
        pixels, foreground = self._reduced_sums()[2:].tolist()
        if pixels and not foreground:  # 0 in a fit that was resumed at the end of an epoch
            self.notice(
                "the relation labels of a whole epoch hold no foreground; look at the class activation maps and the "
                "thresholds that made them"
            )

    def logged_keys(self) -> set[str]:
        """Every key that a fit logs."""
        return super().logged_keys() | {f"train/{name}" for name in _TERMS}

    # Evaluation

    def _step(self, batch: dict[str, Any], split: Split) -> StepOutput:
        image = batch["image"]
        if split == "train":
            edges, displacement = self(image)
            terms = self._terms(batch, split, (edges, displacement), self.loss)
            self._add(displacement.detach(), batch["mask"])
            self._log_train_loss(terms.total, image)
            for name in _TERMS:
                value = getattr(terms, name)
                self.log(f"train/{name}", value, on_step=False, on_epoch=True, batch_size=len(image), sync_dist=True)
            return {"loss": terms.total}
        edges, displacement = (require_finite(found.float(), batch) for found in self(image))
        terms = self._terms(batch, split, (edges, displacement), self._plain_loss)
        (self.val_loss if split == "val" else self.test_loss).update(terms.total, len(image))
        return {"loss": terms.total}

    def _plain_loss(self, edges: Tensor, displacement: Tensor, labels: Tensor) -> AffinityDisplacement:
        return affinity_displacement_loss(edges, displacement, labels, self.radius, len(self.label_space))

    def on_validation_epoch_end(self) -> None:
        """Logs `val/loss`, the mean over the images of all processes: one of them may have had none."""
        self.log("val/loss", self.val_loss.compute())
        self.val_loss.reset()

    def on_test_epoch_end(self) -> None:
        """Logs `test/loss` likewise."""
        self.log("test/loss", self.test_loss.compute())

    # Prediction

    @torch.no_grad()
    def edges(self, image: Tensor) -> Tensor:
        """Edge probabilities (N, h, w) of images (N, 3, H, W) in 0..1, from logits averaged with the mirror image's.

        h = ceil(H / 4), w = ceil(W / 4). The image is padded to whole cells of the deepest stage, so that its
        cells and those of its mirror image coincide.
        """
        height, width = image.shape[-2:]
        cell = self.network.backbone.strides[-1]
        whole = F.pad(image, (0, -width % cell, 0, -height % cell), mode="replicate")
        seen, mirrored = self(whole)[0].float(), self(whole.flip(-1))[0].float().flip(-1)
        return ((seen + mirrored) / 2).sigmoid()[:, 0, : -(-height // 4), : -(-width // 4)]

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, list[Tensor]]:
        """The pseudo-masks of images whose class activation maps and tags are known.

        Returns:
            `pseudo_masks`: (H, W) uint8 at each image's size, of background and the classes of its tags. `objects` and
            `scores`: the result of `walk_scores`, (H, W) each; the masks are the objects above `walk_background`.

        Raises:
            ValueError: photographs of a folder, or no maps, no tags, or maps of other classes.
        """
        if "original" in batch:
            raise ValueError(
                "CONTARelationNetwork needs class activation maps, which photographs of a folder do not have; predict "
                "these with CONTASegmenter, or set --data.predict_split train and --data.cams"
            )
        for key, remedy in (("cams", "set --data.cams to the folder of cams"), ("tags", "use data with image tags")):
            if key not in batch:
                raise ValueError(f"the batch has no {key}, from which pseudo-masks are made; {remedy}")
        image, tags = batch["image"], batch["tags"] > 0
        edges = require_finite(self.edges(image)[:, None], batch)[:, 0]
        size = (edges.shape[-2], edges.shape[-1])
        for name, cam in zip(batch["name"], batch["cams"], strict=True):
            if len(cam) != len(self.label_space) - 1:
                raise ValueError(
                    f"the cams of {name} are of {len(cam)} classes, {self.label_space.name} has "
                    f"{len(self.label_space) - 1} beside the background; make them anew, or set --data.label_space"
                )
        cams = torch.cat([resize_logits(cam[None].float(), size) for cam in batch["cams"]]) * tags[:, :, None, None]
        walks = random_walk(cams, edges, self.walk_radius, self.beta, self.log2_steps)
        found = [walk_scores(walk, (image.shape[-2], image.shape[-1])) for walk in walks]
        return {
            "pseudo_masks": [objects.masked_fill(scores <= self.walk_background, 0) for scores, objects in found],
            "objects": [objects for _, objects in found],
            "scores": [scores for scores, _ in found],
        }
