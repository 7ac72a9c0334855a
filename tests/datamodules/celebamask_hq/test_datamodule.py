import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from structseg.datamodules.celebamask_hq.datamodule import CelebAMaskHQDataModule, CelebAMaskHQDataset
from structseg.datamodules.celebamask_hq.files import SPLITS, find_home, find_pairs
from structseg.datamodules.images import read_image, resize_image
from structseg.datamodules.label_spaces import CELEBAMASK_HQ, label_space
from structseg.datamodules.wrappers.full_size import Originals
from structseg.datamodules.wrappers.occluders import Occluders
from tests.data.celebamask_hq import compact_names, face_parts, make_celebamask_hq, merge, photograph

L_EYE, R_EYE = (CELEBAMASK_HQ.classes.index(name) for name in ("l_eye", "r_eye"))
SIDES = np.arange(256)
SIDES[4:10] = 5, 4, 7, 6, 9, 8  # by hand: eyes, brows, ears


def dataset(root: Path, size: tuple[int, int] = (48, 48), **settings) -> CelebAMaskHQDataset:
    return CelebAMaskHQDataset(list(find_pairs(find_home(root)).values()), size, **settings)


def middle_x(mask: torch.Tensor, index: int) -> float:
    return (mask == index).nonzero()[:, 1].float().mean().item()


@pytest.mark.parametrize("layout", ["compact", "full"])
def test_items_are_the_photograph_and_its_classes(tmp_path: Path, layout: str) -> None:
    data = dataset(make_celebamask_hq(tmp_path, layout, count=3, mirrored=0))
    assert len(data) == 3
    item = data[1]
    assert set(item) == {"image", "mask", "name"}
    assert item["name"] == ("1" if layout == "full" else compact_names(2)[1])
    classes = merge(face_parts(seed=1))
    assert (item["image"].dtype, item["mask"].dtype) == (torch.float32, torch.int64)
    np.testing.assert_array_equal(item["mask"], classes)
    # JPEG, and a published image of twice the size, change single pixels and no means.
    painted = photograph(classes, seed=1).transpose(2, 0, 1) / 255
    assert np.abs(item["image"].numpy() - painted).mean() < 0.03
    np.testing.assert_allclose(item["image"].mean((1, 2)), painted.mean((1, 2)), atol=0.005)


def test_photographs_are_resized_and_classes_picked(tmp_path: Path) -> None:
    root = make_celebamask_hq(tmp_path, "full", count=1, size=(48, 60), mirrored=0)
    classes = merge(face_parts((48, 60)))
    item = dataset(root, (24, 20))[0]
    assert item["image"].shape == (3, 24, 20)
    np.testing.assert_array_equal(item["mask"], classes[1::2, 1::3])  # the old pixel that a new one's middle lies in
    native = dataset(root, (24, 20), native_mask=True)
    np.testing.assert_array_equal(native[0]["mask"], classes)
    assert native[0]["image"].shape == (3, 24, 20)
    assert native.photograph(0).size == (120, 96)
    np.testing.assert_array_equal(native.label(0), classes)


@pytest.mark.parametrize("space", ["celebamask_hq", "parts", "stn", "helen", "fasseg", "occlusion"])
@pytest.mark.parametrize("layout", ["compact", "full"])
def test_swapped_sides_are_corrected_before_any_map(tmp_path: Path, layout: str, space: str) -> None:
    root = make_celebamask_hq(tmp_path, layout, count=5, mirrored=2, split_file=True)
    mended = CelebAMaskHQDataModule(root, label_space=space, size=(48, 48))
    as_is = CelebAMaskHQDataModule(root, label_space=space, size=(48, 48), mend_left_right=False)
    to_space = CELEBAMASK_HQ.lookup(label_space(space)).numpy()
    for index in range(3):  # the first three train; the first two are mirrored
        exchanged = merge(face_parts(seed=index, exchanged=index < 2))
        np.testing.assert_array_equal(as_is.dataset("train")[index]["mask"], to_space[exchanged])
        right = SIDES[exchanged] if index < 2 else exchanged
        np.testing.assert_array_equal(mended.dataset("train")[index]["mask"], to_space[right])
    if space == "celebamask_hq":
        np.testing.assert_array_equal(SIDES[merge(face_parts(seed=0, exchanged=True))], merge(face_parts(seed=0)))
        mask = mended.dataset("train")[0]["mask"]
        assert middle_x(mask, L_EYE) > middle_x(mask, R_EYE) + 5
    if space == "stn":
        mask = mended.dataset("train")[0]["mask"]
        assert middle_x(mask, 3) > middle_x(mask, 4) + 5


def test_the_number_of_corrected_labels_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_celebamask_hq(tmp_path, count=10, mirrored=0)
    with caplog.at_level(logging.INFO):
        CelebAMaskHQDataModule(root).dataset("train")
    assert "left and right" not in caplog.text  # without a list nothing is logged
    names = compact_names(10)
    (root / "own.json").write_text(json.dumps({"reversed": [*names[4:8], names[9]]}))  # train: 0 to 5, val: 6 and 7
    data = CelebAMaskHQDataModule(root, left_right="own.json")
    with caplog.at_level(logging.INFO):
        for split in ("train", "val", "test", "train"):
            data.dataset(split)
    assert caplog.text.count("left and right") == 1
    assert "left and right labels corrected in 2 train, 2 val, 1 test images" in caplog.text


def test_a_list_of_other_images_is_refused(tmp_path: Path) -> None:
    root = make_celebamask_hq(tmp_path, count=5)
    (root / "left_right_reversed.json").write_text('{"reversed": ["x"]}')
    with pytest.raises(
        ValueError, match=r"left_right_reversed\.json lists none of the images in .*; give the list of "
    ):
        CelebAMaskHQDataModule(root).dataset("train")
    assert len(CelebAMaskHQDataModule(root, mend_left_right=False).dataset("train")) == 3
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.json"):
        CelebAMaskHQDataModule(root, left_right="none.json").dataset("train")
    (root / "left_right_reversed.json").write_text('{"reversed": []}')
    assert len(CelebAMaskHQDataModule(root).dataset("train")) == 3


def test_damaged_files_are_named_and_never_replaced(tmp_path: Path) -> None:
    root = make_celebamask_hq(tmp_path, count=3)
    data = dataset(root)
    for pair, path in zip(data.pairs, (data.pairs[0].image, data.pairs[1].mask), strict=False):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=rf"{pair.name}\.(jpg|png) cannot be decoded .*copy it again") as caught:
            data[data.pairs.index(pair)]
        assert "\n" not in str(caught.value)
        assert path.name in str(caught.value)
    assert data[2]["name"] == data.pairs[2].name


def test_masks_of_another_aspect_are_refused(tmp_path: Path) -> None:
    root = make_celebamask_hq(tmp_path, count=2, size=(48, 60), mirrored=0)
    pairs = list(find_pairs(root).values())
    resize_image(read_image(pairs[0].image), (48, 48)).save(pairs[0].image)
    resize_image(read_image(pairs[1].image), (25, 31)).save(pairs[1].image)  # half a pixel from the mask's aspect
    for size in ((48, 48), (24, 30)):
        data = CelebAMaskHQDataset(pairs, size)
        with pytest.raises(
            ValueError, match=rf"{pairs[0].name}\.jpg is 48x48 but its mask \S+{pairs[0].name}\.png 60x48, of another "
        ):
            data[0]
        assert data[1]["mask"].shape == size


def test_splits(tmp_path: Path) -> None:
    root = make_celebamask_hq(tmp_path, count=10)
    names = compact_names(10)
    data = CelebAMaskHQDataModule(root)  # the file
    assert [[pair.name for pair in data.pairs(split)] for split in ("train", "val", "test")] == [
        names[:6], names[6:8], names[8:],
    ]  # fmt: skip
    by_seed = CelebAMaskHQDataModule(root, split="seed")
    order = [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]  # what numpy's generator with seed 0 makes of ten
    assert [pair.name for pair in by_seed.pairs("train")] == [names[i] for i in order[:6]]
    assert [pair.name for pair in by_seed.pairs("test")] == [names[i] for i in order[8:]]
    assert CelebAMaskHQDataModule(root, split="seed", seed=1).splits != by_seed.splits
    (root / "split_622.json").rename(root / "own.json")
    assert CelebAMaskHQDataModule(root).splits == by_seed.splits
    for given in ("own.json", str(root / "own.json")):
        assert CelebAMaskHQDataModule(root, split=given).splits == data.splits
    with pytest.raises(FileNotFoundError, match=r"no file .*official_split; expected JSON"):
        CelebAMaskHQDataModule(root, split="official_split").pairs("train")
    with pytest.raises(FileNotFoundError, match=r"which split=official needs"):
        CelebAMaskHQDataModule(root, split="official").pairs("train")


def test_official_split_of_the_published_layout(tmp_path: Path) -> None:
    root = make_celebamask_hq(tmp_path, "full", count=7)
    data = CelebAMaskHQDataModule(root, split="official")
    assert [pair.name for pair in data.pairs("train")] == ["0", "1", "2", "5", "6"]
    assert [pair.name for pair in data.pairs("val")] == ["3"]
    assert [pair.name for pair in data.pairs("test")] == ["4"]


def test_train_limit_takes_the_first_of_the_order(tmp_path: Path) -> None:
    root = make_celebamask_hq(tmp_path, count=10)
    whole = CelebAMaskHQDataModule(root, split="seed", seed=3)
    some = CelebAMaskHQDataModule(root, split="seed", seed=3, train_limit=4)
    assert some.pairs("train") == whole.pairs("train")[:4]
    assert (some.pairs("val"), some.pairs("test")) == (whole.pairs("val"), whole.pairs("test"))
    assert len(CelebAMaskHQDataModule(root, train_limit=6).dataset("train")) == 6
    with pytest.raises(ValueError, match=r"^train_limit is 7; the split has 6 training images$"):
        CelebAMaskHQDataModule(root, train_limit=7).pairs("train")


def test_a_split_without_validation_has_none(tmp_path: Path) -> None:
    root = make_celebamask_hq(tmp_path, count=4)
    assert CelebAMaskHQDataModule(root, split="seed").has_validation
    names = compact_names(4)
    (root / "split_622.json").write_text(json.dumps({"train": names[:3], "val": [], "test": names[3:]}))
    data = CelebAMaskHQDataModule(root)
    assert not data.has_validation
    assert data.val_dataloader() == []


def test_settings_that_do_not_go_together_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^data: train_limit=0 \(1 or more\), left_right=x\.json with mend_left_right=false "
    ):
        CelebAMaskHQDataModule(tmp_path, train_limit=0, left_right="x.json", mend_left_right=False)
    with pytest.raises(
        ValueError, match=r"no map from label space celebamask_hq to voc; celebamask_hq maps to: fasseg"
    ):
        CelebAMaskHQDataModule(tmp_path, label_space="voc")
    CelebAMaskHQDataModule(tmp_path)  # nothing is read before it is needed


def test_batches(tmp_path: Path) -> None:
    root = make_celebamask_hq(tmp_path, "full", count=10, size=(48, 48))
    data = CelebAMaskHQDataModule(root, size=(32, 24), batch_size=4)
    assert sorted(len(batch["name"]) for batch in data.train_dataloader()) == [2, 4]
    assert [batch["mask"].shape for batch in data.val_dataloader()] == [(2, 32, 24)]
    native = CelebAMaskHQDataModule(root, size=(32, 24), batch_size=4, score_at="native", blobs="labels")
    assert [batch["mask"].shape for batch in native.test_dataloader()] == [(1, 48, 48)] * 2
    assert [batch["image"].shape for batch in native.test_dataloader()] == [(1, 3, 32, 24)] * 2
    assert {batch["blobs"].shape[1:] for batch in native.train_dataloader()} == {(32, 24)}
    assert {batch["mask"].shape[1:] for batch in native.train_dataloader()} == {(32, 24)}


def test_originals_come_with_masks_of_their_size(tmp_path: Path) -> None:
    root = make_celebamask_hq(tmp_path, "full", count=10, size=(48, 60), mirrored=0)  # images 96x120
    classes = merge(face_parts((48, 60)))
    train = CelebAMaskHQDataModule(root, size=(24, 20), originals=Originals()).dataset("train")
    assert isinstance(train, CelebAMaskHQDataset)
    index = [pair.name for pair in train.pairs].index("0") if "0" in [pair.name for pair in train.pairs] else None
    assert index is not None
    item = train[index]
    assert set(item) == {"image", "original", "mask", "name"}
    assert (item["image"].shape, item["original"].shape) == ((3, 24, 20), (3, 96, 120))
    np.testing.assert_array_equal((item["original"] * 255).byte().permute(1, 2, 0), np.asarray(train.photograph(index)))
    np.testing.assert_array_equal(item["mask"], classes.repeat(2, 0).repeat(2, 1))
    small = CelebAMaskHQDataModule(root, size=(24, 20), originals=Originals(60)).dataset("train")[index]
    assert small["original"].shape == (3, 48, 60)
    np.testing.assert_array_equal(small["mask"], classes)
    shrunk = resize_image(train.photograph(index), (48, 60))
    np.testing.assert_array_equal(
        (small["image"] * 255).round().byte().permute(1, 2, 0), np.asarray(resize_image(shrunk, (24, 20)))
    )


def test_native_masks_of_shrunk_originals_are_those_of_the_files(tmp_path: Path) -> None:
    root = make_celebamask_hq(tmp_path, "full", count=10, size=(48, 60), mirrored=0)
    data = CelebAMaskHQDataModule(root, size=(24, 20), originals=Originals(30), score_at="native", batch_size=6)
    assert {batch["mask"].shape for batch in data.test_dataloader()} == {(1, 48, 60)}
    (batch,) = data.train_dataloader()
    assert batch["mask"].shape == (6, 24, 30)
    assert [original.shape for original in batch["original"]] == [(3, 24, 30)] * 6


def test_settings_that_exclude_originals_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^data: blobs=components with originals .*, occluders with originals .*, repeats=0 "
    ):
        CelebAMaskHQDataModule(
            tmp_path, label_space="occlusion", occluders=Occluders(), blobs="components", repeats=0,
            originals=Originals(),
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"^data: originals\.hide_parts=2 with label_space=celebamask_hq \(stn or "):
        CelebAMaskHQDataModule(tmp_path, originals=Originals(hide_parts=2))


# The class table of the copy's README: images of all, train, val and test that hold the class.
COUNTS = """
background 1000 600 200 200
skin 1000 600 200 200
nose 1000 600 200 200
eye_g 58 40 9 9
l_eye 970 581 194 195
r_eye 971 581 196 194
l_brow 968 579 193 196
r_brow 966 578 194 194
l_ear 533 326 101 106
r_ear 481 284 98 99
mouth 565 341 113 111
u_lip 996 598 198 200
l_lip 997 599 198 200
hair 969 581 195 193
hat 53 28 10 15
ear_r 234 140 52 42
neck_l 45 24 10 11
neck 975 584 197 194
cloth 595 353 122 120
"""


@pytest.fixture(scope="module")
def middles(shared_data: Path) -> dict[bool, dict[str, np.ndarray]]:
    """Uncorrected and corrected: the mean x of each class in the labels of a split, nan for absent classes."""
    found = {}
    for mend in (False, True):
        data = CelebAMaskHQDataModule(shared_data / "celebamask_hq_mini", mend_left_right=mend)
        found[mend] = {
            split: np.array([class_middles(data.dataset(split).label(i)) for i in range(len(data.pairs(split)))])
            for split in SPLITS
        }
    return found


def class_middles(label: np.ndarray) -> np.ndarray:
    width = label.shape[1]
    columns = np.bincount((label * np.int64(width) + np.arange(width)).ravel(), minlength=19 * width).reshape(19, width)
    return np.divide(columns @ np.arange(width), columns.sum(1), where=columns.any(1), out=np.full(19, np.nan))


@pytest.mark.data
@pytest.mark.slow
def test_real_labels_hold_what_the_readme_counts(middles: dict) -> None:
    lines = [line.split() for line in COUNTS.strip().splitlines()]
    assert [line[0] for line in lines] == list(CELEBAMASK_HQ.classes)
    expected = np.array([line[1:] for line in lines], dtype=int)
    counts = {
        mend: np.array([(~np.isnan(middles[mend][split])).sum(0) for split in SPLITS]).T for mend in (False, True)
    }
    np.testing.assert_array_equal(counts[False], expected[:, 1:])
    np.testing.assert_array_equal(counts[False].sum(1), expected[:, 0])
    # Corrected images with one side only are counted on the other side; classes without sides keep their counts.
    moved = counts[True] - counts[False]
    np.testing.assert_array_equal(moved[4:10], [[0, 0, 0], [0, 0, 0], [0, -1, -1], [0, 1, 1], [-3, 2, -4], [3, -2, 4]])
    assert not np.delete(moved, range(4, 10), 0).any()


@pytest.mark.data
@pytest.mark.slow
def test_real_left_parts_are_on_the_right_after_correction(middles: dict) -> None:
    wrong = {}
    for mend in (False, True):
        x = np.concatenate([middles[mend][split] for split in SPLITS])
        wrong[mend] = [int((x[:, left] < x[:, right]).sum()) for left, right in CELEBAMASK_HQ.flip_pairs]
    assert wrong == {
        False: [66, 64, 28],
        True: [0, 0, 0],
    }  # of 967 images with both eyes, 953 with both brows, 328 ears


@pytest.mark.data
def test_real_images_come_as_they_are(shared_data: Path) -> None:
    data = CelebAMaskHQDataModule(shared_data / "celebamask_hq_mini", train_limit=5, batch_size=5)
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [600, 200, 200]
    (batch,) = data.train_dataloader()
    assert batch["image"].shape == (5, 3, 128, 128)
    assert 0.2 < batch["image"].mean() < 0.8
    assert data.dataset("train")[0]["name"] == "7a69f60d1347403e80d0290a2298a3f8"  # the file's first
    assert data.dataset("train").photograph(0).size == (512, 512)


@pytest.mark.data
def test_real_originals_are_kept_at_the_side_that_is_asked_for(shared_data: Path) -> None:
    root = shared_data / "celebamask_hq_mini"
    data = CelebAMaskHQDataModule(
        root, label_space="stn", train_limit=3, batch_size=3, originals=Originals(256), repeats=2
    )
    batches = list(data.train_dataloader())
    assert [batch["mask"].shape for batch in batches] == [(3, 256, 256)] * 2
    assert {original.shape for batch in batches for original in batch["original"]} == {(3, 256, 256)}
    whole = CelebAMaskHQDataModule(root, label_space="stn", originals=Originals()).dataset("train")
    assert whole[0]["original"].shape == (3, 512, 512)
    np.testing.assert_array_equal(whole[0]["mask"], whole.label(0))
    np.testing.assert_array_equal(data.dataset("train")[0]["mask"], whole.label(0)[1::2, 1::2])
