"""Downloading and unpacking archives: resumed, verified, and never left half-written."""

from __future__ import annotations

import hashlib
import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

CHUNK = 1 << 16  # bytes; a broken transfer loses one at most


def download_file(url: str, to: Path, sha256: str | None = None, attempts: int = 3, timeout: float = 60.0) -> Path:
    """Downloads a file; a partial download stays in `TO.part`, and the next call continues it if the server allows.

    Args:
        url: http or https.
        to: the file to write; it appears when it is complete. An existing file is not downloaded again.
        sha256: the hash of the whole file, in hexadecimal; None: not verified.
        attempts: number of attempts to continue a broken transfer.
        timeout: seconds without data after which a transfer counts as broken.

    Returns:
        `to`.

    Raises:
        ConnectionError: the server refuses or the transfer keeps breaking; the partial download is kept.
        ValueError: the hash differs; the file is removed.
    """
    if not to.exists():
        import requests

        to.parent.mkdir(parents=True, exist_ok=True)
        part = to.with_name(to.name + ".part")
        for attempt in range(1, attempts + 1):
            try:
                _fetch(url, part, timeout)
                break
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                if attempt == attempts:
                    so_far = part.stat().st_size if part.exists() else 0
                    reason = " ".join(str(error).split())
                    raise ConnectionError(
                        f"{url} broke off after {so_far} bytes ({reason}); run again to continue from there"
                    ) from None
            except requests.RequestException as error:
                raise ConnectionError(f"{url} cannot be fetched ({error}); check the address and the network") from None
        _verify(part, url, sha256)
        part.replace(to)
        return to
    _verify(to, url, sha256)
    return to


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive: Path, into: Path, *, strip_top: bool = False, max_bytes: int = 8 << 30) -> Path:
    """Unpacks a zip or tar archive into a new folder, which appears when it is complete.

    Args:
        archive: zip, or tar with any compression that Python reads.
        into: the folder to make; it must not exist or be empty.
        strip_top: leave out the single top folder that code hosts pack everything in.
        max_bytes: the most that the archive may unpack to.

    Returns:
        `into`.

    Raises:
        FileNotFoundError: no archive.
        ValueError: it is damaged or too large, or holds links, devices or paths outside its folder; or `into` exists.
    """
    if not archive.is_file():
        raise FileNotFoundError(f"no archive {archive}; check the path")
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise ValueError(f"{into} is there already; remove it, or unpack {archive.name} somewhere else")
    into.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=f".{into.name}-") as stage:
        content = Path(stage) / "content"
        content.mkdir()
        try:
            _extract(archive, content, max_bytes)
        except (
            zipfile.BadZipFile,
            tarfile.TarError,
            zlib.error,
            lzma.LZMAError,
            EOFError,
            OSError,
            RuntimeError,
        ) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{archive} cannot be unpacked ({reason}); remove it and fetch it again") from None
        if strip_top:
            entries = list(content.iterdir())
            if len(entries) != 1 or not entries[0].is_dir():
                raise ValueError(f"{archive} holds {len(entries)} entries at its top; expected one folder around all")
            content = entries[0]
        if into.exists():
            into.rmdir()
        content.rename(into)
    return into


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    plain: bool  # a file or a folder, not a link or a device


def _fetch(url: str, part: Path, timeout: float) -> None:
    """One transfer, appended to `part` if the server continues from there."""
    import requests

    start = part.stat().st_size if part.exists() else 0
    # With another encoding, lengths and ranges would not count the bytes of the file.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as answer:
        if start and answer.status_code == requests.codes.requested_range_not_satisfiable:
            if answer.headers.get("Content-Range") == f"bytes */{start}":
                return  # it is complete already
            part.unlink()
            raise requests.ConnectionError(f"the {start} bytes kept from before do not belong to this file")
        answer.raise_for_status()
        resumed = answer.status_code == requests.codes.partial_content
        if resumed and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            raise requests.ConnectionError("the server went on from another place than asked")
        with part.open("ab" if resumed else "wb") as file:
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
        length = answer.headers.get("Content-Length")
        expected = None if length is None else int(length) + (start if resumed else 0)
        if expected is not None and part.stat().st_size != expected:
            raise requests.ConnectionError(f"{part.stat().st_size} of {expected} bytes came")


def _verify(path: Path, url: str, sha256: str | None) -> None:
    if sha256 is None:
        return
    found = file_sha256(path)
    if found != sha256.lower():
        path.unlink()
        raise ValueError(f"{url} has SHA-256 {found}, expected {sha256}; removed: fetch it again or correct the hash")


def _extract(archive: Path, content: Path, max_bytes: int) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            infos = zipped.infolist()
            _check([_Member(i.filename, i.file_size, not _zip_link(i)) for i in infos], archive, content, max_bytes)
            zipped.extractall(content)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tarred:
            members = tarred.getmembers()
            # Reads on to the compressed stream's checksum, which is after the end of the tar.
            while tarred.fileobj is not None and tarred.fileobj.read(CHUNK):
                pass
            _check([_Member(m.name, m.size, m.isreg() or m.isdir()) for m in members], archive, content, max_bytes)
            tarred.extractall(content, filter="data")
    else:
        raise tarfile.TarError("it is neither a zip nor a tar archive")


def _zip_link(info: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(info.external_attr >> 16)
    return kind not in (0, stat.S_IFREG, stat.S_IFDIR)


def _check(members: list[_Member], archive: Path, content: Path, max_bytes: int) -> None:
    """Refuses unsafe members before anything is written."""
    files: dict[str, str] = {}
    for member in members:
        path = PurePosixPath(member.name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or PureWindowsPath(member.name).drive:
            raise ValueError(
                f"{archive} holds the path {member.name!r}, outside its folder; refused: fetch it elsewhere"
            )
        if not member.plain:
            raise ValueError(
                f"{archive} holds {member.name!r}, a link or device; refused: only files and folders are taken"
            )
        same = path.as_posix().casefold()
        if same in files and (member.size or files[same] != member.name):
            raise ValueError(
                f"{archive} holds {files[same][:100]!r} and {member.name[:100]!r}, one file where letter case does not "
                "count; refused: fetch it elsewhere"
            )
        files[same] = member.name
    total = sum(member.size for member in members)
    room = min(max_bytes, shutil.disk_usage(content).free)
    if total > room:
        raise ValueError(f"{archive} would unpack to {total} bytes; at most {room} are allowed and free; refused")
