"""STN-iCNN: a coarse mask, six windows by a localizer, a network for each part, trained end to end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pytorch_lightning import Callback
from pytorch_lightning.cli import LRSchedulerCallable
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import StepLR

from structseg.datamodules.batch import data_of
from structseg.datamodules.label_spaces import FACE_PARTS, STN, LabelSpace
from structseg.lightning_modules.base import Split, StepOutput
from structseg.lightning_modules.callbacks.window_pictures import WindowPictures, WindowView
from structseg.lightning_modules.checkpoints.card import KEY as CARD
from structseg.lightning_modules.checkpoints.warm_start import load_trained_parts
from structseg.lightning_modules.logits import require_finite
from structseg.lightning_modules.metrics.parts import PartMetrics
from structseg.lightning_modules.metrics.windows import WindowError
from structseg.lightning_modules.networks.icnn import ICNN
from structseg.lightning_modules.networks.localizer import Localizer
from structseg.lightning_modules.networks.spatial_transformer import (
    centers_from_theta,
    crop_labels,
    crop_parts,
    paste_labels,
    paste_parts,
    theta_from_centers,
)
from structseg.lightning_modules.segmentation import SegmentationModule
from structseg.lightning_modules.stn.face_windows import (
    true_centers,
    window_labels,
    window_probabilities,
    with_background,
)
from structseg.lightning_modules.stn.inference import NEEDS, NETWORK_NAMES, Cropper, Stage, STNInference
from structseg.lightning_modules.stn.padded_originals import (
    classes_at_mask_size,
    logits_at_mask_size,
    pad_labels,
    pad_originals,
    size_of,
    small_labels,
)
from structseg.losses.ranks import total_over_ranks, world_size
from structseg.losses.windows import pasted_loss, theta_loss

_TRAINS: dict[str, tuple[str, ...]] = {"coarse": ("network",), "localizer": ("localizer",), "parts": ("parts",)}
TRUE_WINDOWS = "true_windows"  # subset of the scores: at the true windows


class STNiCNN(STNInference, SegmentationModule):
    """Face parsing in two stages joined by a spatial transformer; each fit trains one stage.

    The coarse network labels the image at `--data.size`; the localizer turns its soft mask into six windows; they are
    cropped from the image at its own size, labelled by four networks (brow, eye, nose, mouth; parts on the right are
    mirrored first), and pasted back.

    Source: Yin, Yiu, Hu, Tang, "End-to-End Face Parsing via Interlinked Convolutional Neural Networks", 2020.

    Args:
        label_space: `stn`, that of the data.
        stage: what is trained. `coarse`: the coarse network, on the small image. `localizer`: the localizer, on the
            true windows, with a frozen coarse network. `parts`: the part networks. `end_to_end`: all three, each with
            its learning rate; 0 freezes.
        init_from: checkpoints of earlier stages, whose trained networks are loaded when a fit starts.
        window: (h, w) of the windows, in pixels of the full-size image; odd.
        network: makes an iCNN from its number of classes.
        localizer: makes the localizer from the numbers of classes and parts.
        loss: logits (N, K, H, W) and target (N, H, W) to a scalar, of the coarse mask and of each window; default:
            cross-entropy, as the published code. `OneHotBCELoss` is the paper's equation 16.
        loss_on: for `end_to_end`. `parts` compares the windows with the labels cropped by the same windows, as in the
            paper; a window that moves off its part then has no loss. `pasted` compares the pasted mask with the whole
            labels, always by negative log-likelihood.
        theta_weight: for `end_to_end`, weight of a smooth L1 loss between the windows and the true ones.
        train_on: for `parts`, crops the `true` windows (published) or those of the localizer (`stn`).
        jitter: for `parts`, displacement of the true windows: normal noise with this mean length in pixels, or
            `localizer`: its error on another image of the batch, of the same size but unrelated to the image.
        batch_norm: `frozen` keeps the statistics that earlier stages measured in every batch norm, for small batches.
        cropper: the windows of evaluation and prediction. `stn`: the localizer's. `baseline`: around the centres of the
            coarse mask's parts, in whole pixels. `true`: around the true centres; needs labels.
        zoom: whether the localizer may also scale its windows (equation 15), to half or double; with false
            they keep the size `window`. Stage `localizer` trains a zoom of 1, so only `end_to_end` changes it.
        lr_coarse: learning rate of the coarse network.
        lr_localizer: learning rate of the localizer.
        lr_parts: learning rate of the part networks.
        lr_scheduler: makes the schedule from the optimiser; default: halves all learning rates every 5 epochs.
        **kwargs: settings of `SegmentationModule`.

    Raises:
        ValueError: another label space, or settings that exclude each other.
    """

    scores_class = PartMetrics

    window_labels: Tensor

    def __init__(
        self,
        label_space: LabelSpace,
        stage: Stage,
        init_from: list[str] | None = None,
        window: tuple[int, int] = (81, 81),
        network: Callable[[int], nn.Module] = ICNN,
        localizer: Callable[[int, int], nn.Module] = Localizer,
        loss: nn.Module | None = None,
        loss_on: Literal["parts", "pasted"] = "parts",
        theta_weight: float = 0.0,
        train_on: Literal["true", "stn"] = "true",
        jitter: float | Literal["localizer"] = 0.0,
        batch_norm: Literal["train", "frozen"] = "train",
        cropper: Cropper = "stn",
        zoom: bool = True,
        lr_coarse: float = 1e-3,
        lr_localizer: float = 1e-3,
        lr_parts: float = 1e-3,
        lr_scheduler: LRSchedulerCallable | None = None,
        **kwargs: Any,
    ) -> None:
        if label_space.classes != STN.classes:
            raise ValueError(f"STNiCNN labels the parts of the space stn, not {label_space.name}; set label_space: stn")
        loss = loss or nn.CrossEntropyLoss(ignore_index=label_space.ignore_index)
        lr_scheduler = lr_scheduler or partial(StepLR, step_size=5, gamma=0.5)
        super().__init__(network(len(label_space)), loss, label_space, lr_scheduler=lr_scheduler, **kwargs)
        learning_rates = {"network": lr_coarse, "localizer": lr_localizer, "parts": lr_parts}
        problems = [f"{key}={value} (0 or more)" for key, value in learning_rates.items() if value < 0]
        if min(window) < 2:
            problems.append(f"window={tuple(window)} (height and width in pixels, 2 or more)")
        if theta_weight < 0:
            problems.append(f"theta_weight={theta_weight} (0 or more)")
        if stage != "end_to_end" and (theta_weight or loss_on != "parts"):
            problems.append(f"theta_weight={theta_weight}, loss_on={loss_on} with stage {stage} (only for end_to_end)")
        if stage != "coarse" and getattr(loss, "class_weights", None) is not None:
            problems.append(f"loss.weight={loss.class_weights} with stage {stage} (the classes of windows differ)")
        for key, value, usual in (("train_on", train_on, "true"), ("jitter", jitter, 0)):
            if stage != "parts" and value != usual:
                problems.append(f"{key}={value} with stage {stage} (only for parts)")
        if train_on == "stn" and jitter:
            problems.append(f"jitter={jitter} with train_on=stn (it moves true windows)")
        if jitter != "localizer" and not 0 <= jitter < math.inf:
            problems.append(f"jitter={jitter} (pixels, 0 or more, or localizer)")
        if theta_weight and not (lr_coarse or lr_localizer):
            problems.append(
                f"theta_weight={theta_weight} with lr_coarse=lr_localizer=0 (nothing would be trained by it)"
            )
        if stage == "localizer" and cropper == "true":
            problems.append("cropper=true with stage localizer (its own windows are scored: stn or baseline)")
        if problems:
            raise ValueError("model: " + ", ".join(problems))
        self.make_parts(network, localizer, len(label_space))
        self.stage = stage
        self.init_from = [Path(path) for path in init_from or ()]
        self.window = (int(window[0]), int(window[1]))
        self.loss_on, self.theta_weight, self.train_on, self.zoom = loss_on, theta_weight, train_on, zoom
        self.jitter, self.batch_norm = jitter, batch_norm
        self.cropper = cropper
        self.learning_rates = {
            name: lr for name, lr in learning_rates.items() if name in _TRAINS.get(stage, NETWORK_NAMES) and lr > 0
        }
        if not self.learning_rates:
            raise ValueError(
                f"stage {stage} has no learning rate above 0; set --model.lr_parts, or that of what it trains"
            )
        self.sides = None
        self._resumed = False  # whether the weights are a checkpoint's
        self.trained = set()
        self.register_buffer("window_labels", window_labels(), persistent=False)
        self.val_windows, self.test_windows = WindowError(FACE_PARTS), WindowError(FACE_PARTS)

    # The networks, and which of them are trained

    def setup(self, stage: str) -> None:
        """Freezes what this stage does not train, before DDP wraps the networks."""
        if stage == "fit":
            for name in NETWORK_NAMES:
                getattr(self, name).requires_grad_(name in self.learning_rates)
            self.train()

    def on_fit_start(self) -> None:
        """Loads the networks of earlier stages, unless the fit is resumed.

        Raises:
            FileNotFoundError: a checkpoint of `init_from` is missing.
            ValueError: one of them does not match, or a network that this stage needs was never trained.
        """
        super().on_fit_start()
        if self.cropper == "baseline" and self.stage in ("localizer", "end_to_end"):
            raise ValueError(f"stage {self.stage} learns windows; cropper baseline is for its tests, not its fit")
        if self._resumed:
            return
        card = self.make_card()
        expected = {key: card[key] for key in ("method", "classes", "mean", "std", "window")}
        networks = {name: getattr(self, name) for name in NETWORK_NAMES}
        self.trained |= load_trained_parts(networks, self.init_from, expected)
        needed = set(NETWORK_NAMES if self.stage == "end_to_end" else ())
        if self.stage == "localizer" or self.train_on == "stn" or self.jitter == "localizer":
            needed |= set(NEEDS["stn"])
        if self.stage != "coarse":
            needed |= set(NEEDS[self.cropper])
        learned_anew = set() if self.batch_norm == "frozen" else set(_TRAINS.get(self.stage, ()))
        if self.batch_norm == "frozen":
            needed |= set(self.learning_rates)
        self.require_trained(needed - learned_anew, f"stage {self.stage}", "--model.init_from")

    def train(self, mode: bool = True) -> STNiCNN:
        """Like `nn.Module.train`, but networks that are not trained stay in evaluation mode."""
        super().train(mode)
        for name in set(NETWORK_NAMES) - set(self.learning_rates):
            getattr(self, name).eval()
        return self

    def norms(self) -> Iterator[nn.Module]:
        """The batch norms of all networks."""
        modules = (module for name in NETWORK_NAMES for module in getattr(self, name).modules())
        return (module for module in modules if isinstance(module, _BatchNorm))

    def _parameter_groups(self) -> Iterator[dict[str, Any]]:
        return (
            {"params": list(getattr(self, name).parameters()), "lr": lr} for name, lr in self.learning_rates.items()
        )

    def make_card(self) -> dict[str, Any]:
        """Adds the trained networks, the size of the windows, and the lengths of the photographs' longer sides."""
        trained = sorted(self.trained | set(self.learning_rates))
        return {
            **super().make_card(),
            "trained": trained,
            "window": list(self.window),
            "stage": self.stage,
            "sides": list(self.sides) if self.sides else None,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks the checkpoint and its windows, and reads which networks are trained.

        Raises:
            ValueError: it is of another method, of other classes or windows, or, to resume, of another stage.
        """
        super().on_load_checkpoint(checkpoint)
        card = checkpoint[CARD]
        if tuple(card["window"]) != self.window:
            raise ValueError(
                f"the checkpoint has windows of {tuple(card['window'])}, not {self.window}; set --model.window"
            )
        if self._trainer is not None and self.trainer.state.fn == "fit" and card["stage"] != self.stage:
            raise ValueError(
                f"the checkpoint is of stage {card['stage']}, not {self.stage}; to build on it give --model.init_from"
            )
        self._resumed, self.trained = True, set(card["trained"])
        self.sides = (card["sides"][0], card["sides"][1]) if card.get("sides") else None

    # Losses

    def _labelled_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss; 0 if no pixel is labelled (in training, in any process)."""
        labelled = (target != self.label_space.ignore_index).any()
        if self._loss_over_ranks and world_size(self.training) > 1:
            labelled = total_over_ranks(labelled.int()) > 0
        loss: Tensor = self.loss(logits, torch.where(labelled, target, torch.zeros_like(target)))
        return loss * labelled

    def _parts_loss(self, logits: list[Tensor], labels: Tensor, theta: Tensor, counted: Tensor | None = None) -> Tensor:
        """Equation 17: the mean over the parts; windows that are not `counted` (N, 6) are left out."""
        targets = crop_labels(labels, theta.detach(), self.window, self.label_space.ignore_index)
        targets = self.window_labels[torch.arange(len(FACE_PARTS), device=labels.device)[:, None, None], targets]
        if counted is not None:
            targets = targets.masked_fill(~counted[..., None, None], self.label_space.ignore_index)
        return torch.stack([self._labelled_loss(part, targets[:, i]) for i, part in enumerate(logits)]).mean()

    def _pasted_loss(self, logits: list[Tensor], labels: Tensor, theta: Tensor) -> Tensor:
        """The loss of the pasted mask on the whole labels; equals `_parts_loss` in weight if all windows are right."""
        scores = with_background(paste_parts(window_probabilities(logits), theta, size_of(labels), self.paste_to))
        pixels = theta[..., 0, 0].numel() * self.window[0] * self.window[1]
        return pasted_loss(scores, labels, pixels, self.label_space.ignore_index)

    def _theta_loss(self, theta: Tensor, truth: Tensor, present: Tensor, sizes: Tensor, frame: Tensor) -> Tensor:
        """`theta_loss` relative to each image's size instead of that of the padded batch."""
        extents = torch.tensor(frame.shape[:1:-1], device=frame.device) - 1
        stretch = (extents / (sizes.flip(1) - 1).clamp(min=1))[:, None, :, None]
        return theta_loss(theta * stretch, truth * stretch, present, self.training)

    # Steps

    def _step(self, batch: dict[str, Any], split: Split) -> StepOutput:
        if split != "train":
            return self._evaluate_batch(batch, split)
        image = batch["image"]
        self.input_size = (image.shape[-2], image.shape[-1])
        loss = self._training_loss(batch)
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(image), sync_dist=True)
        return {"loss": loss}

    def _training_loss(self, batch: dict[str, Any]) -> Tensor:
        if self.stage == "coarse":
            return self._labelled_loss(self(batch["image"]), small_labels(batch, data_of(self._trainer).mask_filter))
        frame, labels, sizes, truth, present = self._framed(batch)
        longer = [max(size_of(image)) for image in batch["original"]] + list(self.sides or ())
        self.sides = (min(longer), max(longer))
        absent = (~present).sum().float()
        self.log("train/absent_parts", absent, on_step=False, on_epoch=True, reduce_fx="sum", sync_dist=True)
        if self.stage == "parts" and self.train_on == "true":
            theta = self._jittered(batch, truth, present, sizes, size_of(frame)) if self.jitter else truth
            return self._parts_loss(self.label_windows(frame, theta), labels, theta, present)
        theta = self.stn_theta(self(batch["image"]), sizes, size_of(frame))
        if self.stage == "localizer":
            return self._theta_loss(theta, truth, present, sizes, frame)
        logits = self.label_windows(frame, theta)
        loss = (self._parts_loss if self.loss_on == "parts" else self._pasted_loss)(logits, labels, theta)
        if self.theta_weight:
            loss = loss + self.theta_weight * self._theta_loss(theta, truth, present, sizes, frame)
        return loss

    def _jittered(
        self, batch: dict[str, Any], truth: Tensor, present: Tensor, sizes: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """The true windows (N, 6, 2, 3) displaced by `jitter`, except those of absent parts."""
        centers = centers_from_theta(truth, size)
        if self.jitter == "localizer":
            with torch.no_grad():
                found = centers_from_theta(self.stn_theta(self(batch["image"]), sizes, size), size)
            moves = ((found - centers) * present[..., None]).roll(1, 0)
        else:  # the mean length of a pair of standard normal numbers is sqrt(pi / 2)
            moves = torch.randn_like(centers) * (self.jitter / math.sqrt(math.pi / 2))
        return theta_from_centers(centers + moves * present[..., None], self.window, size)

    def _framed(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The padded images, their labels and sizes, the true windows, and which of their parts are present."""
        frame, sizes = pad_originals(batch, self.window)
        by = data_of(self._trainer).mask_filter
        labels = pad_labels(batch, size_of(frame), self.label_space.ignore_index, by)
        centers, present = true_centers(labels, sizes)
        return frame, labels, sizes, theta_from_centers(centers, self.window, size_of(frame)), present

    def _evaluate_batch(self, batch: dict[str, Any], split: Split) -> StepOutput:
        if self.stage == "coarse":
            coarse = self.evaluated(batch)
            loss = self._labelled_loss(coarse, small_labels(batch, data_of(self._trainer).mask_filter))
            return self._score(split, loss, classes_at_mask_size(coarse, batch), batch)
        frame, labels, sizes, truth, present = self._framed(batch)
        if self.cropper == "true":
            scores, loss = self._parse(batch, frame, truth, labels, present)
            return self._score(split, loss, logits_at_mask_size(scores, batch).argmax(1), batch)
        coarse = self.evaluated(batch)
        theta = self.found_theta(coarse, sizes, size_of(frame))
        (self.val_windows if split == "val" else self.test_windows).update(theta, labels)
        if self.stage == "localizer":
            loss = self._theta_loss(theta, truth, present, sizes, frame)
            return self._score(split, loss, classes_at_mask_size(coarse, batch), batch)
        if split == "test":
            scores, _ = self._parse(batch, frame, truth, labels, present)
            self.subset_scores[TRUE_WINDOWS].update(logits_at_mask_size(scores, batch).argmax(1), batch["mask"])  # type: ignore[operator]
        scores, loss = self._parse(batch, frame, theta, labels)
        return self._score(split, loss, logits_at_mask_size(scores, batch).argmax(1), batch)

    def _parse(
        self, batch: dict[str, Any], frame: Tensor, theta: Tensor, labels: Tensor, counted: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The class scores (N, 9, H, W) of the padded images, and the windows' loss; only `counted` windows (N, 6)."""
        logits = [require_finite(one, batch) for one in self.label_windows(frame, theta)]
        windows = window_probabilities(logits)
        if counted is not None:
            windows = windows * counted[..., None, None, None]
        pasted = paste_parts(windows, theta, size_of(frame), self.paste_to)
        return with_background(pasted), self._parts_loss(logits, labels, theta, counted)

    def on_validation_start(self) -> None:
        """Raises ValueError if a network that is needed was never trained."""
        super().on_validation_start()
        if self.trainer.state.fn != "fit":  # which checks at its start
            self.require_all("validation")

    def on_test_start(self) -> None:
        """Checks that all networks are trained; resets the scores, and adds those at the true windows."""
        self.require_all("test")
        super().on_test_start()
        self.test_windows.reset()
        if self.parses and self.cropper != "true":
            self.subset_scores[TRUE_WINDOWS] = self._scores().to(self.device)

    def on_validation_epoch_end(self) -> None:
        """Logs every score, and those of the windows, as `val/...`."""
        super().on_validation_epoch_end()
        self._log_windows("val/", self.val_windows)

    def on_test_epoch_end(self) -> None:
        """Logs every score, and those of the windows, as `test/...`; at the true windows as `test/true_windows/...`."""
        super().on_test_epoch_end()
        self._log_windows("test/", self.test_windows)

    def _log_windows(self, prefix: str, windows: WindowError) -> None:
        if self.stage != "coarse" and self.cropper != "true":
            for key, value in windows.compute().items():
                self.log(prefix + key, value.float(), prog_bar=key == "center_error" and not self.parses)
        windows.reset()

    def logged_keys(self) -> set[str]:
        """All keys that a fit logs and that depend on what it trains."""
        keys = super().logged_keys()
        if self.stage == "coarse":
            return keys
        windows = set() if self.cropper == "true" else {f"val/{key}" for key in self.val_windows.metric_keys}
        if self.stage == "localizer":  # the masks are those of the frozen coarse network
            keys = {key for key in keys if key.startswith("train/") or key == "val/loss"}
        return keys | windows | {"train/absent_parts"}

    def configure_callbacks(self) -> list[Callback]:
        """The callback that draws the steps for the first faces of a test."""
        name = "windows_test" if self.cropper == "stn" else f"windows_test_{self.cropper}"
        return [WindowPictures(name=name)] if self.parses else []

    @torch.no_grad()
    def views(self, batch: dict[str, Any]) -> list[WindowView]:
        """The steps of each face of an evaluated batch, for pictures."""
        frame, sizes = pad_originals(batch, self.window)
        size = size_of(frame)
        coarse = self(batch["image"]).float()
        theta = self._framed(batch)[3] if self.cropper == "true" else self.found_theta(coarse, sizes, size)
        logits = self.label_windows(frame, theta)
        mask = paste_labels(window_probabilities(logits), theta, size, self.paste_to)
        own = [F.pad(self.paste_to[part, 1:], (1, 0)).to(frame.device) for part in range(len(FACE_PARTS))]
        parts = torch.stack([classes[part.argmax(1)] for classes, part in zip(own, logits, strict=True)], 1)
        centers = centers_from_theta(theta, size)
        window, extent = (torch.tensor(pair[::-1], device=frame.device) for pair in (self.window, size))
        reach = theta[..., :2].diagonal(dim1=-2, dim2=-1) * (extent - 1) / (window - 1) * window / 2
        boxes = torch.cat([centers - reach, centers + reach], -1)
        crops = crop_parts(frame, theta, self.window)
        return [
            WindowView(
                image, coarse[i].argmax(0), boxes[i], crops[i], parts[i], mask[i, : image.shape[1], : image.shape[2]]
            )
            for i, image in enumerate(batch["original"])
        ]
