"""Resumes a fit in the middle of an epoch: with its remaining images, and its means so far."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from structseg.lightning_modules.callbacks.image_scores import gathered

_KEY, _SEEN = "epoch_means", "samples_seen"


class MidEpoch(Callback):
    """What Lightning does not restore from a checkpoint that was written in the middle of an epoch.

    The loader continues with the next batch: the sampler's attribute `seen` is set to (epoch, samples). Lightning would
    start the epoch's order again. `train/loss_epoch` is the mean over the whole epoch, not over its second part.
    """

    def __init__(self) -> None:
        self._earlier: dict[str, tuple[float, float]] = {}  # (sum, weight) of each mean before the resume
        self._seen: int | None = None  # samples of the epoch before the resume, over all processes
        self._resumed_at = (-1, 0, 0)  # epoch, batches and samples at the resume

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stores the sums and weights of the epoch's means of each process, and the number of samples seen."""
        local_sums = {key: (float(m.value), float(m.cumulated_batch_size)) for key, m in _means(trainer).items()}
        checkpoint[_KEY] = gathered(local_sums, trainer.world_size)
        batch_size = getattr(trainer.train_dataloader, "batch_size", None)
        if batch_size:
            epoch, batches, samples = self._resumed_at
            if epoch != trainer.current_epoch:
                batches = samples = 0
            progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
            checkpoint[_SEEN] = samples + (progress.processed - batches) * batch_size * trainer.world_size

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Reads this process's sums; if the number of processes has changed, their total is split evenly."""
        self._seen = checkpoint.get(_SEEN)
        sums_by_rank = checkpoint.get(_KEY) or [{}]
        if len(sums_by_rank) == trainer.world_size:
            self._earlier = sums_by_rank[trainer.global_rank]
            return
        self._earlier = {}
        for key in sums_by_rank[0]:
            value, weight = (sum(column) for column in zip(*(sums[key] for sums in sums_by_rank), strict=True))
            self._earlier[key] = (value / trainer.world_size, weight / trainer.world_size)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets the sampler's position and restarts the loader's iterator, which may exist before the resume."""
        loop = trainer.fit_loop
        epoch: Any = loop.epoch_progress.current
        batch: Any = loop.epoch_loop.batch_progress
        if loop._combined_loader is None or loop._data_fetcher is None or not batch.total.ready:
            return  # nothing has been trained before
        for loader in loop._combined_loader.flattened:
            if hasattr(loader.sampler, "seen"):
                total = self._seen or batch.current.processed * loader.batch_size * trainer.world_size
                seen = 0 if batch.is_last_batch else total // trainer.world_size
                loader.sampler.seen = (epoch.processed, seen)
                if seen:
                    self._resumed_at = (epoch.processed, batch.current.processed, seen * trainer.world_size)
                loader.sampler.set_epoch(epoch.processed)
        iter(loop._data_fetcher)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the earlier sums to those of the first step after the resume."""
        if self._earlier and batch_idx:  # 0: a new epoch, without earlier sums
            for key, metric in _means(trainer).items():
                value, weight = self._earlier.get(key, (0.0, 0.0))
                metric.value = metric.value + value
                metric.cumulated_batch_size = metric.cumulated_batch_size + weight
        self._earlier = {}


def _means(trainer: Trainer) -> dict[str, Any]:
    """The means over this epoch that training steps have logged, by key."""
    results = trainer.fit_loop.epoch_loop._results
    return {key: m for key, m in results.items() if m.is_tensor and m.meta.on_epoch and m.meta.is_mean_reduction}
