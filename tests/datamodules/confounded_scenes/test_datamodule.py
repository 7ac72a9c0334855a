"""ConfoundedScenesDataModule: training confounded, test balanced, masks in the given label space, all faults named."""

import numpy as np
import pytest
import torch

from structseg.datamodules.confounded_scenes.cooccurrence import partner, usual_ground
from structseg.datamodules.confounded_scenes.datamodule import ConfoundedScenesDataModule
from structseg.datamodules.confounded_scenes.dataset import ConfoundedScenes
from structseg.datamodules.label_spaces import SCENES, VOC
from tests.data.layouts import NAMES, layout_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return layout_folder(tmp_path_factory.mktemp("layouts"))


def _data(**settings) -> ConfoundedScenesDataModule:
    return ConfoundedScenesDataModule(**{"train": 6, "test": 4, "size": (48, 48), **settings})


def _with_partner(data, split) -> float:
    """The share of the classes in the split's tags whose partner is in the image, too."""
    found = []
    for name in data.entries(split):
        kinds = {SCENES.classes.index(tag) for tag in data.tags_of(name)}
        found += [partner(kind) in kinds for kind in kinds]
    return float(np.mean(found))


def test_training_and_validation_are_confounded_and_the_test_is_balanced():
    data = _data(train=60, val=60, test=100, co_occurrence=1.0)
    assert _with_partner(data, "train") == 1.0
    assert _with_partner(data, "val") == 1.0
    assert 0.15 < _with_partner(data, "test") < 0.42  # 0.278, of about 240 classes


def test_samples_are_the_scenes_that_were_asked_for():
    data = _data(co_occurrence=0.7, seed=3)
    image, mask, tags = data.read("scene_train_000004")
    picture = ConfoundedScenes(3, (48, 48)).render(0, 4, 0.7)
    assert np.array_equal(np.asarray(image), picture.image)
    assert np.array_equal(mask, picture.mask)
    assert np.flatnonzero(tags).tolist() == [kind - 1 for kind in range(1, 9) if np.any(mask == kind)]
    test = data.read("scene_test_000001")
    assert np.array_equal(test[1], ConfoundedScenes(3, (48, 48)).render(2, 1, 0.0).mask)


def test_scenes_of_some_classes_are_as_many_as_asked_for():
    data = _data(train=30, test=20, label_space="scenes[fish,shell]", unknown_classes="leave_out", co_occurrence=0.5)
    for split, count in (("train", 30), ("test", 20)):
        assert len(data.names(split)) == len(data.dataset(split)) == count
        assert {frozenset(data.tags_of(name)) for name in data.names(split)} == {
            frozenset({"fish"}), frozenset({"shell"}), frozenset({"fish", "shell"})
        }  # fmt: skip
    others = _data(train=30, label_space="scenes[fish,shell]")  # these have all eight, and some have neither
    assert any(len(others.tags_of(name)) > 2 for name in others.names("train"))


def test_batches_carry_tags_and_the_truth_only_where_it_is_asked_for():
    weak = next(iter(_data(batch_size=3).train_dataloader()))
    assert "mask" not in weak
    assert weak["image"].shape == (3, 3, 48, 48)
    assert weak["tags"].shape == (3, 8)
    strong = next(iter(_data(batch_size=3, masks="truth").train_dataloader()))
    for mask, tags in zip(strong["mask"], strong["tags"], strict=True):
        assert [bool((mask == kind).any()) for kind in range(1, 9)] == tags.bool().tolist()
    evaluated = next(iter(_data(batch_size=4).test_dataloader()))
    assert evaluated["mask"].shape == (4, 48, 48)
    assert evaluated["name"] == [f"scene_test_{i:06d}" for i in range(4)]


def test_splits_share_no_name_and_validation_is_optional():
    data = _data(val=3)
    names = [name for split in ("train", "val", "test") for name in data.entries(split)]
    assert len(set(names)) == len(names) == 13
    assert data.has_validation
    assert not _data().has_validation
    assert _data().val_dataloader() == []


def test_a_subset_of_the_classes_calls_the_others_background():
    data = _data(train=40, label_space="scenes[shell,fish]", co_occurrence=0.0)
    whole = _data(train=40, co_occurrence=0.0)
    names = data.names("train")
    assert names == tuple(n for n in whole.entries("train") if whole.tags_of(n) & {"fish", "shell"})
    for name in names[:5]:
        mask, full = data.read(name)[1], whole.read(name)[1]
        assert np.array_equal(mask == 1, full == SCENES.classes.index("shell"))
        assert np.array_equal(mask == 2, full == SCENES.classes.index("fish"))
    assert data.tags_from_masks


def test_layouts_are_painted_in_voc(folder):
    data = _data(layouts=str(folder), label_space="voc", masks="truth", batch_size=2)
    assert {*data.entries("train"), *data.entries("test")} == set(NAMES)
    horse, person = VOC.classes.index("horse"), VOC.classes.index("person")
    for name in data.entries("train"):
        _, mask, tags = data.read(name)
        rider = int(name[-1]) % 2 == 0
        assert set(np.unique(mask)) == {0, horse, 255} | ({person} if rider else set())
        assert (np.flatnonzero(tags) + 1).tolist() == ([horse, person] if rider else [horse])
        assert np.array_equal(mask, data.truth_of(name))
    batch = next(iter(data.train_dataloader()))
    assert set(batch["mask"].unique().tolist()) <= {0, horse, person, 255}
    assert batch["mask"].dtype == torch.int64


def test_layouts_in_some_of_vocs_classes(folder):
    data = _data(layouts=str(folder), label_space="voc[person]", train=7, test=3)
    assert set(data.names("train")) == {name for name in data.entries("train") if int(name[-1]) % 2 == 0}
    mask = data.read(data.names("train")[0])[1]
    assert set(np.unique(mask)) == {0, 1, 255}
    alone = _data(layouts=str(folder), label_space="voc[horse]", train=7, test=3, unknown_classes="leave_out")
    assert set(alone.names("train")) == {name for name in alone.entries("train") if int(name[-1]) % 2 == 1}


def test_the_ground_of_layouts_is_confounded_in_training_only(folder, monkeypatch):
    strengths = []

    def spy(dice, kind, strength):
        strengths.append(strength)
        return usual_ground(kind)

    monkeypatch.setattr("structseg.datamodules.confounded_scenes.layouts.draw_ground", spy)
    data = _data(layouts=str(folder), label_space="voc", co_occurrence=0.6)
    data.read(data.entries("train")[0])
    data.read(data.entries("test")[0])
    assert strengths == [0.6, 0.0]


def test_lists_give_the_splits(folder, tmp_path):
    lists = {}
    for split, names in (("train", NAMES[:6]), ("test", NAMES[6:])):
        lists[split] = str(tmp_path / f"{split}.txt")
        (tmp_path / f"{split}.txt").write_text("\n".join(names))
    data = _data(layouts=str(folder), layout_lists=lists, label_space="voc", train=5, val=1, test=4)
    assert {*data.entries("train"), *data.entries("val")} == set(NAMES[:6])
    assert set(data.entries("test")) == set(NAMES[6:])


def test_all_faults_are_named_at_once():
    with pytest.raises(ValueError, match=r"train=0, val=-1, test=4 .*label_space=voc without layouts .*layout_lists"):
        _data(train=0, val=-1, label_space="voc", layout_lists={"trian": "x"})
    with pytest.raises(ValueError, match=r"label_space=scenes with layouts \(give voc"):
        _data(layouts="somewhere")
    with pytest.raises(ValueError, match=r"layout_lists\.trian"):
        _data(layouts="somewhere", label_space="voc", layout_lists={"trian": "x"})
    with pytest.raises(ValueError, match=r"co_occurrence=1.5; expected 0 .* to 1"):
        _data(co_occurrence=1.5)
    with pytest.raises(FileNotFoundError, match="no folder nowhere"):
        _data(layouts="nowhere", label_space="voc").entries("train")
