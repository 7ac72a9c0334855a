import pytest
import torch
import torch.nn.functional as F

from structseg.datamodules.augmentation import Augmentation
from structseg.datamodules.base import SegmentationDataModule
from structseg.datamodules.batch import collate
from structseg.datamodules.synthetic_faces.datamodule import SyntheticFacesDataModule
from structseg.datamodules.wrappers.full_size import Originals
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


def test_without_labelled_data_the_error_is_one_line():
    with pytest.raises(ValueError, match="SegmentationDataModule has no train images; choose settings"):
        SegmentationDataModule().train_dataloader()


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


def with_originals(*sizes):
    """Samples whose grey, in squares of 4 pixels, says which class of PARTS their mask holds."""
    samples = []
    for height, width in sizes:
        squares = torch.arange(-(-height // 4))[:, None] + torch.arange(-(-width // 4))
        mask = (squares % 3).repeat_interleave(4, 0).repeat_interleave(4, 1)[:height, :width]
        original = (mask / 4 + 0.1).expand(3, -1, -1).contiguous()
        image = F.interpolate(original[None], (16, 16), mode="bilinear", antialias=True)[0]
        samples.append({"image": image, "original": original, "mask": mask, "name": f"{height}x{width}"})
    return collate(samples)


@pytest.mark.parametrize("sizes", [((24, 32), (24, 32)), ((24, 32), (40, 20))])
def test_originals_are_augmented_at_their_own_size_and_their_images_follow(sizes):
    data = TinyDataModule(size=(16, 16), augmentation=Augmentation(flip=1, translate=0.2, noise=0.001))
    batch = with_originals(*sizes)
    out = data.augment(batch, [0])
    assert out["image"].shape == (2, 3, 16, 16)
    assert out["mask"].shape == batch["mask"].shape
    for i, (height, width) in enumerate(sizes):
        original = out["original"][i]
        assert original.shape == (3, height, width)
        assert not torch.equal(original, batch["original"][i])
        mask = out["mask"][i, :height, :width]
        known = mask != 255
        assert known.float().mean() > 0.5
        grey = ((original[0] - 0.1) * 4).round().long()
        assert (grey == mask)[known].float().mean() > 0.7, "bilinear mixing touches the borders alone"
        assert (out["mask"][i, height:] == 255).all()
        assert (out["mask"][i, :, width:] == 255).all()
        squeezed = F.interpolate(original[None], (16, 16), mode="bilinear", antialias=True)[0]
        assert torch.allclose(out["image"][i], squeezed, atol=1e-6)
    assert out["name"] == batch["name"]
    assert batch["mask"].max() <= 2 or len(set(sizes)) > 1, "the batch itself is left alone"


def test_without_augmentation_originals_stay_as_they_are():
    batch = with_originals((24, 32), (40, 20))
    out = TinyDataModule(size=(16, 16)).augment(batch, [0])
    assert torch.equal(out["mask"], batch["mask"])
    assert torch.allclose(out["image"], batch["image"], atol=1e-6)
    for before, after in zip(batch["original"], out["original"], strict=True):
        assert torch.equal(before, after)


def test_a_flipped_original_is_flipped_whole_within_its_padding():
    batch = with_originals((24, 32), (40, 20))
    out = TinyDataModule(size=(16, 16), augmentation=Augmentation(flip=1)).augment(batch, [0])
    assert torch.equal(out["original"][1], batch["original"][1].flip(-1))
    assert torch.equal(out["mask"][1, :40, :20], batch["mask"][1, :40, :20].flip(-1))
    assert torch.equal(out["mask"][0, :24, :32], batch["mask"][0, :24, :32].flip(-1))


def test_synthetic_faces_come_with_originals():
    settings = {"train": 2, "val": 1, "test": 1, "label_space": "stn", "size": (32, 32)}
    data = SyntheticFacesDataModule(**settings, originals=Originals(64, hide_parts=6), repeats=2)
    whole = SyntheticFacesDataModule(**settings | {"size": (64, 64)})
    sample, drawn = data.dataset("train")[1], whole.dataset("train")[1]
    assert torch.allclose(sample["original"], drawn["image"], atol=1e-6)
    assert torch.equal(sample["mask"], drawn["mask"])
    assert sample["image"].shape == (3, 32, 32)
    again = data.dataset("train")[1]
    assert torch.equal(again["original"], sample["original"]), "from memory"
    squeezed = F.interpolate(sample["original"][None], (32, 32), mode="bilinear", antialias=True)[0]
    assert (sample["image"] - squeezed).abs().max() < 0.01
    assert not torch.equal(data.dataset("val")[0]["original"], whole.dataset("val")[0]["image"]), "parts are hidden"
    (batch,) = data.train_dataloader()
    assert (len(batch["name"]), len(set(batch["name"]))) == (4, 2)


def test_synthetic_faces_name_settings_that_exclude_originals():
    with pytest.raises(
        ValueError,
        match=r"^data: blobs=labels with originals .*, originals without max_side .*, repeats=0 \(1 or more\)$",
    ):
        SyntheticFacesDataModule(originals=Originals(), blobs="labels", repeats=0)
    with pytest.raises(ValueError, match=r"hide_parts=1 with label_space=celebamask_hq \(stn or helen"):
        SyntheticFacesDataModule(originals=Originals(64, hide_parts=1))
    data = SyntheticFacesDataModule(label_space="stn", originals=Originals(16))
    with pytest.raises(ValueError, match=r"size \(16, 16\); expected"):
        data.dataset("train")
