import functools
import http.server
import shutil
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from structseg.datamodules.fasseg.download import content_digest, download_fasseg
from structseg.datamodules.fasseg.files import find_pairs
from tests.data.fasseg import make_fasseg


@pytest.fixture
def published(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a small archive as the code host packs it, and the digest of each version in it."""
    top = tmp_path / "host" / "FASSEG-repository-0123abc"
    for version in ("V1", "V2", "V3"):
        make_fasseg(top, version, train=2, test=1, ext="bmp")
    (top / "README.md").write_text("FASSEG")
    shutil.make_archive(str(tmp_path / "host" / "pack"), "zip", tmp_path / "host", top.name)
    digests = {version: content_digest(top / version) for version in ("V1", "V2", "V3")}

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "host"))
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/pack.zip", digests
        server.shutdown()


def test_download_makes_every_version_readable(published: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    url, digests = published
    root = tmp_path / "new" / "data"
    assert download_fasseg(root, "V3", url, digests) == root / "FASSEG-repository" / "V3"
    assert [path.name for path in root.iterdir()] == ["FASSEG-repository"]  # neither archive nor staging folder stays
    assert len(find_pairs(root, "V3", "train").pairs) == 8
    assert len(find_pairs(root, "V1", "train").pairs) == 2
    # What is there is not fetched again.
    assert download_fasseg(root, "V1", "http://127.0.0.1:1/", digests) == root / "FASSEG-repository" / "V1"


def test_other_content_leaves_nothing(published: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    url, digests = published
    root = tmp_path / "data"
    with pytest.raises(ValueError, match=r"V2 in http.* differs from the published images .*; removed: fetch it again"):
        download_fasseg(root, "V2", url, digests | {"V2": "0" * 64})
    assert list(root.iterdir()) == []
    with pytest.raises(ValueError, match=r"has SHA-256 .*, expected 00; removed"):
        download_fasseg(root, "V2", url, digests, archive_sha256="00")
    assert list(root.iterdir()) == []


def test_a_clone_that_lacks_the_version_is_not_overwritten(
    published: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    url, digests = published
    clone = tmp_path / "data" / "FASSEG-repository"
    (clone / "mine").mkdir(parents=True)
    with pytest.raises(ValueError, match="is there but holds no V2; remove it and run again"):
        download_fasseg(tmp_path / "data", "V2", url, digests)
    assert [path.name for path in clone.iterdir()] == ["mine"]


def test_digest_is_of_names_and_bytes_of_images(tmp_path: Path) -> None:
    make_fasseg(tmp_path, "V2", train=2, test=1)
    folder = tmp_path / "V2"
    digest = content_digest(folder)
    (folder / "README.md").write_text("no image")
    assert content_digest(folder) == digest
    first, second = folder / "Train_RGB" / "1.png", folder / "Train_RGB" / "2.png"
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)
    assert content_digest(folder) != digest
