from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from structseg.datamodules.images import read_image
from structseg.datamodules.label_spaces import PARTS
from structseg.datamodules.lfw_parts.datamodule import LFWPartsDataModule, LFWPartsDataset, read_label
from structseg.datamodules.lfw_parts.files import THUMBNAILS, find_faces, person_of, read_lists
from structseg.datamodules.wrappers.blobs import BlobKind, make_blobs
from tests.data.lfw import face_classes, make_lfw, photograph, squares, write_face

IDENTITY = PARTS.lookup(PARTS)
TEST_NAMES = ("Ann_Lee_0003", "Test_Person_A_0001", "Test_Person_B_0001")


def middle(size: int, old: int) -> np.ndarray:
    """Nearest filter by hand: the old pixel that the middle of a new one lies in."""
    return ((np.arange(size) + 0.5) * old / size).astype(int)


@pytest.mark.parametrize("labels", ["ppm", "png", "palette"])
def test_items_are_the_photograph_and_its_classes(labels: Literal["ppm", "png", "palette"], tmp_path: Path) -> None:
    data = LFWPartsDataModule(make_lfw(tmp_path, labels=labels), size=(50, 50)).dataset("train")
    assert len(data) == 4
    item = data[1]
    assert set(item) == {"image", "mask", "name"}
    assert item["name"] == "Train_Person_A_0001"
    classes = face_classes((50, 50), seed=101)
    assert set(np.unique(classes)) == {0, 1, 2}
    assert (item["image"].dtype, item["mask"].dtype) == (torch.float32, torch.int64)
    np.testing.assert_array_equal(item["mask"], classes)
    painted = photograph(classes, seed=101).transpose(2, 0, 1) / 255.0
    assert np.abs(item["image"].numpy() - painted).mean() < 0.02  # JPEG


def test_sizes(tmp_path: Path) -> None:
    root = make_lfw(tmp_path)
    data = LFWPartsDataModule(root, size=(40, 32), score_at="native")
    classes = face_classes((50, 50), seed=300)
    assert data.dataset("train")[0]["mask"].shape == (40, 32)
    native = data.dataset("test")[0]
    assert native["image"].shape == (3, 40, 32)
    np.testing.assert_array_equal(native["mask"], classes)
    small = LFWPartsDataModule(root, size=(40, 32)).dataset("test")[0]
    np.testing.assert_array_equal(small["mask"], classes[middle(40, 50)][:, middle(32, 50)])
    assert (data.batch_size, data.mean, data.std) == (16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert LFWPartsDataModule(root).size == (128, 128)


def test_splits_are_the_lists(tmp_path: Path) -> None:
    root = make_lfw(tmp_path)
    (root / "parts_train.txt").write_bytes(
        b"\r\nTrain_Person_B 01\r\n  Ann_Lee\t1  \r\n\r\nTrain_Person_C 0001\r\nTrain_Person_A 1"
    )
    data = LFWPartsDataModule(root)
    assert data.names("train") == (
        "Train_Person_B_0001", "Ann_Lee_0001", "Train_Person_C_0001", "Train_Person_A_0001",
    )  # fmt: skip
    assert data.names("val") == ("Ann_Lee_0002", "Val_Person_A_0001")
    assert data.names("test") == TEST_NAMES
    assert data.has_validation
    assert [data.dataset("test")[i]["name"] for i in range(3)] == list(TEST_NAMES)

    both = LFWPartsDataModule(root, train_on="train+val")
    assert both.names("train") == data.names("train") + data.names("val")
    assert len(both.dataset("train")) == 6
    assert not both.has_validation
    assert both.val_dataloader() == []
    with pytest.raises(ValueError, match=r"train\+val leaves no validation images; set --data\.train_on train"):
        both.dataset("val")


def test_new_people_are_those_not_trained_on(tmp_path: Path) -> None:
    root = make_lfw(tmp_path, extra=1)
    (root / "parts_test.txt").open("a").write("Val_Person_A 2\nTrain_Person_A 7\nExtra_Person_A 12\n")
    data = LFWPartsDataModule(root)
    assert data.test_subsets == {}
    data.setup("fit")
    assert data.test_subsets == {}
    data.setup("test")
    new = {"Test_Person_A_0001", "Test_Person_B_0001", "Val_Person_A_0002", "Extra_Person_A_0012"}
    assert data.test_subsets == {"new_people": new}
    both = LFWPartsDataModule(root, train_on="train+val")
    both.setup("test")
    assert both.test_subsets == {"new_people": new - {"Val_Person_A_0002"}}
    student = LFWPartsDataModule(root, unlabelled=str(root / "lfw_funneled"))
    student.setup("test")
    assert student.test_subsets == {"new_people": new - {"Extra_Person_A_0012"}}

    (root / "parts_test.txt").write_text("Ann_Lee 3\n")
    known = LFWPartsDataModule(root)
    known.setup("test")
    assert known.test_subsets == {}


def test_person_of_a_name() -> None:
    assert person_of("Aaron_Peirsol_0003") == "Aaron_Peirsol"
    assert person_of("lfw/Aaron_Peirsol/Aaron_Peirsol_0003") == "Aaron_Peirsol"
    assert person_of("B_2_Smith_0012") == "B_2_Smith"


def test_other_label_spaces(tmp_path: Path) -> None:
    root = make_lfw(tmp_path)
    with pytest.raises(ValueError, match="no map from label space parts to voc"):
        LFWPartsDataModule(root, label_space="voc")
    swapped = IDENTITY.clone()
    swapped[1], swapped[2] = 2, 255
    item = LFWPartsDataset(find_faces(root, read_lists(root)["train"]), (50, 50), swapped)[0]
    expected = np.array([0, 2, 255])[face_classes((50, 50), seed=100)]
    np.testing.assert_array_equal(item["mask"], expected)


def test_unlabelled_images_train_a_student(tmp_path: Path) -> None:
    root = make_lfw(tmp_path / "lfw", extra=2)
    folder = root / "lfw_funneled"
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.jpg").write_bytes(b"")
    data = LFWPartsDataModule(root, size=(32, 24), unlabelled=str(folder), batch_size=2)
    names = ["Extra_Person_A/Extra_Person_A_0001", "Extra_Person_B/Extra_Person_B_0001"]
    items = [data.dataset("train")[i] for i in range(len(data.dataset("train")))]
    assert [item["name"] for item in items] == names
    assert all(set(item) == {"image", "name"} for item in items)
    assert items[0]["image"].shape == (3, 32, 24)
    assert set(next(iter(data.train_dataloader()))) == {"image", "name"}
    assert [len(data.dataset(split)) for split in ("val", "test")] == [2, 3]
    assert "mask" in data.dataset("val")[0]

    superpixels = LFWPartsDataModule(root, unlabelled=str(folder), blobs="superpixels").dataset("train")[0]
    assert superpixels["blobs"].shape == (128, 128)
    assert superpixels["blobs"].max() > 20


def test_wrong_folders_of_unlabelled_images(tmp_path: Path) -> None:
    root = make_lfw(tmp_path / "lfw", extra=1)
    with pytest.raises(FileNotFoundError, match=r"no folder .*none; give a folder of images as --data\.unlabelled"):
        LFWPartsDataModule(root, unlabelled=str(tmp_path / "none")).dataset("train")
    folder = root / "lfw_funneled" / "Extra_Person_A"
    Image.new("RGB", (9, 9)).save(folder / "Extra_Person_A_0001.png")
    with pytest.raises(ValueError, match=r"Extra_Person_A_0001\.jpg and Extra_Person_A_0001\.png have the same stem"):
        LFWPartsDataModule(root, unlabelled=str(folder)).dataset("train")
    (folder / "Extra_Person_A_0001.png").write_bytes(b"")
    (folder / "Extra_Person_A_0001.jpg").unlink()
    with pytest.raises(ValueError, match=r"Extra_Person_A_0001\.png is empty"):
        LFWPartsDataModule(root, unlabelled=str(folder)).dataset("train")
    (folder / "Extra_Person_A_0001.png").unlink()
    with pytest.raises(ValueError, match="holds no image beyond the labelled ones"):
        LFWPartsDataModule(root, unlabelled=str(root)).dataset("train")


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match=r"^data: train_on=all \(train or train\+val\)"):
        LFWPartsDataModule("lfw", train_on="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^data: blobs=labels with unlabelled"):
        LFWPartsDataModule("lfw", unlabelled="faces", blobs="labels")
    LFWPartsDataModule("lfw", unlabelled="faces", blobs="superpixels")  # reads nothing yet


@pytest.mark.parametrize("kind", ["labels", "components", "superpixels"])
def test_blobs_come_with_the_batch(kind: BlobKind, tmp_path: Path) -> None:
    data = LFWPartsDataModule(make_lfw(tmp_path), size=(48, 48), batch_size=4, blobs=kind)
    batch = next(iter(data.train_dataloader()))
    assert batch["blobs"].shape == (4, 48, 48)
    for mask, blobs in zip(batch["mask"], batch["blobs"], strict=True):
        assert len(torch.stack([blobs, mask]).flatten(1).unique(dim=1).T) == blobs.max() + 1  # each with one label
    assert "blobs" not in LFWPartsDataModule(tmp_path).dataset("train")[0]


def test_published_superpixels(tmp_path: Path) -> None:
    root = make_lfw(tmp_path, superpixels=True)
    classes, numbers = face_classes((50, 50), seed=300), squares((50, 50))
    native = LFWPartsDataModule(root, size=(48, 48), blobs="superpixels", score_at="native").dataset("test")[0]
    np.testing.assert_array_equal(native["blobs"], make_blobs(classes, "superpixels", superpixels=numbers))
    rows = middle(40, 50)
    small = LFWPartsDataModule(root, size=(40, 40), blobs="superpixels").dataset("test")[0]
    shrunk = make_blobs(classes[rows][:, rows], "superpixels", superpixels=numbers[rows][:, rows])
    np.testing.assert_array_equal(small["blobs"], shrunk)
    assert LFWPartsDataModule(root, blobs="labels").dataset("test")[0]["blobs"].max() == 2
    assert "blobs" not in LFWPartsDataModule(root).dataset("test")[0]

    dat = root / "parts_lfw_funneled_superpixels_mat" / "Ann_Lee" / "Ann_Lee_0003.dat"
    for content, message in (
        ("1 2\n3\n", "is no matrix of superpixel numbers"),
        ("1 2\n3 4\n", "2x2; a mask must be"),
    ):
        dat.write_text(content)
        with pytest.raises(ValueError, match=rf"Ann_Lee_0003\.dat {message}") as caught:
            LFWPartsDataModule(root, blobs="superpixels").dataset("test")[0]
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "PPM"])
def test_unknown_colours_are_named(kind: str, tmp_path: Path) -> None:
    pixels = np.array(PARTS.palette, dtype=np.uint8)[face_classes((20, 20))]
    pixels[7, 11] = (0, 0, 254)
    pixels[19, 19] = (9, 9, 9)
    path = tmp_path / f"label.{kind.lower()}"
    Image.fromarray(pixels).save(path, kind)
    with pytest.raises(ValueError, match=r"label\.p.. has colour \(0, 0, 254\) at row 7, column 11; labels are blue"):
        read_label(path)


def test_lists_that_are_wrong(tmp_path: Path) -> None:
    root = make_lfw(tmp_path)
    good = (root / "parts_train.txt").read_text()

    def refused(kind: type[Exception], message: str) -> None:
        with pytest.raises(kind, match=message) as caught:
            LFWPartsDataModule(root).dataset("test")
        assert "\n" not in str(caught.value)

    for line in ("Ann_Lee one", "Ann_Lee_0001", "Ann Lee 1", "Ann_Lee 1 2", "Ann_Lee -1"):
        (root / "parts_train.txt").write_text(f"\n{line}\n")
        refused(ValueError, rf"parts_train\.txt, line 2: '{line}' is no NAME and number")
    (root / "parts_train.txt").write_text("Ann_Lee 1\nTrain_Person_A 1\n\nAnn_Lee 0001\n")
    refused(
        ValueError, r"Ann_Lee_0001 is listed twice .*parts_train\.txt, line 1, and parts_train\.txt, line 4; remove"
    )
    (root / "parts_train.txt").write_text(good + "Ann_Lee 3\n")
    refused(ValueError, r"Ann_Lee_0003 is listed twice .*parts_train\.txt, line 5, and parts_test\.txt, line 1")
    (root / "parts_train.txt").unlink()
    (root / "parts_validation.txt").unlink()
    refused(FileNotFoundError, r"has no parts_train\.txt, parts_validation\.txt; copy the split lists")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; give the folder that holds lfw_funneled"):
        LFWPartsDataModule(tmp_path / "nowhere").dataset("train")
    make_lfw(tmp_path / "none", test=0)
    with pytest.raises(ValueError, match="has no test images"):
        LFWPartsDataModule(tmp_path / "none").dataset("test")


def test_missing_files_are_counted_and_named(tmp_path: Path) -> None:
    root = make_lfw(tmp_path, train=6)
    for letter in "ABCD":
        (root / "parts_lfw_funneled_gt_images" / f"Train_Person_{letter}_0001.ppm").unlink()
    first = r"\S+Train_Person_A_0001.ppm, \S+Train_Person_B_0001.ppm, \S+Train_Person_C_0001.ppm, \.\.\."
    with pytest.raises(ValueError, match=rf"masks missing for 4 of 6 images: {first}; complete"):
        LFWPartsDataModule(root).dataset("train")
    (root / "lfw_funneled" / "Ann_Lee" / "Ann_Lee_0001.jpg").unlink()
    with pytest.raises(ValueError, match=r"photographs missing for 1 of 6 images: \S+Ann_Lee_0001\.jpg"):
        LFWPartsDataModule(root).dataset("train")
    assert len(LFWPartsDataModule(root).dataset("test")) == 3


def test_damaged_files_are_named_before_training(tmp_path: Path) -> None:
    root = make_lfw(tmp_path)
    image = root / "lfw_funneled" / "Train_Person_B" / "Train_Person_B_0001.jpg"
    label = root / "parts_lfw_funneled_gt_images" / "Ann_Lee_0001.ppm"
    for path in (image, label):
        whole = path.read_bytes()
        for content, message in ((whole[: len(whole) // 2], "cannot be decoded"), (b"", "is empty")):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=rf"{path.name} {message}") as caught:
                LFWPartsDataModule(root).dataset("train")
            assert "\n" not in str(caught.value)
        path.write_bytes(whole)
    Image.new("RGB", (50, 40)).save(image)
    with pytest.raises(
        ValueError, match=r"B_0001\.jpg is 50x40 but its mask \S+Train_Person_B_0001\.ppm 50x50; a mask"
    ):
        LFWPartsDataModule(root).dataset("train")
    label.with_suffix(".png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"Ann_Lee_0001\.png and Ann_Lee_0001\.ppm have the same stem; keep one"):
        LFWPartsDataModule(root).dataset("train")


@pytest.mark.parametrize("name", ["lfw-deepfunneled", "lfw_deepfunneled"])
def test_deep_funneled_folders_are_refused(name: str, tmp_path: Path) -> None:
    root = make_lfw(tmp_path)
    (root / name / "Ann_Lee").mkdir(parents=True)
    assert len(LFWPartsDataModule(root).dataset("train")) == 4  # the funneled ones are there too
    (root / name / "Ann_Lee").rmdir()
    (root / name).rmdir()
    (root / "lfw_funneled").rename(root / name)
    expected = rf"holds the deep-funneled images \({name}\), .*put LFW's funneled images \(lfw-funneled.tgz\)"
    with pytest.raises(ValueError, match=expected):
        LFWPartsDataModule(root).dataset("train")
    (root / "lfw_funneled").symlink_to(root / name)
    with pytest.raises(ValueError, match=expected):
        LFWPartsDataModule(root).dataset("train")
    (root / "lfw_funneled").unlink()
    (root / name).rename(root / "photographs")
    with pytest.raises(FileNotFoundError, match="has no folder lfw_funneled; unpack"):
        LFWPartsDataModule(root).dataset("train")


def test_deep_funneled_images_are_known_by_their_pixels(tmp_path: Path) -> None:
    root = make_lfw(tmp_path, size=(48, 48))
    (name, cells) = next(iter(THUMBNAILS.items()))
    write_face(root, person_of(name), 1, face_classes((48, 48)), 0)
    (root / "parts_train.txt").write_text(f"{person_of(name)} 1\n")
    image = root / "lfw_funneled" / person_of(name) / f"{name}.jpg"
    grey = np.frombuffer(bytes.fromhex(cells), dtype=np.uint8).reshape(4, 4).repeat(12, 0).repeat(12, 1)
    Image.fromarray(grey).convert("RGB").save(image)
    assert len(LFWPartsDataModule(root).dataset("train")) == 1
    Image.fromarray(grey[:, ::-1]).convert("RGB").save(image)
    with pytest.raises(ValueError, match=rf"{name}\.jpg is not the funneled image .*such as deep-funneled; put LFW's"):
        LFWPartsDataModule(root).dataset("train")


@pytest.mark.data
def test_real_splits(shared_data: Path) -> None:
    data = LFWPartsDataModule(shared_data / "lfw_parts")
    assert [len(data.names(split)) for split in ("train", "val", "test")] == [1500, 500, 927]
    train, val, test = ({person_of(name) for name in data.names(split)} for split in ("train", "val", "test"))
    assert (len(train & test), len(train & val), len(val & test)) == (304, 175, 125)
    data.setup("test")
    assert len(data.test_subsets["new_people"]) == 541
    sample = LFWPartsDataset(data.faces("val"), data.size, IDENTITY)[0]
    assert sample["name"] == "Dianne_Feinstein_0002"
    assert (sample["image"].shape, sample["mask"].shape) == ((3, 128, 128), (128, 128))


@pytest.mark.data
@pytest.mark.slow
def test_real_labels_have_the_documented_shares(shared_data: Path) -> None:
    data = LFWPartsDataModule(shared_data / "lfw_parts")
    shares = {"train": (68.28, 21.55, 10.17), "val": (68.33, 21.33, 10.33), "test": (68.28, 21.58, 10.14)}
    without_hair = {"train": 57, "val": 21, "test": 38}
    for split, expected in shares.items():
        counts = []
        for face in data.faces(split):
            classes = read_label(face.label)
            assert classes.shape == (250, 250)
            counts.append(np.bincount(classes.ravel(), minlength=3))
        total = np.sum(counts, axis=0)
        np.testing.assert_allclose(100 * total / total.sum(), expected, atol=0.0051)
        assert sum(count[2] == 0 for count in counts) == without_hair[split]


@pytest.mark.data
@pytest.mark.parametrize("name", THUMBNAILS)
def test_real_images_of_another_alignment_are_refused(name: str, shared_data: Path, tmp_path: Path) -> None:
    face = find_faces(shared_data / "lfw_parts", [name])[0]
    root = tmp_path
    copy = root / "lfw_funneled" / person_of(name) / f"{name}.jpg"
    copy.parent.mkdir(parents=True)
    (root / "parts_lfw_funneled_gt_images").mkdir()
    (root / "parts_lfw_funneled_gt_images" / f"{name}.png").write_bytes(face.label.read_bytes())
    image = read_image(face.image)
    image.save(copy, quality=40)
    assert find_faces(root, [name])[0].name == name
    image.rotate(25, translate=(10, 10)).save(copy)
    with pytest.raises(ValueError, match="is not the funneled image"):
        find_faces(root, [name])
