import pytest
import torch

from datamodules.augmentation import Augmentation, AugmentationPipeline
from datamodules.label_spaces import HELEN, LabelSpace

GREYS = LabelSpace("greys", tuple(f"c{i}" for i in range(16)), tuple((16 * i, 16 * i, 16 * i) for i in range(16)))


def smooth_batch(count=4, size=64):
    """An image whose grey says which class its mask holds, in blocks of 8 pixels."""
    blocks = torch.arange((size // 8) ** 2).reshape(size // 8, size // 8) % 16
    mask = blocks.repeat_interleave(8, 0).repeat_interleave(8, 1).expand(count, size, size).clone()
    image = (mask[:, None].float() / 16 + 1 / 32).repeat(1, 3, 1, 1)
    return {"image": image, "mask": mask, "blobs": mask * 100, "name": ["x"] * count}


def test_image_mask_and_blobs_move_together():
    torch.manual_seed(0)
    batch = smooth_batch()
    settings = Augmentation(flip=0.5, rotate=30, translate=0.1, scale=(0.7, 1.4), shear=10)
    out = AugmentationPipeline(settings, GREYS)(batch)
    inside = out["mask"] != 255
    read = (out["image"][:, 0] * 16).floor().long()
    # Bilinear mixing touches the borders of the blocks alone; away from them grey and class must agree.
    assert (read == out["mask"])[inside].float().mean() > 0.75
    assert torch.equal(out["blobs"][inside], out["mask"][inside] * 100)
    assert (out["blobs"][~inside] == 0).all()
    assert set(out["mask"].unique().tolist()) <= {*range(16), 255}


def test_pixels_from_outside_are_ignored_and_black():
    torch.manual_seed(0)
    out = AugmentationPipeline(Augmentation(scale=(0.5, 0.5)), GREYS)(smooth_batch())
    assert (out["mask"][:, :8] == 255).all()
    assert (out["image"][:, :, :8] == 0).all()
    assert (out["mask"][:, 24:40, 24:40] != 255).all()


def test_colour_and_noise_never_touch_labels():
    torch.manual_seed(0)
    batch = smooth_batch()
    settings = Augmentation(
        brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.5, blur=1, noise=0.2, erase=1
    )
    out = AugmentationPipeline(settings, GREYS)(batch)
    assert torch.equal(out["mask"], batch["mask"])
    assert torch.equal(out["blobs"], batch["blobs"])
    assert (out["image"] - batch["image"]).abs().mean() > 0.02
    assert out["image"].min() >= 0
    assert out["image"].max() <= 1


def test_a_flip_exchanges_left_and_right():
    left, right = HELEN.classes.index("left_eye"), HELEN.classes.index("right_eye")
    mask = torch.zeros(1, 2, 6, dtype=torch.int64)
    mask[0, 0, 1], mask[0, 0, 4], mask[0, 1, 0] = left, right, 255
    image = torch.rand(1, 3, 2, 6)
    out = AugmentationPipeline(Augmentation(flip=1), HELEN)({"image": image, "mask": mask, "name": ["x"]})
    assert torch.equal(out["image"], image.flip(-1))
    # The left eye's pixel moves to the other side and becomes a right eye's, so that place 1 is left again.
    assert (out["mask"][0, 0, 1], out["mask"][0, 0, 4], out["mask"][0, 1, 5]) == (left, right, 255)


def test_nothing_asked_for_changes_nothing():
    batch = smooth_batch()
    out = AugmentationPipeline(Augmentation(), GREYS)(batch)
    for key in ("image", "mask", "blobs"):
        assert torch.equal(out[key], batch[key])
    assert out["name"] == batch["name"]


def test_a_batch_without_labels_is_augmented_too():
    out = AugmentationPipeline(Augmentation(flip=1, scale=(0.5, 0.5)), GREYS)(
        {"image": torch.rand(2, 3, 8, 8), "name": ["a", "b"]}
    )
    assert set(out) == {"image", "name", "mask"}
    assert set(out["mask"].unique().tolist()) == {0, 255}, "what lies outside of the images is known"


def test_all_wrong_settings_are_named_together():
    with pytest.raises(ValueError, match=r"rotate=-3 .*flip=2 .*hue=0\.7 .*scale=\(2, 1\)"):
        Augmentation(rotate=-3, flip=2, hue=0.7, scale=(2, 1))
