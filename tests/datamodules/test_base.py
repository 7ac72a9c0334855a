import pytest
import torch

from datamodules.augmentation import Augmentation
from datamodules.base import SegmentationDataModule
from datamodules.samples import collate
from datamodules.synthetic_faces.datamodule import SyntheticFacesDataModule
from tests.data.tiny import TinyDataModule


def order(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return [name for batch in loader for name in batch["name"]]


def test_the_order_depends_on_seed_and_epoch_alone(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    first = [order(TinyDataModule().train_dataloader(), epoch) for epoch in (0, 1)]
    torch.manual_seed(99)
    again = [order(TinyDataModule().train_dataloader(), epoch) for epoch in (0, 1)]
    assert first == again
    assert first[0] != first[1]
    assert sorted(first[0]) == sorted(first[1]) == [f"train_{i:03d}" for i in range(8)]
    monkeypatch.setenv("PL_GLOBAL_SEED", "4")
    assert order(TinyDataModule().train_dataloader(), 0) != first[0]


def test_evaluation_is_in_order_and_native_masks_come_one_by_one():
    assert order(TinyDataModule().val_dataloader(), 0) == [f"val_{i:03d}" for i in range(4)]
    assert [len(batch["name"]) for batch in TinyDataModule(score_at="native").test_dataloader()] == [1] * 4


def test_augmentation_is_a_function_of_its_seed():
    data = TinyDataModule(augmentation=Augmentation(flip=0.5, rotate=20, noise=0.1))
    batch = next(iter(data.val_dataloader()))
    state = torch.get_rng_state()
    one, two, other = (data.augment(batch, seed) for seed in ([1, 2, 3], [1, 2, 3], [1, 2, 4]))
    assert torch.equal(torch.get_rng_state(), state), "the global generator goes on as if nothing had been drawn"
    assert torch.equal(one["image"], two["image"])
    assert torch.equal(one["mask"], two["mask"])
    assert not torch.equal(one["image"], other["image"])


def test_evaluation_batches_are_left_as_they_are():
    data = TinyDataModule(augmentation=Augmentation(flip=1))
    batch = next(iter(data.val_dataloader()))
    assert data.on_after_batch_transfer(batch, 0) is batch


def test_all_wrong_settings_are_named_together():
    with pytest.raises(ValueError, match=r"size=\(0, 8\).*batch_size=0.*num_workers=-1.*std="):
        SegmentationDataModule(size=(0, 8), batch_size=0, num_workers=-1, std=(0, 1, 1))


def test_without_labelled_data_there_is_a_plain_word():
    with pytest.raises(ValueError, match="SegmentationDataModule has no train images; choose settings"):
        SegmentationDataModule().train_dataloader()
    with pytest.raises(ValueError, match="predict needs images"):
        SegmentationDataModule().predict_dataloader()


def test_samples_of_different_sizes_are_named():
    samples = [{"image": torch.zeros(3, 4, size), "name": f"n{size}"} for size in (4, 5)]
    with pytest.raises(ValueError, match=r"image of n5 has shape \(3, 4, 5\), that of n4 \(3, 4, 4\)"):
        collate(samples)


def test_synthetic_faces_differ_between_splits_and_follow_the_label_space():
    data = SyntheticFacesDataModule(train=3, val=2, test=1, label_space="stn", size=(48, 40))
    counts = [len(data.dataset(split)) for split in ("train", "val", "test")]
    assert counts == [3, 2, 1]
    train, val = (data.dataset(split)[0] for split in ("train", "val"))
    assert train["image"].shape == (3, 48, 40)
    assert not torch.equal(train["image"], val["image"])
    assert train["mask"].max() < 9


def test_synthetic_faces_need_images():
    with pytest.raises(ValueError, match="train=0"):
        SyntheticFacesDataModule(train=0)
