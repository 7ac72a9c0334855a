"""Pictures of a run: image | truth | prediction in validation and test, and the curves of the losses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_warn

from structseg.datamodules.label_spaces import LabelSpace
from structseg.lightning_modules.drawing.charts import Curve, loss_curves, read_curves
from structseg.lightning_modules.drawing.label_sheets import Example, make_example, sheet


class Pictures(Callback):
    """Draws the first images of the validation and test data, and at the end of a fit the curves of the losses.

    In the run's folder: `pictures/val_epoch_0009.png` (epochs counted from 0), `pictures/val.png` after `validate`,
    `pictures/test.png`, `pictures/loss.png`. In W&B, if it is among the loggers: `val/pictures` and `test/pictures`,
    with truth and prediction as mask overlays. With several processes the first one draws images of its own.

    Args:
        count: images to draw; 0 draws only the curves.
        every_n_epochs: number of epochs from one drawn validation to the next; the last epoch is drawn too, unless
            `EarlyStopping` ends the fit.

    Raises:
        ValueError: `count` is negative, or `every_n_epochs` below 1.
    """

    def __init__(self, count: int = 8, every_n_epochs: int = 10) -> None:
        if count < 0 or every_n_epochs < 1:
            raise ValueError(f"pictures: count={count}, every_n_epochs={every_n_epochs}; give 0 or more, and 1 or more")
        self.count, self.every_n_epochs = count, every_n_epochs
        self._examples: list[Example] = []
        self._curves: dict[str, Curve] = {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drops the images of an earlier epoch."""
        self._examples = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the images of the first batches, in an epoch that is drawn."""
        self._keep(trainer, pl_module, outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the kept images."""
        name = f"val_epoch_{trainer.current_epoch:04d}" if trainer.state.fn == "fit" else "val"
        self._draw(trainer, pl_module, "val", name)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the epoch's scores, for runs without `metrics.csv`."""
        if not trainer.sanity_checking:
            self._keep_points(trainer, {"val/loss": "val/loss", "val/miou": "val/miou"})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the epoch's loss, for runs without `metrics.csv`."""
        self._keep_points(trainer, {"train/loss_epoch": "train/loss"})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the curves, from `metrics.csv` if there is one, which also has the epochs before a resume."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        metrics = Path(trainer.default_root_dir) / "metrics.csv"
        try:
            loss_curves(read_curves(metrics) if metrics.is_file() else self._curves, _folder(trainer) / "loss.png")
        except OSError as error:
            _warn("loss.png", error)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the kept images."""
        self._draw(trainer, pl_module, "test", "test")

    def _wanted(self, trainer: Trainer) -> bool:
        if trainer.sanity_checking or trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return False
        if trainer.state.fn != "fit":
            return True
        epoch = trainer.current_epoch + 1
        last_step = 0 < trainer.max_steps <= trainer.global_step
        return epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs or last_step or trainer.should_stop

    def _keep(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any) -> None:
        missing = self.count - len(self._examples)
        if missing <= 0 or not isinstance(outputs, Mapping) or "prediction" not in outputs or not self._wanted(trainer):
            return
        parts = (batch["image"], batch["mask"], outputs["prediction"], batch["name"])
        for image, truth, prediction, name in list(zip(*parts, strict=True))[:missing]:
            self._examples.append(make_example(image, truth, prediction, _space(pl_module), name))

    def _draw(self, trainer: Trainer, pl_module: LightningModule, split: str, name: str) -> None:
        examples, self._examples = self._examples, []
        if not examples:
            return
        space = _space(pl_module)
        try:
            sheet(examples, space).save(_folder(trainer) / f"{name}.png")
        except OSError as error:
            _warn(f"{name}.png", error)
        labels = {**dict(enumerate(space.classes)), space.ignore_index: "ignored"}
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(
                    f"{split}/pictures",
                    [example.image for example in examples],
                    step=trainer.global_step,
                    caption=[example.name for example in examples],
                    masks=[
                        {
                            "truth": {"mask_data": example.truth, "class_labels": labels},
                            "prediction": {"mask_data": example.prediction, "class_labels": labels},
                        }
                        for example in examples
                    ],
                )

    def _keep_points(self, trainer: Trainer, keys: Mapping[str, str]) -> None:
        metrics = trainer.callback_metrics  # on every process: reading may synchronise them
        for key, name in keys.items():
            if key in metrics and metrics[key].isfinite():
                self._curves.setdefault(name, []).append((trainer.current_epoch + 1, float(metrics[key])))


def _space(pl_module: LightningModule) -> LabelSpace:
    space = pl_module.label_space
    assert isinstance(space, LabelSpace)
    return space


def _folder(trainer: Trainer) -> Path:
    folder = Path(trainer.default_root_dir) / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _warn(name: str, error: OSError) -> None:
    rank_zero_warn(f"pictures/{name} could not be written ({error}); the run continues")
