"""How a predict over a split of the data becomes folders of artefacts: whole, scored, and with what has to be known."""

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

IMAGES = "images.csv.gz"  # what each image of a folder of masks scored, as `ImageScores` writes it
_PART, _OLD = ".part", ".old"
_UNKNOWN = 255

Truths = Sequence[Tensor | None]  # the (H, W) true mask of each image of a batch, where one is known


class ArtefactWriter(Callback):
    """Writes what a module predicts of each image into folders of artefacts; a child says which and how.

    `OUT/KIND.part` is filled, `about.json` last, and then named `OUT/KIND`, all folders of a child together; an earlier
    folder of that name stays until then. Each process writes its own images; the first one names the folders when all
    have. A run that is broken off leaves no folder under its final name, and what another left as `.part` is removed at
    the start. Images left out (`limit_predict_batches`, `fast_dev_run`) make no whole folder: nothing is kept.

    `about.json` of each folder has all scores of the stage, as `PREFIX_KEY`, pooled over the images that have a true
    mask, those that are nan left out; and the notices of module, datamodule and writer. `images.csv.gz` beside it has
    what each image scored, where the child scores images.

    Args:
        out: the round's folder, made if it is missing.
        label_space: the classes.

    Attributes:
        kinds: of a child: the names of its folders, the main one first.
        headline: of a child: the scores that the last line names.
        metrics: of a child: what is measured, by the prefix of its scores.
    """

    kinds: tuple[str, ...] = ()
    headline: tuple[str, ...] = ()

    def __init__(self, out: Path, label_space: LabelSpace) -> None:
        self.out, self.label_space = out, label_space
        self.metrics: dict[str, Any] = {}
        self._cases: dict[str, set[str]] = {}
        self._rows: list[list[str]] = []

    def score_image(self, name: str, labels: Tensor, truth: Tensor) -> None:
        """Keeps what an image's (H, W) labels score against its true mask, for tests that pair images."""
        self._rows += image_rows([name], labels[None], truth[None], self.label_space)

    def part(self, kind: str) -> Path:
        """The folder that is filled."""
        return self.out / (kind + _PART)

    def note(self, case: str, name: str) -> None:
        """Keeps that an image is a case of something; `notices` gets the images of all processes by case."""
        self._cases.setdefault(case, set()).add(name)

    def write_batch(self, outputs: dict[str, Any], batch: dict[str, Any], truths: Truths) -> None:
        """A child writes and scores the images of a batch."""
        raise NotImplementedError(f"{type(self).__name__} has no write_batch")

    def finish_images(self) -> None:
        """A child ends what it still has under way on this process."""

    def measured(self, has_truth: bool) -> dict[str, float]:
        """All scores; every process comes here, for the counts to meet."""
        if not has_truth:
            return {}
        scores: dict[str, float] = {}
        for prefix, metric in self.metrics.items():
            values = metric.compute()
            scores |= {f"{prefix}_{key}": float(values[key]) for key in metric.metric_keys}
        return {key: value for key, value in scores.items() if math.isfinite(value)}

    def origin(self) -> str:
        """What distinguishes a child's folders from those of another prediction; on the first process alone."""
        return ""

    def write_more(self, origin: str) -> None:  # for children
        """A child writes what lies beside its folders; on the first process alone."""

    def notices(self, cases: dict[str, set[str]], images: int) -> list[str]:
        """A child's notices, from the names of the images of each case and the number of all images."""
        return []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes empty folders beside the final ones.

        Raises:
            ValueError: there are artefacts of another split, which would be lost.
            OSError: the folders cannot be made.
        """
        split = _split(trainer)
        for kind in self.kinds:
            whole = self.out / kind
            if (whole / ABOUT).is_file() and (theirs := ArtefactManifest.read(whole).split) not in ("", split):
                raise ValueError(
                    f"{whole} holds the {kind} of the {theirs} images, in whose place those of {split} would come; set "
                    f"--data.predict_out to another folder, or remove this one"
                )
        trainer.predict_loop.return_predictions = False  # they are on disk; in memory they would pile up
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
            OSError: the disk is full; the message says where.
        """
        if not isinstance(outputs, dict):
            raise TypeError(
                f"{type(pl_module).__name__} predicted a {type(outputs).__name__}, not artefacts of a split; give a "
                f"datamodule with --data.predict_split train"
            )
        self._cases["images"].update(batch["name"])
        truths = masks_of(batch)
        known = zip(batch["name"], truths, strict=True)
        self._cases["with truth"].update(name for name, mask in known if mask is not None)
        with self._disk():
            self.write_batch(outputs, batch, truths)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores, and gives the folders their names when every process has written its images."""
        with self._disk():
            self.finish_images()
        said = [*getattr(pl_module, "notices", ()), *data_of(trainer).notices]
        cases: dict[str, set[str]] = {}
        rows: list[list[str]] = []
        for theirs, their_said, their_rows in gathered((self._cases, said, self._rows), trainer.world_size):
            rows += their_rows
            for case, names in theirs.items():
                cases.setdefault(case, set()).update(names)
            said += [text for text in their_said if text not in said]
        scores = self.measured(bool(cases["with truth"]))
        if trainer.is_global_zero:
            self._rows = sorted({tuple(row): row for row in rows}.values())
            self._conclude(trainer, pl_module, cases, scores, said)
        trainer.strategy.barrier()  # what comes next finds the folders, on every process

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Removes what is not whole; not on several devices, where others may still write into it."""
        if trainer.world_size == 1:
            self._discard()

    def _conclude(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        cases: dict[str, set[str]],
        scores: dict[str, float],
        said: list[str],
    ) -> None:
        images, wanted = len(cases["images"]), len(trainer.predict_dataloaders.dataset)  # type: ignore[union-attr]
        if images < wanted:
            self._discard()
            rank_zero_warn(f"{images} of {wanted} images were predicted, so no {self.kinds[0]} are kept")
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
                    notices=tuple(dict.fromkeys([*said, *own])),
                    split=_split(trainer),
                    origin=origin,
                ).write(self.part(kind))
            if self._rows:
                write_table(self.part(self.kinds[0]) / IMAGES, [image_columns(self.label_space.classes), *self._rows])
            self.write_more(origin)
            for kind in reversed(self.kinds):  # the main one last: where it is, all are
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
                f"stage again: what was finished is kept"
            ) from None


def some(names: set[str], most: int = 3) -> str:
    """`4 images (a, b, c, ...)` or `1 image (a)`.

    >>> some({"b", "a"})
    '2 images (a, b)'
    """
    shown = ", ".join(sorted(names)[:most]) + (", ..." if len(names) > most else "")
    return f"{len(names)} image{'s' if len(names) > 1 else ''} ({shown})"


def masks_of(batch: dict[str, Any]) -> Sequence[Tensor | None]:
    """The true mask (H, W) of each image of a batch; None where it is unknown: 255 everywhere."""
    if "mask" not in batch:
        return [None] * len(batch["name"])
    return [mask if bool((mask != _UNKNOWN).any()) else None for mask in batch["mask"]]


def _tidy(final: Path) -> None:
    """Undoes what a broken run left: a folder that had made room gets its name back."""
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
