"""What every module of the suite shares: normalisation, optimiser, schedule, notices, the card of its checkpoints."""

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


register_type(Tensor, Tensor.tolist, _weights)  # a configuration can give torch's own losses their weights of classes


class StepOutput(TypedDict, total=False):
    """What a step hands to Lightning and to the callbacks: the scalar loss, and the (N, H, W) classes in evaluation."""

    loss: Tensor
    prediction: Tensor


class TrainedModule(NormalizedNetwork, LightningModule):
    """A network with the classes that it knows, and all that does not depend on what it is trained for.

    Args:
        network: on normalised images (N, 3, H, W).
        label_space: the classes.
        optimizer: makes the optimiser from the parameters.
        lr_scheduler: makes the schedule from the optimiser. `PolyLR`, `OneCycle` and torch's `OneCycleLR` step each
            batch, every other schedule each epoch.
        mean: of each channel, on images in 0..1.
        std: deviation of each channel, on images in 0..1.
        recipe_batch: images an optimiser step in the recipe that is followed, all devices and accumulated batches
            together, which a fit is held to by a notice; None: no recipe.

    Attributes:
        notices: what a reader of the figures has to know; they travel in the checkpoint's card.
        wants_weights: whether the method needs pre-trained weights, so that random ones give a notice.
        batch_norm: `frozen`: the statistics of every batch norm stay as they are; a child that may ask for it calls
            `train()` when it is made, as the trainer leaves each part in the mode in which it finds it.
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
        self._validated = False  # since the epoch began

    def _check_normalization(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        wanted = (getattr(self.network, "mean", None), getattr(self.network, "std", None))
        if wanted[0] is not None and wanted != (mean, std):
            raise ValueError(
                f"the network's initial weights ({self.initial_weights}) expect mean {wanted[0]} and std {wanted[1]}, "
                f"not {mean} and {std}; set --data.mean and --data.std to them"
            )

    @property
    def initial_weights(self) -> str:
        """Where the network's first weights came from, in words."""
        return str(getattr(self.network, "initial_weights", "random"))

    def all_notices(self) -> list[str]:
        """The module's, and those of the data that it is trained with."""
        return list(dict.fromkeys([*self.notices, *data_of(self._trainer).notices]))

    def notice(self, text: str) -> None:
        """Warns, and keeps the text for the card; once for each text."""
        if text not in self.notices:
            self.notices.append(text)
            rank_zero_warn(text)

    def on_fit_start(self) -> None:
        """Notices what fails in silence: random weights, a batch that is not the recipe's.

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
        if self.recipe_batch is None:
            return
        each = data_of(self.trainer).batch_size
        if each is None:
            return
        steps, devices = self.trainer.accumulate_grad_batches, self.trainer.world_size
        if each * steps * devices != self.recipe_batch:
            self.notice(
                f"{each * steps * devices} images an optimiser step ({each} a batch, {steps} batches, {devices} "
                f"devices), the recipe has {self.recipe_batch}; set --trainer.accumulate_grad_batches or the learning "
                "rate"
            )

    def on_train_start(self) -> None:
        """Has an epoch of a few steps log its last one, so that nothing that a step logs is in no file."""
        steps = self.trainer.num_training_batches
        if 0 < steps < self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self.trainer.log_every_n_steps = int(steps)  # type: ignore[attr-defined]

    def on_train_epoch_end(self) -> None:
        """Steps a ReduceLROnPlateau that watches what this epoch has logged: before `last.ckpt` is written."""
        for config in self.trainer.lr_scheduler_configs:
            watched = config.monitor or ""
            if config.reduce_on_plateau and (self._validated or watched.startswith("train/")):
                config.scheduler.step(self.trainer.callback_metrics[watched])  # type: ignore[arg-type]
        self._validated = False

    def on_validation_start(self) -> None:
        """Takes the first process's buffers (batch statistics) on all, as DDP does at the first batch that each sees.

        A process without a validation image sees none, and the others would wait for it.
        """
        self._validated = not self.trainer.sanity_checking
        wrapped = self.trainer.model
        if isinstance(wrapped, DistributedDataParallel) and wrapped.broadcast_buffers:
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, 0)
            wrapped.require_forward_param_sync = False

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
        """Starts from nothing."""
        self.test_loss.reset()

    def norms(self) -> Iterator[nn.Module]:
        """The batch norms of the network."""
        return (module for module in self.network.modules() if isinstance(module, _BatchNorm))

    def train(self, mode: bool = True) -> Self:
        """Like `train()`, but a frozen batch norm stays in evaluation mode."""
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
        """Logs all that a metric computes, and starts it anew where there will be another epoch."""
        values = {prefix + key: value.float() for key, value in scores.compute().items()}
        if loss is not None:
            values[prefix + "loss"] = loss.compute()
        # The metrics have already met over the ranks: every rank logs the same numbers.
        for key, value in values.items():
            self.log(key, value, prog_bar=key in _SHOWN)
        for metric in (scores, loss):
            if metric is not None and not self.trainer.testing:
                metric.reset()

    def logged_keys(self) -> set[str]:
        """Every key that a fit logs, so that a watched key can be checked before it starts."""
        return {"train/loss", "train/loss_step", "train/loss_epoch", "val/loss"}

    def _parameter_groups(self) -> Iterable[Any]:
        """Parameters for the optimiser, or groups of them; `lr_factor` of a group multiplies its learning rate."""
        return self.parameters()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser, and the schedule with the interval that it needs."""
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
            config["frequency"] = sys.maxsize  # never by Lightning, which does it after the epoch's checkpoint
            held_out = data_of(self.trainer).has_validation
            known = {key for key in self.logged_keys() if held_out or key.startswith("train/")}
            if config["monitor"] not in known:
                raise ValueError(
                    f"lr_scheduler watches {config['monitor']}, which no step logs here; "
                    f"set --model.lr_scheduler.monitor, such as to {'val/loss' if held_out else 'train/loss'}"
                )
        return {"optimizer": optimizer, "lr_scheduler": config}  # type: ignore[return-value]

    def make_card(self) -> dict[str, Any]:
        """What this module is, in plain values."""
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
        """Refuses the checkpoint of another method or of other classes; a fit takes its own optimiser settings.

        Raises:
            ValueError: it does not fit; the message says how.
        """
        found = checkpoint.get(card.KEY)
        if found is None:
            raise ValueError("the checkpoint has no card of structseg; use one that `structseg fit` wrote")
        if found["method"] != type(self).__name__:
            raise ValueError(
                f"the checkpoint is of method {found['method']}, the model is {type(self).__name__}; "
                f"use --model {found['method']} or another checkpoint"
            )
        if tuple(found["classes"]) != self.label_space.classes:
            raise ValueError(
                f"the checkpoint has the classes of {found['label_space']} ({', '.join(found['classes'])}), the data "
                f"those of {self.label_space.name} ({', '.join(self.label_space.classes)}); set --data.label_space"
            )
        if found["size"]:
            self.input_size = (found["size"][0], found["size"][1])
        if self._trainer is not None and self.trainer.state.fn == "fit" and self.resolved_config:
            arguments = ((c.get("model") or {}).get("init_args") or {} for c in (found["config"], self.resolved_config))
            apply_settings(checkpoint, *arguments)
