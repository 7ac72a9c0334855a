"""Base class of all modules: normalisation, optimiser, schedule, notices, and the card in the checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Self, TypedDict

import torch
from jsonargparse.typing import register_type
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torchmetrics import MeanMetric, Metric

from structseg.datamodules.batch import data_of
from structseg.datamodules.label_spaces import LabelSpace
from structseg.lightning_modules.checkpoints import card
from structseg.lightning_modules.checkpoints.resumed_optimizer import apply_settings
from structseg.lightning_modules.inference import NormalizedNetwork
from structseg.lightning_modules.schedules import OneCycle, PolyLR

Split = Literal["train", "val", "test"]

NO_TRUTH = "images of this split have no true mask; give a split or a list of images that have one"
_SHOWN = ("val/miou", "val/map")  # in the progress bar


def _weights(values: Any) -> Tensor:
    if not isinstance(values, list):
        raise ValueError("a list of numbers; structseg.losses.CrossEntropyLoss also takes class names and balanced")
    return torch.tensor(values, dtype=torch.float32)


register_type(Tensor, Tensor.tolist, _weights)  # so that a configuration can give torch's losses class weights


class StepOutput(TypedDict, total=False):
    """What a step returns to Lightning and the callbacks: the scalar loss and, in evaluation, (N, H, W) classes."""

    loss: Tensor
    prediction: Tensor


class TrainedModule(NormalizedNetwork, LightningModule):
    """A network and its classes, with what all methods share in training.

    Args:
        network: takes normalised images (N, 3, H, W).
        label_space: the classes.
        optimizer: makes the optimiser from the parameters.
        lr_scheduler: makes the schedule from the optimiser. `PolyLR`, `OneCycle` and torch's `OneCycleLR` step each
            batch, every other schedule each epoch.
        mean: of each channel, for images in 0..1.
        std: standard deviation of each channel, for images in 0..1.
        recipe_batch: images in an optimiser step of the published recipe, over all devices and accumulated batches; a
            fit with another number gives a notice. None: no recipe.

    Attributes:
        notices: warnings that a reader of the results needs; they are stored in the checkpoint's card.
        wants_weights: whether the method needs pre-trained weights; random ones then give a notice.
        batch_norm: `frozen` keeps the statistics of every batch norm. A subclass that offers it calls `train()` in its
            `__init__`, as the trainer leaves the modes of submodules unchanged.
    """

    wants_weights: bool = False
    batch_norm: str = "train"

    def __init__(
        self,
        network: nn.Module,
        label_space: LabelSpace,
        optimizer: OptimizerCallable = Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        recipe_batch: int | None = None,
    ) -> None:
        super().__init__()
        self.set_network(network, label_space, mean, std)
        self.optimizer, self.lr_scheduler, self.recipe_batch = optimizer, lr_scheduler, recipe_batch
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self._check_normalization(tuple(mean), tuple(std))
        self.input_size: tuple[int, int] | None = None  # of the last training batch, for the checkpoint's card
        self.resolved_config: dict[str, Any] = {}  # set by the command line, for the checkpoint's card
        self.notices: list[str] = []
        self._validated = False  # in this epoch

    def _check_normalization(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        wanted = (getattr(self.network, "mean", None), getattr(self.network, "std", None))
        if wanted[0] is not None and wanted != (mean, std):
            raise ValueError(
                f"the network's initial weights ({self.initial_weights}) expect mean {wanted[0]} and std {wanted[1]}, "
                f"not {mean} and {std}; set --data.mean and --data.std to them"
            )

    @property
    def initial_weights(self) -> str:
        """The source of the network's initial weights."""
        return str(getattr(self.network, "initial_weights", "random"))

    def all_notices(self) -> list[str]:
        """The notices of the module and of its datamodule, each once."""
        return list(dict.fromkeys([*self.notices, *data_of(self._trainer).notices]))

    def notice(self, text: str) -> None:
        """Warns, and keeps the text for the card; a known text is passed over."""
        if text not in self.notices:
            self.notices.append(text)
            rank_zero_warn(text)

    def on_fit_start(self) -> None:
        """Gives a notice for random weights and for a batch size other than the recipe's.

        Raises:
            ValueError: a precision without float32 weights.
        """
        if self.trainer.precision in ("bf16-true", "16-true"):
            raise ValueError(
                f"--trainer.precision {self.trainer.precision} keeps no float32 weights, which losses and checkpoints "
                f"here need; use {self.trainer.precision.removesuffix('true')}mixed"
            )
        if self.wants_weights and self.initial_weights.startswith("random"):
            self.notice("the network starts from random weights, the method from pre-trained ones; set --model.weights")
        batch_size = data_of(self.trainer).batch_size
        if self.recipe_batch is None or batch_size is None:
            return
        steps, devices = self.trainer.accumulate_grad_batches, self.trainer.world_size
        if (images := batch_size * steps * devices) != self.recipe_batch:
            self.notice(
                f"{images} images an optimiser step ({batch_size} a batch, {steps} batches, {devices} devices), the "
                f"recipe has {self.recipe_batch}; set --trainer.accumulate_grad_batches or the learning rate"
            )

    def on_train_start(self) -> None:
        """Lowers `log_every_n_steps` to the steps of a short epoch, whose step values would else not be logged."""
        steps = self.trainer.num_training_batches
        if 0 < steps < self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self.trainer.log_every_n_steps = int(steps)  # type: ignore[attr-defined]

    def on_train_epoch_end(self) -> None:
        """Steps a ReduceLROnPlateau whose monitored value this epoch has logged, before `last.ckpt` is written."""
        for config in self.trainer.lr_scheduler_configs:
            monitor = config.monitor or ""
            if config.reduce_on_plateau and (self._validated or monitor.startswith("train/")):
                config.scheduler.step(self.trainer.callback_metrics[monitor])  # type: ignore[arg-type]
        self._validated = False

    def on_validation_start(self) -> None:
        """Broadcasts the first process's buffers (batch statistics) to all.

        DDP does so at the first batch of each process, and would wait for one without validation images.
        """
        self._validated = not self.trainer.sanity_checking
        ddp = self.trainer.model
        if isinstance(ddp, DistributedDataParallel) and ddp.broadcast_buffers:
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, 0)
            ddp.require_forward_param_sync = False

    def _step(self, batch: dict[str, Any], split: Split) -> StepOutput:
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> StepOutput:
        """The loss of an augmented batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> StepOutput:
        """Scores a validation batch."""
        return self._step(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> StepOutput:
        """Scores a test batch."""
        return self._step(batch, "test")

    def on_test_start(self) -> None:
        """Resets the test loss."""
        self.test_loss.reset()

    def norms(self) -> Iterator[nn.Module]:
        """The batch norm layers of the network."""
        return (module for module in self.network.modules() if isinstance(module, _BatchNorm))

    def train(self, mode: bool = True) -> Self:
        """Like `nn.Module.train`, but frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if self.batch_norm == "frozen":
            for norm in self.norms():
                norm.eval()
        return self

    def _log_train_loss(self, loss: Tensor, image: Tensor) -> None:
        """Logs `train/loss` of a batch of images (N, 3, H, W), and keeps their size for the card."""
        self.input_size = (image.shape[-2], image.shape[-1])
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(image), sync_dist=True)

    def _log_scores(self, prefix: str, scores: Metric, loss: MeanMetric | None = None) -> None:
        """Logs all values of a metric; resets it, except in a test, after which they are still read."""
        values = {prefix + key: value.float() for key, value in scores.compute().items()}
        if loss is not None:
            values[prefix + "loss"] = loss.compute()
        # No sync_dist: the metrics are already summed over the ranks.
        for key, value in values.items():
            self.log(key, value, prog_bar=key in _SHOWN)
        for metric in (scores, loss):
            if metric is not None and not self.trainer.testing:
                metric.reset()

    def logged_keys(self) -> set[str]:
        """All keys that a fit logs, so that monitored keys can be checked before it starts."""
        return {"train/loss", "train/loss_step", "train/loss_epoch", "val/loss"}

    def _parameter_groups(self) -> Iterable[Any]:
        """The parameters, or groups of them, for the optimiser; a group's `lr_factor` multiplies its learning rate."""
        return self.parameters()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser, and the schedule with its interval.

        Raises:
            ValueError: too few steps for `OneCycleLR`, or a monitored key that is not logged.
        """
        optimizer = self.optimizer(self._parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * group.get("lr_factor", 1.0)
        if self.lr_scheduler is None:
            return optimizer
        try:
            schedule = self.lr_scheduler(optimizer)
        except ValueError as error:
            raise ValueError(
                f"lr_scheduler: {error}; PolyLR and OneCycle find the number of steps themselves"
            ) from None
        if isinstance(schedule, PolyLR | OneCycle) and schedule.total_steps is None:
            schedule.total_steps = int(self.trainer.estimated_stepping_batches)
        steps = int(self.trainer.estimated_stepping_batches) if isinstance(schedule, OneCycleLR) else 0
        if isinstance(schedule, OneCycleLR) and schedule.total_steps < steps:
            raise ValueError(
                f"OneCycleLR has {schedule.total_steps} steps, the fit {steps}; set --model.lr_scheduler.total_steps, "
                "or use OneCycle, which finds their number itself"
            )
        by_step = isinstance(schedule, PolyLR | OneCycle | OneCycleLR)
        config: dict[str, Any] = {"scheduler": schedule, "interval": "step" if by_step else "epoch"}
        if isinstance(schedule, ReduceLROnPlateau):
            config["monitor"] = getattr(schedule, "monitor", "val/loss")
            config["frequency"] = sys.maxsize  # never by Lightning, which steps it after the epoch's checkpoint
            has_validation = data_of(self.trainer).has_validation
            logged = {key for key in self.logged_keys() if has_validation or key.startswith("train/")}
            if config["monitor"] not in logged:
                raise ValueError(
                    f"lr_scheduler watches {config['monitor']}, which no step logs here; "
                    f"set --model.lr_scheduler.monitor, such as to {'val/loss' if has_validation else 'train/loss'}"
                )
        return {"optimizer": optimizer, "lr_scheduler": config}  # type: ignore[return-value]

    def make_card(self) -> dict[str, Any]:
        """The module's card: what a checkpoint says of itself, in plain values."""
        return {
            "method": type(self).__name__,
            **card.describe_space(self.label_space),
            "mean": [float(v) for v in self.mean.flatten()],
            "std": [float(v) for v in self.std.flatten()],
            "size": list(self.input_size) if self.input_size else None,
            "initial_weights": self.initial_weights,
            "notices": self.all_notices(),
            "config": self.resolved_config,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts the card into the checkpoint."""
        checkpoint[card.KEY] = self.make_card()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks method and classes of the checkpoint; a resumed fit uses its own optimiser settings.

        Raises:
            ValueError: no card, another method, or other classes.
        """
        saved = checkpoint.get(card.KEY)
        if saved is None:
            raise ValueError("the checkpoint has no card of structseg; use one that `structseg fit` wrote")
        if saved["method"] != type(self).__name__:
            raise ValueError(
                f"the checkpoint is of method {saved['method']}, the model is {type(self).__name__}; "
                f"use --model {saved['method']} or another checkpoint"
            )
        if tuple(saved["classes"]) != self.label_space.classes:
            raise ValueError(
                f"the checkpoint has the classes of {saved['label_space']} ({', '.join(saved['classes'])}), the data "
                f"those of {self.label_space.name} ({', '.join(self.label_space.classes)}); set --data.label_space"
            )
        if saved["size"]:
            self.input_size = (saved["size"][0], saved["size"][1])
        if self._trainer is not None and self.trainer.state.fn == "fit" and self.resolved_config:
            arguments = ((c.get("model") or {}).get("init_args") or {} for c in (saved["config"], self.resolved_config))
            apply_settings(checkpoint, *arguments)
