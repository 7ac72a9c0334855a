"""Writes the predictions for a split of the data as folders of artefacts, with scores and notices."""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from structseg.datamodules.batch import data_of
from structseg.datamodules.label_spaces import LabelSpace
from structseg.datamodules.round_files import ABOUT, ArtefactManifest, place_of
from structseg.lightning_modules.callbacks.image_scores import gathered, image_columns, image_rows, write_table

IMAGES = "images.csv.gz"  # the scores of each image of a folder of masks, as by `ImageScores`
_PART, _OLD = ".part", ".old"
_UNKNOWN = 255

Truths = Sequence[Tensor | None]  # the (H, W) true mask of each image of a batch, where one is known


class ArtefactWriter(Callback):
    """Base class of the writers of a module's predictions into folders of artefacts.

    The images go to `OUT/KIND.part`, `about.json` last; then all folders of a writer are renamed to `OUT/KIND`, where
    an earlier folder stays until then. Each process writes its own images; the first one renames the folders when all
    are done. A run that is interrupted leaves no new folder under a final name; a `.part` that another one left is
    removed at the start. If images are missing (`limit_predict_batches`, `fast_dev_run`) nothing is kept.

    `about.json` of each folder has all scores of the stage that are not nan, as `PREFIX_KEY`, pooled over the images
    that have a true mask; and the notices of module, datamodule and writer. `images.csv.gz` beside it has the scores of
    each image, if the subclass computes them.

    Args:
        out: the round's folder, made if it is missing.
        label_space: the classes.

    Attributes:
        kinds: names of the subclass's folders, the main one first.
        headline: scores that the last line shows.
        metrics: metrics by the prefix of their scores.
    """

    kinds: tuple[str, ...] = ()
    headline: tuple[str, ...] = ()

    def __init__(self, out: Path, label_space: LabelSpace) -> None:
        self.out, self.label_space = out, label_space
        self.metrics: dict[str, Any] = {}
        self._cases: dict[str, set[str]] = {}
        self._rows: list[list[str]] = []

    def score_image(self, name: str, labels: Tensor, truth: Tensor) -> None:
        """Keeps the scores of an image's (H, W) labels against its true mask, for paired comparisons."""
        self._rows += image_rows([name], labels[None], truth[None], self.label_space)

    def part(self, kind: str) -> Path:
        """The temporary folder of a kind."""
        return self.out / (kind + _PART)

    def note(self, case: str, name: str) -> None:
        """Adds an image to those of a case; `notices` gets the cases of all processes."""
        self._cases.setdefault(case, set()).add(name)

    def write_batch(self, outputs: dict[str, Any], batch: dict[str, Any], truths: Truths) -> None:
        """Writes and scores the images of a batch; for subclasses to override."""
        raise NotImplementedError(f"{type(self).__name__} has no write_batch")

    def finish_images(self) -> None:
        """Finishes the images of this process; for subclasses to override."""

    def measured(self, has_truth: bool) -> dict[str, float]:
        """All scores; all processes must call it, as the metrics are synchronised."""
        if not has_truth:
            return {}
        scores: dict[str, float] = {}
        for prefix, metric in self.metrics.items():
            values = metric.compute()
            scores |= {f"{prefix}_{key}": float(values[key]) for key in metric.metric_keys}
        return {key: value for key, value in scores.items() if math.isfinite(value)}

    def origin(self) -> str:
        """An identifier of this prediction; called on the first process only, for subclasses to override."""
        return ""

    def write_more(self, origin: str) -> None:
        """Writes further files beside the folders; called on the first process only, for subclasses to override."""

    def notices(self, cases: dict[str, set[str]], images: int) -> list[str]:
        """Notices, from the names of the images of each case and the number of images; for subclasses to override."""
        return []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the temporary folders.

        Raises:
            ValueError: there are artefacts of another split, which would be lost.
            OSError: the folders cannot be made.
        """
        split = _split(trainer)
        for kind in self.kinds:
            final = self.out / kind
            if (final / ABOUT).is_file() and (existing := ArtefactManifest.read(final).split) not in ("", split):
                raise ValueError(
                    f"{final} holds the {kind} of the {existing} images, which those of {split} would replace; set "
                    f"--data.predict_out to another folder, or remove this one"
                )
        trainer.predict_loop.return_predictions = False  # they are on disk, and would fill the memory
        self._cases, self._rows = {"images": set(), "with truth": set()}, []
        for metric in self.metrics.values():
            metric.reset()
            metric.to(pl_module.device)
        if trainer.is_global_zero:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                for kind in self.kinds:
                    _tidy(self.out / kind)
                    self.part(kind).mkdir()
            except OSError as error:
                raise OSError(f"no artefacts can go to {self.out} ({error.strerror}); set --data.predict_out") from None
        trainer.strategy.barrier()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes a batch.

        Raises:
            TypeError: the module did not predict artefacts.
            OSError: the disk is full.
        """
        if not isinstance(outputs, dict):
            raise TypeError(
                f"{type(pl_module).__name__} predicted a {type(outputs).__name__}, not artefacts of a split; give a "
                f"datamodule with --data.predict_split train"
            )
        self._cases["images"].update(batch["name"])
        truths = masks_of(batch)
        named_truths = zip(batch["name"], truths, strict=True)
        self._cases["with truth"].update(name for name, mask in named_truths if mask is not None)
        with self._disk():
            self.write_batch(outputs, batch, truths)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Computes the scores, and renames the folders when every process has written its images."""
        with self._disk():
            self.finish_images()
        notices = [*getattr(pl_module, "notices", ()), *data_of(trainer).notices]
        cases: dict[str, set[str]] = {}
        rows: list[list[str]] = []
        for rank_cases, rank_notices, rank_rows in gathered((self._cases, notices, self._rows), trainer.world_size):
            rows += rank_rows
            for case, names in rank_cases.items():
                cases.setdefault(case, set()).update(names)
            notices += [text for text in rank_notices if text not in notices]
        scores = self.measured(bool(cases["with truth"]))
        if trainer.is_global_zero:
            self._rows = sorted({tuple(row): row for row in rows}.values())
            self._conclude(trainer, pl_module, cases, scores, notices)
        trainer.strategy.barrier()  # until the folders are renamed

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Removes the temporary folders; not with several processes, where others may still write into them."""
        if trainer.world_size == 1:
            self._discard()

    def _conclude(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        cases: dict[str, set[str]],
        scores: dict[str, float],
        notices: list[str],
    ) -> None:
        images, expected = len(cases["images"]), len(trainer.predict_dataloaders.dataset)  # type: ignore[union-attr]
        if images < expected:
            self._discard()
            rank_zero_warn(f"{images} of {expected} images were predicted, so no {self.kinds[0]} are kept")
            return
        own = [*self._on_truth(len(cases["with truth"]), images), *self.notices(cases, images)]
        for text in own:
            rank_zero_warn(text)
        with self._disk():
            origin = self.origin()
            for kind in self.kinds:
                ArtefactManifest(
                    kind=kind,
                    place=place_of(self.out / kind),
                    method=type(pl_module).__name__,
                    label_space=self.label_space.name,
                    classes=self.label_space.classes,
                    images=images,
                    scores=scores,
                    notices=tuple(dict.fromkeys([*notices, *own])),
                    split=_split(trainer),
                    origin=origin,
                ).write(self.part(kind))
            if self._rows:
                write_table(self.part(self.kinds[0]) / IMAGES, [image_columns(self.label_space.classes), *self._rows])
            self.write_more(origin)
            for kind in reversed(self.kinds):  # the main one last: if it exists, all do
                _replace(self.part(kind), self.out / kind)
        figures = "".join(f", {key} {scores[key]:.3f}" for key in self.headline if key in scores)
        rank_zero_info(f"{place_of(self.out / self.kinds[0])}: {images} images{figures or ', no scores'}")

    def _on_truth(self, scored: int, images: int) -> list[str]:
        if not scored:
            return [f"{self.kinds[0]} have no scores: the split has no true masks"]
        if scored < images:
            return [f"{self.kinds[0]} are scored on the {scored} of {images} images that have a true mask"]
        return []

    def _discard(self) -> None:
        for kind in self.kinds:
            _tidy(self.out / kind)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            free = shutil.disk_usage(self.out).free / 1e6
            raise OSError(
                f"no room on the disk for {self.part(self.kinds[0])} ({free:.0f} MB free); make room and run this "
                f"stage again: finished stages are kept"
            ) from None


def some(names: set[str], most: int = 3) -> str:
    """`4 images (a, b, c, ...)` or `1 image (a)`.

    >>> some({"b", "a"})
    '2 images (a, b)'
    """
    shown = ", ".join(sorted(names)[:most]) + (", ..." if len(names) > most else "")
    return f"{len(names)} image{'s' if len(names) > 1 else ''} ({shown})"


def masks_of(batch: dict[str, Any]) -> Sequence[Tensor | None]:
    """The true mask (H, W) of each image of a batch; None for an image without one: 255 everywhere."""
    if "mask" not in batch:
        return [None] * len(batch["name"])
    return [mask if bool((mask != _UNKNOWN).any()) else None for mask in batch["mask"]]


def _tidy(final: Path) -> None:
    """Removes the leftovers of an interrupted run; a folder that it had moved away gets its name back."""
    part, old = final.with_name(final.name + _PART), final.with_name(final.name + _OLD)
    shutil.rmtree(part, ignore_errors=True)
    if old.exists() and not final.exists():
        old.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _replace(part: Path, final: Path) -> None:
    old = final.with_name(final.name + _OLD)
    if final.exists():  # a folder cannot be renamed onto one that is not empty
        final.rename(old)
    part.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _split(trainer: Trainer) -> str:
    return data_of(trainer).predict_split or ""
