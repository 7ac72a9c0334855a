"""`dataset.yaml` and the DataModules that read it: splits, classes, tags, and errors for wrong folders."""

import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from structseg.audit.check import check
from structseg.datamodules.augmentation import Augmentation
from structseg.datamodules.folder.datamodule import FolderDataModule, WeakFolderDataModule, by_folder
from structseg.datamodules.folder.dataset_file import read_dataset_file
from structseg.datamodules.label_spaces import label_space
from structseg.datamodules.weak.crops import CropSettings
from tests.data.folder import CLASSES, make_folder, mask_of

SMALL = {"size": (32, 40), "batch_size": 2}


def held(root, **more):
    data = FolderDataModule(root, **{**SMALL, **more})
    return {split: data.names(split) for split in ("train", "val", "test")}


def change(root, **more):
    path = root / "dataset.yaml"
    content = {**yaml.safe_load(path.read_text()), **more}
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))


def test_samples_are_the_files(tmp_path):
    data = FolderDataModule(make_folder(tmp_path, size=[16, 20], batch_size=3, mean=[0.1] * 3, std=[0.2] * 3))
    assert (data.size, data.batch_size, data.mean, data.std) == ((16, 20), 3, (0.1,) * 3, (0.2,) * 3)
    assert data.label_space.classes == CLASSES
    assert data.has_validation
    names = [name for split in ("train", "val", "test") for name in data.names(split)]
    assert sorted(names) == ["a1", "a2", "b1", "b2", "c1", "c2"]
    sample = FolderDataModule(tmp_path, **SMALL).dataset("train")[0]
    index = ["a1", "a2", "b1", "b2", "c1", "c2"].index(sample["name"])
    np.testing.assert_array_equal(sample["mask"], mask_of(index))


def test_a_split_is_by_groups_and_by_nothing_else(tmp_path):
    names = [f"{person}/{shot}" for person in ("p1", "p2", "p3", "p4", "p10") for shot in (1, 2, 10)]
    split = {"seed": 1, "val": 0.2, "test": 0.2, "group": r"^(p\d+)"}
    found = held(make_folder(tmp_path, names, split=split))
    people = {part: {name.partition("/")[0] for name in found[part]} for part in found}
    assert [len(found[part]) for part in ("train", "val", "test")] == [9, 3, 3]
    assert sum(map(len, people.values())) == 5
    assert list(found["test"]) == [f"{next(iter(people['test']))}/{shot}" for shot in (1, 2, 10)]  # 2 before 10
    change(tmp_path, split={**split, "seed": 2})
    assert held(tmp_path) != found
    change(tmp_path, split={**split, "val": 0.01})
    with pytest.raises(ValueError, match=r"val 0\.01 and test 0\.2 of 15 images in 5 groups leave no image for val"):
        held(tmp_path)
    data = FolderDataModule(make_folder(tmp_path, names, split={"test": 0.5, "seed": 0, "group": r"^(p\d+)"}), **SMALL)
    data.setup("test")
    assert set(data.test_subsets) == {name.partition("/")[0] for name in data.names("test")}


def test_lists_templates_and_folders_for_each_split(tmp_path):
    root = make_folder(tmp_path, split={"train": "train.txt", "test": "test.txt"})
    (root / "train.txt").write_text("a1\nb1.png\nimages/c1.png\n\n")
    (root / "test.txt").write_text("c2\n")
    assert held(root) == {"train": ("a1", "b1", "c1"), "val": (), "test": ("c2",)}
    (root / "test.txt").write_text("a1\nd7\n")
    with pytest.raises(ValueError, match=r"test\.txt, line 2: 'd7' is no image of the folder.*; a1 is listed twice"):
        held(root)

    for path in sorted((root / "masks").glob("*.png")):  # photographs and masks side by side, below folders
        for name, source in ((f"{path.stem}.png", root / "images" / path.name), (f"{path.stem}_label.png", path)):
            target = root / "all" / path.stem[0] / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    change(root, images="all", masks="all/{parent}/{stem}_label.png", split=None)
    assert held(root)["train"] == ("a/a1", "a/a2", "b/b1", "b/b2", "c/c1", "c/c2")

    change(root, images=None, masks=None, train={"images": "images", "masks": "masks"},
           val={"images": "all", "masks": "all/{parent}/{stem}_label.png"})  # fmt: skip
    assert [len(part) for part in held(root).values()] == [6, 6, 0]
    change(root, test={"images": "images", "masks": "masks"})
    with pytest.raises(ValueError, match=r"a1\.png is in train and test; keep it in one"):
        held(root)


def test_all_faults_of_a_folder_at_once(tmp_path):
    root = make_folder(tmp_path, split=None)
    (root / "masks" / "a1.png").unlink()
    Image.new("L", (7, 7)).save(root / "masks" / "zz.png")
    Image.new("RGB", (9, 9)).save(root / "images" / "b1.png")
    Image.new("RGB", (40, 32)).save(root / "images" / "c1.jpg")
    (root / "images" / "c2.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="dataset") as error:
        held(root)
    text = str(error.value)
    for part in ("a1.png has no mask", "zz.png is the mask of no image", "b1.png is 9x9 but its mask",
                 "c1.jpg and c1.png are two images of one name", "c2.png is no image"):  # fmt: skip
        assert part in text, text
    assert "\n" not in text
    report = check(FolderDataModule(root, **SMALL))
    assert len({message.split("/")[-1] for _, message in report.faults}) >= 5
    for kind in ("images", "masks"):
        shutil.rmtree(root / kind)
        with pytest.raises(FileNotFoundError, match=f"no folder .*{kind}"):
            held(make_folder(tmp_path)) if kind == "other" else held(root)
        make_folder(tmp_path, split=None)
    with pytest.raises(FileNotFoundError, match="structseg init"):
        FolderDataModule(tmp_path / "images")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"classes": None}, "classes is None; give a list of names"),
        ({"classes": ["background"]}, r"1 class to learn \(background\); give 2 or more"),
        ({"classes": ["a", False]}, "entry 1 is False; give a name in quotes"),
        ({"classes": ["a", "a"]}, "class names repeat, 'a' is there twice"),
        ({"jpeg_masks": "near"}, "jpeg_masks is 'near'; give refuse or nearest"),
        ({"classes": ["a", {"name": "b", "valus": [1]}]}, r"unknown key 'valus' \(did you mean values\?\)"),
        ({"classes": ["a", {"name": "b", "values": []}]}, "entry 1 .b. has no values, so no pixel matches it"),
        ({"classes": ["a", {"name": "b", "values": [-1]}]}, "has the value -1; give whole numbers"),
        ({"classes": ["a", {"name": "b", "values": [0]}]}, "value 0 is both a and b"),
        ({"classes": ["a", {"name": "b", "rgb": [1, 2, 3]}]}, r"rgb is \[1, 2, 3\]; give a list of colours"),
        ({"classes": ["a", "b", {"name": "c", "color": [0, 0, 0]}]}, None),
        ({"classes": [{"name": "a", "color": [9, 9, 9]}, {"name": "b", "color": [9, 9, 9]}]}, "two classes have the color"),
        ({"ignore": [1]}, "value 1 is both left_disc and ignore"),
        ({"ignore": ["right_bocks"]}, r"names 'right_bocks', which is no class \(did you mean right_box\?\)"),
        ({"flip_pairs": [["left_disc", "rigth_box"]]}, r"flip_pairs names 'rigth_box'.*did you mean right_box"),
        ({"flip_pairs": ["left_disc"]}, "give pairs of classes"),
        ({"groups": {"all": ["disc"]}}, r"groups\.all names 'disc'"),
        ({"splitt": {}}, r"unknown key 'splitt' \(did you mean split\?\)"),
        ({"split": {"val": 0.6, "test": 0.5}}, "val 0.6 and test 0.5; give shares"),
        ({"split": {"groop": "x"}}, r"'groop' \(did you mean group\?\)"),
        ({"split": {"group": "(("}}, "no regular expression"),
        ({"size": [256]}, r"size is \[256\]; give 2 whole numbers from 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"masks": "masks/{name}.png"}, "a template with {stem}"),
        ({"images": None}, "give either train"),
        ({"images": None, "masks": None, "val": {"images": "images"}}, "val without train"),
    ],
)  # fmt: skip
def test_a_wrong_file_says_key_value_and_what_to_do(more, message, tmp_path):
    root = make_folder(tmp_path)
    change(root, **more)
    if message is None:
        assert read_dataset_file(root).space.palette[0] != (0, 0, 0)
        return
    with pytest.raises(ValueError, match=message) as error:
        read_dataset_file(root)
    assert str(error.value).startswith(str(root / "dataset.yaml"))


def test_ignored_classes_and_values(tmp_path):
    def save(path, mask):
        Image.fromarray(np.where(mask == 2, 7, mask).astype(np.uint8)).save(path)

    root = make_folder(tmp_path, save=save, ignore=[7], classes=list(CLASSES[:2]))
    sample = FolderDataModule(root, **SMALL).dataset("train")[0]
    assert sample["mask"].unique().tolist() == [0, 1, 255]
    for more in ({"ignore": ["left_disc"]}, {"ignore": None, "ignore_classes": [1]}):
        change(root, classes={0: "background", 1: "left_disc", 7: "right_box"}, **more)
        data = FolderDataModule(root, **SMALL)
        assert data.label_space.classes == ("background", "right_box")
        again = data.dataset("train")[0]["mask"]
        assert torch.equal(again, torch.tensor([0, 255, 1])[torch.where(sample["mask"] == 255, 2, sample["mask"])])


def test_flip_pairs_reach_augmentation(tmp_path):
    root = make_folder(tmp_path, flip_pairs=[["left_disc", "right_box"]], groups={"things": ["left_disc", "right_box"]})
    data = FolderDataModule(root, augmentation=Augmentation(flip=1.0), **SMALL)
    batch = next(iter(data.train_dataloader()))
    flipped = data.augment(batch, [0])
    assert torch.equal(flipped["mask"], torch.tensor([0, 2, 1])[batch["mask"].flip(-1)])
    assert data.label_space.groups == {"things": (1, 2)}
    weak = WeakFolderDataModule(root, crops=CropSettings(flip=0.5), **SMALL)
    assert weak.crops.flip == 0


def test_spaces_from_files_and_cards(tmp_path):
    root = make_folder(tmp_path, flip_pairs=[["left_disc", "right_box"]], name="own")
    space = label_space(str(root))
    assert space == label_space(str(root / "dataset.yaml")) == label_space(space.describe())
    part = label_space(f"{root / 'dataset.yaml'}[right_box]")
    assert part.classes == ("background", "right_box")
    masks = FolderDataModule(root, label_space=f"{root}[right_box]", **SMALL).dataset("train")[0]["mask"]
    assert masks.unique().tolist() == [0, 1]
    with pytest.raises(FileNotFoundError, match=r"no file gone\.yaml"):
        label_space("gone.yaml")
    with pytest.raises(ValueError, match=r"no label space 'fassegg'; .* or a dataset\.yaml \(did you mean fasseg\?\)"):
        label_space("fassegg")


def test_tags_from_a_file_from_masks_and_from_folders(tmp_path):
    names = ("left_disc/1", "left_disc/2", "right_box/1", "right_box/2")
    root = make_folder(tmp_path, names, split=None)
    masks = WeakFolderDataModule(root, masks="truth", **SMALL)
    assert masks.train_tags().tolist() == [[1, 1]] * 4
    (root / "tags.csv").write_text(
        "name,classes\nleft_disc/1.png,left_disc\nleft_disc/2,right_box left_disc\nright_box/1,right_box;\nright_box/2,right_box\n"
    )
    change(root, masks=None, tags="tags.csv")
    data = WeakFolderDataModule(root, **SMALL)
    assert data.names("train") == ("left_disc__1", "left_disc__2", "right_box__1", "right_box__2")
    assert data.train_tags().tolist() == [[1, 0], [1, 1], [0, 1], [0, 1]]
    assert set(data.dataset("train")[0]) == {"image", "crop", "tags", "name"}
    assert not data.has_validation
    change(root, tags="folders")
    assert WeakFolderDataModule(root, **SMALL).train_tags().tolist() == [[1, 0]] * 2 + [[0, 1]] * 2
    with pytest.raises(ValueError, match="names no masks, which this method learns from"):
        FolderDataModule(root)
    change(root, tags=None)
    with pytest.raises(ValueError, match=r"neither tags nor masks; add tags: tags\.csv"):
        WeakFolderDataModule(root)


def test_by_folder_gives_names_that_torch_takes():
    found = by_folder(["train/a", "cam.1/b", "c"])
    assert found == {"train_": {"train/a"}, "cam_1": {"cam.1/b"}}
    torch.nn.ModuleDict({name: torch.nn.Identity() for name in found})
    assert by_folder(["a/b", "a/c"]) == by_folder(["a", "b"]) == {}


def test_check_names_classes_that_no_mask_holds(tmp_path):
    report = check(FolderDataModule(make_folder(tmp_path, classes=[*CLASSES, "rare"]), **SMALL))
    assert [message for _, message in report.notices if "rare" in message] == ["no mask holds rare"]


def test_unlabelled_images_and_weights(tmp_path):
    root = make_folder(tmp_path, split=None)
    for path in list((root / "images").iterdir())[:2]:
        Image.open(path).rotate(180).save(root / "images" / f"new_{path.name}")
        (root / "masks" / f"new_{path.name}").unlink(missing_ok=True)
    change(root, split={"train": "train.txt"})
    (root / "train.txt").write_text("a1\nb1\n")
    with pytest.raises(ValueError, match="has no mask"):
        held(root)
    shutil.move(root / "images", root / "all")
    make_folder(root, file=False)
    data = FolderDataModule(root, unlabelled=str(root / "all"), blobs="superpixels", **SMALL)
    assert sorted(data.dataset("train")[i]["name"].split("_")[0] for i in range(8))[-2:] == ["new", "new"]
    linked = FolderDataModule(root, unlabelled=str(root), **SMALL)  # its own images and masks are below it
    assert not {"images/a1", "images/b1"} & set(linked.make_unlabelled().names)

    (root / "weights.csv").write_text("name,weight\na1,0\nb1,2.5\n")
    weighed = FolderDataModule(root, sample_weights=str(root / "weights.csv"), **SMALL)
    loader = weighed.train_dataloader()
    assert [name for batch in loader for name in batch["name"]] == ["b1", "b1"]
    (root / "weights.csv").write_text("name,weight\na1,-1\nb1,2\n")
    with pytest.raises(ValueError, match="a weight below 0"):
        weighed.train_dataloader()
    (root / "weights.csv").write_text("name,weight\na1,1\n")
    with pytest.raises(ValueError, match=r"lacks the weight of 1 of 2 images, first b1"):
        weighed.train_dataloader()


def test_every_class_is_drawn_equally_often(tmp_path):
    names = [f"{i:02}" for i in range(20)]

    def save(path, mask):  # one image in twenty has only the disc, the others only the box
        Image.fromarray(np.where(mask == (1 if path.stem == "07" else 2), mask, 0).astype(np.uint8)).save(path)

    data = FolderDataModule(
        make_folder(tmp_path, names, save, split=None, classes=list(CLASSES)), sample_weights="class", **SMALL
    )
    sampler = data.train_dataloader().sampler
    drawn = []
    for epoch in range(40):
        sampler.set_epoch(epoch)
        drawn.append(list(sampler))
        assert drawn[-1] == list(sampler)
    assert drawn[0] != drawn[1]
    share = np.mean(np.concatenate(drawn) == 7)
    assert abs(share - (1 + 1 / 20) / 3) < 0.05  # of three classes: all images of one, and 1/20 of the background's


def test_the_file_may_accept_lossy_masks(tmp_path):
    def save(path, mask):
        Image.fromarray(mask * 100).save(path, format="JPEG", quality=95)

    classes = [{"name": name, "values": [100 * index]} for index, name in enumerate(CLASSES)]
    data = FolderDataModule(make_folder(tmp_path, save=save, classes=classes, jpeg_masks="nearest"))
    pair = data.folder.splits["train"][0]
    truth = mask_of(["a1", "a2", "b1", "b2", "c1", "c2"].index(pair.name))
    assert (data.folder.label(pair) == truth).mean() > 0.97
    strict = FolderDataModule(tmp_path, jpeg_masks="refuse").folder
    with pytest.raises(ValueError, match="jpeg_masks nearest"):
        strict.label(strict.splits["train"][0])
