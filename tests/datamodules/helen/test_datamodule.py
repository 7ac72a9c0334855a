import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from structseg.datamodules.augmentation import Augmentation
from structseg.datamodules.helen.datamodule import HelenDataModule, HelenDataset
from structseg.datamodules.helen.files import SUBFOLDER, find_faces, read_lists
from structseg.datamodules.label_spaces import HELEN, label_space
from structseg.datamodules.wrappers.full_size import Originals
from tests.data.helen import face_classes, make_helen, name_of, paint

SIZES = ((60, 48), (48, 64), (56, 56))
# By hand, in the order of HELEN's classes: skin and hair are background, the parts move up by one.
TO_STN = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0])
TO_FASSEG = np.array([0, 1, 2, 2, 3, 3, 4, 5, 5, 5, 2])
TO_PARTS = np.array([0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2])


def test_items_are_the_photograph_and_its_classes(tmp_path: Path) -> None:
    data = HelenDataModule(make_helen(tmp_path), size=(32, 40)).dataset("train")
    for index in range(4):
        item, size = data[index], SIZES[index % 3]
        classes = face_classes(size, seed=100 + index)
        assert set(item) == {"image", "mask", "name", "original"}
        assert item["name"] == f"100{index}_1"
        assert item["image"].shape == (3, 32, 40)
        assert item["original"].shape == (3, *size)
        assert {item["image"].dtype, item["original"].dtype} == {torch.float32}
        assert item["mask"].dtype == torch.int64
        np.testing.assert_array_equal(item["mask"], TO_STN[classes])
        painted = paint(classes, seed=100 + index).transpose(2, 0, 1) / 255
        assert np.abs(item["original"].numpy() - painted).mean() < 0.02  # JPEG
        np.testing.assert_allclose(item["image"].mean((1, 2)), painted.mean((1, 2)), atol=0.01)


def test_splits_are_the_lists_in_their_order(tmp_path: Path) -> None:
    root = make_helen(tmp_path / SUBFOLDER, train=5, val=2, test=3)
    (root / "exemplars.txt").write_text("7, 1003_1\n1002_1\n\n1 ,  1000_1\n4,1001_1\n5 , 1004_1\n")
    data = HelenDataModule(tmp_path)
    assert [len(data.dataset(split)) for split in ("train", "val", "test")] == [5, 2, 3]
    assert [data.dataset("train")[i]["name"] for i in range(5)] == ["1003_1", "1002_1", "1000_1", "1001_1", "1004_1"]
    assert [data.dataset("test")[i]["name"] for i in range(3)] == [name_of("test", i) for i in range(3)]
    few = HelenDataModule(tmp_path, train_limit=2)
    assert [face.name for face in few.faces("train")] == ["1003_1", "1002_1"]
    assert [len(few.faces(split)) for split in ("val", "test")] == [2, 3]
    assert len(HelenDataModule(tmp_path, train_limit=5).faces("train")) == 5
    with pytest.raises(ValueError, match=r"^train_limit is 6; exemplars\.txt has 5 images$"):
        HelenDataModule(tmp_path, train_limit=6).dataset("train")


@pytest.mark.parametrize(
    ("space", "expected"), [("stn", TO_STN), ("helen", np.arange(11)), ("fasseg", TO_FASSEG), ("parts", TO_PARTS)]
)
def test_label_spaces(tmp_path: Path, space: str, expected: np.ndarray) -> None:
    data = HelenDataModule(make_helen(tmp_path, 1, 1, 1), label_space=space)
    item = data.dataset("train")[0]
    np.testing.assert_array_equal(item["mask"], expected[face_classes((60, 48), seed=100)])
    assert len(data.label_space) == expected.max() + 1
    assert HelenDataModule(tmp_path).label_space == label_space("stn")


def test_a_flip_swaps_left_and_right_classes(tmp_path: Path) -> None:
    root = make_helen(tmp_path, train=2, sizes=((60, 48), (48, 64)))
    data = HelenDataModule(root, label_space="helen", batch_size=2, augmentation=Augmentation(flip=1))
    plain = next(iter(data.train_dataloader()))
    flipped = data.augment(plain, [0])
    exchanged = np.array([0, 1, 3, 2, 5, 4, 6, 7, 8, 9, 10])  # brows and eyes, by hand
    for row, original in enumerate(plain["original"]):
        height, width = original.shape[-2:]
        mask = plain["mask"][row, :height, :width].numpy()
        np.testing.assert_array_equal(flipped["mask"][row, :height, :width], exchanged[mask[:, ::-1]])
        torch.testing.assert_close(flipped["original"][row], original.flip(-1))
        sides = [np.nonzero(exchanged[mask[:, ::-1]] == index)[1].mean() for index in (4, 5)]
        assert sides[0] > sides[1] + 5  # left_eye is drawn on the right of the picture


def test_sizes_may_differ_within_a_batch(tmp_path: Path) -> None:
    data = HelenDataModule(make_helen(tmp_path), size=(32, 32))
    (batch,) = data.test_dataloader()
    assert batch["image"].shape == (3, 3, 32, 32)
    assert [tuple(original.shape) for original in batch["original"]] == [(3, *size) for size in SIZES]
    assert batch["mask"].shape == (3, 60, 64)
    for row, (height, width) in enumerate(SIZES):
        classes = TO_STN[face_classes((height, width), seed=300 + row)]
        np.testing.assert_array_equal(batch["mask"][row, :height, :width], classes)
        assert (batch["mask"][row] == 255).sum() == 60 * 64 - height * width
    native = HelenDataModule(tmp_path, size=(32, 32), score_at="native")
    assert [tuple(batch["mask"].shape) for batch in native.test_dataloader()] == [(1, *size) for size in SIZES]


def test_long_originals_are_shrunk_and_native_masks_are_not(tmp_path: Path) -> None:
    root = make_helen(tmp_path, 1, 1, 1, sizes=((60, 48),))
    settings = {"size": (16, 16), "originals": Originals(max_side=30)}
    small, native = HelenDataModule(root, **settings), HelenDataModule(root, score_at="native", **settings)
    for data in (small, native):
        assert data.dataset("train")[0]["original"].shape == data.dataset("test")[0]["original"].shape == (3, 30, 24)
        assert data.dataset("train")[0]["mask"].shape == (30, 24)
    classes = TO_STN[face_classes((60, 48), seed=300)]
    np.testing.assert_array_equal(small.dataset("test")[0]["mask"], classes[1::2, 1::2])  # the nearest of the middle
    np.testing.assert_array_equal(native.dataset("test")[0]["mask"], classes)


def test_without_originals_samples_are_of_one_size(tmp_path: Path) -> None:
    root = make_helen(tmp_path)
    data = HelenDataModule(root, label_space="parts", size=(30, 24), blobs="labels", originals=None)
    item = data.dataset("train")[0]
    assert set(item) == {"image", "mask", "name", "blobs"}
    assert item["image"].shape == (3, 30, 24)
    np.testing.assert_array_equal(item["mask"], TO_PARTS[face_classes((60, 48), seed=100)][1::2, 1::2])
    native = HelenDataModule(root, size=(30, 24), score_at="native", originals=None)
    assert native.dataset("test")[1]["mask"].shape == (48, 64)
    assert native.dataset("train")[1]["mask"].shape == (30, 24)


def test_labels_are_decoded_once_and_memory_is_bounded(tmp_path: Path) -> None:
    root = make_helen(tmp_path, train=3, sizes=((60, 48),))
    faces = find_faces(root, read_lists(root)["train"])
    data = HelenDataset(faces, (8, 8), HELEN.lookup(HELEN), Originals())
    first = [data[i]["mask"] for i in range(3)]
    kept = sum(len(packed) for packed, _ in data._memory.values())
    assert kept == (512 << 20) - data.memory_left
    assert kept < 3 * 60 * 48 / 3  # compressed
    bounded = HelenDataset(faces, (8, 8), HELEN.lookup(HELEN), Originals(), memory_bytes=kept - 1)
    expected = [mask.clone() for mask in first]
    assert all(torch.equal(bounded[i]["mask"], expected[i]) for i in range(3))
    first[0].zero_()  # changes of a sample do not reach the memory
    shutil.rmtree(root / "labels")
    assert all(torch.equal(data[i]["mask"], expected[i]) for i in range(3))
    assert torch.equal(bounded[1]["mask"], expected[1])
    with pytest.raises(FileNotFoundError, match=r"1002_1_lbl00\.png"):
        bounded[2]


def test_training_images_are_repeated_within_an_epoch(tmp_path: Path) -> None:
    data = HelenDataModule(make_helen(tmp_path, 3, 2, 2), repeats=5, train_limit=2, batch_size=4)
    names = [name for batch in data.train_dataloader() for name in batch["name"]]
    assert sorted(names) == ["1000_1"] * 5 + ["1001_1"] * 5
    assert len(data.dataset("val")) == len(data.dataset("test")) == 2


def test_parts_are_hidden_in_validation_and_test_only(tmp_path: Path) -> None:
    root = make_helen(tmp_path, 1, 1, 1, sizes=((60, 48),))
    plain, hidden = HelenDataModule(root), HelenDataModule(root, originals=Originals(hide_parts=2))
    assert torch.equal(plain.dataset("train")[0]["original"], hidden.dataset("train")[0]["original"])
    for split in ("val", "test"):
        seen, covered = plain.dataset(split)[0], hidden.dataset(split)[0]
        assert torch.equal(seen["mask"], covered["mask"])
        changed = (seen["original"] != covered["original"]).any(0)
        shares = [changed[seen["mask"] == part].float().mean() > 0.9 for part in range(1, 9)]
        brows_eyes_nose, mouth = shares[:5], shares[5:]
        assert sum(brows_eyes_nose) + all(mouth) == 2


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(
        ValueError,
        match=r"^data: blobs=labels with originals .*, originals\.hide_parts=1 with label_space=parts .*, "
        r"train_limit=0 \(1 or more\), repeats=0 \(1 or more\)$",
    ):
        HelenDataModule(
            "x", label_space="parts", blobs="labels", originals=Originals(hide_parts=1), train_limit=0, repeats=0
        )
    with pytest.raises(ValueError, match="no map from label space helen to voc"):
        HelenDataModule("x", label_space="voc")
    HelenDataModule("x")  # reads nothing yet


def test_files_that_do_not_fit_are_named_before_training(tmp_path: Path) -> None:
    root = make_helen(tmp_path)
    mask = root / "labels" / "1003_1" / "1003_1_lbl10.png"
    Image.new("L", (48, 61)).save(mask)
    with pytest.raises(ValueError, match=r"1003_1_lbl10\.png is 48x61 but 1003_1_lbl00\.png 48x60; "):
        HelenDataModule(root).dataset("train")
    mask.unlink()
    with pytest.raises(ValueError, match=r"no soft mask \S+1003_1_lbl10\.png; unpack"):
        HelenDataModule(root).dataset("train")
    assert len(HelenDataModule(root).dataset("test")) == 3
    (root / "images" / "3001_1.jpg").unlink()
    with pytest.raises(ValueError, match=r"photographs missing for 1 of 3 images: \S+3001_1\.jpg"):
        HelenDataModule(root).dataset("test")
