import math

import kornia.augmentation as K
import pytest
import torch

from structseg.datamodules.augmentation import Augmentation, AugmentationPipeline
from structseg.datamodules.label_spaces import HELEN, LabelSpace

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


def bare_batch(count, size=(41, 61)):
    """Grey images with labels of which none is background."""
    mask = torch.full((count, *size), 3)
    return {"image": torch.full((count, 3, *size), 0.5), "mask": mask, "blobs": mask * 100, "name": ["x"] * count}


PAPER = Augmentation(rotate=15, translate=0.2, scale=(0.2, 1.2), noise=0.05, random_subset=True)


def middles(dots):
    """The centres (x, y) of three dots, red, green and blue, in an image (3, H, W)."""
    dots = torch.where(dots > 0.05, dots, 0.0)  # without the noise
    y, x = torch.meshgrid(torch.arange(dots.shape[1]), torch.arange(dots.shape[2]), indexing="ij")
    return torch.stack([(dots * x).sum((1, 2)), (dots * y).sum((1, 2))], 1) / dots.sum((1, 2))[:, None]


def dotted(count, size=121):
    """Soft dots around the middle: red right of it, green left, blue below; blue's is labelled 5."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    middle = (size - 1) / 2
    places = ((middle + 20, middle), (middle - 20, middle), (middle, middle + 20))
    image = torch.stack([torch.exp(-((x - px) ** 2 + (y - py) ** 2) / 18) for px, py in places])
    mask = torch.where(image[2] > 0.6, 5, 0)
    return {"image": image.expand(count, -1, -1, -1), "mask": mask.expand(count, -1, -1), "name": ["x"] * count}


def measured(out, size=121):
    """Of each image: degrees clockwise, shift (x, y) of the middle in pixels, zoom."""
    found = []
    for image in out["image"]:
        red, green, _ = middles(image)
        across, shift = red - green, (red + green) / 2 - (size - 1) / 2
        found.append((math.degrees(math.atan2(across[1], across[0])), *shift.tolist(), float(across.norm()) / 40))
    return torch.tensor(found)


def test_any_number_of_the_four_is_as_likely_and_so_is_each_of_them():
    torch.manual_seed(0)
    settings = Augmentation(rotate=10, translate=0.1, scale=(0.7, 0.9), noise=1e-4, random_subset=True)
    rows = []
    for _ in range(4):
        batch = dotted(100)
        out = AugmentationPipeline(settings, GREYS)(batch)
        degrees, x, y, zoom = measured(out).unbind(1)
        noisy = out["image"][:, :, :9, :9].sum((1, 2, 3)) > 1e-6  # a corner, far from the dots
        shifted = (x.abs() > 0.1) | (y.abs() > 0.1)
        rows.append(torch.stack([degrees.abs() > 0.05, shifted, (zoom - 1).abs() > 0.02, noisy], 1))
        untouched = ~rows[-1].any(1)
        assert torch.equal(out["image"][untouched], batch["image"][untouched])
        assert torch.equal(out["mask"][untouched], batch["mask"][untouched])
    taken = torch.cat(rows)
    shares = torch.bincount(taken.sum(1), minlength=5) / len(taken)
    assert ((shares - 0.2).abs() < 0.05).all(), "0 to 4 of them: 0.02 is the deviation"
    assert ((taken.float().mean(0) - 0.5).abs() < 0.07).all(), "each in half of the images: 0.025"


def test_some_keeps_within_its_ranges_and_uses_them():
    torch.manual_seed(1)
    out = AugmentationPipeline(Augmentation(rotate=15, translate=0.1, scale=(0.5, 1.2), random_subset=True), GREYS)(
        dotted(150)
    )
    degrees, x, y, zoom = measured(out).unbind(1)
    for values, low, high, slack in ((degrees, -15, 15, 0.3), (x, -12.1, 12.1, 0.3), (y, -12.1, 12.1, 0.3)):
        assert low - slack < values.min() < 0.8 * low
        assert 0.8 * high < values.max() < high + slack
    assert 0.49 < zoom.min() < 0.55
    assert 1.15 < zoom.max() < 1.21


def test_a_dot_and_its_label_move_together():
    torch.manual_seed(2)
    out = AugmentationPipeline(PAPER, GREYS)(dotted(60))
    assert set(out["mask"].unique().tolist()) == {0, 5}
    y, x = torch.meshgrid(torch.arange(121), torch.arange(121), indexing="ij")
    checked = 0
    for image, mask in zip(out["image"], out["mask"], strict=True):
        inside = mask == 5
        if inside.sum() > 20:
            blue = torch.where(image[2] > 0.5, image[2], 0.0)
            place = torch.stack([(blue * x).sum(), (blue * y).sum()]) / blue.sum()
            label = torch.stack([x[inside].float().mean(), y[inside].float().mean()])
            assert (place - label).abs().max() < 0.6
            checked += 1
    assert checked > 20


def test_pixels_from_outside_are_background_with_random_subset():
    torch.manual_seed(0)
    batch = bare_batch(60)
    batch["mask"][:, 20, 30] = 255  # the middle
    out = AugmentationPipeline(Augmentation(scale=(0.4, 0.5), random_subset=True), GREYS)(batch)
    small = (out["mask"][:, 0, 0] == 0).nonzero()[:, 0]
    assert 15 < len(small) < 45
    assert (out["image"][small, :, 0] == 0).all()
    assert (out["blobs"][small, 0] == 0).all()
    assert (out["mask"][:, 20, 30] == 255).all(), "what is ignored stays ignored"
    others = sorted(set(range(60)) - set(small.tolist()))
    for key in ("image", "mask", "blobs"):
        assert torch.equal(out[key][others], batch[key][others]), "the others are not touched"
    assert set(out["mask"].unique().tolist()) == {0, 3, 255}


@pytest.mark.parametrize(
    "settings",
    [
        {"rotate": (30.0, 30.0)},
        {"translate": (0.25, -0.125)},
        {"scale": (0.5, 0.5)},
        {"rotate": (-20.0, -20.0), "translate": (0.1, 0.2), "scale": (1.3, 1.3)},
    ],
)
def test_a_move_is_what_kornia_makes_of_the_same_numbers(settings, monkeypatch):
    """All draws are forced: `rand` gives the largest number, so that every range ends where it is asked to."""
    height, width = 48, 64
    image = torch.rand(2, 3, height, width)
    image = torch.nn.functional.avg_pool2d(image, 5, 1, 2)
    mask = (image[:, 0] * 15).long()
    rotate, _ = settings.get("rotate", (0.0, 0.0))
    tx, ty = settings.get("translate", (0.0, 0.0))
    zoom, _ = settings.get("scale", (1.0, 1.0))
    numbers = iter([
        torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(2, 4),  # the order of the four
        torch.full((2,), 1.0 if rotate > 0 else 0.0),
        torch.tensor([(tx / 0.25 + 1) / 2, (ty / 0.25 + 1) / 2]).expand(2, 2),
        torch.full((2,), 1.0),
        *[torch.ones(2)] * 2,
    ])  # fmt: skip
    monkeypatch.setattr(torch, "rand", lambda *_, **__: next(numbers))
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.full((2, 1), 4))
    pipeline = AugmentationPipeline(
        Augmentation(rotate=abs(rotate), translate=0.25, scale=(zoom, zoom), random_subset=True), GREYS
    )
    out = pipeline({"image": image, "mask": mask, "name": ["a", "b"]})
    monkeypatch.undo()
    params = {
        "translations": torch.tensor([[tx * width, ty * height]]).expand(2, 2),
        "center": torch.tensor([[(width - 1) / 2, (height - 1) / 2]]).expand(2, 2),
        "scale": torch.full((2, 2), zoom),
        "angle": torch.full((2,), rotate),
        "shear_x": torch.zeros(2),
        "shear_y": torch.zeros(2),
        "batch_prob": torch.ones(2),
        "forward_input_shape": torch.tensor(image.shape),
    }
    peer = K.RandomAffine(degrees=1.0, p=1.0, align_corners=True)
    expected = peer(image, params=params)
    assert (out["image"] - expected).abs().max() < 1e-4
    nearest = K.RandomAffine(degrees=1.0, p=1.0, align_corners=True, resample="nearest")
    labels = nearest(mask[:, None].float(), params=params)[:, 0].long()
    assert (out["mask"] == labels).float().mean() > 0.999


def test_colours_flips_and_an_empty_choice_apply_as_ever_with_some():
    batch = smooth_batch()
    torch.manual_seed(0)
    usual = AugmentationPipeline(Augmentation(flip=1, brightness=0.4), GREYS)(batch)
    torch.manual_seed(0)
    out = AugmentationPipeline(Augmentation(flip=1, brightness=0.4, random_subset=True), GREYS)(batch)
    assert torch.equal(usual["mask"], out["mask"])
    assert not torch.equal(out["image"], batch["image"].flip(-1))
    still = AugmentationPipeline(Augmentation(random_subset=True), GREYS)(batch)
    for key in ("image", "mask", "blobs"):
        assert torch.equal(still[key], batch[key])


def test_shear_is_not_one_of_the_four():
    with pytest.raises(ValueError, match=r"shear=3 with random_subset=true"):
        Augmentation(shear=3, random_subset=True)
