"""Finds every broken file of a data set, before one of them stops a training."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.progress import Progress
from torch.utils.data import DataLoader

from structseg.audit.copies import find_copies
from structseg.audit.samples import Examined, Finding
from structseg.datamodules.base import SegmentationDataModule
from structseg.datamodules.batch import SPLITS, with_defaults
from structseg.datamodules.files.listing import FileSample, Listed
from structseg.messages import counted

ABSENT = "classes without a pixel"
LISTS, IDENTICAL, SIDES = "lists and pairs", "identical images", "left and right"
LEAKS, NEAR, CORRECTED = (
    "near copies across splits",
    "near copies within a split",
    "left and right, corrected on reading",
)

GROUP = 64  # samples that a worker returns at once
_MAJORITY = 0.75  # share of the comparable images that decides which side is usual
_ENOUGH = 8  # images that it takes at least


class Report(NamedTuple):
    """The result of a check.

    Attributes:
        counts: number of images of each split that has any.
        faults: kind and message of each; the check fails with any.
        notices: kind and message of findings that are no faults.
    """

    counts: dict[str, int]
    faults: list[tuple[str, str]]
    notices: list[tuple[str, str]]


def print_report(datamodule: SegmentationDataModule, workers: int) -> None:
    """Checks a data set and prints its faults and notices by kind.

    Raises:
        SystemExit: with code 1 where there is a fault.
    """
    name = type(datamodule).__name__
    if not isinstance(datamodule, Listed):
        print(f"{name} reads no labelled files: there is nothing to check")
        return
    report = check(datamodule, workers)
    counts = ", ".join(f"{count} {split}" for split, count in report.counts.items())
    _print(report.notices, "notice")
    _print(report.faults, "fault")
    images = counted(sum(report.counts.values()), "image") + (f" ({counts})" if counts else "")
    print(f"{name}: {images}, {counted(len(report.faults), 'fault')}")
    if report.faults:
        raise SystemExit(1)


def _print(messages: Sequence[tuple[str, str]], word: str) -> None:
    for kind, count in sorted(Counter(kind for kind, _ in messages).items()):
        print(f"{kind}: {count} {word}{'s' if count > 1 else ''}")
        for message in sorted(message for other, message in messages if other == kind):
            print(f"  {message}")


def check(datamodule: Listed, workers: int = 0) -> Report:
    """Reads every file of all splits once, in `workers` processes; it needs about 256 bytes of memory a sample."""
    faults: list[tuple[str, str]] = []
    samples, splits, counts = _samples(datamodule, faults)
    findings = _read(samples, workers)
    for finding in findings:
        faults += finding.faults
    notices: list[tuple[str, str]] = []
    _copies(samples, splits, findings, faults, notices)
    _sides(samples, findings, faults, notices)
    _absent(samples, findings, notices)
    return Report(counts, list(dict.fromkeys(faults)), notices)


def _samples(
    datamodule: Listed, faults: list[tuple[str, str]]
) -> tuple[list[FileSample], list[list[str]], dict[str, int]]:
    """Each image once, the splits that it is in, and the number of samples of each split."""
    found: dict[object, tuple[FileSample, list[str]]] = {}
    counts: dict[str, int] = {}
    for split in SPLITS:
        messages: list[str] = []
        try:
            samples = datamodule.file_samples(split, messages)
            if split == "train" and with_defaults(datamodule).unlabelled is not None:
                unlabelled = datamodule.make_unlabelled()  # type: ignore[attr-defined]
                files = zip(unlabelled.names, unlabelled.files, strict=True)
                samples = [FileSample(name, path, datamodule.label_space) for name, path in files]  # type: ignore[attr-defined]
        except (FileNotFoundError, ValueError) as error:
            messages.append(str(error))
            samples = ()
        faults += [(LISTS, message) for message in messages]
        if samples:
            counts[split] = len(samples)
        for sample in samples:
            found.setdefault(sample.image, (sample, []))[1].append(split)
    for sample, where in found.values():
        if "train" in where and len(where) > 1:
            faults.append(
                (LISTS, f"{sample.image} is in {' and '.join(where)}; an image that is trained on scores well")
            )
    return [sample for sample, _ in found.values()], [where for _, where in found.values()], counts


def _read(samples: Sequence[FileSample], workers: int) -> list[Finding]:
    """The findings of the samples, in order; shows a progress bar in a terminal."""
    console = Console(stderr=True)
    findings: list[Finding] = []
    workers = min(workers, -(-len(samples) // GROUP))
    loader = DataLoader(Examined(samples), batch_size=GROUP, num_workers=workers, collate_fn=list)
    gc.freeze()  # otherwise the workers' garbage collectors would write to, and so copy, the shared memory
    try:
        with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
            task = progress.add_task("reading", total=len(samples))
            for group in loader if samples else ():
                findings += group
                progress.update(task, completed=len(findings))
    finally:
        gc.unfreeze()
    return findings


def _absent(samples: Sequence[FileSample], findings: Sequence[Finding], notices: list[tuple[str, str]]) -> None:
    """Adds a notice for each class that is in no mask and so cannot be learned."""
    present = 0
    for finding in findings:
        present |= finding.labels
    if present:
        absent = [name for index, name in enumerate(samples[0].space.classes) if not present >> index & 1]
        notices += [(ABSENT, f"no mask holds {name}") for name in absent]


def _copies(
    samples: Sequence[FileSample],
    splits: Sequence[list[str]],
    findings: Sequence[Finding],
    faults: list[tuple[str, str]],
    notices: list[tuple[str, str]],
) -> None:
    """Adds a fault for copies across splits and identical images, a notice for near copies within a split."""
    read = [index for index, finding in enumerate(findings) if finding.thumbnail is not None]
    thumbnails = [findings[index].thumbnail or b"" for index in read]
    for copy in find_copies(thumbnails, [samples[index].image for index in read]):
        first, second = read[copy.first], read[copy.second]
        names = [f"{samples[i].image} ({', '.join(splits[i])})" for i in (first, second)]
        if copy.identical:
            faults.append((IDENTICAL, f"{names[0]} = {names[1]}"))
            continue
        text = f"{names[0]} ~ {names[1]}{', mirrored' if copy.mirrored else ''}, correlation {copy.correlation:.3f}"
        if splits[first] == splits[second]:
            notices.append((NEAR, text))
        else:
            faults.append((LEAKS, text))


def _sides(
    samples: Sequence[FileSample],
    findings: Sequence[Finding],
    faults: list[tuple[str, str]],
    notices: list[tuple[str, str]],
) -> None:
    """Compares on which sides the left and right classes of each mask lie with most masks, in the files as stored."""
    sided = [(sample, finding.sides) for sample, finding in zip(samples, findings, strict=True) if any(finding.sides)]
    if not sided:
        return
    space = sided[0][0].space
    names = [(space.classes[a], space.classes[b]) for a, b in space.flip_pairs]
    usual = []
    for pair, (one, other) in enumerate(names):
        votes = Counter(sides[pair] for _, sides in sided if sides[pair])
        side, most = max(votes.items(), key=lambda item: item[1], default=(0, 0))
        clear = most >= _ENOUGH and most >= _MAJORITY * sum(votes.values())
        usual.append(side if clear else 0)
        if votes and not clear:
            text = f"{one} lies right of {other} in {votes[1]} images, left of it in {votes[-1]}: too even, or too few"
            notices.append((SIDES, f"{text}, to tell which are exchanged"))
    turned = [f"{one} and {other}" for (one, other), side in zip(names, usual, strict=True) if side < 0]
    if turned:
        text = f"{', '.join(turned)} are exchanged in most images: left means the person's own left, on the right of"
        faults.append((SIDES, f"{text} the picture; exchange the labels"))
    for sample, sides in sided:
        wrong = [names[i] for i, side in enumerate(sides) if side * usual[i] < 0]
        as_usual = any(side * usual[i] > 0 for i, side in enumerate(sides))
        what = str(sample.masks[0]) if sample.masks else sample.name
        if wrong:
            text = f"{what}: {', '.join(f'{one} and {other}' for one, other in wrong)} are exchanged"
            messages, kind = (notices, CORRECTED) if sample.left_right_swapped else (faults, SIDES)
            messages.append((kind, text))
        elif as_usual and sample.left_right_swapped:
            faults.append((SIDES, f"{what} is listed as reversed but lies as in most masks; take it off the list"))
