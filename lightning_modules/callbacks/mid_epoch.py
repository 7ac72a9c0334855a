"""A fit that resumes in the middle of an epoch: with the images that are left of it, and its means so far."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from structseg.lightning_modules.callbacks.image_scores import gathered

_KEY, _SEEN = "epoch_means", "samples_seen"


class MidEpoch(Callback):
    """What Lightning leaves out of a checkpoint that is written in the middle of an epoch.

    The loader continues with the batch after the last one seen: its sampler knows it by an attribute `seen` of (epoch,
    samples). Lightning would begin the epoch's order again. `train/loss_epoch` is that of the whole epoch; Lightning's
    would be that of its second part.
    """

    def __init__(self) -> None:
        self._earlier: dict[str, tuple[float, float]] = {}
        self._seen: int | None = None  # samples of the epoch, over all processes, before the resume
        self._resumed_at = (-1, 0, 0)  # the epoch, its batches and its samples then

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps the sums behind the epoch's training means, of each process."""
        mine = {key: (float(m.value), float(m.cumulated_batch_size)) for key, m in _means(trainer).items()}
        checkpoint[_KEY] = gathered(mine, trainer.world_size)
        each = getattr(trainer.train_dataloader, "batch_size", None)
        if each:
            epoch, batches, samples = self._resumed_at
            if epoch != trainer.current_epoch:
                batches = samples = 0
            progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
            checkpoint[_SEEN] = samples + (progress.processed - batches) * each * trainer.world_size

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps this process's until the first step has made the means; of another number of processes, the mean."""
        self._seen = checkpoint.get(_SEEN)
        everyones = checkpoint.get(_KEY) or [{}]
        if len(everyones) == trainer.world_size:
            self._earlier = everyones[trainer.global_rank]
            return
        self._earlier = {}
        for key in everyones[0]:
            value, weight = (sum(column) for column in zip(*(theirs[key] for theirs in everyones), strict=True))
            self._earlier[key] = (value / trainer.world_size, weight / trainer.world_size)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the loader's iterator anew: a schedule that asks for the number of steps made it before the resume."""
        loop = trainer.fit_loop
        epoch: Any = loop.epoch_progress.current
        batch: Any = loop.epoch_loop.batch_progress
        if loop._combined_loader is None or loop._data_fetcher is None or not batch.total.ready:
            return  # nothing has been trained before
        for loader in loop._combined_loader.flattened:
            if hasattr(loader.sampler, "seen"):
                of_all = self._seen or batch.current.processed * loader.batch_size * trainer.world_size
                seen = 0 if batch.is_last_batch else of_all // trainer.world_size
                loader.sampler.seen = (epoch.processed, seen)
                if seen:
                    self._resumed_at = (epoch.processed, batch.current.processed, seen * trainer.world_size)
                loader.sampler.set_epoch(epoch.processed)
        iter(loop._data_fetcher)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the earlier sums to those of the first step after the resume."""
        if self._earlier and batch_idx:  # an epoch that begins anew has none
            for key, metric in _means(trainer).items():
                value, weight = self._earlier.get(key, (0.0, 0.0))
                metric.value = metric.value + value
                metric.cumulated_batch_size = metric.cumulated_batch_size + weight
        self._earlier = {}


def _means(trainer: Trainer) -> dict[str, Any]:
    """The means over this epoch that training steps have logged, by key."""
    found = trainer.fit_loop.epoch_loop._results
    return {key: m for key, m in found.items() if m.is_tensor and m.meta.on_epoch and m.meta.is_mean_reduction}
