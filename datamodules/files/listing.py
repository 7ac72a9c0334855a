"""What a data set consists of on disk, faulty or not: for tools that look at every file instead of stopping at one."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from structseg.datamodules.batch import Split
from structseg.datamodules.checks import raise_or_collect
from structseg.datamodules.label_spaces import LabelSpace


class FileSample(NamedTuple):
    """A sample by its files; nothing has been opened.

    Attributes:
        name: of the sample, as in a batch.
        image: the photograph.
        space: what the files' labels mean, before any map to the space that is trained.
        masks: the files of its label; empty where they are missing (already among the faults) or not needed.
        read_mask: gives the label at the size of its files, (h, w) uint8, before `images.fit_mask` turns it as the
            upright photograph; raises as training does.
        tags: gives the classes that the image is said to hold, to be held against the mask; None = nothing to hold.
        mask_size_may_differ: whether the mask may be of another size than the photograph, of the same aspect.
        left_right_swapped: whether a list says that the files have left and right swapped, which reading corrects.
        mask_size: (width, height) of a label that is in no file of its own.
        index_masks: whether the masks hold class indices, which a palette may explain.
    """

    name: str
    image: Path
    space: LabelSpace
    masks: tuple[Path, ...] = ()
    read_mask: Callable[[], NDArray[np.uint8]] | None = None
    tags: Callable[[], frozenset[str] | None] | None = None
    mask_size_may_differ: bool = False
    left_right_swapped: bool = False
    mask_size: tuple[int, int] | None = None
    index_masks: bool = False


@runtime_checkable
class Listed(Protocol):
    """A datamodule whose samples are files."""

    def file_samples(self, split: Split, faults: list[str]) -> Sequence[FileSample]:
        """The samples of a split; what is missing or does not belong is added to `faults`, one line each.

        Raises:
            FileNotFoundError: there is nothing to list.
            ValueError: likewise.
        """


def read_split_lists(
    root: Path, files: Mapping[str, str], name_of: Callable[[str], str | None], form: str, faults: list[str] | None
) -> dict[str, tuple[str, ...]]:
    """The names in text files of one image a line, by split, in the order of the lines.

    Args:
        root: folder of the lists.
        files: split to file.
        name_of: the name that a line holds, stripped; None where it is not of the form.
        form: of a line, in words for the message.
        faults: takes the messages of lines that would be raised.

    Raises:
        ValueError: a line of another form, or an image that is listed twice.
    """
    listed: dict[str, str] = {}
    lists: dict[str, tuple[str, ...]] = {}
    for split, file in files.items():
        names = []
        lines = (root / file).read_text(encoding="utf-8-sig", errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            name, here = name_of(unicodedata.normalize("NFC", line.strip("\ufeff \t\r\n"))), f"{file}, line {number}"
            if name is None:
                text = f"{root / here}: {line.strip()[:60]!r} is no {form}; mend it"
            elif name in listed:
                text = f"{name} is listed twice in {root}: {listed[name]}, and {here}; remove one"
            else:
                listed[name] = here
                names.append(name)
                continue
            raise_or_collect(ValueError(text), faults)
        lists[split] = tuple(names)
    return lists


def files_by_name(folder: Path, suffixes: Sequence[str], faults: list[str] | None = None) -> dict[str, Path]:
    """The files of a folder by their name without suffix, in order; letter case of suffixes does not count.

    Names are composed (NFC), as lists have them; macOS stores them decomposed. No folder gives no files.

    Args:
        folder: not searched deeper; what begins with a dot is passed over.
        suffixes: in lower case.
        faults: takes the messages of what would be raised.

    Raises:
        ValueError: two files of one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        name = unicodedata.normalize("NFC", path.stem)
        if name in found:
            text = f"{found[name]} and {path.name} have the same stem; keep one of them"
            raise_or_collect(ValueError(text), faults)
            continue
        found[name] = path
    return found


def stored_path(folder: Path, *names: str) -> Path:
    """A path below a folder as the disk spells it: each name composed (NFC), or decomposed (NFD) as macOS stores it."""
    for name in names:
        forms = [folder / unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
        folder = next((path for path in forms if path.exists()), forms[0])
    return folder


def refuse_missing(folder: Path, what: str, missing: Sequence[str], of: int) -> None:
    """Raises a FileNotFoundError that counts what is missing and names the first three."""
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(
            f"{len(missing)} of {of} {what} are not in {folder} ({first}); unpack the whole archive there"
        )
