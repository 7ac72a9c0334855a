"""The base of all datamodules: data loaders, checks of files, and augmentation on the device."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric.utilities.seed import pl_worker_init_function
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from structseg.datamodules.augmentation import Augmentation, AugmentationPipeline
from structseg.datamodules.batch import SPLITS, Batch, DataSettings, MaskFilter, Sample, Split, collate, pad_masks
from structseg.datamodules.checks import raise_problems, refuse
from structseg.datamodules.files.headers import check_headers
from structseg.datamodules.files.listing import Listed
from structseg.datamodules.images import check_image
from structseg.datamodules.label_spaces import LabelSpace
from structseg.datamodules.label_spaces import label_space as find_label_space
from structseg.datamodules.samplers import EpochSampler, EvaluationSampler, WeightedSampler, read_weights, run_seed
from structseg.datamodules.wrappers.blobs import BlobDataset, BlobKind
from structseg.datamodules.wrappers.full_size import Originals
from structseg.datamodules.wrappers.hidden_parts import HiddenPartsDataset
from structseg.datamodules.wrappers.repeated import RepeatedDataset
from structseg.datamodules.wrappers.unlabelled import UnlabelledDataset


def _start_worker(worker: int, rank: int) -> None:
    """Seeds a process that decodes images as Lightning does, and has it pass over the first signal to stop.

    A scheduler sends the signal to all processes, and without this one the fit could not end the step that it saves.
    """
    if int(os.environ.get("PL_SEED_WORKERS", "0")):
        pl_worker_init_function(worker, rank)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _pass_over_once)


def _pass_over_once(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # the second one is that of the process that trains, at its end


class SegmentationDataModule(LightningDataModule, DataSettings):
    """Base of the datamodules: loaders, augmentation and normalisation. Subclasses provide the data sets.

    Args:
        label_space: label space of the masks and of a checkpoint's classes: a name or a `dataset.yaml`, of which
            classes may be chosen, `voc[cat,dog]`.
        size: (H, W) in pixels that images are resized to.
        batch_size: training images per batch on each device.
        num_workers: processes that decode; 0 decodes in the main process.
        augmentation: how training batches are varied.
        mean: mean of each channel, on images in 0..1, that the module subtracts.
        std: standard deviation of each channel, on images in 0..1, that the module divides by.
        score_at: `size` scores masks resized to `size`; `native` scores masks at their own size, one image per batch.
        seed: seed of random splits and drawn images. Order and augmentation follow `--seed_everything`.
        mask_filter: how masks are resized. `nearest` shifts them by up to half a pixel of the file to the left and up;
            `majority` gives each pixel the label that covers most of it.
        blobs: regions on which a loss asks for agreement, made in the workers: the labels, their connected components,
            or superpixels cut along the labels; None: no blobs.
        predict_out: the folder that predictions of a split are written to.
        unlabelled: folder of training images without masks, searched with its subfolders, which replace the labelled
            ones: for a student that learns a teacher's predictions. Labelled images in it are left out.
        sample_weights: draws training images with replacement, as many per epoch as there are: `class` draws every
            class equally often; a CSV file with the header `name,weight` sets the weights. None: each image once.
    """

    originals: Originals | None = None  # set by subclasses whose samples have `original`
    repeats: int = 1  # set by subclasses: how often each training image occurs in an epoch
    download: bool = False  # whether `prepare_data` fetches what is missing

    def __init__(
        self,
        label_space: str = "fasseg",
        size: tuple[int, int] = (256, 256),
        batch_size: int = 8,
        num_workers: int = 0,
        augmentation: Augmentation = Augmentation(),  # noqa: B008  # frozen by use: nothing writes to it
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        score_at: Literal["size", "native"] = "size",
        seed: int = 0,
        predict_out: str = "predictions",
        blobs: BlobKind | None = None,
        mask_filter: MaskFilter = "nearest",
        unlabelled: str | None = None,
        sample_weights: str | None = None,
    ) -> None:
        super().__init__()
        problems: list[str] = []
        if unlabelled is not None and blobs not in (None, "superpixels"):
            problems.append(f"blobs={blobs} with unlabelled (images without labels have superpixels only)")
        if unlabelled is not None and sample_weights == "class":
            problems.append("sample_weights=class with unlabelled (images without labels have no classes)")
        if min(size) < 1:
            problems.append(f"size={tuple(size)} (height and width in pixels, 1 or more)")
        if batch_size < 1:
            problems.append(f"batch_size={batch_size} (1 or more)")
        if num_workers < 0:
            problems.append(f"num_workers={num_workers} (0 or more)")
        if min(std) <= 0:
            problems.append(f"std={tuple(std)} (above 0)")
        raise_problems("data", problems)
        self.label_space: LabelSpace = find_label_space(label_space)
        self.size = (int(size[0]), int(size[1]))
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.mean, self.std = tuple(mean), tuple(std)
        self.score_at = score_at
        self.seed = seed
        self.blobs: BlobKind | None = blobs
        self.mask_filter: MaskFilter = mask_filter
        self.predict_out = predict_out
        self.unlabelled = None if unlabelled is None else Path(unlabelled).expanduser()
        self.sample_weights = sample_weights
        self.pipeline = AugmentationPipeline(augmentation, self.label_space)
        self._datasets: dict[Split, Dataset[Sample]] = {}
        self._checked_files: set[Split] = set()

    def make_dataset(self, split: Split) -> Dataset[Sample] | None:  # noqa: ARG002  # for subclasses
        """The data set of a split, None if there is no such split; subclasses implement it."""
        return None

    def make_unlabelled(self) -> UnlabelledDataset:
        """The images of the folder `unlabelled` without the labelled ones; raises as `UnlabelledDataset`."""
        assert self.unlabelled is not None
        splits: Sequence[Split] = SPLITS if isinstance(self, Listed) else ()
        labelled = {sample.image.resolve() for split in splits for sample in self.file_samples(split, [])}  # type: ignore[attr-defined]
        return UnlabelledDataset(self.unlabelled, self.size, labelled)

    def check_files(self, splits: Sequence[Split]) -> None:
        """Checks the files of splits, once, by names and headers; `structseg check` lists the same faults.

        Raises:
            FileNotFoundError: a folder or a list is missing.
            ValueError: files are missing, do not fit or are listed twice; the first faults are named.
        """
        faults: list[str] = []
        for split in splits if isinstance(self, Listed) else ():
            if split in self._checked_files or (split == "train" and self.unlabelled is not None):
                continue
            samples = self.file_samples(split, faults)  # type: ignore[attr-defined]
            for line in check_headers(samples, faults):
                rank_zero_warn(f"{split}: {line}")
            self._checked_files.add(split)
        if faults:
            self._checked_files.clear()
        refuse(list(dict.fromkeys(faults)), type(self).__name__, "structseg check lists all")

    def dataset(self, split: Split) -> Dataset[Sample]:
        """The data set of a split, made once.

        Raises:
            FileNotFoundError: as `check_files`.
            ValueError: as `check_files`, or there is no such split, or it is empty.
        """
        if split not in self._datasets:
            self.check_files((split,))
            if split == "train" and self.unlabelled is not None:
                unlabelled = self.make_unlabelled()
                for path in unlabelled.files:  # finds damaged files before training instead of in the middle of it
                    check_image(path)
                made: Dataset[Sample] | None = unlabelled
            else:
                made = self.make_dataset(split)
            if made is None or len(made) == 0:  # type: ignore[arg-type]
                raise ValueError(f"{type(self).__name__} has no {split} images; choose settings or data that have some")
            if self.mask_filter != "nearest":
                if not hasattr(made, "mask_filter"):
                    raise ValueError(
                        f"mask_filter={self.mask_filter}, which {type(self).__name__} does not support; leave it out"
                    )
                made.mask_filter = self.mask_filter
            if self.blobs is not None:
                made = BlobDataset(made, self.blobs)
            if split != "train" and self.originals is not None and self.originals.hide_parts:
                made = HiddenPartsDataset(made, self.originals.hide_parts, self.label_space, self.seed)
            self._datasets[split] = made
        return self._datasets[split]

    def class_pixels(self) -> Tensor:
        """As `DataSettings.class_pixels`, of the masks before augmentation."""
        data = self.dataset("train")
        data = data.data if isinstance(data, BlobDataset) else data  # to count, no blobs need be made
        counts = torch.zeros(256, dtype=torch.int64)
        for index in range(len(data)):  # type: ignore[arg-type]
            sample = data[index]
            if "mask" not in sample:
                raise ValueError(f"{sample['name']} has no mask to count for balanced weights; give class weights")
            counts += torch.bincount(sample["mask"].flatten(), minlength=256)
        return counts[: len(self.label_space)]

    def _load(self, data: Dataset[Sample], train: bool) -> DataLoader[Sample]:
        """The loader of a data set; in evaluation with `score_at=native` its batches hold one image."""
        return DataLoader(
            data,
            batch_size=1 if not train and self.score_at == "native" else self.batch_size,
            sampler=self._sampler(data, train),
            num_workers=self.num_workers,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=partial(_start_worker, rank=self.trainer.global_rank if self.trainer else 0),
        )

    def _sampler(self, data: Dataset[Sample], train: bool) -> DistributedSampler[Sample]:
        """Draws this process's share by (seed, epoch) alone; in evaluation no sample is repeated to even out ranks."""
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        if train and self.sample_weights is not None:
            weights = read_weights(self.sample_weights, self.dataset("train"))
            return WeightedSampler(data, world, rank, weights, seed=run_seed())
        if train:
            return EpochSampler(data, world, rank, shuffle=True, seed=run_seed())
        return EvaluationSampler(data, world, rank)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled by (seed, epoch): every image once per epoch, or `repeats` times."""
        data = self.dataset("train")
        return self._load(data if self.repeats == 1 else RepeatedDataset(data, self.repeats), train=True)

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """In order, each image once over all ranks; no loader without validation images."""
        return self._load(self.dataset("val"), train=False) if self.has_validation else []

    def test_dataloader(self) -> DataLoader[Sample]:
        """In order, each image once over all ranks."""
        return self._load(self.dataset("test"), train=False)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:  # noqa: ARG002  # Lightning's hook
        """Augments training batches on their device, seeded by (seed, epoch, batch, rank) alone."""
        trainer = self.trainer
        if trainer is None or not trainer.training:
            return batch
        position = [trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready]
        return self.augment(batch, [run_seed(), *position, trainer.global_rank])

    def augment(self, batch: Batch, seed: list[int]) -> Batch:
        """The augmented batch, by random numbers from `seed`; the global generators keep their state."""
        device = batch["image"].device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
            augmented: Batch = self._augment_originals(batch) if "original" in batch else self.pipeline(batch)
            return augmented

    def _augment_originals(self, batch: Batch) -> Batch:
        """Augments originals and masks at their own size, and makes the images from them."""
        originals = batch["original"]
        sizes = [(original.shape[-2], original.shape[-1]) for original in originals]
        groups = [range(len(sizes))] if len(set(sizes)) == 1 else [range(i, i + 1) for i in range(len(sizes))]
        small: tuple[int, int] = (batch["image"].shape[-2], batch["image"].shape[-1])
        images, varied, masks = [], [], []
        for group in groups:
            height, width = sizes[group[0]]
            part: Batch = {"image": torch.stack([originals[i] for i in group])}
            if "mask" in batch:
                part["mask"] = batch["mask"][group.start : group.stop, :height, :width]
            part = self.pipeline(part)
            varied += list(part["image"])
            masks += list(part["mask"])
            images.append(F.interpolate(part["image"], small, mode="bilinear", antialias=True))
        batch = batch.copy()
        batch["image"], batch["original"] = torch.cat(images), varied
        batch["mask"] = pad_masks(masks, self.label_space.ignore_index)
        return batch
