"""The files of a CONTA round: activation maps, queries, masks and confounders, read and written without pickles."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from structseg.datamodules.images import VOID, read_mask
from structseg.datamodules.label_spaces import LabelSpace

ABOUT = "about.json"
CONFOUNDERS = "confounders.npz"
# The files of each kind of folder, and the stage of a round that writes it.
SUFFIXES = {"cams": ".npz", "relation_labels": ".png", "pseudo_masks": ".png", "masks": ".png", "queries": ".npz"}
STAGES = {
    "cams": "cams", "relation_labels": "cams", "pseudo_masks": "pseudo_masks", "masks": "masks", "queries": "masks",
}  # fmt: skip

TRUE_MASKS = "learned from true masks, not from tags"  # a notice of a segmenter, and so of its masks and queries

_DAMAGE = (
    AttributeError, EOFError, LookupError, MemoryError, OSError, OverflowError, RuntimeError, SyntaxError, TypeError,
    ValueError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
_LARGEST = 256 << 20  # bytes of an array


class CAMs(NamedTuple):
    """Class activation maps of an image.

    Attributes:
        maps: (K-1, h, w) float32 in 0..1, of the foreground classes; 0 for classes that are not in `classes`.
        classes: indices in the label space, 1 to K-1, of the classes that have a map.
        size: (H, W) in pixels of the image that they were computed on.
    """

    maps: NDArray[np.float32]
    classes: tuple[int, ...]
    size: tuple[int, int]


class Confounders(NamedTuple):
    """The confounder set: the mean mask of each foreground class.

    Attributes:
        maps: (K-1, h, w) float32 in 0..1.
        images: (K-1,) int64, number of images of each mean; a class without images has a map of zeros.
        classes: the names of the classes.
        origin: of the averaged queries, see `origin_of`; empty if unknown.
    """

    maps: NDArray[np.float32]
    images: NDArray[np.int64]
    classes: tuple[str, ...]
    origin: str = ""


@dataclass(frozen=True)
class ArtefactManifest:
    """What a folder of artefacts holds; its `about.json` is written last, so a folder that has it is complete.

    Attributes:
        kind: `cams`, `relation_labels`, `pseudo_masks`, `masks` or `queries`.
        place: the names of the round's folder and of this one, `round_0/cams`.
        method: name of the class that made it.
        label_space: name of the label space.
        classes: names of the classes, background first.
        images: number of images.
        scores: scores measured while it was made, by flat name.
        notices: caveats that have to be read with the scores.
        split: the split of the images; empty if unknown.
        origin: identifies the prediction that made masks or queries, see `origin_of`; empty for other kinds.
    """

    kind: str
    place: str
    method: str
    label_space: str
    classes: tuple[str, ...]
    images: int
    scores: dict[str, float] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    split: str = ""
    origin: str = ""

    def write(self, folder: Path) -> None:
        """Writes `about.json`; call it when everything else is in `folder`."""
        with _written_whole(folder / ABOUT) as file:
            file.write((json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> ArtefactManifest:
        """The manifest in `about.json`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is damaged; the message names it.
        """
        content = read_manifest(folder)
        with _named(folder / ABOUT):
            manifest = cls(**{**content, "classes": tuple(content["classes"]), "notices": tuple(content["notices"])})
            texts = (
                manifest.kind, manifest.place, manifest.method, manifest.label_space, manifest.split, manifest.origin,
            )  # fmt: skip
            if not all(isinstance(text, str) for text in (*texts, *manifest.classes, *manifest.notices)):
                raise ValueError("a field is not a string")
            if not isinstance(manifest.images, int) or not isinstance(manifest.scores, dict):
                raise ValueError(f"images {manifest.images!r} or scores {manifest.scores!r}")
            return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The fields of a folder's `about.json`, unchecked; raises as `ArtefactManifest.read`."""
    path = folder / ABOUT
    with _named(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not fields and values")
        return content


def place_of(folder: Path) -> str:
    """The place of a folder of artefacts in its pipeline: `round_0/cams` of `.../round_0/cams`."""
    whole = folder.absolute()
    return f"{whole.parent.name}/{whole.name}"


def origin_of(folder: Path) -> str:
    """16 hexadecimal digits that identify a folder's queries by their names and contents."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*" + SUFFIXES["queries"])):
        digest.update(path.name.encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def check_folder(
    folder: Path, kinds: Collection[str], names: Sequence[str], space: LabelSpace, split: str | None = None
) -> ArtefactManifest:
    """Checks that a folder of artefacts is complete, and of the expected kind, round, split and classes.

    Args:
        folder: of artefacts, `.../round_0/cams`.
        kinds: the kinds that are expected.
        names: images that must have a file; others may have one too.
        space: label space of the classes.
        split: the expected split, where the folder states one; None: any.

    Raises:
        FileNotFoundError: no such folder, an unfinished one, or images without a file; the message says what to run.
        ValueError: another kind, round, split or label space, or a damaged `about.json`.
    """
    wanted = " or ".join(kinds)
    stage = STAGES.get(folder.name, STAGES[next(iter(kinds))])
    make = f"run structseg pipeline FILE --until {folder.absolute().parent.name}/{stage}"
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} ({wanted} of an earlier stage); {make}")
    if not (folder / ABOUT).is_file():
        raise FileNotFoundError(f"{folder} has no {ABOUT}, so the stage that writes it did not end; {make}")
    about = ArtefactManifest.read(folder)
    if about.kind not in kinds:
        raise ValueError(f"{folder} holds {about.kind}; {wanted} are expected; give the folder of {wanted}")
    if about.place != place_of(folder):
        raise ValueError(
            f"{folder} holds {about.kind} made as {about.place}, of another round or arm; remove the folder and {make}"
        )
    if (about.label_space, about.classes) != (space.name, space.classes):
        raise ValueError(
            f"{folder} holds {about.kind} of {about.label_space} ({len(about.classes)} classes), not of {space.name} "
            f"({len(space)} classes); set --data.label_space or {make} with these classes"
        )
    if split is not None and about.split not in ("", split):
        raise ValueError(
            f"{folder} holds {about.kind} of the {about.split} images, those of {split} are needed; give their folder "
            f"or {make}"
        )
    suffix = SUFFIXES[about.kind]
    there = {path.name for path in folder.iterdir()}
    missing = [name for name in names if name + suffix not in there]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {about.kind} for {len(missing)} of {len(names)} images, first {missing[0]}; remove the "
            f"folder and {make}"
        )
    return about


def write_cams(
    folder: Path, name: str, maps: NDArray[np.floating], size: tuple[int, int], classes: Sequence[int] | None = None
) -> None:
    """Writes `NAME.npz` with 8 bits a value.

    Args:
        folder: an existing folder.
        name: of the image.
        maps: (K-1, h, w) in 0..1, of the foreground classes.
        size: (H, W) of the image that they were computed on.
        classes: label-space indices, 1 to K-1, of the maps to keep; None = those with a value above 0.

    Raises:
        ValueError: a wrong shape, or a value outside its range.
    """
    maps = _unit(maps, f"cams of {name}")
    kept = [i + 1 for i in range(len(maps)) if maps[i].any()] if classes is None else sorted(classes)
    with _written_whole(folder / f"{name}.npz") as file:
        np.savez_compressed(
            file,
            cams=_to_bytes(maps[[index - 1 for index in kept]]),
            classes=np.array(kept, dtype=np.uint8),
            size=np.array(size, dtype=np.int32),
        )


def read_cams(folder: Path, name: str, space: LabelSpace) -> CAMs:
    """The maps of an image; a class without a map gets zeros.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or has classes that the space lacks; the message names it.
    """
    path = folder / f"{name}.npz"
    kept, classes = read_kept_cams(path, space.classes[1:], space.name)
    size = _arrays(path, "size")["size"]
    if size.shape != (2,) or size.dtype.kind not in "iu":
        raise ValueError(f"{path} is damaged (no size of an image); remove {folder} and run its stage again")
    maps = np.zeros((len(space) - 1, *kept.shape[1:]), dtype=np.float32)
    maps[[index - 1 for index in classes]] = kept
    return CAMs(maps, tuple(classes), (int(size[0]), int(size[1])))


def read_kept_cams(path: Path, classes: Sequence[str], space: str) -> tuple[NDArray[np.float32], list[int]]:
    """The maps in a file of `write_cams`, (n, h, w) in 0..1, and the index, from 1, of each map's class.

    Args:
        path: of the file.
        classes: names of the foreground classes.
        space: their name in messages.

    Raises:
        FileNotFoundError, ValueError: as `read_cams`.
    """
    arrays = _arrays(path, "cams", "classes")
    kept, found = arrays["cams"], arrays["classes"]
    good = kept.ndim == 3 and kept.dtype == np.uint8 and found.shape == (len(kept),) and found.dtype.kind in "iu"
    indices = [int(index) for index in found] if good else []
    if not good or len(set(indices)) < len(indices) or any(not 1 <= index <= len(classes) for index in indices):
        raise ValueError(f"{path} is damaged (not maps of {space}); remove {path.parent} and run its stage again")
    return kept.astype(np.float32) / np.float32(255), indices


def write_query(folder: Path, name: str, query: NDArray[np.floating]) -> None:
    """Writes `NAME.npz` of class probabilities (K, h, w) in 0..1, background first, with 8 bits a value."""
    with _written_whole(folder / f"{name}.npz") as file:
        np.savez_compressed(file, query=_to_bytes(_unit(query, f"query of {name}")))


def read_query(folder: Path, name: str, space: LabelSpace) -> NDArray[np.float32]:
    """(K, h, w) class probabilities in 0..1, background first, within 1/510 of what was written.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or of another number of classes; the message names it.
    """
    path = folder / f"{name}.npz"
    query = _arrays(path, "query")["query"]
    if query.ndim != 3 or query.dtype != np.uint8 or len(query) != len(space) or not query.size:
        raise ValueError(
            f"{path} is damaged (not a map of the {len(space)} classes); remove {folder} and run its stage again"
        )
    return query.astype(np.float32) / np.float32(255)


def write_mask(folder: Path, name: str, mask: NDArray[np.integer], space: LabelSpace) -> None:
    """Writes `NAME.png`, 8-bit indices with the space's palette, from (H, W) of 0..K-1 and 255.

    Raises:
        ValueError: not two axes, or an index that the space lacks.
    """
    found = np.unique(mask)
    wrong = found[(found < 0) | ((found >= len(space)) & (found != space.ignore_index))]
    if mask.ndim != 2 or wrong.size:
        what = f"shape {mask.shape}" if mask.ndim != 2 else f"class {wrong[0]}"
        raise ValueError(f"mask of {name} has {what}; (H, W) of the {len(space)} classes of {space.name} is needed")
    image = Image.fromarray(mask.astype(np.uint8))
    colours = [*space.palette, *[(0, 0, 0)] * (255 - len(space)), VOID]  # all 256, else Pillow packs fewer bits
    image.putpalette([value for colour in colours for value in colour])
    with _written_whole(folder / f"{name}.png") as file:
        image.save(file, format="PNG", optimize=True)


def read_artefact_mask(folder: Path, name: str, space: LabelSpace) -> NDArray[np.uint8]:
    """(H, W) class indices, 255 = ignore; raises as `images.read_mask`."""
    return read_mask(folder / f"{name}.png", len(space), space.name)


def write_confounders(
    folder: Path, maps: NDArray[np.floating], images: NDArray[np.integer], space: LabelSpace, origin: str = ""
) -> None:
    """Writes `confounders.npz` into a round's folder: maps (K-1, h, w) in 0..1, images (K-1,), the queries' origin.

    Raises:
        ValueError: wrong shapes, or values outside their range.
    """
    maps = _unit(maps, "confounders")
    if len(maps) != len(space) - 1 or images.shape != (len(space) - 1,):
        raise ValueError(
            f"confounders are {maps.shape} of {images.shape} images; {space.name} has {len(space) - 1} foreground "
            "classes; give one map and one count each"
        )
    with _written_whole(folder / CONFOUNDERS) as file:
        np.savez_compressed(
            file,
            confounders=maps.astype(np.float32),
            images=images.astype(np.int64),
            classes=np.array(space.classes[1:]),
            origin=np.array(origin),
        )


def read_confounders(path: Path, space: LabelSpace | Sequence[str]) -> Confounders:
    """The confounder set in a round's folder, or in a file given by its path.

    Args:
        path: of the folder, or of the file.
        space: of the classes, or the names of the foreground classes.

    Raises:
        FileNotFoundError: no such file; the message says what to run.
        ValueError: it is damaged or of other classes.
    """
    expected = space.classes[1:] if isinstance(space, LabelSpace) else tuple(space)
    path = path / CONFOUNDERS if path.suffix != ".npz" else path
    if not path.is_file():
        round_ = path.absolute().parent.name
        raise FileNotFoundError(f"no file {path}; run structseg pipeline FILE --until {round_}/{STAGES['masks']}")
    arrays = _arrays(path, "confounders", "images", "classes")
    maps, images, classes = arrays["confounders"], arrays["images"], tuple(map(str, arrays["classes"].ravel()))
    if classes != expected:
        raise ValueError(
            f"{path} has the classes {', '.join(classes)}, the data {', '.join(expected)}; give the confounders of "
            "this label space"
        )
    if maps.ndim != 3 or len(maps) != len(classes) or images.shape != (len(classes),):
        raise ValueError(
            f"{path} has confounders of shape {maps.shape} and counts of shape {images.shape}; run the stage again"
        )
    if maps.dtype.kind != "f" or images.dtype.kind not in "iu" or not _in_unit(maps):
        raise ValueError(f"{path} has maps that are not in 0..1, or counts that are not integers; run the stage again")
    return Confounders(maps.astype(np.float32), images.astype(np.int64), classes, confounder_origin(path))


def confounder_origin(path: Path) -> str:
    """The origin of the queries that a file of confounders averages; empty if unknown."""
    return str(_arrays(path, optional=("origin",)).get("origin", ""))


@contextmanager
def _written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that appears under its name only when it is complete."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, f"no room on the disk for {path}; make room and run the stage again") from None
        raise
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns the errors of a damaged file into one line with its name."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; run the stage that writes it again")
    try:
        yield
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is damaged ({reason}); remove {path.parent} and run its stage again") from None


def _arrays(path: Path, *names: str, optional: Collection[str] = ()) -> dict[str, NDArray[Any]]:
    with _named(path), zipfile.ZipFile(path) as archive:
        there = archive.namelist()
        return {n: _array(archive, n) for n in (*names, *(n for n in optional if f"{n}.npy" in there))}


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """An array of an archive, without pickles; 300 kB may unpack to gigabytes (tests/fuzz/test_artefacts.py)."""
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > _LARGEST:
        raise ValueError(f"{name} is of {info.file_size >> 20} MiB, {_LARGEST >> 20} at most are expected")
    try:
        return np.lib.format.read_array(io.BytesIO(archive.read(info)), allow_pickle=False)
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise ValueError(f"{name} holds pickled objects, which are not loaded") from None
        raise


def _in_unit(values: NDArray[np.floating]) -> bool:
    # Not (low < 0 or high > 1): nan is neither.
    return not values.size or bool(values.min() >= 0 and values.max() <= 1)


def _unit(values: NDArray[np.floating], what: str) -> NDArray[np.floating]:
    if values.ndim != 3 or not _in_unit(values):
        raise ValueError(f"{what}: shape {values.shape} or values are not (classes, h, w) in 0..1; check the network")
    return values


def _to_bytes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.rint(values * 255).astype(np.uint8)
