"""What holds for every DataModule of the suite: its options on the command line, and copies of it and of its data."""

import copy
import pickle
import re

import pytest
import torch

from structseg.datamodules.base import SegmentationDataModule
from structseg.datamodules.label_spaces import CELEBAMASK_HQ, COCO, HELEN
from structseg.datamodules.wrappers.full_size import Originals
from structseg.datamodules.wrappers.occluders import Occluders
from structseg.options.class_index import import_all
from structseg.options.parser import StructsegParser
from tests.data.celebamask_hq import make_celebamask_hq
from tests.data.coco import make_coco
from tests.data.fasseg import make_fasseg
from tests.data.folder import make_folder
from tests.data.helen import make_helen
from tests.data.lfw import make_lfw
from tests.data.voc import make_voc

DRAWN = ("SyntheticFacesDataModule", "ConfoundedScenesDataModule", "SegmentationDataModule")
# Defaults that differ from the base's.
BASE = {
    "size": (256, 256), "batch_size": 8, "num_workers": 0, "score_at": "size",
    "predict_out": "predictions", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
}  # fmt: skip
FACES = {"size": (128, 128), "batch_size": 16}
WEAK = {"batch_size": 16, "context_of": "own", "masks": None, "queries": None, "cams": None, "predict_split": None}
OWN = {"label_space": None, "size": None, "batch_size": None, "mean": None, "std": None, "jpeg_masks": None}
DEFAULTS = {
    "SegmentationDataModule": {"label_space": "fasseg", "seed": 0, "blobs": None},
    "FASSEGDataModule": {"batch_size": 4, "mean": (0.4283, 0.335, 0.275), "std": (0.24, 0.219, 0.216), "seed": 0},
    "CelebAMaskHQDataModule": {**FACES, "label_space": "celebamask_hq", "originals": None, "seed": 0, "blobs": None},
    "HelenDataModule": {**FACES, "label_space": "stn", "repeats": 1, "seed": 0, "blobs": None},
    "SyntheticFacesDataModule": {**FACES, "label_space": "celebamask_hq", "occluders": None, "repeats": 1},
    "LFWPartsDataModule": {**FACES, "label_space": "parts", "blobs": None},
    "VOCDataModule": {**WEAK, "label_space": "voc", "seed": 0, "blobs": None},
    "COCODataModule": {**WEAK, "label_space": "coco", "seed": 0, "blobs": None},
    "FolderDataModule": {**OWN, "seed": 0, "blobs": None},
    "WeakFolderDataModule": {**WEAK, **OWN, "seed": 0},
    "ConfoundedScenesDataModule": {**WEAK, "label_space": "scenes", "size": (96, 96), "seed": 0},
}
NOT_OFFERED = {
    "FASSEGDataModule": ("label_space", "blobs"),
    "LFWPartsDataModule": ("seed",),
    "HelenDataModule": ("occluders",),
}
NAMES = sorted(DEFAULTS)


@pytest.fixture(scope="module", autouse=True)
def rooms():
    import_all()


def parse(name, *options):
    parser = StructsegParser()
    parser.add_subclass_arguments(SegmentationDataModule, "data")
    root = [] if name in DRAWN else ["--data.root", "x"]
    return parser, parser.parse_args(["--data", name, *root, *options])


def classes(top=SegmentationDataModule):
    return {top, *(below for one in top.__subclasses__() for below in classes(one))}


def test_no_datamodule_is_forgotten():
    found = {one.__name__ for one in classes() if one.__module__.startswith("structseg.")}
    assert found - {"FaceDataModule", "WeaklySupervisedDataModule", "_DescribedFolder"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_options_of_the_parents_have_their_defaults(name):
    given = parse(name)[1].data.init_args
    expected = {**BASE, **DEFAULTS[name]}
    assert {key: given[key] for key in expected} == expected
    for key in NOT_OFFERED.get(name, ()):
        assert key not in given


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--data.batch_sise", "3", r"unknown option --data\.batch_sise \(did you mean --data\.batch_size\?\)"),
        ("--data.batch_size", "many", r"data\.init_args\.batch_size|data\.batch_size"),
        ("--data.score_at", "nativ", r"expected one of 'size', 'native', got nativ"),
        ("--data.augmentation.flipp", "1", r"unknown option --data\.augmentation\.flipp"),
    ],
)
def test_a_wrong_option_of_a_parent_is_refused_in_one_line(name, option, value, message, capsys):
    with pytest.raises(SystemExit) as end:
        parse(name, option, value)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", NAMES)
def test_help_explains_the_options_of_the_parents(name, capsys):
    parser = StructsegParser()
    parser.add_subclass_arguments(SegmentationDataModule, "data")
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--data.help", name])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for option, words in (
        ("size", "(H, W) in pixels"),
        ("num_workers", "processes that decode"),
        ("std", "deviation of"),
    ):
        assert re.search(rf"--data\.{option} .{{0,60}}{re.escape(words)}", text), option


def made(name, folder):
    """A small DataModule of each kind, with data to read."""
    small = {"size": (32, 32), "batch_size": 2}
    makers = {
        "FASSEGDataModule": lambda: {"root": make_fasseg(folder, train=3, test=2)},
        "CelebAMaskHQDataModule": lambda: {"root": make_celebamask_hq(folder, count=5), "blobs": "components"},
        "HelenDataModule": lambda: {"root": make_helen(folder, 2, 1, 1)},
        "LFWPartsDataModule": lambda: {"root": make_lfw(folder, superpixels=True), "blobs": "superpixels"},
        "VOCDataModule": lambda: {"root": make_voc(folder), "masks": "truth"},
        "COCODataModule": lambda: {"root": make_coco(folder), "masks": "truth"},
        "FolderDataModule": lambda: {"root": make_folder(folder), "blobs": "components"},
        "WeakFolderDataModule": lambda: {"root": make_folder(folder), "masks": "truth"},
        "SyntheticFacesDataModule": lambda: {"train": 2, "val": 1, "test": 1},
        "ConfoundedScenesDataModule": lambda: {"train": 2, "test": 1, "masks": "truth"},
        "SyntheticFacesDataModule, occluded": lambda: {"label_space": "occlusion", "occluders": Occluders(1.0)},
        "SyntheticFacesDataModule, originals": lambda: {"label_space": "stn", "originals": Originals(48, hide_parts=2)},
    }
    (found,) = (one for one in classes() if one.__name__ == name.partition(",")[0])
    return found(**{**small, **makers[name]()})


COPIED = [*NAMES, "SyntheticFacesDataModule, occluded", "SyntheticFacesDataModule, originals"]
COPIED.remove("SegmentationDataModule")  # it holds no data


@pytest.mark.parametrize("name", COPIED)
@pytest.mark.parametrize(
    "copied", [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy], ids=["pickle", "deepcopy"]
)
def test_datamodules_and_data_sets_can_be_pickled_and_copied(name, copied, tmp_path):
    data = made(name, tmp_path)
    split = "test" if "originals" in name else "train"  # parts are hidden in evaluation only
    sample = data.dataset(split)[0]
    for other in (copied(data).dataset(split), copied(data.dataset(split))):
        again = other[0]
        assert again.keys() == sample.keys()
        for key, value in sample.items():
            same = torch.equal(value, again[key]) if isinstance(value, torch.Tensor) else value == again[key]
            assert same, key


@pytest.mark.parametrize("space", [CELEBAMASK_HQ, HELEN, COCO.subset(("cat", "dog"))], ids=lambda space: space.name)
def test_label_spaces_can_be_pickled_and_copied(space):
    for other in (pickle.loads(pickle.dumps(space)), copy.deepcopy(space)):
        assert other == space
        assert other.groups == space.groups
