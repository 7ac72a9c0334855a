"""What a damaged input is held to: one clear line or an honest result, soon, in little memory, nothing of its own run."""

from __future__ import annotations

import atexit
import os
import re
import resource
import shutil
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

SECONDS, BYTES = 10.0, 1 << 30
_LONGEST = 2000  # characters of a message
_ROOM = 3 << 30  # of addresses; a bomb that gets past everything else ends here and not the machine

Lay = Callable[[Path], Path]
Wreck = Callable[[bytes], bytes]


class Damage(NamedTuple):
    """A damaged input, and what reads it.

    Attributes:
        name: a clear id.
        lay: writes the damaged thing into an empty folder and returns what `read` gets.
        read: what the suite does with it.
        says: regular expression that the message has to hold: the name of the file, or of the setting.
        bears: whether it may be read as well, as where the format has no checksum.
        ran: the file, below the folder, that would be there if a payload had been run.
    """

    name: str
    lay: Lay
    read: Callable[[Path], Any]
    says: str
    bears: bool = False
    ran: str = "ran"

    def __str__(self) -> str:
        return self.name


_EACH = 5
_HOSTILE = re.compile(r"payload|pickle|python|reference to|is a call|a class that runs|YAML that|path '|link|entity")


def part_of(cases: Iterable[Damage]) -> Iterator[Any]:
    """The parameters of a test: all cases, those marked that `make test` leaves to `make fuzz`.

    It runs what would run code or leave the folder, and of the others the first and every fifth of each group, which is
    what stands before the colon of their names.
    """
    count: Counter[str] = Counter()
    for case in cases:
        group = case.name.partition(":")[0]
        kept = count[group] % _EACH == 0 or _HOSTILE.search(case.name)
        count[group] += 1
        yield pytest.param(case, id=str(case), marks=() if kept else pytest.mark.fuzz)


def fault_of(damage: Damage, folder: Path) -> str | None:
    """What is wrong with how the suite takes a damaged input; None where nothing is."""
    path = damage.lay(folder)
    before, start, worked = _reset_peak(), time.perf_counter(), time.process_time()
    error: BaseException | None = None
    with _bounded(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            damage.read(path)
        except (Exception, SystemExit) as caught:  # noqa: BLE001  # whatever it is, it is judged
            error = caught
    grown = _peak() - before
    # On cores that others use too, the clock says less than the work done; what waits is found by the clock all the same.
    seconds = max(time.process_time() - worked, (time.perf_counter() - start) / 6)
    if (folder / damage.ran).exists():
        return "its payload was run"
    if seconds > SECONDS:
        return f"took {seconds:.1f} s"
    if grown > BYTES:
        return f"took {grown >> 20} MiB"
    if error is None:
        return None if damage.bears else "was read without a word"
    return fault_in(error, damage.says, folder)


def fault_in(error: BaseException, says: str, folder: Path) -> str | None:
    """What is wrong with an error's kind or message; None where nothing is."""
    message = str(error).replace(str(folder), "...")
    if not isinstance(error, ValueError | TypeError | OSError):
        return f"ended in {type(error).__name__}: {message[:200]}"
    if isinstance(error, UnicodeError):
        return f"ended in a bare {type(error).__name__}: {message[:200]}"
    if not message.strip() or "\n" in message or len(message) > _LONGEST:
        return f"the message is not one line: {message[:300]!r}"
    if "Traceback" in message or not re.search(says, message):
        return f"the message does not say {says!r}: {message[:300]}"
    return None


def _status(field: str) -> int:
    """Bytes, of this process."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) << 10 if found else 0


def _reset_peak() -> int:
    """Bytes in use; the mark of the most in use starts here."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return _peak()  # marks of before are higher, so less is noticed


def _peak() -> int:
    try:
        return _status("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextmanager
def _bounded() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        own = _status("VmSize")
    except OSError:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (own + _ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# Ways to spoil a file of any kind


def cut(share: float) -> Wreck:
    return lambda whole: whole[: int(len(whole) * share)]


def flip(seed: int, count: int = 4, first: int | None = None) -> Wreck:
    """Bytes replaced by others, all of them among the `first` ones."""

    def wreck(whole: bytes) -> bytes:
        random, spoilt = np.random.default_rng(seed), bytearray(whole)
        for place in random.integers(0, min(len(whole), first or len(whole)), count):
            spoilt[place] ^= int(random.integers(1, 256))
        return bytes(spoilt)

    return wreck


def swap(old: bytes, new: bytes) -> Wreck:
    def wreck(whole: bytes) -> bytes:
        assert old in whole, f"{old!r} is not there"
        return whole.replace(old, new)

    return wreck


def put(content: bytes | str) -> Wreck:
    return lambda whole: content.encode() if isinstance(content, str) else content


NOISE = np.random.default_rng(7).bytes(700)
# What no file of the suite's kinds can be taken for.
RUINS: Mapping[str, Wreck] = {
    "empty": put(b""),
    "cut at 5 %": cut(0.05),
    "cut in half": cut(0.5),
    "cut at 95 %": cut(0.95),
    "noise": put(NOISE),
    "noise at its head": lambda whole: NOISE[:60] + whole[60:],
    "zeros": lambda whole: bytes(len(whole)),
    "an error page": put("<html><body>404 not found</body></html>\n"),
    "a large file's pointer": put("version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 5\n"),
    "two bytes a letter": put("a text, of an editor\r\n".encode("utf-16")),
}


def _as_folder(path: Path) -> None:
    path.mkdir()


def _as_dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def _as_loop(path: Path) -> None:
    path.symlink_to(path)


def _as_pipe(path: Path) -> None:
    os.mkfifo(path)


ODD: Mapping[str, Callable[[Path], None]] = {
    "a folder of its name": _as_folder,
    "a link to nowhere": _as_dangling,
    "a link to itself": _as_loop,
    "a named pipe": _as_pipe,
}


def spoil(copy: Callable[[Path], Path], inner: str, wreck: Wreck) -> Lay:
    """`copy` lays a good tree into the folder and returns what is read; `inner` is the file below the folder."""

    def lay(folder: Path) -> Path:
        root = copy(folder)
        file = folder / inner
        file.write_bytes(wreck(file.read_bytes()))
        return root

    return lay


def replace(copy: Callable[[Path], Path], inner: str, odd: Callable[[Path], None]) -> Lay:
    """As `spoil`, but the file becomes something else than a file."""

    def lay(folder: Path) -> Path:
        root = copy(folder)
        (folder / inner).unlink()
        odd(folder / inner)
        return root

    return lay


def ruin(
    what: str,
    copy: Callable[[Path], Path],
    inner: str,
    read: Callable[[Path], Any],
    bears: tuple[str, ...] = (),
    says: str | None = None,
    odd: bool = True,
) -> list[Damage]:
    """Every ruin, and every odd thing of its name, of one file of a good tree."""
    says = re.escape(Path(inner).name) if says is None else says
    found = [
        Damage(f"{what}: {name}", spoil(copy, inner, wreck), read, says, name in bears) for name, wreck in RUINS.items()
    ]
    if odd:
        stem = re.escape(Path(inner).stem)
        found += [
            Damage(f"{what}: {name}", replace(copy, inner, make), read, f"{says}|{stem}") for name, make in ODD.items()
        ]
    return found


@cache
def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="structseg-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def template(name: str, make: Callable[[Path], object]) -> Callable[[Path], Path]:
    """Copies a tree that is made once; what is copied is returned."""

    @cache
    def made() -> Path:
        folder = _scratch() / name
        folder.mkdir()
        make(folder)
        return folder

    def copy(folder: Path) -> Path:
        shutil.copytree(made(), folder, dirs_exist_ok=True, symlinks=True)
        return folder

    return copy
