"""The files of a data set: samples by their paths, lists of names, and the files of a folder by name."""

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
    """A sample by its files, none of which has been opened.

    Attributes:
        name: of the sample, as in a batch.
        image: the photograph.
        space: label space of the files, before any map to the space that is trained.
        masks: the files of its label; empty if they are missing (which is among the faults) or not needed.
        read_mask: reads the label at the size of its files, (h, w) uint8, before `images.fit_mask` turns it; raises as
            training does.
        tags: returns the image's tags, to compare with the mask; None: nothing to compare.
        mask_size_may_differ: whether the mask may have another size than the photograph, with the same aspect ratio.
        left_right_swapped: whether a list states that left and right are swapped in the files, which reading corrects.
        mask_size: (width, height) of a label that has no file of its own.
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
        """The samples of a split; a line for each missing or surplus file is added to `faults`.

        Raises:
            FileNotFoundError, ValueError: there is nothing to list.
        """


def read_split_lists(
    root: Path, files: Mapping[str, str], name_of: Callable[[str], str | None], form: str, faults: list[str] | None
) -> dict[str, tuple[str, ...]]:
    """The names in text files with one image per line, by split, in the order of the lines.

    Args:
        root: folder of the lists.
        files: the file of each split.
        name_of: returns the name in a stripped line, None for a line of another form.
        form: description of the form, for the message.
        faults: collects the errors of lines instead of raising them.

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
    """The files of a folder by their names without suffix, in order; empty without the folder.

    Names are composed (NFC), as lists have them; macOS stores them decomposed. Names that begin with a dot are skipped.

    Args:
        folder: searched without its subfolders.
        suffixes: in lower case; files may have them in any letter case.
        faults: collects errors instead of raising them.

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
    """Raises a FileNotFoundError with the number of missing files and the first three, if there are any."""
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(
            f"{len(missing)} of {of} {what} are not in {folder} ({first}); unpack the whole archive there"
        )
