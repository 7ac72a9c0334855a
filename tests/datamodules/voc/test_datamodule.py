import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from structseg.datamodules.files.text import read_tags
from structseg.datamodules.label_spaces import VOC, label_space
from structseg.datamodules.round_files import ArtefactManifest, write_mask
from structseg.datamodules.voc.datamodule import VOCDataModule
from structseg.datamodules.voc.files import find_home, find_masks, list_file, read_list, tags_from_annotation
from structseg.datamodules.weak.crops import CropSettings
from tests.data.voc import (
    EXTRA,
    SCENES,
    SIZES,
    TRAIN,
    VAL,
    make_voc,
    scene_mask,
    scene_photograph,
    write_annotation,
    write_lists,
)

SIX = "voc[cat,cow,dog,horse,person,sheep]"
PERSON = VOC.classes.index("person")


def home_of(root: Path) -> Path:
    return root / "VOCdevkit" / "VOC2012"


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_the_devkit_is_found_from_any_of_its_folders(tmp_path: Path, below: str) -> None:
    make_voc(tmp_path)
    assert find_home(tmp_path / below) == home_of(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no VOC 2012: no JPEGImages there or in VOC2012"):
        find_home(tmp_path / "VOCdevkit" / "VOC2012" / "Annotations")


def test_samples_are_photographs_with_masks_and_tags(tmp_path: Path) -> None:
    data = VOCDataModule(make_voc(tmp_path), masks="truth", score_at="native")
    for split, names in (("train", TRAIN), ("test", VAL)):
        assert data.names(split) == names
    sample = data.dataset("test")[0]
    mask = scene_mask(SCENES[VAL[0]], SIZES[0])
    np.testing.assert_array_equal(sample["mask"], mask)
    assert {0, 12, 15, 255} == set(np.unique(mask))
    painted = torch.from_numpy(scene_photograph(mask, 4).transpose(2, 0, 1) / 255)
    assert (sample["image"] - painted).abs().mean() < 0.03
    assert sample["tags"].shape == (20,)
    assert sample["tags"].nonzero()[:, 0].tolist() == [11, 14]  # dog and person, less the background
    trained = data.dataset("train")[0]
    assert trained["image"].shape == (3, 256, 256)
    assert trained["mask"].unique().tolist() == [0, 13, 15, 255]


def test_tags_come_from_annotations_masks_or_a_file(tmp_path: Path) -> None:
    home = home_of(make_voc(tmp_path))
    found = {name: frozenset(part[0] for part in objects) for name, objects in SCENES.items()}
    for name, classes in found.items():  # every second object is difficult, and heads are no objects
        assert tags_from_annotation(home, name) == classes
    rows = "".join(f"{name},{' '.join(classes)}\n" for name, classes in found.items())
    (home / "tags.csv").write_text("name,classes\n" + rows)
    for tags in ("annotations", "masks", str(home / "tags.csv"), "tags.csv"):
        data = VOCDataModule(tmp_path, tags=tags)
        assert {name: data.tags_of(name) for name in found} == found
        assert data.tag_faults("train") == []
    (home / "Annotations" / f"{TRAIN[1]}.xml").unlink()
    with pytest.raises(ValueError, match=f"1 of 4 training images have no tags, first {TRAIN[1]}"):
        VOCDataModule(tmp_path).dataset("train")
    write_annotation(home / "Annotations" / f"{TRAIN[1]}.xml", ["unicorn"])
    with pytest.raises(ValueError, match=f"tag 'unicorn' of {TRAIN[1]} is no class; the data have aeroplane, "):
        VOCDataModule(tmp_path).dataset("train")
    (home / "Annotations" / f"{TRAIN[1]}.xml").write_text("<annotation><object>")
    with pytest.raises(ValueError, match=rf"{TRAIN[1]}\.xml is damaged"):
        VOCDataModule(tmp_path).dataset("train")


def test_a_tag_that_contradicts_the_mask_is_noticed(tmp_path: Path) -> None:
    home = home_of(make_voc(tmp_path))
    write_annotation(home / "Annotations" / f"{TRAIN[0]}.xml", ["horse"])  # without its person
    data = VOCDataModule(tmp_path)
    with pytest.warns(UserWarning, match=f"tags disagree .* in 1 of 4 training images: {TRAIN[0]}$"):
        data.dataset("train")
    assert any(TRAIN[0] in notice for notice in data.notices)


def test_a_file_of_tags_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "tags.csv"
    path.write_text("name,classes\na,cat dog\nb,\n")
    assert read_tags(path) == {"a": {"cat", "dog"}, "b": set()}
    path.write_text("name,classes\na,cat\na,dog\n")
    with pytest.raises(ValueError, match=r"tags\.csv, line 3: a is listed twice"):
        read_tags(path)
    path.write_text("image;tags\n")
    with pytest.raises(ValueError, match=r"begins with \['image;tags'\]; the header name,classes is needed"):
        read_tags(path)
    with pytest.raises(FileNotFoundError, match=r"no file of tags .*none\.csv; check --data\.tags"):
        read_tags(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="tags=boxes; give annotations, masks or the path"):
        VOCDataModule(tmp_path, tags="boxes")


def test_lists_by_name_and_path(tmp_path: Path) -> None:
    home = home_of(make_voc(tmp_path))
    data = VOCDataModule(tmp_path, train_list="train_aug", masks="truth")
    assert data.names("train") == (*TRAIN, *EXTRA)
    assert find_masks(home)[EXTRA[0]] == home / "SegmentationClassAug" / f"{EXTRA[0]}.png"
    assert 255 not in data.truth_of(EXTRA[0])
    own_list = tmp_path / "own.txt"
    own_list.write_text(f"{VAL[1]}\n\n{TRAIN[0]}  \n")
    assert VOCDataModule(tmp_path, train_list=str(own_list)).names("train") == (VAL[1], TRAIN[0])
    assert list_file(home, "ImageSets/Segmentation/val.txt") == home / "ImageSets" / "Segmentation" / "val.txt"
    (home / "ImageSets" / "Segmentation" / "trainaug.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no list train_aug: .*trainaug\.txt; it is not part of the devkit"):
        VOCDataModule(tmp_path, train_list="train_aug").dataset("train")
    with pytest.raises(FileNotFoundError, match=r"no list other\.txt: looked for other\.txt and "):
        VOCDataModule(tmp_path, test_list="other.txt").dataset("test")
    own_list.write_text(f"{TRAIN[0]}\nx\ny\n")
    with pytest.raises(ValueError, match=r"photographs missing for 2 of 3 images: \S+x\.jpg, \S+y\.jpg; complete"):
        VOCDataModule(tmp_path, train_list=str(own_list)).dataset("train")


def test_nothing_is_held_out_unless_a_list_is_given(tmp_path: Path) -> None:
    make_voc(tmp_path)
    assert not VOCDataModule(tmp_path).has_validation
    assert VOCDataModule(tmp_path).val_dataloader() == []
    data = VOCDataModule(tmp_path, val_list="val", batch_size=2)
    assert data.has_validation
    assert [batch["name"] for batch in data.val_dataloader()] == [list(VAL)]


def test_an_image_without_mask_has_no_mask_in_evaluation(tmp_path: Path) -> None:
    home = home_of(make_voc(tmp_path))
    for folder in ("SegmentationClass", "Annotations"):
        for path in (home / folder).glob("2008_*"):
            path.unlink()
    sample = VOCDataModule(tmp_path, predict_split="test").predict_dataloader().dataset[0]
    assert set(sample) == {"image", "name", "crop"}


def test_classes_by_name(tmp_path: Path) -> None:
    make_voc(tmp_path)
    data = VOCDataModule(tmp_path, label_space=SIX, masks="truth")
    with pytest.warns(UserWarning, match="no training image holds cat, cow, sheep"):
        train = data.dataset("train")
    assert data.names("train") == TRAIN[:3]  # the fourth has only a tvmonitor, which is not one of the six
    assert train[0]["tags"].tolist() == [0, 0, 0, 1, 1, 0]
    assert train[0]["mask"].unique().tolist() == [0, 4, 5, 255]
    assert train[2]["tags"].tolist() == [0, 0, 0, 0, 1, 0]
    assert train[2]["mask"].unique().tolist() == [0, 5, 255]  # the sofa is background, its rim ignored
    assert VOCDataModule(tmp_path, label_space=SIX, unknown_classes="leave_out").names("train") == TRAIN[:2]
    coco = VOCDataModule(tmp_path, label_space="coco").dataset("train")[3]
    assert coco["tags"].nonzero()[:, 0].tolist() == [label_space("coco").classes.index("tv") - 1]


def test_artefacts_train_in_place_of_the_truth(tmp_path: Path) -> None:
    make_voc(tmp_path)
    folder = tmp_path / "round_0" / "pseudo_masks"
    folder.mkdir(parents=True)
    for name in TRAIN:
        write_mask(folder, name, np.full((4, 4), 7), VOC)
    ArtefactManifest("pseudo_masks", "round_0/pseudo_masks", "M", "voc", VOC.classes, 4).write(folder)
    data = VOCDataModule(tmp_path, masks=str(folder), crops=CropSettings(scale=(2, 2)), size=(16, 16))
    assert {int(data.dataset("train")[index]["mask"].unique()) for index in range(4)} == {7}
    assert data.dataset("test")[0]["mask"].max() == 255


@pytest.mark.data
def test_the_photographs_have_the_counts_of_their_readme(shared_data: Path) -> None:
    tags = str(shared_data / "voc12_lists" / "tags.csv")
    data = VOCDataModule(shared_data / "voc_photos_mini", tags=tags, val_list="val")
    counts = {}
    for split in ("train", "val"):
        names = data.entries(split)
        counts[split] = Counter(tag for name in names for tag in data.tags_of(name))
        counts[split]["images"] = len(names)
    readme = {
        "images": (437, 445), "cat": (131, 119), "dog": (121, 128), "person": (79, 89), "horse": (68, 79),
        "sheep": (63, 57), "cow": (62, 71), "chair": (19, 16), "sofa": (17, 18), "pottedplant": (12, 6), "car": (9, 5),
        "bottle": (7, 3), "tvmonitor": (7, 4), "diningtable": (5, 4), "bird": (2, 1), "boat": (1, 0),
        "motorbike": (0, 3), "bicycle": (0, 1), "bus": (0, 1),
    }  # fmt: skip
    assert {name: (counts["train"][name], counts["val"][name]) for name in readme} == readme
    assert set(counts["train"]) | set(counts["val"]) == set(readme)
    six = VOCDataModule(
        shared_data / "voc_photos_mini", tags=tags, label_space=SIX, val_list="val", unknown_classes="leave_out"
    )
    assert [len(six.names(split)) for split in ("train", "val")] == [370, 399]
    sample = six.dataset("val")[0]
    assert sample["image"].shape == (3, 256, 256)
    assert set(sample["mask"].unique().tolist()) <= {*range(7), 255}


@pytest.mark.data
@pytest.mark.slow
def test_the_masks_agree_with_the_lists_but_for_two_images(shared_data: Path) -> None:
    with (shared_data / "voc12_lists" / "tags.csv").open() as file:
        listed = {row["name"]: frozenset(row["classes"].split()) for row in csv.DictReader(file)}
    home = shared_data / "voc12_masks"
    names = [name for part in ("train", "val") for name in read_list(shared_data / "voc12_lists" / f"{part}.txt")]
    assert len(names) == 2913
    data = VOCDataModule(home, tags="masks")
    data.__dict__["home"] = home  # masks alone: there are no photographs to find
    wrong = {name: listed[name] ^ data.tags_of(name) for name in names if data.tags_of(name) != listed[name]}
    assert wrong == {"2008_005245": {"person"}, "2011_001621": {"tvmonitor"}}


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("my photo 1", "my photo 1"),
        ("my photo 1.jpg", "my photo 1"),
        ("/JPEGImages/my photo 1.jpg /SegmentationClassAug/x.png", "my photo 1"),
        ("my photo 1 -1", "my photo 1"),  # of the list of a class
        (f"{TRAIN[0]}  1", TRAIN[0]),
        (f"{TRAIN[0]} and more", TRAIN[0]),
        ("gone 2 1", "gone 2"),  # no such photograph
    ],
)
def test_names_in_lists_may_hold_spaces(tmp_path: Path, line: str, name: str) -> None:
    home = home_of(make_voc(tmp_path))
    for folder, suffix in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png"), ("Annotations", ".xml")):
        (home / folder / f"{TRAIN[1]}{suffix}").rename(home / folder / f"my photo 1{suffix}")
    write_lists(home, {"train": [line]})
    data = VOCDataModule(tmp_path)
    assert read_list(home / "ImageSets/Segmentation/train.txt", data.photographs) == (name,)
    if not name.startswith("gone"):
        assert data.dataset("train")[0]["name"] == name


def test_a_listed_image_twice_is_refused(tmp_path: Path) -> None:
    home = home_of(make_voc(tmp_path))
    write_lists(home, {"train": [TRAIN[0], TRAIN[0]]})
    with pytest.raises(ValueError, match=f"train.txt lists {TRAIN[0]} 2 times"):
        VOCDataModule(tmp_path).dataset("train")
