"""Hostile and damaged archives, and videos that are none: nothing outside of the folder, nothing half there."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from structseg.datamodules.files.download import unpack
from structseg.datamodules.predict.inputs import predict_inputs
from tests.fuzz.harm import Damage, Wreck, cut, fault_of, flip, part_of, put, ruin, template

OUT = "out"


@cache
def zipped(*names: str, kind: int = 0, content: bytes = b"evil") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system, info.external_attr = 3, ((kind or stat.S_IFREG) | 0o777) << 16
            archive.writestr(info, content)
    return file.getvalue()


@cache
def tarred(
    *names: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: str = "w:gz", content: bytes = b"evil"
) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for name in names:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, link, 0o777
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zip_bomb() -> bytes:
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("zeros", "w") as entry,
    ):
        for _ in range(8):
            entry.write(bytes(1 << 20))
    return file.getvalue()


@cache
def tar_bomb(mode: str) -> bytes:
    return tarred("zeros", mode=mode, content=bytes(8 << 20))


def _linked_tar() -> bytes:
    """A link out, and a file that would be written through it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        link = tarfile.TarInfo("door")
        link.type, link.linkname = tarfile.SYMTYPE, ".."
        archive.addfile(link)
        through = tarfile.TarInfo("door/evil")
        through.size = 4
        archive.addfile(through, io.BytesIO(b"evil"))
    return file.getvalue()


def _header(**changed: object) -> bytes:
    """An uncompressed tar whose header is changed and signed anew."""
    info = tarfile.TarInfo("a")
    info.size = 4
    for name, value in changed.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.GNU_FORMAT) + b"evil" + bytes(508 + 1024)


def _open(path: Path) -> None:
    """Unpacks beside the archive; whatever happens, no file lies outside, and the folder is whole or not there."""
    into = path.parent / OUT
    try:
        unpack(path, into, max_bytes=5 << 20)
    finally:
        there = {inner.name for inner in path.parent.iterdir()}
        assert there <= {path.name, OUT}, f"left {there}"
        assert not any(inner.is_symlink() for inner in path.parent.rglob("*")), "left a link"


EVIL = (
    "../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil", "C:evil", "\\\\host\\share\\evil", "a/b/../../../evil", "..",
    "/", "//evil",
)  # fmt: skip
HOSTILE: dict[str, Callable[[], bytes]] = {
    **{f"zip with the path {name!r}": (lambda name=name: zipped("good", name)) for name in EVIL},
    **{f"tar with the path {name!r}": (lambda name=name: tarred("good", name)) for name in EVIL},
    "zip with a link": lambda: zipped("link", kind=stat.S_IFLNK, content=b"/etc/passwd"),
    "zip with a device": lambda: zipped("device", kind=stat.S_IFCHR),
    "zip with a pipe": lambda: zipped("pipe", kind=stat.S_IFIFO),
    "zip with a socket": lambda: zipped("socket", kind=stat.S_IFSOCK),
    "tar with a link out": lambda: tarred("link", kind=tarfile.SYMTYPE, link="../../x"),
    "tar with a link to a root": lambda: tarred("link", kind=tarfile.SYMTYPE, link="/etc/passwd"),
    "tar with a hard link out": lambda: tarred("link", kind=tarfile.LNKTYPE, link="../x"),
    "tar with a hard link to itself": lambda: tarred("link", kind=tarfile.LNKTYPE, link="link"),
    "tar with a file through a link": _linked_tar,
    "tar with a device": lambda: tarred("null", kind=tarfile.CHRTYPE),
    "tar with a disk": lambda: tarred("disk", kind=tarfile.BLKTYPE),
    "tar with a pipe": lambda: tarred("pipe", kind=tarfile.FIFOTYPE),
    "zip bomb": zip_bomb,
    "gzip bomb": lambda: tar_bomb("w:gz"),
    "bzip2 bomb": lambda: tar_bomb("w:bz2"),
    "xz bomb": lambda: tar_bomb("w:xz"),
    "zip with two files of a name": lambda: zipped("a", "b", "a"),
    "tar with two files of a name": lambda: tarred("a", "b", "a"),
    "zip with names of two cases": lambda: zipped("data/A.png", "data/a.png"),
    "tar with names of two cases": lambda: tarred("data/A.png", "data/a.png"),
    "zip with a file that is also a folder": lambda: zipped("a", "a/b"),
    "tar with a file that is also a folder": lambda: tarred("a", "a/b"),
    "zip with a name of 5,000 letters": lambda: zipped("x" * 5000),
    "tar with a name of 5,000 letters": lambda: tarred("x" * 5000),
    "zip with a name of zero bytes": lambda: zipped("a_b").replace(b"a_b", b"a\0/"),
    "tar that says it holds 8 GB": lambda: _header(size=8 << 30),
    "tar of 2^60 bytes": lambda: _header(size=1 << 60),
    "encrypted zip": lambda: _encrypted(),
    "zip of an unknown method": lambda: _method(99),
    "zip within a zip's comment": lambda: zipped("a") + b"PK\5\6" + b"\xff" * 18,
}  # fmt: skip


def _encrypted() -> bytes:
    content = bytearray(zipped("a"))
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    return bytes(content)


def _method(number: int) -> bytes:
    content = bytearray(zipped("a"))
    content[8] = number
    content[content.index(b"PK\1\2") + 10] = number
    return bytes(content)


def archive(suffix: str, content: Callable[[], bytes]) -> Callable[[Path], Path]:
    def lay(folder: Path) -> Path:
        path = folder / f"a.{suffix}"
        path.write_bytes(content())
        return path

    return lay


def spoilt(suffix: str, wreck: Wreck) -> Callable[[Path], Path]:
    members = tuple(f"top/{n}" for n in range(20))
    body = np.random.default_rng(1).bytes(300)
    good = {
        "zip": lambda: zipped(*members, content=body),
        "tar.gz": lambda: tarred(*members, content=body),
        "tar.xz": lambda: tarred(*members, mode="w:xz", content=body),
        "tar.bz2": lambda: tarred(*members, mode="w:bz2", content=body),
    }[suffix]
    return archive(suffix, lambda: wreck(good()))


@cache
def video() -> bytes:
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(20):
            pixels = np.random.default_rng(index).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


VIDEO = template("video", lambda folder: (folder / "a.mp4").write_bytes(video()))


def frames(path: Path) -> None:
    for _, image in predict_inputs([str(path)], path.parent / "out"):
        assert min(image.size) > 0


CASES: list[Damage] = [
    *(Damage(f"archive: {name}", archive("zip", make), _open, r"a\.zip", "zero bytes" in name) for name, make in HOSTILE.items()),
    *(
        Damage(f"{suffix}: {name}", spoilt(suffix, wreck), _open, re_name)
        for suffix, re_name in (("zip", r"a\.zip"), ("tar.gz", r"a\.tar\.gz"), ("tar.xz", r"a\.tar\.xz"), ("tar.bz2", r"a\.tar\.bz2"))
        for name, wreck in {
            "empty": put(b""), "cut at 10 %": cut(0.1), "cut in half": cut(0.5), "cut at 99 %": cut(0.99),
            "noise": put(b"\x13\x37" * 300), "an error page": put("<html>404</html>"),
        }.items()
    ),
    *(
        Damage(f"{suffix}: flipped bytes {n}", spoilt(suffix, flip(n, 2)), _open, r"a\.", bears=True)
        for suffix in ("zip", "tar.gz", "tar.xz", "tar.bz2")
        for n in range(8)
    ),
    *ruin("video", lambda folder: VIDEO(folder) / "a.mp4", "a.mp4", frames, bears=("cut at 95 %",)),
    *(
        Damage(f"video: flipped bytes {n}", lambda folder, n=n: _spoilt_video(folder, flip(n, 20)), frames, r"a\.mp4", bears=True)
        for n in range(6)
    ),
    *(
        Damage(f"camera: {name[:30]}", lambda folder: folder, lambda folder, name=name: predict_inputs([name], folder), "is no camera")
        for name in ("camera:", "camera:-1", "camera:one", "camera:²", "camera:0;rm")
    ),
]  # fmt: skip


def _spoilt_video(folder: Path, wreck: Wreck) -> Path:
    (folder / "a.mp4").write_bytes(wreck(video()))
    return folder / "a.mp4"


@pytest.mark.parametrize("case", part_of(CASES))
def test_damaged_archives_and_videos(case: Damage, tmp_path: Path) -> None:
    assert fault_of(case, tmp_path) is None
