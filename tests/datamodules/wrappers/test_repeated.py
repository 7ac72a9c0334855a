import pytest
import torch

from structseg.datamodules.augmentation import Augmentation
from structseg.datamodules.wrappers.repeated import RepeatedDataset
from tests.data.tiny import TinyDataModule


class Told(list):
    """Samples that learn the epoch."""

    epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch


def test_each_sample_occurs_so_often_under_its_own_name():
    data = Told({"name": name} for name in "abc")
    more = RepeatedDataset(data, 5)
    assert len(more) == 15
    names = [more[i]["name"] for i in range(15)]
    assert names == list("abc") * 5
    assert more[-1]["name"] == "c"
    with pytest.raises(IndexError, match="sample 15 of 15"):
        more[15]
    more.set_epoch(4)
    assert data.epoch == 4


def test_a_training_epoch_holds_each_image_so_often_and_an_evaluation_once(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    data = TinyDataModule()
    data.repeats = 3
    names = [name for batch in data.train_dataloader() for name in batch["name"]]
    assert sorted(names) == sorted([f"train_{i:03d}" for i in range(8)] * 3)
    assert len(set(names[:8])) < 8, "the repeats are shuffled with each other"
    assert [name for batch in data.val_dataloader() for name in batch["name"]] == [f"val_{i:03d}" for i in range(4)]
    assert len(data.dataset("train")) == 8, "there are no more images than there were"


def test_versions_of_an_image_are_augmented_differently():
    data = TinyDataModule(augmentation=Augmentation(rotate=20))
    batch = next(iter(data.val_dataloader()))
    twice = {key: torch.cat([value[:1]] * 2) if key != "name" else ["a"] * 2 for key, value in batch.items()}
    first, second = data.augment(twice, [0])["image"]
    assert not torch.equal(first, second)
