import hashlib
import http.server
import io
import re
import socketserver
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from structseg.datamodules.files import download as archives
from structseg.datamodules.files.download import download_file, file_sha256, unpack

CONTENT = bytes(range(256)) * 40  # 10,240 bytes


class Server(socketserver.ThreadingTCPServer):
    """Serves CONTENT from memory, with the faults that are set, and records the requested ranges."""

    daemon_threads = True
    ranges = True  # whether it supports Range
    break_after: int | None = None  # bytes of the next answer after which it hangs up, once
    status = 200
    length = True  # whether it sends Content-Length

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data.zip"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        start = int(re.match(r"bytes=(\d+)-", wanted).group(1)) if wanted and self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        if self.server.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.break_after is not None:
            body, self.server.break_after = body[: self.server.break_after], None
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(archives, "CHUNK", 1000)
    with Server() as serving:
        threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield serving
        serving.shutdown()


def only(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_download_writes_the_file_and_nothing_else(server: Server, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    assert download_file(server.url, tmp_path / "new" / "data.zip", sha256.upper()) == tmp_path / "new" / "data.zip"
    assert (tmp_path / "new" / "data.zip").read_bytes() == CONTENT
    assert only(tmp_path) == ["new", "new/data.zip"]
    assert file_sha256(tmp_path / "new" / "data.zip") == sha256
    download_file(server.url, tmp_path / "new" / "data.zip", sha256)
    assert server.asked == [None]  # the second call found it


def test_a_broken_transfer_is_continued(server: Server, tmp_path: Path) -> None:
    server.break_after = 4000
    download_file(server.url, tmp_path / "data.zip")
    assert server.asked == [None, "bytes=4000-"]
    assert (tmp_path / "data.zip").read_bytes() == CONTENT


def test_a_broken_transfer_restarts_if_the_server_has_no_ranges(server: Server, tmp_path: Path) -> None:
    server.break_after, server.ranges = 4000, False
    download_file(server.url, tmp_path / "data.zip")
    assert server.asked == [None, "bytes=4000-"]
    assert (tmp_path / "data.zip").read_bytes() == CONTENT


def test_giving_up_keeps_the_partial_download(server: Server, tmp_path: Path) -> None:
    server.break_after = 3000
    with pytest.raises(ConnectionError, match=r"broke off after 3000 bytes \(.*\); run again to continue from there$"):
        download_file(server.url, tmp_path / "data.zip", attempts=1)
    assert only(tmp_path) == ["data.zip.part"]
    download_file(server.url, tmp_path / "data.zip", hashlib.sha256(CONTENT).hexdigest())
    assert server.asked == [None, "bytes=3000-"]
    assert only(tmp_path) == ["data.zip"]


def test_a_part_that_is_complete_needs_no_more(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(CONTENT)
    download_file(server.url, tmp_path / "data.zip")
    assert server.asked == [f"bytes={len(CONTENT)}-"]
    assert (tmp_path / "data.zip").read_bytes() == CONTENT


def test_a_part_of_something_longer_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(CONTENT + b"more")
    download_file(server.url, tmp_path / "data.zip")
    assert server.asked == [f"bytes={len(CONTENT) + 4}-", None]
    assert (tmp_path / "data.zip").read_bytes() == CONTENT


def test_a_server_without_content_length(server: Server, tmp_path: Path) -> None:
    server.length = False
    assert download_file(server.url, tmp_path / "data.zip").read_bytes() == CONTENT


def test_short_answers_are_broken_transfers(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Older HTTP layers end a broken answer as if it were complete.
    monkeypatch.setattr(requests.Response, "iter_content", lambda *_: iter([b"abc"]))
    with pytest.raises(ConnectionError, match=r"broke off after 3 bytes \(3 of 10240 bytes came\)"):
        download_file(server.url, tmp_path / "data.zip", attempts=1)
    assert only(tmp_path) == ["data.zip.part"]


def test_wrong_hash_removes_the_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"has SHA-256 {hashlib.sha256(CONTENT).hexdigest()}, expected 0000; removed"):
        download_file(server.url, tmp_path / "data.zip", "0000")
    assert only(tmp_path) == []
    (tmp_path / "data.zip").write_bytes(b"old")
    with pytest.raises(ValueError, match="expected 0000; removed"):
        download_file(server.url, tmp_path / "data.zip", "0000")
    assert only(tmp_path) == []


def test_refusals_of_the_server_are_one_line(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(
        ConnectionError, match=r"cannot be fetched \(404.*; check the address and the network$"
    ) as caught:
        download_file(server.url, tmp_path / "data.zip")
    assert "\n" not in str(caught.value)
    assert len(server.asked) == 1  # no retry, which would not help
    with pytest.raises(ConnectionError, match="cannot be fetched"):
        download_file("no address", tmp_path / "data.zip")
    assert only(tmp_path) == []


def test_an_unreachable_server_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="broke off after 0 bytes") as caught:
        download_file("http://127.0.0.1:1/data.zip", tmp_path / "data.zip")
    assert "\n" not in str(caught.value)


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return path


def make_tar(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as tarred:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tarred.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tarred.addfile(info, io.BytesIO(content))
    return path


def pack(kind: str, folder: Path, members: dict[str, bytes]) -> Path:
    return make_zip(folder / "a.zip", members) if kind == "zip" else make_tar(folder / "a.tar.gz", members)


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("strip_top", [False, True])
def test_unpack_makes_the_folder(kind: str, strip_top: bool, tmp_path: Path) -> None:
    archive = pack(kind, tmp_path, {"top/one.txt": b"1", "top/sub/two.txt": b"22"})
    into = unpack(archive, tmp_path / "out" / "data", strip_top=strip_top)
    home = into if strip_top else into / "top"
    assert (home / "one.txt").read_bytes() == b"1"
    assert (home / "sub" / "two.txt").read_bytes() == b"22"
    assert len([path for path in into.rglob("*") if path.is_file()]) == 2
    assert [path.name for path in into.parent.iterdir()] == ["data"]  # no staging folder is left


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil", "C:evil"])
def test_paths_outside_are_refused_before_anything_is_written(kind: str, name: str, tmp_path: Path) -> None:
    archive = pack(kind, tmp_path, {"good": b"1", name: b"2"})
    with pytest.raises(ValueError, match=r"holds the path '.*evil', outside its folder; refused"):
        unpack(archive, tmp_path / "in" / "out")
    assert only(tmp_path) == [archive.name, "in"]


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("good", b"1")
        zipped.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="holds 'link', a link or device; refused"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert only(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, tmp_path: Path) -> None:
    odd = tarfile.TarInfo("odd")
    odd.type, odd.linkname = kind, "good"
    archive = make_tar(tmp_path / "a.tar.gz", {"good": b"1", "odd": odd})
    with pytest.raises(ValueError, match="holds 'odd', a link or device; refused"):
        unpack(archive, tmp_path / "out")
    assert only(tmp_path) == ["a.tar.gz"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_bombs_are_refused(kind: str, tmp_path: Path) -> None:
    archive = pack(kind, tmp_path, {"zeros": bytes(100_000), "more": bytes(1)})
    assert archive.stat().st_size < 1000
    with pytest.raises(ValueError, match="would unpack to 100001 bytes; at most 100000 are allowed and free; refused"):
        unpack(archive, tmp_path / "out", max_bytes=100_000)
    assert only(tmp_path) == [archive.name]
    unpack(archive, tmp_path / "out", max_bytes=100_001)


def test_a_zip_that_lies_about_its_sizes_leaves_nothing(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"zeros": bytes(100_000)})
    # 100,000 becomes 100 in the two headers that say it; reading stops there and the checksum fails.
    archive.write_bytes(archive.read_bytes().replace((100_000).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with pytest.raises(ValueError, match=r"a.zip cannot be unpacked \(.*\); remove it and fetch it again$"):
        unpack(archive, tmp_path / "out")
    assert only(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_damaged_archives_leave_nothing(kind: str, tmp_path: Path) -> None:
    archive = pack(kind, tmp_path, {f"top/{i}": hashlib.sha256(bytes([i])).digest() * 20 for i in range(50)})
    content = bytearray(archive.read_bytes())
    content[len(content) // 4] ^= 255
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be unpacked") as caught:
        unpack(archive, tmp_path / "out")
    assert "\n" not in str(caught.value)
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack(archive, tmp_path / "out")
    assert only(tmp_path) == [archive.name]


def test_other_files_than_archives_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no archive"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    (tmp_path / "a.zip").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match="neither a zip nor a tar archive"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_existing_folders_are_never_overwritten(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"one": b"1"})
    out = tmp_path / "out"
    out.mkdir()
    unpack(archive, out)  # an empty folder may exist
    (out / "one").write_text("mine")
    with pytest.raises(ValueError, match="is there already; remove it"):
        unpack(archive, out)
    assert (out / "one").read_text() == "mine"


def test_strip_top_wants_one_folder(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"one/a": b"1", "two/b": b"1"})
    with pytest.raises(ValueError, match="holds 2 entries at its top; expected one folder around all"):
        unpack(archive, tmp_path / "out", strip_top=True)
    assert only(tmp_path) == ["a.zip"]


def test_a_full_disk_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_zip(tmp_path / "a.zip", {"one": bytes(1000)})
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 999}))
    with pytest.raises(ValueError, match="would unpack to 1000 bytes; at most 999 are allowed and free"):
        unpack(archive, tmp_path / "out")
