"""Downloading the published FASSEG repository as an archive, verified by the content of its images."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from structseg.datamodules.fasseg.files import REPOSITORY, SUFFIXES, Version, find_version
from structseg.datamodules.files.download import download_file, file_sha256, unpack

# The last commit, of March 2017; about 180 MB packed, 650 MB unpacked.
COMMIT = "7817f332b68decc858c9e741f8c0b366b9e0289c"
URL = f"https://codeload.github.com/massimomauro/{REPOSITORY}/zip/{COMMIT}"
# Hash of the images, because the archive's own changes when the host packs the commit again.
CONTENT: Mapping[str, str] = MappingProxyType(
    {
        "V1": "2f30f34dcf0599fe1e3fd5d662427992751a00883a6069946132a7671a8f85b8",
        "V2": "25d38d099515423370c15a588afe718e4a167a1186545ffe4a4ecc7ac4a5e354",
        "V3": "00bcb79611223a4cf84020523efc2b7ba97d8e30b22c095f2a57cc36ad1f50e9",
    }
)
MAX_BYTES = 2 << 30


def download_fasseg(
    root: Path,
    version: Version,
    url: str = URL,
    content: Mapping[str, str] = CONTENT,
    archive_sha256: str | None = None,
) -> Path:
    """Downloads all versions into `root/FASSEG-repository`, unless `version` is there already.

    Args:
        root: the folder of the data; it is made if it is missing.
        version: the version that is needed.
        url: of a zip or tar archive of the repository.
        content: `content_digest` of each version.
        archive_sha256: hash of the archive itself, for a mirror with a fixed one.

    Returns:
        The folder of the version.

    Raises:
        ConnectionError: the archive cannot be downloaded; the next call continues the partial download.
        ValueError: the archive or its content differs from what is expected; it is removed.
    """
    root.mkdir(parents=True, exist_ok=True)
    try:
        return find_version(root, version)
    except FileNotFoundError:
        pass
    target = root / REPOSITORY
    if target.exists():
        raise ValueError(f"{target} is there but holds no {version}; remove it and run again")
    archive = download_file(url, root / f"{REPOSITORY}.zip", archive_sha256)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{REPOSITORY}-") as stage:
        try:
            unpacked = unpack(archive, Path(stage) / REPOSITORY, strip_top=True, max_bytes=MAX_BYTES)
        except ValueError:
            archive.unlink()  # the next call would take it for complete
            raise
        for name, expected in content.items():
            found = content_digest(unpacked / name)
            if found != expected:
                archive.unlink()
                raise ValueError(
                    f"{name} in {url} differs from the published images (digest {found[:12]}, expected "
                    f"{expected[:12]}); removed: fetch it again, or clone massimomauro/{REPOSITORY} into {root}"
                )
        unpacked.rename(target)
    archive.unlink()
    return find_version(root, version)


def content_digest(folder: Path) -> str:
    """SHA-256 over the paths and bytes of all images below a folder."""
    total = hashlib.sha256()
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES}
    for name in sorted(files):
        total.update(f"{name} {file_sha256(files[name])}\n".encode())
    return total.hexdigest()
