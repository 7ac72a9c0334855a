"""Compact copies of what rows read: images shrunk to the size they are trained in, readable by the same datamodules."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from structseg.command.configs import make_datamodule, resolved_config
from structseg.datamodules.base import SegmentationDataModule
from structseg.datamodules.images import read_image, resize_image
from structseg.datamodules.packed import MARKER, PackedFile
from structseg.files import ROOT
from structseg.pipelines.file import load_pipeline
from structseg.pipelines.session import Session
from structseg.results.manifest import Row, args_of_stages, args_to_fit, data_folder

MIB = 1 << 20


@runtime_checkable
class Packable(Protocol):
    """A datamodule whose data can be packed."""

    def files_to_pack(self) -> Iterable[PackedFile]:
        """Every file that training, validation and test read."""


def pack_rows(
    rows: Sequence[Row], out: Path, data_root: Path | None, limit_mib: float = 64.0, quality: int | None = None
) -> int:
    """Writes `out/<data>/...` for the rows' data, a data root of its own, or nothing.

    An image is stored as PNG at the size that it is trained in, or as it is where that takes less room: both give the
    same pixels as the original. With `quality` it is stored as JPEG, which does not. Where rows want the same data at
    different sizes, their images are copied as they are.

    Args:
        rows: rows of the manifest.
        out: a folder that is empty or does not exist.
        data_root: folder that holds the data folders.
        limit_mib: the largest size.
        quality: of JPEG, 1..100; None = lossless.

    Returns:
        The size in bytes.

    Raises:
        FileNotFoundError: data are not there.
        ValueError: `out` is not empty, the copy passes the limit, or a datamodule cannot be packed.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty; give a new folder, or empty it")
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"quality is {quality}; JPEG has 1 to 100")
    wanted: dict[str, list[PackedFile]] = {}
    for row in rows:
        folder = data_folder(row, data_root)
        if folder is None:
            print(f"{row.name}: its data are made, not read")
            continue
        wanted.setdefault(row.data, []).extend(_files(row, folder))
    out.parent.mkdir(parents=True, exist_ok=True)
    limit = int(limit_mib * MIB)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as stage:
        copy = Path(stage) / "copy"
        copy.mkdir()
        total = 0
        for data, files in wanted.items():
            total += _pack_folder(files, copy / data, quality, limit - total, limit_mib)
        if out.exists():
            out.rmdir()
        copy.replace(out)
    print(f"{out}: {total / MIB:.1f} MiB; use it with --data_root {out} or STRUCTSEG_DATA={out}")
    return total


def _files(row: Row, folder: Path) -> Iterable[PackedFile]:
    for module in row_datamodules(row, folder):
        if not isinstance(module, Packable):
            raise ValueError(f"{type(module).__name__} of row {row.name} cannot be packed: it has no files_to_pack()")
        yield from module.files_to_pack()


def row_datamodules(row: Row, folder: Path | None) -> list[SegmentationDataModule]:
    """The datamodules of a row: of its configuration and overrides, or of each stage that it needs; nothing is read."""
    data = None if folder is None else str(folder)
    if row.pipeline is not None:
        more = tuple(args_of_stages(row, "cpu", data))
        configs = list(Session(load_pipeline(ROOT / row.pipeline), more=more, last=row.stage).configs().values())
    else:
        configs = [resolved_config(args_to_fit(row, row.seeds[0], "cpu", data, str(ROOT / row.source), "runs"))]
    return [make_datamodule(config) for config in configs]


def _pack_folder(files: Sequence[PackedFile], folder: Path, quality: int | None, room: int, limit_mib: float) -> int:
    """Copies the files of one data folder; returns their size in bytes."""
    sizes = {file.size for file in files if file.size is not None}
    if len(sizes) > 1:
        asked = ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
        print(f"{folder.name} is read at {asked}: its images are copied as they are")
    size = sizes.pop() if len(sizes) == 1 else None
    places: dict[str, PackedFile] = {}
    for file in files:
        known = places.setdefault(file.place, file)
        if known.source != file.source:
            raise ValueError(f"{known.source} and {file.source} both belong at {folder.name}/{file.place}")
        if file.size is None:
            places[file.place] = file
    total = 0
    for done, (place, file) in enumerate(places.items(), 1):
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        content = None if size is None or file.size is None else _shrunk(file.source, size, quality)
        if content is None:
            shutil.copyfile(file.source, target)
        else:
            target.write_bytes(content)
        total += target.stat().st_size
        if total > room:
            raise ValueError(
                f"the copy passes {limit_mib:g} MiB after {done} of {len(places)} files of {folder.name} (about "
                f"{total / done * len(places) / MIB:.0f} MiB in all); pack fewer rows, try --quality 95, raise --limit"
            )
    note = {"format": 1, "size": None if size is None else list(size), "quality": quality, "files": len(places)}
    (folder / MARKER).write_text(json.dumps(note) + "\n")
    return total


def _shrunk(source: Path, size: tuple[int, int], quality: int | None) -> bytes | None:
    """The image at that size as PNG or JPEG, resized as the datamodules do; None where the file takes less room."""
    buffer = io.BytesIO()
    image = resize_image(read_image(source), size)
    if quality is None:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=quality)
    content = buffer.getvalue()
    return content if len(content) < source.stat().st_size else None
