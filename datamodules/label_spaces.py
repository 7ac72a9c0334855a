"""Label spaces: the classes of label maps, their colours, and the maps between them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from structseg.messages import nearest
from structseg.yaml_files import load_yaml

DATASET_FILE = "dataset.yaml"


@dataclass(frozen=True)
class LabelSpace:
    """A fixed list of classes with colours.

    Attributes:
        name: short lower-case name, as used on the command line.
        classes: class names; the position is the index. Index 0 is the background in every space of the suite.
        palette: one 8-bit (R, G, B) colour a class.
        flip_pairs: index pairs that a horizontal flip exchanges, such as the two eyes.
        groups: named unions of classes, such as mouth = upper lip, inner mouth, lower lip.
        ignore_index: the value of pixels that take no part in losses and metrics.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    flip_pairs: tuple[tuple[int, int], ...] = ()
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ignore_index: int = 255

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.palette):
            raise ValueError(f"{self.name}: {len(self.classes)} classes but {len(self.palette)} colours; give one each")
        if len(set(self.classes)) != len(self.classes):
            twice = next(name for number, name in enumerate(self.classes) if name in self.classes[:number])
            raise ValueError(f"{self.name}: class names repeat, {twice!r} is there twice; each must be unique")
        if not 1 <= len(self.classes) <= 255:
            raise ValueError(f"{self.name}: {len(self.classes)} classes; 1 to 255 fit beside the ignore index")

    def __len__(self) -> int:
        return len(self.classes)

    def lookup(self, to: LabelSpace) -> Tensor:
        """The index in another space for each index of this one.

        Returns:
            (256,) int64. Classes that the map leaves out become background; 255 and values of no class become
            `to.ignore_index`.

        Raises:
            ValueError: the suite has no map between the two spaces.

        Example:
            >>> FASSEG.classes[CELEBAMASK_HQ.lookup(FASSEG)[CELEBAMASK_HQ.classes.index("l_brow")]]
            'hair'
        """
        table = torch.full((256,), to.ignore_index, dtype=torch.int64)
        if to.classes == self.classes:
            table[: len(self)] = torch.arange(len(self))
            return table
        names = MAPS.get((self.name, to.name))
        if names is None and self.name.partition("[")[0] == to.name.partition("[")[0]:
            names = {name: name for name in to.classes}  # a subset of the same classes
        if names is None:
            known = ", ".join(target for source, target in MAPS if source == self.name) or "none"
            raise ValueError(f"no map from label space {self.name} to {to.name}; {self.name} maps to: {known}")
        for index, name in enumerate(self.classes):
            table[index] = to.classes.index(names.get(name, to.classes[0]))
        return table

    def subset(self, classes: tuple[str, ...]) -> LabelSpace:
        """The background and these classes, with their colours; incomplete flip pairs and groups are left out.

        Raises:
            ValueError: a class that this space does not have, or one given twice.
        """
        unknown = [name for name in classes if name not in self.classes[1:]]
        if unknown or len(set(classes)) != len(classes):
            wrong = f"no class {unknown[0]!r}" if unknown else "a class given twice"
            raise ValueError(
                f"{self.name}[{','.join(classes)}]: {wrong}; {self.name} has {', '.join(self.classes[1:])}"
            )
        old = [0, *(self.classes.index(name) for name in classes)]
        new = {index: position for position, index in enumerate(old)}
        return LabelSpace(
            f"{self.name}[{','.join(classes)}]",
            tuple(self.classes[index] for index in old),
            tuple(self.palette[index] for index in old),
            tuple((new[a], new[b]) for a, b in self.flip_pairs if a in new and b in new),
            {
                group: tuple(new[i] for i in members)
                for group, members in self.groups.items()
                if all(i in new for i in members)
            },
            self.ignore_index,
        )

    def describe(self) -> str:
        """The space as JSON with the keys of a `dataset.yaml`, which `label_space` reads."""
        names = self.classes
        content = {
            "name": self.name,
            "classes": [{"name": n, "color": list(c)} for n, c in zip(names, self.palette, strict=True)],
            "flip_pairs": [[names[a], names[b]] for a, b in self.flip_pairs],
            "groups": {group: [names[i] for i in members] for group, members in self.groups.items()},
        }
        return json.dumps(content)

    def flip_lookup(self) -> Tensor:
        """(256,) int64: the index of each class after a horizontal flip."""
        table = torch.arange(256)
        for first, second in self.flip_pairs:
            table[first], table[second] = second, first
        return table


def _voc_palette(size: int) -> tuple[tuple[int, int, int], ...]:
    """The VOC colour map: the bits of the index, spread over R, G and B from the highest bit down."""
    colours = []
    for index in range(size):
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
        colours.append((rgb[0], rgb[1], rgb[2]))
    return tuple(colours)


def _pairs(classes: tuple[str, ...], *names: tuple[str, str]) -> tuple[tuple[int, int], ...]:
    return tuple((classes.index(a), classes.index(b)) for a, b in names)


def _groups(classes: tuple[str, ...], **names: tuple[str, ...]) -> Mapping[str, tuple[int, ...]]:
    return {group: tuple(classes.index(n) for n in members) for group, members in names.items()}


# The palette of the published label images; hair is 127, not 128, and holds the brows.
FASSEG = LabelSpace(
    "fasseg",
    ("background", "skin", "hair", "eyes", "nose", "mouth"),
    ((255, 0, 0), (255, 255, 0), (127, 0, 0), (0, 0, 255), (0, 255, 255), (0, 255, 0)),
)

_SIDES = (("left_brow", "right_brow"), ("left_eye", "right_eye"))
_PARTS = {
    "brows": ("left_brow", "right_brow"),
    "eyes": ("left_eye", "right_eye"),
    "nose": ("nose",),
    "mouth": ("upper_lip", "inner_mouth", "lower_lip"),
}
_HELEN = (
    "background", "skin", "left_brow", "right_brow", "left_eye", "right_eye", "nose", "upper_lip", "inner_mouth",
    "lower_lip", "hair",
)  # fmt: skip
_PART_COLOURS = (
    (255, 153, 51), (255, 204, 102), (51, 51, 255), (102, 204, 255), (76, 153, 0), (255, 0, 102), (102, 0, 51),
    (204, 0, 204),
)  # fmt: skip
HELEN = LabelSpace(
    "helen",
    _HELEN,
    ((0, 0, 0), (255, 229, 204), *_PART_COLOURS, (127, 0, 0)),
    _pairs(_HELEN, *_SIDES),
    _groups(_HELEN, **_PARTS),
)

# The order of the STN-iCNN paper's coarse network: HELEN without skin and hair.
_STN = ("background", *_HELEN[2:10])
STN = LabelSpace("stn", _STN, ((0, 0, 0), *_PART_COLOURS), _pairs(_STN, *_SIDES), _groups(_STN, **_PARTS))
# The windows of STN-iCNN, in their order, and the classes of `STN` that each one holds.
FACE_PARTS = {
    "left_brow": (1,),
    "right_brow": (2,),
    "left_eye": (3,),
    "right_eye": (4,),
    "nose": (5,),
    "mouth": (6, 7, 8),
}

PARTS = LabelSpace("parts", ("background", "face", "hair"), ((0, 0, 255), (0, 255, 0), (255, 0, 0)))

OCCLUSION = LabelSpace("occlusion", ("background", "face", "occluder"), ((0, 0, 0), (0, 200, 0), (230, 60, 0)))

# Left and right are the pictured person's own.
_CELEBA = (
    "background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth", "u_lip",
    "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth",
)  # fmt: skip
_CELEBA_COLOURS = (
    (0, 0, 0), (204, 0, 0), (76, 153, 0), (204, 204, 0), (51, 51, 255), (204, 0, 204), (0, 255, 255),
    (255, 204, 204), (102, 51, 0), (255, 0, 0), (102, 204, 0), (255, 255, 0), (0, 0, 153), (0, 0, 204),
    (255, 51, 153), (0, 204, 204), (0, 51, 0), (255, 153, 51), (0, 204, 0),
)  # fmt: skip
CELEBAMASK_HQ = LabelSpace(
    "celebamask_hq",
    _CELEBA,
    _CELEBA_COLOURS,
    _pairs(_CELEBA, ("l_eye", "r_eye"), ("l_brow", "r_brow"), ("l_ear", "r_ear")),
    _groups(
        _CELEBA,
        brows=("l_brow", "r_brow"),
        eyes=("l_eye", "r_eye"),
        ears=("l_ear", "r_ear"),
        nose=("nose",),
        mouth=("mouth", "u_lip", "l_lip"),
    ),
)

_VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOC = LabelSpace("voc", _VOC, _voc_palette(21))

_COCO = (
    "background", "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep",
    "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
COCO = LabelSpace("coco", _COCO, _voc_palette(81))

# ConfoundedScenes: 1 and 2, 3 and 4, ... are partners.
_SCENES = ("background", "star", "moon", "fish", "shell", "flower", "beetle", "house", "cone")
SCENES = LabelSpace("scenes", _SCENES, _voc_palette(9))

SPACES: Mapping[str, LabelSpace] = {
    space.name: space for space in (FASSEG, HELEN, STN, PARTS, OCCLUSION, CELEBAMASK_HQ, VOC, COCO, SCENES)
}

_CELEBA_TO_STN = {
    "l_brow": "left_brow",
    "r_brow": "right_brow",
    "l_eye": "left_eye",
    "r_eye": "right_eye",
    "nose": "nose",
    "u_lip": "upper_lip",
    "mouth": "inner_mouth",
    "l_lip": "lower_lip",
}
_FACE = ("skin", "nose", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth", "u_lip", "l_lip")
_SAME_IN_COCO = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
_VOC_TO_COCO = {name: _SAME_IN_COCO.get(name, name) for name in _VOC}

# (source, target) -> class of the source: class of the target; what is left out becomes background.
MAPS: Mapping[tuple[str, str], Mapping[str, str]] = {
    # FASSEG draws brows as hair, ears and neck as skin, clothes as background.
    ("celebamask_hq", "fasseg"): {
        **dict.fromkeys(("skin", "eye_g", "l_ear", "r_ear", "neck", "neck_l"), "skin"),
        **dict.fromkeys(("hair", "l_brow", "r_brow"), "hair"),
        **dict.fromkeys(("l_eye", "r_eye"), "eyes"),
        "nose": "nose",
        **dict.fromkeys(("mouth", "u_lip", "l_lip"), "mouth"),
    },
    ("celebamask_hq", "stn"): _CELEBA_TO_STN,
    # HELEN's skin is the face without ears and neck.
    ("celebamask_hq", "helen"): {**_CELEBA_TO_STN, "skin": "skin", "eye_g": "skin", "hair": "hair"},
    ("helen", "stn"): {name: name for name in _STN},
    # LFW's superpixels call every bit of skin, neck included, face.
    ("celebamask_hq", "parts"): {**dict.fromkeys((*_FACE, "eye_g", "neck", "neck_l"), "face"), "hair": "hair"},
    ("celebamask_hq", "occlusion"): {**dict.fromkeys(_FACE, "face"), "eye_g": "occluder", "hat": "occluder"},
    ("fasseg", "parts"): {**dict.fromkeys(("skin", "eyes", "nose", "mouth"), "face"), "hair": "hair"},
    ("helen", "parts"): {**dict.fromkeys(_HELEN[1:10], "face"), "hair": "hair"},
    ("helen", "fasseg"): {
        **dict.fromkeys(("hair", "left_brow", "right_brow"), "hair"),
        **dict.fromkeys(("left_eye", "right_eye"), "eyes"),
        **dict.fromkeys(("upper_lip", "inner_mouth", "lower_lip"), "mouth"),
        "skin": "skin",
        "nose": "nose",
    },
    ("voc", "coco"): _VOC_TO_COCO,
    ("coco", "voc"): {target: source for source, target in _VOC_TO_COCO.items()},
}


def label_space(given: str) -> LabelSpace:
    """A space by its name, from a file, or from the JSON of `LabelSpace.describe`, which checkpoints hold.

    `voc[cat,dog]` is the background and these classes of `voc`, in the order given. A file is a `dataset.yaml` or the
    folder that holds one; classes are chosen in the same way: `photos/dataset.yaml[cat,dog]`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such space, no such class in it, or a file that is wrong.

    Example:
        >>> label_space("voc[cat,dog]").classes
        ('background', 'cat', 'dog')
    """
    if given.startswith("{"):
        return read_space(json.loads(given), "data.label_space")
    whole, bracket, inside = given.partition("[")
    if whole in SPACES:
        space = SPACES[whole]
    elif whole.endswith((".yaml", ".yml")) or (Path(whole).expanduser() / DATASET_FILE).is_file():
        path = Path(whole).expanduser()
        path = path / DATASET_FILE if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}; give --data.label_space a {DATASET_FILE} or a known name")
        space = read_space(load_yaml(path)[0], str(path))
    else:
        raise ValueError(
            f"no label space {given!r}; choose one of {', '.join(SPACES)}, or a {DATASET_FILE}{nearest(whole, SPACES)}"
        )
    if not bracket:
        return space
    if not inside.endswith("]"):
        raise ValueError(f"label space {given!r} has no closing bracket; write {whole}[CLASS,CLASS]")
    return space.subset(tuple(part.strip() for part in inside.removesuffix("]").split(",")))


Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassEntry:
    """A class of a `dataset.yaml`.

    Attributes:
        name: of the class.
        values: mask values of this class: grey values or palette indices, and colours.
        color: to draw it in; None: one is chosen.
        ignored: whether its pixels are ignored, so that it is not a class of the space.
    """

    name: str
    values: tuple[int | Colour, ...]
    color: Colour | None
    ignored: bool


def class_entries(tree: Any, where: str) -> tuple[ClassEntry, ...]:
    """The `classes` of a `dataset.yaml`: a list of names or of mappings, or such a mapping by mask value.

    Raises:
        ValueError: what is wrong, with the key and the value; `where` begins the message.
    """
    classes = tree.get("classes") if isinstance(tree, Mapping) else None
    if not isinstance(classes, Sequence | Mapping) or isinstance(classes, str) or not classes:
        raise ValueError(f"{where}: classes is {classes!r}; give a list of names, the background first")
    given = list(classes.items()) if isinstance(classes, Mapping) else list(enumerate(classes))
    ignored = [*as_list(tree.get("ignore")), *as_list(tree.get("ignore_classes"))]
    by_id = as_list(tree.get("ignore_classes"))
    entries = []
    for key, entry in given:
        entry = {"name": entry} if isinstance(entry, str) else entry
        at = f"{where}: classes, entry {key}"
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str) or not entry["name"].strip():
            raise ValueError(f"{at} is {entry!r}; give a name in quotes, or {{name: NAME, values: [...]}}")
        unknown = [name for name in entry if name not in ("name", "values", "labels", "rgb", "color")]
        if unknown:
            hint = nearest(str(unknown[0]), ("name", "values", "rgb", "color"))
            raise ValueError(f"{at} has the unknown key {unknown[0]!r}{hint}; known are name, values, rgb, color")
        if not isinstance(key, int) or isinstance(key, bool):
            raise ValueError(f"{at}: a mapping of classes goes by mask values; write whole numbers, or a list")
        stated = [value for name in ("values", "labels", "rgb") for value in as_list(entry.get(name))]
        if not stated and any(name in entry for name in ("values", "labels", "rgb")):
            raise ValueError(f"{at} ({entry['name']}) has no values, so no pixel matches it; give some or remove it")
        rgb = as_list(entry.get("rgb"))
        if rgb and all(isinstance(value, int) for value in rgb):
            raise ValueError(f"{at}: rgb is {rgb!r}; give a list of colours, [[R, G, B]]")
        values = tuple(mask_value(value, at) for value in stated or [key])
        color = None if entry.get("color") is None else mask_value(entry["color"], f"{at}: color")
        if isinstance(color, int):
            raise ValueError(f"{at}: color is {color!r}; give [R, G, B]")
        color = color or next((value for value in values if isinstance(value, tuple)), None)
        out = entry["name"] in ignored or key in by_id
        entries.append(ClassEntry(entry["name"], values, color, out))
    return tuple(entries)


def read_space(tree: Any, where: str) -> LabelSpace:
    """The space of the `classes`, `flip_pairs`, `groups` and `name` of a `dataset.yaml`; raises as `class_entries`."""
    entries = [entry for entry in class_entries(tree, where) if not entry.ignored]
    names = tuple(entry.name for entry in entries)
    if len(names) < 2:
        raise ValueError(
            f"{where}: {len(names)} class{'es' * (not names)} to learn ({', '.join(names)}); give 2 or more"
        )

    def index(name: Any, key: str) -> int:
        if name not in names:
            raise ValueError(f"{where}: {key} names {name!r}, which is no class{nearest(str(name), names)}; mend it")
        return names.index(name)

    pairs = as_list(tree.get("flip_pairs"))
    if not all(isinstance(pair, Sequence) and len(pair) == 2 and pair[0] != pair[1] for pair in pairs):
        raise ValueError(f"{where}: flip_pairs is {pairs!r}; give pairs of classes, [[left_eye, right_eye]]")
    groups = tree.get("groups") or {}
    if not isinstance(groups, Mapping) or not all(isinstance(members, list) for members in groups.values()):
        raise ValueError(f"{where}: groups is {groups!r}; give {{NAME: [CLASS, CLASS]}}")
    flips = tuple((index(a, "flip_pairs"), index(b, "flip_pairs")) for a, b in pairs)
    if len({i for pair in flips for i in pair}) < 2 * len(flips):
        raise ValueError(f"{where}: flip_pairs is {pairs!r}; each class may be in one pair only")
    taken = [entry.color for entry in entries if entry.color is not None]
    spare = (colour for colour in _voc_palette(256) if colour not in taken)
    palette = tuple(next(spare) if entry.color is None else entry.color for entry in entries)
    twice = next((colour for colour in palette if palette.count(colour) > 1), None)
    if twice is not None:
        raise ValueError(f"{where}: two classes have the color {list(twice)}; give them different ones")
    try:
        return LabelSpace(
            str(tree.get("name") or Path(where).parent.name or "own"), names, palette, flips,
            {str(group): tuple(index(m, f"groups.{group}") for m in members) for group, members in groups.items()},
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def as_list(value: Any) -> list[Any]:
    """The list of a value that may be None, single or a list."""
    return [] if value is None else value if isinstance(value, list) else [value]


def mask_value(value: Any, where: str) -> int | Colour:
    """A mask value, 0..65535, or a colour, checked; raises a ValueError that begins with `where`."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535:
        return value
    if isinstance(value, Sequence) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value):
        return int(value[0]), int(value[1]), int(value[2])
    raise ValueError(f"{where} has the value {value!r}; give whole numbers of 0 to 65535, or colours [R, G, B]")
