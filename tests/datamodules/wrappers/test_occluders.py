"""Occluders: each is at its place, labels follow coverage, randomness comes from the given numbers only."""

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from structseg.datamodules.celebamask_hq.datamodule import CelebAMaskHQDataModule
from structseg.datamodules.drawing.dice import Dice
from structseg.datamodules.drawing.geometry import Frame
from structseg.datamodules.drawing.grid import Grid
from structseg.datamodules.drawing.things import Thing
from structseg.datamodules.label_spaces import CELEBAMASK_HQ, OCCLUSION
from structseg.datamodules.occluder_shapes.face import find_face
from structseg.datamodules.occluder_shapes.light import Light
from structseg.datamodules.synthetic_faces.datamodule import SyntheticFacesDataModule
from structseg.datamodules.synthetic_faces.dataset import SyntheticFacesDataset
from structseg.datamodules.wrappers import occluders
from structseg.datamodules.wrappers.blobs import BlobDataset
from structseg.datamodules.wrappers.occluders import KINDS, OCCLUDED, OccludedDataset, Occluders, occlude

CLASS = {name: index for index, name in enumerate(CELEBAMASK_HQ.classes)}
MOUTH = [CLASS["u_lip"], CLASS["mouth"], CLASS["l_lip"]]
EYES = [CLASS["l_eye"], CLASS["r_eye"]]
ON_FACE = (CELEBAMASK_HQ.lookup(OCCLUSION) == 1).numpy()


def draw(size=128, x=0.0, y=0.0, unit=0.45, angle=0.0, without=()):
    """A mask of a schematic face: eyes at (-0.5, 0) and (0.5, 0), mouth at (0, 1), sides at 1.05, chin at 1.7."""
    grid = Grid((size, size))
    frame = Frame.upright((x, y), 1.0).turned(0.0, 0.0, angle, unit)
    patch = grid.patch(frame, (-90.0, -90.0, 90.0, 90.0))
    u, v = patch.u, patch.v
    mask = np.zeros((size, size), np.int64)
    for name, at, half in (
        ("hair", (0.0, -0.2), (1.3, 1.5)), ("neck", (0.0, 2.2), (0.6, 0.9)), ("skin", (0.0, 0.3), (1.05, 1.4)),
        ("r_brow", (-0.5, -0.3), (0.3, 0.06)), ("l_brow", (0.5, -0.3), (0.3, 0.06)), ("r_eye", (-0.5, 0.0), (0.2, 0.1)),
        ("l_eye", (0.5, 0.0), (0.2, 0.1)), ("nose", (0.0, 0.5), (0.22, 0.3)), ("u_lip", (0.0, 0.93), (0.4, 0.07)),
        ("l_lip", (0.0, 1.07), (0.35, 0.07)),
    ):  # fmt: skip
        if name not in without:
            mask[((u - at[0]) / half[0]) ** 2 + ((v - at[1]) / half[1]) ** 2 < 1] = CLASS[name]
    return mask


def shade(mask, size=None, left=0.6, right=0.6):
    """An image (3, H, W) of a mask: skin of one brightness from left to right, the rest grey."""
    height, width = size or mask.shape
    rows, columns = (np.arange(height) * mask.shape[0]) // height, (np.arange(width) * mask.shape[1]) // width
    skin = ON_FACE[mask[np.ix_(rows, columns)]]
    light = np.broadcast_to(np.linspace(left, right, width, dtype=np.float32), (height, width))
    tone = np.array([1.0, 0.75, 0.62], np.float32)[:, None, None]
    return np.where(skin, tone * light, np.float32(0.4)).astype(np.float32)


def numbers(index):
    return np.random.SeedSequence([7, 0, 0, index])


def only(kind, **settings):
    return Occluders(probability=1.0, kinds=(kind,), most=1, **settings)


class Faces(Dataset):
    """Schematic faces, each somewhere else."""

    def __init__(self, count=6, size=64, **changes):
        masks = [draw(size, x=0.1 * i - 0.2, unit=0.4, **changes) for i in range(count)]
        self.samples = [
            {"image": torch.from_numpy(shade(m)), "mask": torch.from_numpy(m), "name": f"face{i}"}
            for i, m in enumerate(masks)
        ]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def test_all_faults_of_the_settings_are_named_in_one_line():
    with pytest.raises(ValueError, match=r"^occluders: ") as error:
        Occluders(probability=1.5, kinds=("glasses", "beard"), most=0, size=(0.5, 0.2), same_skin=-1.0, shadow=2.0)
    for part in (
        "probability=1.5",
        "same_skin=-1.0",
        "shadow=2.0",
        "kinds=['glasses', 'beard']",
        "most=0",
        "size=(0.5, 0.2)",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    for kinds in ((), ("hat", "hat")):
        with pytest.raises(ValueError, match="each once"):
            Occluders(kinds=kinds)


def test_the_settings_are_options_of_the_command_line():
    parser = ArgumentParser()
    parser.add_class_arguments(SyntheticFacesDataModule, "data")
    given = ["--data.label_space=occlusion", "--data.occluders.kinds=[mask,hand]", "--data.occluders.most=3"]
    data = parser.instantiate_classes(parser.parse_args(given)).data
    assert data.occluders == Occluders(kinds=("mask", "hand"), most=3)
    assert parser.instantiate_classes(parser.parse_args([])).data.occluders is None
    with pytest.raises(ValueError, match=r"label_space=parts \(label_space=occlusion is needed\)"):
        SyntheticFacesDataModule(label_space="parts", occluders=Occluders())


@pytest.mark.parametrize("angle", [0.0, 0.4, -0.5])
@pytest.mark.parametrize("size", [64, 128, 512])
def test_a_face_is_found_where_it_was_drawn(size, angle):
    face = find_face(draw(size, x=0.1, y=-0.15, unit=0.4, angle=angle))
    assert (face.frame.x, face.frame.y) == pytest.approx((0.1, -0.15), abs=0.02)
    assert face.frame.scale == pytest.approx(0.4, rel=0.06)
    assert np.arctan2(face.frame.uy, face.frame.ux) == pytest.approx(angle, abs=0.05)
    assert np.allclose(face.eyes, ((-0.5, 0.0), (0.5, 0.0)), atol=0.08)
    assert np.allclose(face.nose, (0.0, 0.5), atol=0.08)
    assert np.allclose(face.mouth, (0.0, 1.0), atol=0.08)
    assert np.allclose((face.left, face.right, face.chin), (-1.03, 1.03, 1.66), atol=0.12)
    assert np.allclose((*face.brow, face.top), (-1.2, 1.2, -1.6), atol=0.15)
    assert face.area == pytest.approx(np.pi * 1.05 * 1.4, rel=0.05)
    assert face.worn == frozenset()


@pytest.mark.parametrize(
    "without",
    [
        ("l_eye",), ("l_eye", "r_eye"), ("l_eye", "r_eye", "l_brow", "r_brow"), ("u_lip", "l_lip"), ("nose",),
        ("l_eye", "r_eye", "l_brow", "r_brow", "nose", "u_lip", "l_lip"),
    ],
)  # fmt: skip
def test_missing_parts_are_put_where_faces_have_them(without):
    face = find_face(draw(unit=0.4, without=without))
    assert (face.frame.x, face.frame.y) == pytest.approx((0.0, 0.0), abs=0.06)
    assert face.frame.scale == pytest.approx(0.4, rel=0.15)
    assert np.allclose(face.eyes, ((-0.5, 0.0), (0.5, 0.0)), atol=0.15)
    assert np.allclose((face.nose, face.mouth), ((0.0, 0.5), (0.0, 1.0)), atol=0.15)


def test_labels_without_a_face_give_no_face():
    assert find_face(np.zeros((64, 64), np.int64)) is None
    assert find_face(np.full((64, 64), 255)) is None
    assert find_face(np.full((1, 1), CLASS["skin"])) is None
    assert find_face(draw(without=("skin", "nose", "u_lip", "l_lip", "l_eye", "r_eye", "l_brow", "r_brow"))) is None


def cover(kind, index, mask, **settings):
    """The pixels of one occluder on a mask."""
    return occlude(shade(mask), mask, only(kind, **settings), numbers(index))[1] >= 0.5


@pytest.mark.parametrize("angle", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_at_its_place(kind, angle):
    mask = draw(angle=angle)
    eyes, mouth, nose = np.isin(mask, EYES), np.isin(mask, MOUTH), mask == CLASS["nose"]
    head, face = mask > 0, ON_FACE[mask]
    depth = Grid(mask.shape).y[:, None] * np.cos(angle) - Grid(mask.shape).x * np.sin(angle)
    over_eyes, chin, top = depth < -0.1, face & (depth > 0.45 * 1.5), head & (depth < -0.45 * 1.3)
    for index in range(12):
        hidden = cover(kind, index, mask)
        assert hidden.any()
        if kind in ("glasses", "sunglasses"):
            assert hidden[eyes].mean() > 0.99
            assert not hidden[mouth].any()
            assert hidden[face].mean() < 0.4
        elif kind == "mask":
            assert hidden[mouth].mean() == 1.0
            assert hidden[nose].mean() > 0.7
            assert hidden[chin].mean() > 0.75
            assert not hidden[eyes].any()
        elif kind == "scarf":
            assert hidden[chin].mean() > 0.6
            assert not hidden[eyes].any()
        elif kind == "hat":
            assert hidden[top].mean() > 0.8
            assert not hidden[eyes | mouth].any()
            assert hidden[over_eyes].sum() > 0.98 * hidden.sum()
        elif kind == "cup":
            assert hidden[mouth].mean() > 0.5
            assert not hidden[eyes].any()
        elif kind == "microphone":
            assert hidden[mouth | chin].any()
            assert not hidden[eyes].any()
        else:
            assert hidden[head].any()


def test_sizes_of_shapes_are_shares_of_the_face():
    mask = draw(256)
    face = ON_FACE[mask].sum()
    for kind in ("shape", "patch"):
        for share in (0.02, 0.2):
            areas = [cover(kind, index, mask, size=(share, share)).sum() / face for index in range(20)]
            # Some are cut by the picture's border; a ruffled outline is off by a little.
            assert np.median(areas) == pytest.approx(share, rel=0.08)
            assert max(areas) < 1.3 * share


def test_hands_reach_over_the_face():
    mask = draw()
    face = ON_FACE[mask]
    shares = [cover("hand", index, mask)[face].mean() for index in range(40)]
    assert np.mean(shares) > 0.15
    assert sum(share > 0.02 for share in shares) >= 36


def test_what_is_worn_is_not_put_on_again():
    mask = draw()
    worn = mask.copy()
    worn[:20][mask[:20] > 0] = CLASS["hat"]
    worn[np.isin(mask, EYES)] = CLASS["eye_g"]
    for kind in ("hat", "glasses", "sunglasses"):
        assert cover(kind, 0, mask).any()
        assert not cover(kind, 0, worn).any()


def test_occluders_exclude_each_other_in_a_place_and_keep_their_order():
    settings = Occluders(probability=1.0, most=6)
    face = find_face(draw())
    seen = [occluders._choose(Dice(np.random.default_rng(index)), settings, face) for index in range(200)]
    assert {len(kinds) for kinds in seen} == {1, 2, 3, 4, 5, 6}
    for kinds in seen:
        assert [KINDS.index(kind) for kind in kinds] == sorted(KINDS.index(kind) for kind in kinds)
        for place in (("glasses", "sunglasses"), ("mask", "scarf"), ("cup", "microphone", "phone"), ("hat",)):
            assert sum(kind in place for kind in kinds) <= 1
    assert {kind for kinds in seen for kind in kinds} == set(KINDS)


def disc(radius):
    def parts(patch):
        return [np.hypot(patch.u, patch.v) - np.float32(radius)]

    def paint(patch, _):
        return np.broadcast_to(np.float32(0.9), (3, *patch.u.shape)), 1.0

    return Thing(Frame.upright((0.1, 0.2), 0.5), (-radius, -radius, radius, radius), parts, paint)


@pytest.mark.parametrize("image_side", [64, 33, 200])
def test_the_label_is_where_coverage_is_a_half_or_more(monkeypatch, image_side):
    monkeypatch.setattr(occluders, "_build", lambda *_: disc(0.6))
    mask = np.full((64, 64), CLASS["skin"], np.int64)
    image = np.full((3, image_side, image_side), 0.3, np.float32)
    new, alpha = occlude(image, mask, only("shape", shadow=0.0), numbers(0))
    y, x = Grid((64, 64)).y[:, None], Grid((64, 64)).x
    inside = np.hypot(x - 0.1, y - 0.2) <= 0.3
    assert np.array_equal(alpha >= 0.5, inside)
    assert alpha.sum() == pytest.approx(np.pi * (0.3 * 32) ** 2, rel=0.005)
    # The flat image is sharp, without grain, and evenly lit: what was mixed in can be read off it.
    colour = new[:, int(0.6 * image_side), int(0.55 * image_side)]
    share = ((new - 0.3) / (colour - np.float32(0.3))[:, None, None])[0]
    assert share.sum() / image_side**2 == pytest.approx(alpha.sum() / 64**2, rel=0.01)
    assert np.mean((share > 0.001) & (share < 0.999)) < 5 / image_side  # an edge of a pixel's width
    if image_side == 64:
        assert np.allclose(share, alpha, atol=1e-5)


def test_the_data_set_labels_what_occlude_covers():
    data = Faces()
    settings = Occluders(probability=0.7, most=3)
    made = OccludedDataset(data, settings, seed=3, split=1, vary=False)
    kinds = set()
    for index, before in enumerate(data):
        image, alpha = occlude(
            before["image"].numpy(), before["mask"].numpy(), settings, np.random.SeedSequence([3, 1, 0, index])
        )
        label = CELEBAMASK_HQ.lookup(OCCLUSION)[before["mask"]]
        expected = np.where(alpha >= 0.5, 2, label.numpy())
        assert np.array_equal(made[index]["mask"].numpy(), expected)
        assert np.array_equal(made[index]["image"].numpy(), image)
        assert made[index]["mask"].dtype == torch.int64
        assert made[index]["image"].dtype == torch.float32
        assert made[index]["name"] == before["name"]
        kinds.add(bool((alpha >= 0.5).any()))
    assert kinds == {True, False}
    assert torch.equal(made[-1]["image"], made[len(data) - 1]["image"])


def test_at_probability_0_nothing_is_pasted():
    data = Faces()
    copies = [(sample["image"].clone(), sample["mask"].clone()) for sample in data]
    none = OccludedDataset(data, Occluders(probability=0.0), 0, 0, vary=True)
    full = OccludedDataset(data, Occluders(probability=1.0), 0, 0, vary=True)
    for index, (image, mask) in enumerate(copies):
        assert not torch.equal(full[index]["image"], image)
        assert torch.equal(none[index]["image"], image)
        assert torch.equal(none[index]["mask"], CELEBAMASK_HQ.lookup(OCCLUSION)[mask])
        assert torch.equal(data[index]["image"], image)
        assert torch.equal(data[index]["mask"], mask)


def test_probability_is_the_share_of_faces_that_get_any():
    mask = draw(32)
    hits = [occlude(shade(mask), mask, Occluders(probability=0.3), numbers(i))[1].any() for i in range(300)]
    assert np.mean(hits) == pytest.approx(0.3, abs=0.08)


def test_pixels_to_ignore_stay_so_and_earlier_occluders_too():
    data = Faces(1)
    data[0]["mask"][30:34] = 255
    data[0]["mask"][:3] = OCCLUDED
    made = OccludedDataset(data, Occluders(probability=1.0, most=4), 0, 0, vary=True)
    hidden = 0
    for epoch in range(10):
        made.set_epoch(epoch)
        mask = made[0]["mask"]
        assert torch.equal(mask == 255, data[0]["mask"] == 255)
        assert torch.all(mask[:3] == 2)
        hidden += int((mask[[29, 34]] == 2).sum())
    assert hidden > 0


def test_an_image_without_a_face_stays_as_it_is():
    image, mask = np.random.default_rng(0).random((3, 40, 40), dtype=np.float32), np.zeros((40, 40), np.int64)
    mask[:10] = CLASS["hair"]
    new, alpha = occlude(image, mask, Occluders(probability=1.0), numbers(0))
    assert np.array_equal(new, image)
    assert not alpha.any()


def test_the_same_numbers_give_the_same_pixels_and_others_give_others():
    data, settings = Faces(3), Occluders(probability=1.0)

    def images(seed=0, split=0, epoch=0, vary=True):
        made = OccludedDataset(data, settings, seed, split, vary)
        made.set_epoch(epoch)
        return torch.stack([made[index]["image"] for index in range(3)])

    np.random.seed(0)  # noqa: NPY002  # the global state must be left alone
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = images()
    assert torch.equal(first, images())
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    for other in ({"seed": 1}, {"split": 1}, {"epoch": 1}):
        assert all(not torch.equal(a, b) for a, b in zip(first, images(**other), strict=True))
    assert torch.equal(images(epoch=5, vary=False), first)


def test_workers_that_outlive_an_epoch_see_the_next():
    made = BlobDataset(OccludedDataset(Faces(4), Occluders(probability=1.0), 0, 0, vary=True), "labels")
    loader = DataLoader(made, batch_size=1, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in range(2):
        made.set_epoch(epoch)
        epochs.append(torch.cat([batch["image"] for batch in loader]))
        assert torch.equal(epochs[-1], torch.stack([made[index]["image"] for index in range(4)]))
    assert all(not torch.equal(a, b) for a, b in zip(*epochs, strict=True))


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (50, 31)])
def test_a_larger_mask_is_labelled_at_its_own_size(size):
    mask = draw(256)
    image = shade(mask, size)
    for index, kind in enumerate(KINDS):
        same = occlude(shade(mask), mask, only(kind), numbers(index))[1]
        new, alpha = occlude(image, mask, only(kind, shadow=0.0), numbers(index))
        assert alpha.shape == mask.shape
        # But for rounding, the size of the image has no say in the label.
        assert np.mean((same >= 0.5) != (alpha >= 0.5)) < 1e-4
        # Pixels away from the occluder keep their colour, those inside it change.
        whole = np.asarray(Image.fromarray(alpha).resize(size[::-1], Image.Resampling.BOX))
        around = np.pad(whole, 2, mode="edge")
        window = np.lib.stride_tricks.sliding_window_view(around, (5, 5))
        changed = np.abs(new - image).max(0)
        assert changed[window.max((2, 3)) == 0].max() == 0
        if kind != "glasses" and (window.min((2, 3)) == 1).any():
            assert np.mean(changed[window.min((2, 3)) == 1] > 0.001) > 0.9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "mask",
    [
        draw(32), draw(512), draw(64, x=0.95), draw(64, y=-0.95, unit=0.3), draw(64, unit=0.05), draw(64, unit=3.0),
        draw(64, angle=1.3), np.full((40, 64), CLASS["skin"], np.int64), np.full((64, 64), CLASS["l_eye"], np.int64),
    ],
    ids=["32", "512", "right", "top", "tiny", "huge", "lying", "all skin", "all eye"],
)  # fmt: skip
def test_extremes_give_honest_pixels(mask, kind):
    for index, level in enumerate((-0.6, 0.4)):  # black and glaring
        image = np.clip(shade(mask) + level, 0.0, 1.0).astype(np.float32)
        new, alpha = occlude(image, mask, only(kind), numbers(index))
        assert new.dtype == alpha.dtype == np.float32
        assert new.shape == image.shape
        assert np.isfinite(new).all()
        assert new.min() >= 0.0
        assert new.max() <= 1.0


def pasted(kind, image, mask, index, **settings):
    """(3,) mean colour of an occluder's pixels."""
    new, alpha = occlude(image, mask, only(kind, shadow=0.0, **settings), numbers(index))
    return new[:, alpha >= 0.999].mean(1)


def test_things_are_lit_as_the_face_is():
    mask = draw()
    dim, bright, warm = (
        shade(mask) * 0.4,
        shade(mask),
        shade(mask) * np.array([1.2, 1.0, 0.7], np.float32)[:, None, None],
    )
    for index in range(6):
        one, other, third = (pasted("mask", image, mask, index) for image in (dim, bright, warm))
        assert one.mean() < 0.6 * other.mean()
        assert third[0] / third[2] > 1.15 * other[0] / other[2]
    # Light from the right falls on the right half of a mask more than on the left one.
    ratios = []
    for image in (shade(mask), shade(mask, left=0.3, right=0.9)):
        new, alpha = occlude(image, mask, only("mask", shadow=0.0), numbers(0))
        left, right = alpha[:, :64] >= 0.999, alpha[:, 64:] >= 0.999
        ratios.append(new[:, :, 64:][:, right].mean() / new[:, :, :64][:, left].mean())
    # The middles of the halves lie about 12 pixels from the face's: (0.6 + 0.056) / (0.6 - 0.056) = 1.2.
    assert ratios[1] / ratios[0] == pytest.approx(1.2, abs=0.06)


def test_hands_can_have_the_faces_own_skin():
    mask = draw()
    image = shade(mask)
    skin = image[:, ON_FACE[mask]].mean(1)
    own = [np.abs(pasted("hand", image, mask, index, same_skin=1.0) - skin).mean() for index in range(12)]
    anyones = [np.abs(pasted("hand", image, mask, index, same_skin=0.0) - skin).mean() for index in range(12)]
    assert np.median(own) < 0.09
    assert np.mean(anyones) > 1.5 * np.mean(own)


def test_a_shadow_darkens_only_the_head_and_not_through_lenses():
    mask = draw()
    image = shade(mask)
    for kind in ("shape", "glasses"):
        plain, alpha = occlude(image, mask, only(kind, shadow=0.0), numbers(2))
        shaded, _ = occlude(image, mask, only(kind, shadow=0.6), numbers(2))
        outside = alpha == 0
        assert np.all(shaded[:, outside] <= plain[:, outside])
        assert np.array_equal(shaded[:, outside & (mask == 0)], plain[:, outside & (mask == 0)])
        assert (plain - shaded)[:, outside & (mask > 0)].max() > 0.1
    eyes = np.isin(mask, EYES)
    assert np.abs(plain - shaded)[:, eyes].mean() < 0.05


def test_grain_and_blur_are_measured():
    rng = np.random.default_rng(0)
    mask = draw()
    flat = np.full((3, 128, 128), 0.5, np.float32)
    for deviation in (0.0, 0.01, 0.02):
        noisy = flat + rng.normal(0, deviation, (1, 128, 128)).astype(np.float32)
        assert Light(noisy, mask).noise == pytest.approx(deviation, rel=0.1, abs=1e-4)
    assert Light(flat + rng.normal(0, 0.2, flat.shape).astype(np.float32), mask).noise == 0.03
    sharp = flat.copy()
    sharp[:, :, 64:] = 0.9
    blurred = np.stack([np.asarray(Image.fromarray(c).resize((8, 8)).resize((128, 128), 2)) for c in sharp])
    assert Light(sharp, mask).soft == 0.0
    assert Light(blurred, mask).soft > 1.0


def test_synthetic_faces_keep_their_own_occluders():
    settings = Occluders(probability=0.0)
    common = {"train": 24, "val": 1, "test": 1, "label_space": "occlusion", "size": (48, 48), "seed": 4}
    plain, none = (SyntheticFacesDataModule(**common, occluders=o).dataset("train") for o in (None, settings))
    full = SyntheticFacesDataModule(**common, occluders=Occluders(probability=1.0)).dataset("train")
    assert isinstance(plain, SyntheticFacesDataset)
    more = 0
    for index in range(24):
        assert torch.equal(plain[index]["mask"], none[index]["mask"])
        assert torch.equal(plain[index]["image"], none[index]["image"])
        assert torch.all(full[index]["mask"][plain[index]["mask"] == 2] == 2)
        more += int((full[index]["mask"] == 2).sum() > (plain[index]["mask"] == 2).sum())
    assert more >= 22


def test_only_training_varies():
    data = SyntheticFacesDataModule(2, 2, 2, "occlusion", (32, 32), occluders=Occluders(probability=1.0))
    for split, varies in (("train", True), ("val", False), ("test", False)):
        faces = data.dataset(split)
        first = faces[0]["image"]
        faces.set_epoch(1)
        assert torch.equal(first, faces[0]["image"]) != varies


@pytest.mark.data
def test_photographs_get_glasses_on_the_eyes_and_masks_on_the_mouth(shared_data):
    root = shared_data / "celebamask_hq_mini"
    eyes, mouths = [], []
    for path in sorted((root / "masks").glob("*.png"))[:40]:
        mask = np.asarray(Image.open(path).resize((128, 128), Image.Resampling.NEAREST)).astype(np.int64)
        image = np.asarray(Image.open(root / "images" / f"{path.stem}.jpg").convert("RGB").resize((128, 128)))
        image = (image.transpose(2, 0, 1) / 255).astype(np.float32)
        if np.isin(mask, EYES).any() and not (mask == CLASS["eye_g"]).any():
            hidden = occlude(image, mask, only("sunglasses"), numbers(0))[1] >= 0.5
            eyes.append(hidden[np.isin(mask, EYES)].mean())
        hidden = occlude(image, mask, only("mask"), numbers(0))[1] >= 0.5
        mouths.append(hidden[np.isin(mask, MOUTH)].mean())
        assert hidden[np.isin(mask, EYES)].sum() <= 0.1 * np.isin(mask, EYES).sum()
    assert np.mean(eyes) > 0.97
    assert np.min(eyes) > 0.7
    assert np.mean(mouths) > 0.98
    assert np.min(mouths) > 0.85


@pytest.mark.data
def test_celebamask_hq_takes_occluders_with_masks_at_their_own_size(shared_data):
    root, common = shared_data / "celebamask_hq_mini", {"label_space": "occlusion", "size": (64, 64)}
    some = Occluders(probability=1.0)
    made = CelebAMaskHQDataModule(root, **common, score_at="native", occluders=some).dataset("val")
    plain = CelebAMaskHQDataModule(root, **common, score_at="native").dataset("val")
    for index in range(3):
        sample, before = made[index], plain[index]
        assert sample["image"].shape == (3, 64, 64)
        assert sample["mask"].shape == (512, 512)
        kept = sample["mask"] == before["mask"]
        assert not kept.all()
        assert torch.all(sample["mask"][~kept] == 2)
    with pytest.raises(ValueError, match=r"label_space=parts \(label_space=occlusion is needed\)"):
        CelebAMaskHQDataModule(root, label_space="parts", occluders=some)
