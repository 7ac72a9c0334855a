"""The files of FASSEG: the folders of its versions, pairs of photograph and label, and folds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from structseg.datamodules.checks import raise_or_collect
from structseg.datamodules.files.listing import files_by_name

Version = Literal["V1", "V2", "V3"]
Part = Literal["train", "test"]

PUBLISHED_NAMES = {"V1": "frontal01", "V2": "frontal02", "V3": "multipose01"}
REPOSITORY = "FASSEG-repository"
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png")

# Test photographs of V1 and V2 that are pixel for pixel train 17, 16, 18, 19, 15 and 20.
REPEATED_TEST = ("13", "17", "20", "23", "26", "44")
# Other crops or shots of the same sittings as train 3, 1, 6, 5, 7 and 10.
SAME_SITTING_TEST = ("1", "3", "5", "6", "7", "8")

# The test photographs of these poses were for the pose estimator and were never labelled.
UNLABELLED_TEST_POSES = ("-90", "-75", "-45", "-15", "+15", "+45", "+75")
# Their labels belong to another crop of the photograph; stretched onto it they are off by tens of pixels.
MISMATCHED_TEST = (
    "+30/personne15248+0+30",
    "+60/personne10250+0+60",
    "+60/personne11250+0+60",
    "+60/personne12250+0+60",
)


@dataclass(frozen=True)
class Pair:
    """A photograph and its label image.

    Attributes:
        name: does not depend on the disk's letter case: `V2/Test_RGB/7`, `V3/Train_RGB/-45/personne02143+0-45`.
        image: the photograph.
        label: the painted label.
    """

    name: str
    image: Path
    label: Path

    @property
    def pose(self) -> str:
        """Yaw in degrees as in the folder's name, `-90` to `+90`; `0` for the frontal versions."""
        return pose_of(self.name)

    @property
    def subject(self) -> str:
        """The pictured person, `01` to `15`, in V3; the photograph's number in V1 and V2, which name nobody."""
        return subject_of(self.name)


@dataclass(frozen=True)
class Found:
    """The pairs of one part of one version, and the photographs that were left out.

    Attributes:
        pairs: in order of pose and number.
        unlabelled: names of photographs of poses without labels (V3 test).
        mismatched: names of pairs whose label belongs to another crop (V3 test).
    """

    pairs: tuple[Pair, ...]
    unlabelled: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{len(self.pairs)} labelled photographs"
        if self.unlabelled:
            poses = sorted({pose_of(name) for name in self.unlabelled}, key=int)
            text += f"; {len(self.unlabelled)} without label left out (poses {', '.join(poses)})"
        if self.mismatched:
            names = ", ".join(name.rsplit("/", 1)[-1] for name in self.mismatched)
            text += f"; {len(self.mismatched)} left out whose labels are of another crop ({names})"
        return text


def pose_of(name: str) -> str:
    """The pose in a sample's name: `V3/Train_RGB/-45/personne02143+0-45` -> `-45`, `V2/Test_RGB/7` -> `0`."""
    parts = name.split("/")
    return parts[2] if len(parts) == 4 else "0"


def subject_of(name: str) -> str:
    """The person in a sample's name: `V3/Train_RGB/-45/personne02143+0-45` -> `02`, `V2/Test_RGB/7` -> `7`."""
    stem = name.rsplit("/", 1)[-1]
    match = re.match(r"personne(\d\d)", stem)
    return match.group(1) if match else stem


def is_clean(name: str) -> bool:
    """Whether a test photograph is neither a training photograph nor of the same sitting as one.

    True for 38 of the 50 test photographs of V1 and V2 and for all of V3, whose parts share no person.
    """
    version, part, *_, stem = name.split("/")
    return version == "V3" or part != "Test_RGB" or stem not in REPEATED_TEST + SAME_SITTING_TEST


def find_version(root: Path, version: Version) -> Path:
    """The folder of a version: in `root` as V2 or frontal02, in a clone of the repository in `root`, or `root` itself.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no such version, or `root` is the folder of another version.
    """
    if version not in PUBLISHED_NAMES:
        raise ValueError(f"no FASSEG version {version!r}; choose one of {', '.join(PUBLISHED_NAMES)}")
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; give the folder that holds FASSEG's {version} as --data.root")
    for parent in (root, root / REPOSITORY):
        for name in (version, PUBLISHED_NAMES[version]):
            folder = _child(parent, name)
            if folder is not None:
                return folder
    if _child(root, "Train_RGB") is not None or _child(root, "Test_RGB") is not None:
        for other, name in PUBLISHED_NAMES.items():
            if other != version and root.name.lower() in (other.lower(), name):
                raise ValueError(
                    f"{root} holds FASSEG {other}, but {version} was asked for; set --data.version {other}"
                )
        return root
    raise FileNotFoundError(
        f"{root} holds no FASSEG {version}; expected a folder {version} or {PUBLISHED_NAMES[version]} with Train_RGB "
        f"and Train_Labels (--data.download true fetches it)"
    )


def find_pairs(root: Path, version: Version, part: Part, faults: list[str] | None = None) -> Found:
    """Photographs and labels of one part, paired by pose and file stem.

    Args:
        root: as for `find_version`.
        version: V1 and V2 are frontal (20 train, 50 test), V3 has 13 poses (182 train, 208 test).
        part: as published.
        faults: collects errors of single files instead of raising them.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: no photographs, a photograph without label, a label without photograph, or two files of one stem;
            the known faults of V3's test part are left out instead.
    """
    home = find_version(root, version)
    photographs = _images(_part_folder(home, f"{part.title()}_RGB"), faults)
    labels = _images(_part_folder(home, f"{part.title()}_Labels"), faults)
    if not photographs:
        raise ValueError(f"{home} has no photographs in {part.title()}_RGB; expected BMP, PNG or JPEG files")

    known = version == "V3" and part == "test"
    missing = [key for key in photographs if key not in labels]
    unlabelled = [key for key in missing if known and key.split("/")[0] in UNLABELLED_TEST_POSES]
    for key in missing:
        if key not in unlabelled:
            text = f"{photographs[key]} has no label {key} in {part.title()}_Labels; add it or remove the photograph"
            raise_or_collect(ValueError(text), faults)
    for key in labels:
        if key not in photographs:
            text = f"{labels[key]} has no photograph {key} in {part.title()}_RGB; add it or remove the label"
            raise_or_collect(ValueError(text), faults)

    mismatched = [key for key in labels if known and key in MISMATCHED_TEST]
    prefix = f"{version}/{part.title()}_RGB/"
    paired = [key for key in sorted(labels, key=_order) if key in photographs and key not in mismatched]
    return Found(
        tuple(Pair(prefix + key, photographs[key], labels[key]) for key in paired),
        tuple(prefix + key for key in sorted(unlabelled, key=_order)),
        tuple(prefix + key for key in sorted(mismatched, key=_order)),
    )


def split_folds(groups: Iterable[str], folds: int, seed: int) -> list[list[str]]:
    """A random partition of group names into folds, which does not depend on their order.

    Args:
        groups: names, repeats allowed: numbers of photographs in V1 and V2, persons in V3.
        folds: number of folds; the first ones have one name more if the number of names is not a multiple.
        seed: of the partition.

    Raises:
        ValueError: fewer than 2 folds, or fewer names than folds.
    """
    names = sorted(set(groups))
    if not 2 <= folds <= len(names):
        raise ValueError(f"{folds} folds asked of {len(names)} groups; choose 2 to {len(names)}")
    order = np.random.default_rng(seed).permutation(len(names))
    return [sorted(names[i] for i in fold) for fold in np.array_split(order, folds)]


def select(pairs: Sequence[Pair], subjects: Iterable[str], *, inside: bool = True) -> tuple[Pair, ...]:
    """The pairs whose subject is (`inside`) or is not among those named."""
    wanted = set(subjects)
    return tuple(pair for pair in pairs if (pair.subject in wanted) == inside)


def _child(folder: Path, name: str) -> Path | None:
    """The subfolder of that name in any letter case, preferably exact."""
    if (folder / name).is_dir():
        return folder / name
    if not folder.is_dir():
        return None
    same = sorted(entry for entry in folder.iterdir() if entry.name.lower() == name.lower() and entry.is_dir())
    return same[0] if same else None


def _part_folder(home: Path, name: str) -> Path:
    folder = _child(home, name)
    if folder is None:
        raise FileNotFoundError(
            f"{home} has no folder {name}; a FASSEG version has Train and Test, each _RGB and _Labels"
        )
    return folder


def _images(folder: Path, faults: list[str] | None = None) -> dict[str, Path]:
    """Image files by key: the stem, or pose/stem if there is a folder for each pose."""
    found = files_by_name(folder, SUFFIXES, faults)
    for pose in sorted(path for path in folder.iterdir() if path.is_dir()):
        found |= {f"{pose.name}/{name}": path for name, path in files_by_name(pose, SUFFIXES, faults).items()}
    return found


def _order(key: str) -> tuple[float, float, str]:
    """Sort key: the pose, then the number, 2 before 10."""
    pose, _, stem = key.rpartition("/")
    return _number(pose), _number(stem), key


def _number(text: str) -> float:
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float("inf")
