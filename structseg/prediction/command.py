"""`structseg predict CHECKPOINT ... IMAGE ...`: labels photographs, folders, a video or a camera."""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from structseg.messages import UsageError, fail, printable
from structseg.options.plain_parser import PlainParser

if TYPE_CHECKING:  # imported after the arguments are checked
    from PIL import Image

    from structseg.api import Segmenter
    from structseg.prediction.writer import PredictionWriter

_Item = TypeVar("_Item")

_CHECKPOINT = (".ckpt", ".pt", ".pth")
_HUB = "hf://"
_CAMERA = "camera:"
_READERS = 2  # threads that read images while the network works
_PATIENCE = 3  # if so many images fail before any is labelled, the fault lies elsewhere
_SHOWN = 3  # files that the last line names

# Options of earlier versions, with what replaces them.
_OLD = {
    "--ckpt_path": "is no option: the checkpoint comes first: structseg predict CHECKPOINT IMAGE ...",
    "--config": "is no option: the checkpoint holds its configuration",
    "--data.predict_dir": "is no option: images, folders, a video or camera:0 come after the checkpoint",
    "--data.predict_out": "is --out now",
    "--data.batch_size": "is --batch_size now",
    "--data.num_workers": "is no option: images are read ahead automatically",
    "--data.size": "is no option: images are scaled to the size of training images; --tile labels large ones in tiles",
    "--trainer.accelerator": "is --device now: cpu, cuda, mps or auto",
    "--trainer.devices": "is --device now, a single device",
    "--trainer.precision": "is no option: predictions are made in float32",
    "--model.flip_test": "is --flip_test now",
    "--model.test_scales": "is --test_scales now",
    "--model.crf": "is --crf now",
    "--model.crf_workers": "is no option: the CRF refines one image at a time",
    "--model.cropper": "is --cropper now",
}


def make_parser() -> PlainParser:
    """The options of `structseg predict`."""
    parser = PlainParser(
        "predict",
        (
            "runs/fasseg_v2/ID/checkpoints/best.ckpt photo.jpg holiday/ --out labels",
            "seed_0.ckpt seed_1.ckpt seed_2.ckpt holiday/ --device cuda --batch_size 8",
            "best.ckpt camera:0",
        ),
        description="Labels photographs, folders of photographs, a video or a camera with a trained checkpoint. With "
        "several checkpoints of the same classes the probabilities are averaged.",
        usage="structseg predict CHECKPOINT [CHECKPOINT ...] IMAGE|FOLDER|VIDEO|camera:0 ... [options]",
    )
    words = "a file, a run's folder or hf://ORG/NAME; then images, folders, a video or camera:0"
    parser.add_argument("words", nargs="+", metavar="CHECKPOINT", help=words)
    out = "label images, overlays, their legend and summary.csv go there; default: predictions"
    parser.add_argument("--out", type=Path, default=Path("predictions"), metavar="FOLDER", help=out)
    device = "cpu, cuda, cuda:1, mps, or auto: a GPU where there is one; default: auto"
    parser.add_argument("--device", default="auto", metavar="DEVICE", help=device)
    parser.add_argument("--batch_size", type=int, default=1, metavar="N", help="images or tiles at a time; default: 1")
    trained = "; default: as in training"
    parser.add_argument("--flip_test", type=_flag, metavar="BOOL", help=f"average with the mirror image{trained}")
    parser.add_argument("--test_scales", type=_numbers, metavar="X,X", help=f"of CONTA: average over sizes{trained}")
    parser.add_argument("--crf", type=_flag, metavar="BOOL", help=f"of CONTA: refine by the dense CRF{trained}")
    parser.add_argument("--cropper", choices=["stn", "baseline"], help=f"of STN-iCNN: which cropper{trained}")
    tile = "label larger images in tiles of N pixels, at their own resolution"
    parser.add_argument("--tile", type=int, metavar="N", help=tile)
    overlap = "of neighbouring tiles, as a share of one; default: 0.25"
    parser.add_argument("--overlap", type=float, default=0.25, metavar="X", help=overlap)
    return parser


def main(words: list[str]) -> None:
    """Entry point of `structseg predict`.

    Raises:
        UsageError: the arguments are wrong.
        FileNotFoundError: no such checkpoint, image or folder.
        ValueError: nothing could be labelled.
    """
    options = parse(words)
    checkpoints, sources = options.pop("checkpoints"), options.pop("sources")
    out = options.pop("out")

    from structseg.datamodules.predict.inputs import PredictImages, predict_inputs

    inputs = predict_inputs(sources, out)
    from structseg.api import load
    from structseg.prediction.writer import PredictionWriter

    segmenter = load(checkpoints, **options)
    if isinstance(inputs, PredictImages):
        with PredictionWriter(out, segmenter.label_space, list(inputs.files)) as writer:
            writer.passed_over.update(inputs.passed_over)
            label_images(segmenter, inputs.files, writer, options["batch_size"])
    else:
        with PredictionWriter(out, segmenter.label_space, frame_rate=inputs.frame_rate) as writer:
            for frames in _batches(inputs, options["batch_size"]):
                predictions = segmenter([image for _, image in frames])
                for (name, _), prediction in zip(frames, predictions, strict=True):
                    writer.add(name, prediction)
                _progress(len(writer.rows), None)
    _end(writer, {} if not isinstance(inputs, PredictImages) else inputs.passed_over)


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Parses the arguments of `predict` into `checkpoints`, `sources`, `out` and the options of `structseg.load`.

    Raises:
        UsageError: an unknown option, or a wrong value.
        FileNotFoundError: no such checkpoint, image or folder.
        ValueError: no images.
    """
    for word in words:
        name = word.partition("=")[0]
        if name in _OLD:
            raise UsageError(f"predict: {name} {_OLD[name]}")
    given = vars(make_parser().parse_intermixed_args(words))
    paths = given.pop("words")
    count = next((at for at, path in enumerate(paths) if at and not _is_checkpoint(path)), len(paths))
    checkpoints, sources = paths[:count], paths[count:]
    for path in checkpoints:
        if not path.startswith(_HUB) and not Path(path).exists():
            raise FileNotFoundError(f"no checkpoint at {path}; give its file, or the folder of its run")
    if not sources:
        raise ValueError("predict needs images: give images, folders, a video or camera:0 after the checkpoint")
    for source in sources:
        if not source.startswith(_CAMERA) and not Path(source).exists():
            raise FileNotFoundError(f"no file or folder {source}; give images, folders, a video or camera:0")
    return {**given, "checkpoints": checkpoints, "sources": sources}


def _is_checkpoint(word: str) -> bool:
    """Whether an argument after the first one names a checkpoint too."""
    path = Path(word)
    if word.startswith(_HUB) or path.suffix in _CHECKPOINT:
        return True
    return any((path / place / "best.ckpt").is_file() for place in ("", "checkpoints"))


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text} is neither true nor false")
    return text.lower() == "true"


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(number) for number in json.loads(text if text.startswith("[") else f"[{text}]")]
    except (ValueError, TypeError):
        raise argparse.ArgumentTypeError(f"{text} is not a list of numbers such as 0.5,1,1.5") from None
    return numbers


def label_images(segmenter: Segmenter, files: dict[str, Path], writer: PredictionWriter, batch_size: int) -> None:
    """Labels files and writes the predictions; an image that fails is recorded and does not stop the others.

    Args:
        segmenter: labels the images.
        files: by the names of their predictions.
        writer: writes the predictions and records the failures.
        batch_size: images that are labelled together.

    Raises:
        Exception: an error of the network, where the first images all fail in it; or a file could not be written.
    """
    refused = done = 0  # images that failed in the network; images worked through

    def pass_over(name: str, error: Exception) -> None:
        writer.passed_over[name] = " ".join(str(error).split()) or type(error).__name__

    def readable() -> Iterator[tuple[str, Image.Image]]:
        for name, reading in _read_ahead(files, batch_size + _READERS):
            try:
                image = reading.result()
            except (ValueError, OSError, MemoryError) as error:
                pass_over(name, error)
            else:
                yield name, image

    for batch in _batches(readable(), batch_size):
        try:
            predictions = list(zip(batch, segmenter([image for _, image in batch]), strict=True))
        except (ValueError, RuntimeError, MemoryError):
            predictions = []
            for name, image in batch:  # one by one, as a single image may be at fault
                try:
                    predictions.append(((name, image), segmenter(image)))
                except (ValueError, RuntimeError, MemoryError) as error:
                    refused += 1
                    if not writer.rows and not predictions and refused >= min(_PATIENCE, len(files)):
                        raise
                    pass_over(name, error)
        for (name, _), prediction in predictions:
            writer.add(name, prediction)
        done += len(batch)
        _progress(done, len(files))


def _read_ahead(files: dict[str, Path], count: int) -> Iterator[tuple[str, Future[Image.Image]]]:
    """The images in order, read ahead by threads; at most `count` at a time."""
    from structseg.datamodules.images import read_image

    rest = iter(files.items())
    with ThreadPoolExecutor(_READERS) as pool:
        try:
            waiting = deque((name, pool.submit(read_image, file)) for name, file in islice(rest, count))
            while waiting:
                yield waiting.popleft()
                waiting.extend((name, pool.submit(read_image, file)) for name, file in islice(rest, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def _progress(done: int, total: int | None) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done} frames" if total is None else f"\r{done} of {total} images")
        sys.stderr.flush()


def _end(writer: PredictionWriter, skipped: dict[str, str]) -> None:
    """Prints what was done and passed over; an error where files beside those `skipped` from the start failed."""
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    over = writer.passed_over
    failed = over.keys() - skipped.keys()
    named = _listed(f"{name} ({over[name]})" for name in [*sorted(failed), *skipped])
    if not writer.rows:
        raise ValueError(f"nothing could be labelled: {named}")
    line = f"predictions: {writer.out}, {len(writer.rows)} labelled"
    if len(writer.rows) > 1 and not any(sum(row.pixels[1:]) for row in writer.rows):
        line += ", all of them only background: check the training"
    if over:
        line += f"; {len(over)} passed over, named in {writer.out / 'summary.csv'}: {named}"
    if failed:
        fail(line)
    print(printable(line))


def _listed(texts: Iterable[str]) -> str:
    every = list(texts)
    return "; ".join(every[:_SHOWN]) + (f"; and {len(every) - _SHOWN} more" if len(every) > _SHOWN else "")


def _batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
