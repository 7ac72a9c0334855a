"""Damaged artefacts of a round: markers, maps, queries, confounders; arrays that lie, arrays with pickles."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structseg.datamodules.label_spaces import label_space
from structseg.datamodules.round_files import (
    ArtefactManifest,
    check_folder,
    origin_of,
    read_artefact_mask,
    read_cams,
    read_confounders,
    read_query,
    write_cams,
    write_confounders,
    write_mask,
    write_query,
)
from structseg.lightning_modules.conta.previous_round import check_origin, global_mean_cams, load_confounders
from tests.fuzz.harm import Damage, Wreck, fault_of, flip, part_of, put, ruin, spoil, template

SPACE = label_space("voc[cat,dog]")
NAMES = SPACE.classes[1:]


class Payload:
    """Makes the file `ran` where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"open({str(self.folder / 'ran')!r}, 'w').close()",))


def _make(folder: Path) -> None:
    random = np.random.default_rng(0)
    for kind in ("cams", "masks", "queries"):
        home = folder / "round_0" / kind
        home.mkdir(parents=True)
        if kind == "cams":
            write_cams(home, "a", random.random((2, 8, 8)), (32, 32))
        elif kind == "masks":
            write_mask(home, "a", random.integers(0, 3, (32, 32)), SPACE)
        else:
            write_query(home, "a", random.random((3, 8, 8)))
        ArtefactManifest(kind, f"round_0/{kind}", "M", SPACE.name, SPACE.classes, 1).write(home)
    write_confounders(folder / "round_0", random.random((2, 8, 8)), np.array([3, 4]), SPACE, "0123")


TREE = template("artefacts", _make)


def folder_of(kind: str) -> Callable[[Path], ArtefactManifest]:
    return lambda root: check_folder(root / "round_0" / kind, (kind,), ["a"], SPACE)


def cams(root: Path) -> object:
    return read_cams(root / "round_0" / "cams", "a", SPACE)


def mean_cams(root: Path) -> object:
    return global_mean_cams(root / "round_0" / "cams", NAMES, (8, 8))


def query(root: Path) -> object:
    origin_of(root / "round_0" / "queries")
    return read_query(root / "round_0" / "queries", "a", SPACE)


def mask(root: Path) -> object:
    return read_artefact_mask(root / "round_0" / "masks", "a", SPACE)


def confounders(root: Path) -> object:
    return read_confounders(root / "round_0", SPACE)


def module_confounders(root: Path) -> object:
    path = root / "round_0" / "confounders.npz"
    found = load_confounders(path, NAMES, (8, 8))
    check_origin(path, "4567")
    return found


def _about(**values: object) -> Wreck:
    return lambda whole: json.dumps({**json.loads(whole), **values}).encode()


ABOUT: dict[str, Wreck] = {
    "a list": put("[]"),
    "a number": put("7"),
    "too deep": put("[" * 100_000),
    "another key": _about(more=1),
    "no kind": lambda whole: json.dumps({k: v for k, v in json.loads(whole).items() if k != "kind"}).encode(),
    "another kind": _about(kind="queries"),
    "a kind that is a list": _about(kind=["cams"]),
    "a place that is a number": _about(place=3),
    "classes that are a number": _about(classes=3),
    "classes that are numbers": _about(classes=[1, 2, 3]),
    "other classes": _about(classes=["background", "cat", "horse"]),
    "images that are a text": _about(images="many"),
    "scores that are a list": _about(scores=[1]),
    "notices that are a number": _about(notices=1),
    "a split that is a list": _about(split=[1]),
    "an origin that is a number": _about(origin=5),
}  # fmt: skip


def npz(**arrays: object) -> bytes:
    """An archive of arrays; bytes are taken for the file of an array as they are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, array in arrays.items():
            if not isinstance(array, bytes):
                content = io.BytesIO()
                np.save(content, np.asarray(array), allow_pickle=True)
                array = content.getvalue()
            packed.writestr(f"{name}.npy", array)
    return file.getvalue()


def npy(shape: object, dtype: object = "|u1", data: bytes = b"", order: object = False) -> bytes:
    """An array's file with any header."""
    header = repr({"descr": dtype, "fortran_order": order, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data


@cache
def _bomb(name: str, shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    """An array of zeros that is really there, packed a thousandfold."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    head = npy(shape, dtype)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        with packed.open(f"{name}.npy", "w", force_zip64=True) as entry:
            entry.write(head)
            for _ in range(size >> 20):
                entry.write(bytes(1 << 20))
        for other, array in (
            ("classes", np.array([1, 2], np.uint8)),
            ("size", np.array([8, 8])),
            ("images", np.array([3, 4])),
        ):
            content = io.BytesIO()
            np.save(content, array)
            packed.writestr(f"{other}.npy", content.getvalue())
    return file.getvalue()


def _objects(folder: Path) -> bytes:
    return npy((1,), "|O", pickle.dumps(np.array([Payload(folder)], dtype=object)))


GOOD = {"cams": np.zeros((2, 8, 8), np.uint8), "classes": np.array([1, 2], np.uint8), "size": np.array([32, 32])}
MAPS: dict[str, Callable[[], bytes]] = {
    "no maps": lambda: npz(classes=GOOD["classes"], size=GOOD["size"]),
    "maps of floats": lambda: npz(**{**GOOD, "cams": np.zeros((2, 8, 8))}),
    "maps of two axes": lambda: npz(**{**GOOD, "cams": np.zeros((8, 8), np.uint8)}),
    "maps of one class more": lambda: npz(**{**GOOD, "cams": np.zeros((3, 8, 8), np.uint8)}),
    "maps of texts": lambda: npz(**{**GOOD, "cams": np.array([["a"]])}),
    "maps of dates": lambda: npz(**{**GOOD, "cams": np.array(["2020-01-01"], "M8[D]")}),
    "a class beyond": lambda: npz(**{**GOOD, "classes": np.array([1, 7], np.uint8)}),
    "the class of the background": lambda: npz(**{**GOOD, "classes": np.array([0, 1], np.uint8)}),
    "a class twice": lambda: npz(**{**GOOD, "classes": np.array([1, 1], np.uint8)}),
    "classes that are no numbers": lambda: npz(**{**GOOD, "classes": np.array(["cat", "dog"])}),
    "classes that are nan": lambda: npz(**{**GOOD, "classes": np.array([np.nan, 1.0])}),
    "classes without axis": lambda: npz(**{**GOOD, "classes": np.array(1)}),
    "a header that says 2^40 values": lambda: npz(**{**GOOD, "cams": npy((2, 2**20, 2**19))}),
    "a header that says 2^62 values": lambda: npz(**{**GOOD, "cams": npy((2**31, 2**31))}),
    "a header that says 3 GB, with a few bytes": lambda: npz(**{**GOOD, "cams": npy((2, 40_000, 40_000), data=bytes(99))}),
    "a header of a negative shape": lambda: npz(**{**GOOD, "cams": npy((-1, 8, 8), data=bytes(128))}),
    "a header whose shape is a text": lambda: npz(**{**GOOD, "cams": npy("8x8")}),
    "a header that is a call": lambda: npz(**{**GOOD, "cams": b"\x93NUMPY\1\0\x20\0__import__('os').system('true')\n"}),
    "a header of 64 kB": lambda: npz(**{**GOOD, "cams": npy((2, 8, 8), "|u1" + " " * 60_000, bytes(128))}),
    "a header of an unknown type": lambda: npz(**{**GOOD, "cams": npy((2, 8, 8), "|x9", bytes(128))}),
    "a bomb of 288 MB": lambda: _bomb("cams", (2, 12_000, 12_000)),
    "files in it that are no arrays": lambda: npz(cams=b"text", classes=b"text", size=b"text"),
    "an array's file instead": lambda: npy((2, 8, 8), data=bytes(128)),
    "a size of three numbers": lambda: npz(**{**GOOD, "size": np.array([1, 2, 3])}),
    "a size of texts": lambda: npz(**{**GOOD, "size": np.array(["a", "b"])}),
    "an empty archive": lambda: npz(),
}  # fmt: skip
WELL = {
    "confounders": np.zeros((2, 8, 8), np.float32),
    "images": np.array([3, 4]),
    "classes": np.array(NAMES),
    "origin": np.array("0123"),
}
SETS: dict[str, Callable[[], bytes]] = {
    "no counts": lambda: npz(**{k: v for k, v in WELL.items() if k != "images"}),
    "other classes": lambda: npz(**{**WELL, "classes": np.array(["cat", "horse"])}),
    "classes of numbers": lambda: npz(**{**WELL, "classes": np.array([1, 2])}),
    "classes without axis": lambda: npz(**{**WELL, "classes": np.array("cat")}),
    "counts of one class": lambda: npz(**{**WELL, "images": np.array([3])}),
    "counts of texts": lambda: npz(**{**WELL, "images": np.array(["a", "b"])}),
    "maps of nan": lambda: npz(**{**WELL, "confounders": np.full((2, 8, 8), np.nan)}),
    "maps of 2": lambda: npz(**{**WELL, "confounders": np.full((2, 8, 8), 2.0)}),
    "maps of texts": lambda: npz(**{**WELL, "confounders": np.full((2, 8, 8), "a")}),
    "maps of two axes": lambda: npz(**{**WELL, "confounders": np.zeros((2, 64))}),
    "a header that says 2^40 values": lambda: npz(**{**WELL, "confounders": npy((2, 2**20, 2**19), "<f4")}),
    "a bomb of 288 MB": lambda: _bomb("confounders", (2, 6_000, 6_000), "<f4"),
}  # fmt: skip


def _pickled(inner: str, arrays: Callable[[Path], dict[str, object]]) -> Callable[[Path], Path]:
    def lay(folder: Path) -> Path:
        root = TREE(folder)
        (folder / inner).write_bytes(npz(**arrays(folder)))
        return root

    return lay


def _whole_pickle(inner: str) -> Callable[[Path], Path]:
    def lay(folder: Path) -> Path:
        root = TREE(folder)
        (folder / inner).write_bytes(pickle.dumps(Payload(folder)))
        return root

    return lay


def _lying(whole: bytes) -> bytes:
    """The archive says that its first file is shorter than it is."""
    assert zlib.crc32(whole)
    at = whole.index(b"PK\1\2")
    return whole[: at + 24] + struct.pack("<I", 3) + whole[at + 28 :]


CAMS, QUERY, SET = "round_0/cams/a.npz", "round_0/queries/a.npz", "round_0/confounders.npz"
CASES: list[Damage] = [
    *ruin("about.json", TREE, "round_0/cams/about.json", folder_of("cams")),
    *(
        Damage(f"about.json: {name}", spoil(TREE, "round_0/cams/about.json", wreck), folder_of("cams"), "round_0/cams")
        for name, wreck in ABOUT.items()
    ),
    *(
        Damage(f"about.json, by a classifier: {name}", spoil(TREE, "round_0/cams/about.json", ABOUT[name]), mean_cams, "round_0/cams")
        for name in ("a list", "a number", "too deep", "classes that are a number", "other classes")
    ),
    *ruin("cams", TREE, CAMS, cams),
    *ruin("cams, by a classifier", TREE, CAMS, mean_cams, says="round_0/cams"),
    *ruin("query", TREE, QUERY, query, odd=False),
    *ruin("confounders", TREE, SET, confounders),
    *ruin("confounders, by a classifier", TREE, SET, module_confounders),
    *ruin("mask", TREE, "round_0/masks/a.png", mask, odd=False),
    *(Damage(f"cams: flipped bytes {n}", spoil(TREE, CAMS, flip(n, 8)), cams, r"a\.npz", bears=True) for n in range(12)),
    *(Damage(f"cams: {name}", spoil(TREE, CAMS, lambda _, make=make: make()), cams, r"a\.npz") for name, make in MAPS.items()),
    *(
        Damage(f"cams, by a classifier: {name}", spoil(TREE, CAMS, lambda _, make=make: make()), mean_cams, r"a\.npz", "size" in name)
        for name, make in MAPS.items()
    ),
    *(
        Damage(f"confounders: {name}", spoil(TREE, SET, lambda _, make=make: make()), read_, r"confounders\.npz")
        for name, make in SETS.items()
        for read_ in (confounders, module_confounders)
    ),
    *(Damage(f"query: {name}", spoil(TREE, QUERY, put(content)), query, r"a\.npz") for name, content in {
        "of floats": npz(query=np.zeros((3, 8, 8))), "of 2 classes": npz(query=np.zeros((2, 8, 8), np.uint8)),
        "of no pixels": npz(query=np.zeros((3, 0, 0), np.uint8)), "of another name": npz(other=np.zeros((3, 8, 8), np.uint8)),
    }.items()),
    Damage("cams: an archive that lies", spoil(TREE, CAMS, _lying), cams, r"a\.npz"),
    Damage("cams: a pickle in an array", _pickled(CAMS, lambda folder: {**GOOD, "cams": _objects(folder)}), cams, r"pickled objects"),
    Damage("cams: a pickle in the classes", _pickled(CAMS, lambda folder: {**GOOD, "classes": _objects(folder)}), mean_cams, r"pickled objects"),
    Damage("query: a pickle in an array", _pickled(QUERY, lambda folder: {"query": _objects(folder)}), query, r"pickled objects"),
    Damage("confounders: a pickle in the maps", _pickled(SET, lambda folder: {**WELL, "confounders": _objects(folder)}), confounders, r"pickled objects"),
    Damage("confounders: a pickle in the origin", _pickled(SET, lambda folder: {**WELL, "origin": _objects(folder)}), confounders, r"pickled objects"),
    Damage("confounders: a pickle in the origin, by a classifier", _pickled(SET, lambda folder: {**WELL, "origin": _objects(folder)}), module_confounders, r"pickled objects"),
    Damage("cams: a pickle instead", _whole_pickle(CAMS), cams, r"a\.npz"),
    Damage("confounders: a pickle instead", _whole_pickle(SET), module_confounders, r"confounders\.npz"),
]  # fmt: skip


@pytest.mark.parametrize("case", part_of(CASES))
def test_damaged_artefacts(case: Damage, tmp_path: Path) -> None:
    assert fault_of(case, tmp_path) is None


def test_the_payload_does_run_where_pickles_are_allowed(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path)))
    assert (tmp_path / "ran").exists()
