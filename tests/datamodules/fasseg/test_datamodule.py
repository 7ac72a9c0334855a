import logging
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer

from structseg.datamodules.fasseg import datamodule as fasseg
from structseg.datamodules.fasseg.datamodule import FASSEGDataModule, FASSEGDataset, read_label, scored_subsets
from structseg.datamodules.fasseg.files import find_pairs
from structseg.datamodules.fasseg.labels import decode_published, resize_published
from structseg.datamodules.files.download import file_sha256
from structseg.datamodules.images import read_image, resize_image
from tests.data.fasseg import face_classes, make_fasseg, photograph


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STRUCTSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fasseg-labels-1"


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per call of the decoder."""
    calls: list[int] = []
    real = fasseg.decode_fasseg

    def counting(rgb: np.ndarray) -> np.ndarray:
        calls.append(1)
        return real(rgb)

    monkeypatch.setattr(fasseg, "decode_fasseg", counting)
    return calls


def resized(classes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest filter by hand: the old pixel that the middle of a new one lies in."""
    rows = ((np.arange(size[0]) + 0.5) * classes.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * classes.shape[1] / size[1]).astype(int)
    return classes[rows][:, columns]


def test_items_are_the_photograph_and_its_classes(tmp_path: Path) -> None:
    pairs = find_pairs(make_fasseg(tmp_path, "V2", train=3, test=1, size=(48, 36)), "V2", "train").pairs
    data = FASSEGDataset(pairs, (48, 36))
    assert len(data) == 3
    item = data[1]
    assert set(item) == {"image", "mask", "name"}
    assert item["name"] == "V2/Train_RGB/2"
    classes = face_classes((48, 36), seed=101)  # what the maker painted as train 2
    assert (item["image"].dtype, item["mask"].dtype) == (torch.float32, torch.int64)
    np.testing.assert_array_equal(item["mask"], classes)
    np.testing.assert_allclose(item["image"], photograph(classes, seed=101).transpose(2, 0, 1) / 255.0, atol=1e-6)


def test_photographs_are_resized_and_classes_picked(tmp_path: Path) -> None:
    pairs = find_pairs(make_fasseg(tmp_path, "V2", train=1, test=1, size=(48, 36)), "V2", "train").pairs
    classes = face_classes((48, 36), seed=100)
    item = FASSEGDataset(pairs, (32, 24))[0]
    assert item["image"].shape == (3, 32, 24)
    np.testing.assert_array_equal(item["mask"], resized(classes, (32, 24)))
    # Antialiasing averages: the mean stays, the noise shrinks.
    full = photograph(classes, seed=100) / 255.0
    assert item["image"].mean().item() == pytest.approx(full.mean(), abs=0.01)
    native = FASSEGDataset(pairs, (32, 24), native_mask=True)[0]
    assert native["image"].shape == (3, 32, 24)
    np.testing.assert_array_equal(native["mask"], classes)


def test_published_decoding_resizes_first(tmp_path: Path) -> None:
    pairs = find_pairs(make_fasseg(tmp_path, "V2", train=1, test=1, size=(48, 36)), "V2", "train").pairs
    mask = FASSEGDataset(pairs, (24, 30), label_decoding="published")[0]["mask"].numpy()
    painted = np.asarray(Image.open(pairs[0].label))
    np.testing.assert_array_equal(mask, decode_published(resize_published(painted, (24, 30))))
    by_protocol = FASSEGDataset(pairs, (24, 30))[0]["mask"].numpy()
    assert (mask != by_protocol).mean() > 0.05
    assert (mask[mask != by_protocol] == 0).mean() > 0.8  # lost pixels become background
    with pytest.raises(ValueError, match="native masks need fasseg-labels-1"):
        FASSEGDataset(pairs, (24, 30), label_decoding="published", native_mask=True)


def test_decoded_labels_are_kept_on_disk(tmp_path: Path, cache: Path, decodings: list[int]) -> None:
    label = find_pairs(make_fasseg(tmp_path, "V2", train=1, test=1), "V2", "train").pairs[0].label
    classes = read_label(label)
    np.testing.assert_array_equal(classes, face_classes(seed=100))
    assert [path.name for path in cache.iterdir()] == [f"{file_sha256(label)}.png"]
    label.rename(tmp_path / "elsewhere.png")  # the key is the content
    np.testing.assert_array_equal(read_label(tmp_path / "elsewhere.png"), classes)
    assert len(decodings) == 1


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "class 6", "colour", "text"])
def test_damaged_cache_files_are_remade(damage: str, tmp_path: Path, cache: Path, decodings: list[int]) -> None:
    label = find_pairs(make_fasseg(tmp_path, "V2", train=1, test=1), "V2", "train").pairs[0].label
    classes = read_label(label)
    (kept,) = cache.iterdir()
    content = kept.read_bytes()
    if damage == "class 6":
        Image.fromarray(np.full((48, 36), 6, dtype=np.uint8)).save(kept)
    elif damage == "colour":
        Image.new("RGB", (36, 48)).save(kept)
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
        kept.write_bytes({"empty": b"", "cut": content[:middle], "flipped": flipped, "text": b"text"}[damage])
    np.testing.assert_array_equal(read_label(label), classes)
    assert len(decodings) == 2
    assert kept.read_bytes() == content
    assert len(list(cache.iterdir())) == 1


def test_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label = find_pairs(make_fasseg(tmp_path, "V2", train=1, test=1), "V2", "train").pairs[0].label
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("STRUCTSEG_CACHE", str(tmp_path / "file"))
    np.testing.assert_array_equal(read_label(label), face_classes(seed=100))
    monkeypatch.delenv("STRUCTSEG_CACHE")
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "home" / name))
    np.testing.assert_array_equal(read_label(label), face_classes(seed=100))
    assert len(list((tmp_path / "home" / "structseg" / "fasseg-labels-1").iterdir())) == 1


@pytest.mark.parametrize("ext", ["png", "bmp", "jpg"])
def test_damaged_files_are_named(ext: str, tmp_path: Path) -> None:
    pairs = find_pairs(make_fasseg(tmp_path, "V2", train=2, test=1, ext=ext), "V2", "train").pairs
    data = FASSEGDataset(pairs, (24, 24))
    for path, index in ((pairs[0].image, 0), (pairs[1].label, 1)):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(
            ValueError, match=rf"{path.parent.name}/{path.name} cannot be decoded .*copy it again"
        ) as caught:
            data[index]
        assert "\n" not in str(caught.value)
        path.write_bytes(b"")
        with pytest.raises(ValueError, match=rf"{path.name} is empty"):
            data[index]


def test_label_that_is_a_photograph_is_named(tmp_path: Path) -> None:
    pairs = find_pairs(make_fasseg(tmp_path, "V2", train=1, test=1), "V2", "train").pairs
    pairs[0].label.write_bytes(pairs[0].image.read_bytes())
    with pytest.raises(ValueError, match=r"Train_Labels/1\.png: not a FASSEG label image: .*give the painted label"):
        FASSEGDataset(pairs, (24, 24))[0]
    with pytest.raises(FileNotFoundError, match="no label at"):
        read_label(tmp_path / "none.png")


def test_published_split_trains_on_all_unless_a_fold_is_held_out(tmp_path: Path) -> None:
    root = make_fasseg(tmp_path, "V2", train=6, test=3)
    data = FASSEGDataModule(root)
    assert (len(data.dataset("train")), len(data.dataset("test"))) == (6, 3)
    assert not data.has_validation
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match=r"there are no validation images without a fold; set --data\.fold"):
        data.dataset("val")

    held_out: list[str] = []
    for fold in range(3):
        data = FASSEGDataModule(root, fold=fold, folds=3)
        assert data.has_validation
        train, val = ({pair.name for pair in data.pairs(split)} for split in ("train", "val"))
        assert (len(train), len(val)) == (4, 2)
        assert not train & val
        assert len(data.pairs("test")) == 3
        held_out += val
    assert sorted(held_out) == [f"V2/Train_RGB/{i}" for i in range(1, 7)]


def test_the_seed_chooses_the_folds(tmp_path: Path) -> None:
    root = make_fasseg(tmp_path, "V2", train=6, test=1)
    folds = {seed: FASSEGDataModule(root, fold=0, folds=2, seed=seed).pairs("val") for seed in range(6)}
    assert folds[3] == FASSEGDataModule(root, fold=0, folds=2, seed=3).pairs("val")
    assert len(set(folds.values())) > 1


def test_subjects_are_never_on_two_sides(tmp_path: Path) -> None:
    root = make_fasseg(tmp_path, "V3", train=7, test=1, poses=("0", "+30"))
    tested: list[str] = []
    validated: list[str] = []
    for fold in range(7):
        data = FASSEGDataModule(root, "V3", split="subjects", fold=fold)
        people = {split: {pair.subject for pair in data.pairs(split)} for split in ("train", "val", "test")}
        assert [len(people[split]) for split in ("train", "val", "test")] == [5, 1, 1]
        assert len(set.union(*people.values())) == 7
        assert all(len(data.pairs(split)) == 2 * len(people[split]) for split in people)
        tested += people["test"]
        validated += people["val"]
    assert sorted(tested) == [f"0{i}" for i in range(1, 8)]
    assert validated == tested[1:] + tested[:1]
    published = FASSEGDataModule(root, "V3", fold=2)
    assert len({pair.subject for pair in published.pairs("train")}) == 6
    assert {pair.subject for pair in published.pairs("test")} == {"08"}


def test_v3_without_its_test_part_says_what_to_do(tmp_path: Path) -> None:
    root = make_fasseg(tmp_path, "V3", train=3, test=1)
    (root / "V3" / "Test_RGB").rename(root / "away")
    with pytest.raises(FileNotFoundError, match=r"no folder Test_RGB; .*; --data.split subjects tests without"):
        FASSEGDataModule(root, "V3").pairs("test")
    assert len(FASSEGDataModule(root, "V3", split="subjects", fold=0, folds=3).pairs("test")) == 4


def test_settings_that_do_not_go_together_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^data: split=subjects \(only V3 .*, split=subjects without fold .*, folds=2 "
    ):
        FASSEGDataModule(tmp_path, "V2", split="subjects", folds=2)
    with pytest.raises(ValueError, match=r"folds=4 without fold \(0 to 3: it chooses what is held out\)"):
        FASSEGDataModule(tmp_path, folds=4)
    for fold in (-1, 5):
        with pytest.raises(ValueError, match=rf"^data: fold={fold} \(0 to 4\)$"):
            FASSEGDataModule(tmp_path, fold=fold)
    FASSEGDataModule(tmp_path, "V3", fold=6)  # nothing is read before it is needed


def test_subsets_of_the_test_photographs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = FASSEGDataModule(make_fasseg(tmp_path, "V2", train=1, test=9))
    assert data.test_subsets == {}
    data.setup("fit")
    assert data.test_subsets == {}
    data.setup("test")
    assert data.test_subsets == {"clean": {"V2/Test_RGB/2", "V2/Test_RGB/4", "V2/Test_RGB/9"}}

    data = FASSEGDataModule(make_fasseg(tmp_path, "V3", train=1, test=2), "V3")
    with caplog.at_level(logging.INFO):
        data.setup("test")
    assert {name: len(part) for name, part in data.test_subsets.items()} == {"yaw-30": 2, "yaw0": 2, "yaw+30": 2}
    assert data.test_subsets["yaw+30"] == {"V3/Test_RGB/+30/personne08148+0+30", "V3/Test_RGB/+30/personne09148+0+30"}
    assert "FASSEG V3 test: 6 labelled photographs; 2 without label left out (poses -90)" in caplog.text
    assert scored_subsets(["V2/Test_RGB/1"]) == {}


def test_batches(tmp_path: Path) -> None:
    root = make_fasseg(tmp_path, "V2", train=6, test=3, size=(48, 36))
    data = FASSEGDataModule(root, size=(32, 24), batch_size=4, fold=0, folds=3)
    batches = list(data.train_dataloader())
    assert [batch["image"].shape for batch in batches] == [(4, 3, 32, 24)]
    assert [batch["mask"].shape for batch in data.val_dataloader()] == [(2, 32, 24)]
    assert [batch["mask"].shape for batch in data.test_dataloader()] == [(3, 32, 24)]
    native = FASSEGDataModule(root, size=(32, 24), batch_size=4, fold=0, folds=3, score_at="native")
    assert [batch["mask"].shape for batch in native.train_dataloader()] == [(4, 32, 24)]
    assert [batch["mask"].shape for batch in native.test_dataloader()] == [(1, 48, 36)] * 3
    assert [batch["image"].shape for batch in native.test_dataloader()] == [(1, 3, 32, 24)] * 3


def test_published_labels_are_for_training_only(tmp_path: Path) -> None:
    root = make_fasseg(tmp_path, "V2", train=4, test=1, size=(48, 36))
    published = FASSEGDataModule(root, size=(24, 18), fold=0, folds=2, label_decoding="published", score_at="native")
    by_protocol = FASSEGDataModule(root, size=(24, 18), fold=0, folds=2, score_at="native")
    for split, same in (("train", False), ("val", True), ("test", True)):
        pair = published.dataset(split)[0]["mask"], by_protocol.dataset(split)[0]["mask"]
        assert torch.equal(*pair) == same, split


def test_download_is_asked_for_and_not_for_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, str]] = []
    monkeypatch.setattr(fasseg, "download_fasseg", lambda root, version: asked.append((root, version)))
    FASSEGDataModule(tmp_path, "V1").prepare_data()
    assert asked == []
    data = FASSEGDataModule(tmp_path, "V1", download=True)
    data.prepare_data()
    assert asked == [(tmp_path, "V1")]
    data.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    data.trainer.predicting = True
    data.prepare_data()
    assert len(asked) == 1


@pytest.mark.data
def test_published_mean_and_deviation_are_of_all_70_photographs(shared_data: Path) -> None:
    data = FASSEGDataModule(shared_data / "fasseg")
    pairs = data.pairs("train") + data.pairs("test")
    assert len(pairs) == 70
    values = (
        np.concatenate([np.asarray(resize_image(read_image(p.image), data.size)).reshape(-1, 3) for p in pairs]) / 255
    )
    np.testing.assert_allclose(values.mean(0), data.mean, atol=0.001)
    np.testing.assert_allclose(values.std(0), data.std, atol=0.001)


@pytest.mark.data
def test_real_v2_has_every_class(shared_data: Path) -> None:
    data = FASSEGDataModule(shared_data / "fasseg")
    batches = list(data.train_dataloader())
    assert [len(batch["name"]) for batch in batches] == [4] * 5
    assert len({name for batch in batches for name in batch["name"]}) == 20
    for batch in batches:
        assert [mask.unique().tolist() for mask in batch["mask"]] == [[0, 1, 2, 3, 4, 5]] * 4
