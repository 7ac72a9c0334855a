"""Faces with occluders pasted in front, labelled background, face, occluder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.utils.data import Dataset

from structseg.datamodules.batch import Sample
from structseg.datamodules.checks import raise_problems
from structseg.datamodules.drawing.dice import Dice
from structseg.datamodules.drawing.geometry import Array
from structseg.datamodules.drawing.grid import Grid, Patch
from structseg.datamodules.drawing.things import Thing, union
from structseg.datamodules.label_spaces import CELEBAMASK_HQ, OCCLUSION, LabelSpace
from structseg.datamodules.occluder_shapes.face import FacePlace, find_face
from structseg.datamodules.occluder_shapes.hand import hand, hand_tone
from structseg.datamodules.occluder_shapes.held import cup, microphone, phone
from structseg.datamodules.occluder_shapes.light import Light
from structseg.datamodules.occluder_shapes.plain import patch_of_stuff, shape
from structseg.datamodules.occluder_shapes.worn import glasses, hat, mask, scarf
from structseg.datamodules.samplers import set_epoch

# From the hindmost to the foremost: worn, held, floating.
Kind = Literal[
    "glasses", "sunglasses", "mask", "scarf", "hat", "cup", "microphone", "phone", "hand", "shape", "patch"
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)

# Occluders in one place exclude each other; hands, shapes and patches may occur twice.
_PLACE = {
    **dict.fromkeys(("glasses", "sunglasses"), "eyes"),
    **dict.fromkeys(("mask", "scarf"), "mouth"),
    **dict.fromkeys(("cup", "microphone", "phone"), "hand"),
    "hat": "head",
}
_TAKEN = {"eye_g": "eyes", "hat": "head"}  # place taken by a class that a face already wears

# An additional value of masks in CELEBAMASK_HQ given to OccludedDataset: an occluder, which has no class there.
OCCLUDED = len(CELEBAMASK_HQ)

_SHADOW_REACH = 0.22  # of a soft shadow, in distances from the eyes to the mouth


@dataclass
class Occluders:
    """Settings of the occluders that are pasted in front of faces.

    Attributes:
        probability: share of the faces that get occluders.
        kinds: the kinds to choose from, equally likely, except those that a face already wears.
        most: largest number of occluders of a face; 1 to `most` are equally likely.
        size: smallest and largest area of shapes and patches, as shares of the face's; other kinds have fixed sizes.
        same_skin: share of the hands with the skin colour of the face; the others have any skin colour.
        shadow: darkness of the soft shadow on the head behind an occluder, 0 (none) to 1.
    """

    probability: float = 0.8
    kinds: tuple[Kind, ...] = KINDS
    most: int = 2
    size: tuple[float, float] = (0.02, 0.6)
    same_skin: float = 0.5
    shadow: float = 0.3

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)} (0 to 1)"
            for name in ("probability", "same_skin", "shadow")
            if not 0 <= getattr(self, name) <= 1
        ]
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds or len(set(self.kinds)) < len(self.kinds):
            problems.append(f"kinds={list(self.kinds)} (each once, one or more of {', '.join(KINDS)})")
        if self.most < 1:
            problems.append(f"most={self.most} (1 or more)")
        if not 0 < self.size[0] <= self.size[1] <= 1:
            problems.append(f"size={tuple(self.size)} (smallest, largest; above 0, at most 1)")
        raise_problems("occluders", problems)


def check_space(occluders: Occluders | None, space: LabelSpace) -> None:
    """Raises a ValueError for occluders with a label space that lacks the class."""
    if occluders is not None and space.name != OCCLUSION.name:
        raise ValueError(f"data: occluders with label_space={space.name} (label_space={OCCLUSION.name} is needed)")


class OccludedDataset(Dataset[Sample]):
    """The samples of another data set with occluders pasted on, in the label space OCCLUSION.

    Mask pixels of which an occluder, lenses included, covers half or more are class occluder, in front of the face and
    beside it. The other pixels keep their class, mapped to OCCLUSION; 255 stays 255. Images without a face are not
    changed. The occluders depend on (seed, split, epoch, index) alone.

    Args:
        data: samples with `image` (3, H, W) in 0..1, `mask` (h, w) in CELEBAMASK_HQ or OCCLUDED, `name`. The mask may
            be of another size than the image: both show the whole picture.
        settings: of the occluders.
        seed: of the occluders, 0 or more.
        split: number of the split; splits have different occluders.
        vary: whether occluders differ each epoch (`set_epoch`), for training.
    """

    def __init__(self, data: Dataset[Sample], settings: Occluders, seed: int, split: int, vary: bool) -> None:
        self.data, self.settings, self.seed, self.split, self.vary = data, settings, seed, split, vary
        # Shared, so that persistent workers see the next epoch.
        self._epoch: Tensor = torch.zeros((), dtype=torch.int64).share_memory_()
        self._table = CELEBAMASK_HQ.lookup(OCCLUSION)
        self._table[OCCLUDED] = OCCLUSION.classes.index("occluder")

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sample:
        """`image` (3, H, W) in 0..1, `mask` (h, w) in 0..2 or 255, `name`."""
        sample = self.data[index].copy()
        epoch = int(self._epoch) if self.vary else 0
        numbers = np.random.SeedSequence([self.seed, self.split, epoch, index % len(self)])
        image, alpha = occlude(sample["image"].numpy(), sample["mask"].numpy(), self.settings, numbers)
        label = self._table[sample["mask"]]
        hidden = torch.from_numpy(alpha >= 0.5) & (label != OCCLUSION.ignore_index)
        sample["image"] = torch.from_numpy(image)
        sample["mask"] = label.masked_fill(hidden, OCCLUSION.classes.index("occluder"))
        return sample

    def set_epoch(self, epoch: int) -> None:
        """Chooses the occluders of an epoch, in this process and its workers."""
        self._epoch.fill_(epoch)
        set_epoch(self.data, epoch)


def occlude(
    image: Array, mask: NDArray[np.integer], settings: Occluders, numbers: np.random.SeedSequence
) -> tuple[Array, Array]:
    """An image with occluders pasted in front of its face.

    Args:
        image: (3, H, W) float32 in 0..1; not changed.
        mask: (h, w) classes of CELEBAMASK_HQ.
        settings: of the occluders.
        numbers: the only source of randomness.

    Returns:
        The new image, and the share (h, w), 0..1, of each mask pixel that occluders cover.
    """
    choices, grain = (np.random.default_rng(child) for child in numbers.spawn(2))
    image, alpha = image.copy(), np.zeros(mask.shape, np.float32)
    dice = Dice(choices)
    face = find_face(mask) if dice.chance(settings.probability) else None
    kinds = _choose(dice, settings, face) if face is not None else []
    if face is None or not kinds:
        return image, alpha
    light = Light(image, mask)
    picture = (mask.shape[0], mask.shape[1])
    grid, labels = Grid((image.shape[1], image.shape[2]), picture), Grid(picture)
    before = (mask > 0) & (mask < OCCLUDED)
    for kind in kinds:
        thing = _build(kind, face, dice, settings, light)
        patch, distance = _paste(image, before, grid, thing, face, light, grain, settings.shadow)
        if image.shape[1:] != alpha.shape:
            patch = thing.patch(labels)
            distance = union(thing.parts(patch))
        part = alpha[patch.box]
        np.maximum(part, patch.cover(distance), out=part)
    return image, alpha


def _choose(dice: Dice, settings: Occluders, face: FacePlace) -> list[Kind]:
    """Draws the kinds for one face, from the hindmost to the foremost."""
    taken = {_TAKEN[name] for name in face.worn}
    chosen: list[Kind] = []
    for _ in range(1 + int(dice.uniform() * settings.most)):
        free = [kind for kind in settings.kinds if _PLACE.get(kind) not in taken]
        if not free:
            break
        chosen.append(dice.choose(free))
        taken |= {_PLACE[chosen[-1]]} if chosen[-1] in _PLACE else set()
    return sorted(chosen, key=KINDS.index)


def _paste(
    image: Array,
    head: NDArray[np.bool_],
    grid: Grid,
    thing: Thing,
    face: FacePlace,
    light: Light,
    grain: np.random.Generator,
    shadow: float,
) -> tuple[Patch, Array]:
    """Paints an occluder into the image, with the image's light, blur and grain; its pixels, and their distances."""
    unit = face.frame.scale / thing.frame.scale
    patch = thing.patch(grid, _SHADOW_REACH * unit)
    parts = thing.parts(patch)
    distance = union(parts)
    if not distance.size:
        return patch, distance
    rows, columns = patch.box
    # The edge is as wide as the image's own edges: 1 pixel if sharp, 2 at most.
    alpha = patch.cover(distance, 1.0 + min(light.soft, 1.0))
    colours, opacity = thing.paint(patch, parts)
    colours = colours * (light.shade(patch, grid) * light.colour[:, None, None])
    if light.soft > 0.3:
        colours = ndimage.gaussian_filter(colours, (0.0, light.soft, light.soft), truncate=2.5)
    if light.noise > 0.002:
        colours += np.float32(light.noise) * grain.standard_normal(distance.shape, dtype=np.float32)
    part = image[:, rows, columns]
    if shadow:
        depth = np.square(np.clip(1.0 - distance / np.float32(_SHADOW_REACH * unit), 0.0, 1.0))
        depth *= (1.0 - alpha * (1.0 - opacity)) * _on_head(head, image.shape[1:], rows, columns)
        part *= 1.0 - np.float32(shadow) * depth
    part += (np.clip(colours, 0.0, 1.0) - part) * (alpha * opacity)
    return patch, distance


def _on_head(head: NDArray[np.bool_], size: tuple[int, ...], rows: slice, columns: slice) -> NDArray[np.bool_]:
    """The part of a mask that lies under image pixels."""
    y = (2 * np.arange(rows.start, rows.stop) + 1) * head.shape[0] // (2 * size[0])
    x = (2 * np.arange(columns.start, columns.stop) + 1) * head.shape[1] // (2 * size[1])
    return head[np.ix_(y, x)]


def _build(kind: Kind, face: FacePlace, dice: Dice, settings: Occluders, light: Light) -> Thing:
    if kind == "hand":
        # Without the light, which is applied to the hand afterwards.
        return hand(face, dice, hand_tone(dice, light.skin / light.colour, settings.same_skin))
    if kind in ("glasses", "sunglasses"):
        return glasses(face, dice, dark=kind == "sunglasses")
    if kind in ("shape", "patch"):
        # Uniform in the logarithm of the size.
        share = math.exp(dice.between(math.log(settings.size[0]), math.log(settings.size[1])))
        return (shape if kind == "shape" else patch_of_stuff)(face, dice, share)
    return _OF_OWN_SIZE[kind](face, dice)


_OF_OWN_SIZE: dict[Kind, Callable[[FacePlace, Dice], Thing]] = {
    "mask": mask, "scarf": scarf, "hat": hat, "cup": cup, "microphone": microphone, "phone": phone,
}  # fmt: skip
