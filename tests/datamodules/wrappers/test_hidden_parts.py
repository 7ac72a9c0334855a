import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from structseg.datamodules.base import SegmentationDataModule
from structseg.datamodules.batch import image_tensor, mask_tensor
from structseg.datamodules.celebamask_hq.datamodule import CelebAMaskHQDataModule
from structseg.datamodules.images import resize_image
from structseg.datamodules.label_spaces import CELEBAMASK_HQ, HELEN, STN
from structseg.datamodules.wrappers.full_size import Originals
from structseg.datamodules.wrappers.hidden_parts import HIDEABLE_PARTS, HiddenPartsDataset, cover

SIDE = 100
# The upper left corner of each part's 10x10 square, in the order of HIDEABLE_PARTS; the mouth has three stripes.
PLACES = ((20, 60), (20, 20), (40, 60), (40, 20), (55, 40), (75, 40))
NUMBERS = dict(zip(HIDEABLE_PARTS, ((1,), (2,), (3,), (4,), (5,), (6, 7, 8)), strict=True))  # of STN, by hand


def face(lacking: tuple[str, ...] = ()):
    """Black parts on skin that grows lighter from left to right; (100, 100, 3) pixels, (100, 100) STN classes."""
    skin = np.broadcast_to(np.linspace(100, 200, SIDE)[None, :, None], (SIDE, SIDE, 3))
    pixels, mask = skin.round().astype(np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    for (y, x), (name, classes) in zip(PLACES, NUMBERS.items(), strict=True):
        if name not in lacking:
            pixels[y : y + 10, x : x + 10] = 0
            mask[y : y + 10, x : x + 10] = np.repeat(classes, (10,) if len(classes) == 1 else (3, 4, 3))[:, None]
    return pixels, mask


class Faces(torch.utils.data.Dataset):
    def __init__(self, count=40, lacking=(), mask_side=SIDE):
        self.count, self.lacking, self.mask_side = count, lacking, mask_side

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        pixels, mask = face(self.lacking)
        image = Image.fromarray(pixels)
        mask = mask_tensor(mask)
        if self.mask_side != SIDE:
            mask = F.interpolate(mask[None, None].float(), (self.mask_side,) * 2)[0, 0].long()
        small = image_tensor(resize_image(image, (32, 32)))
        return {"image": small, "original": image_tensor(image), "mask": mask, "name": str(index)}


def hidden(sample) -> set[str]:
    """The parts of which no black pixel is left; of the others none may have changed."""
    black = (sample["original"] == 0).all(0)
    found = set()
    for (y, x), name in zip(PLACES, HIDEABLE_PARTS, strict=True):
        left = black[y : y + 10, x : x + 10]
        assert left.all() or not left.any()
        found |= set() if left.all() else {name}
    return found


def test_as_many_parts_as_asked_for_are_covered_by_skin():
    for count in range(1, 7):
        data = HiddenPartsDataset(Faces(), count, STN)
        assert {len(hidden(data[i])) for i in range(6)} == {count}
    bare = Faces(lacking=tuple(HIDEABLE_PARTS))[0]["original"]
    covered = data[0]["original"]
    assert (covered - bare).abs().max() < 0.02, "of all six nothing is seen but the skin's light"


def test_every_part_is_drawn_as_often_as_another():
    data = HiddenPartsDataset(Faces(count=120), 1, STN)
    names = [next(iter(hidden(data[i]))) for i in range(120)]
    counts = [names.count(name) for name in HIDEABLE_PARTS]
    assert min(counts) > 8  # 20 each; 4 is the deviation
    assert max(counts) < 32


def test_the_choice_is_by_seed_and_index_and_grows_with_the_count():
    chosen = {
        (count, seed): [hidden(HiddenPartsDataset(Faces(), count, STN, seed)[i]) for i in range(6)]
        for count in (1, 2, 3)
        for seed in (0, 1)
    }
    assert chosen[2, 0] == [hidden(HiddenPartsDataset(Faces(), 2, STN, 0)[i]) for i in range(6)]
    assert chosen[2, 0] != chosen[2, 1]
    for seed in (0, 1):
        for one, two, three in zip(*(chosen[count, seed] for count in (1, 2, 3)), strict=True):
            assert one < two < three


def test_the_mask_stays_and_the_image_is_made_anew():
    plain, sample = Faces()[0], HiddenPartsDataset(Faces(), 6, STN)[0]
    assert torch.equal(sample["mask"], plain["mask"])
    assert sample["name"] == "0"
    assert set(sample) == set(plain)
    pixels = (sample["original"] * 255).round().byte().permute(1, 2, 0).numpy()
    assert torch.equal(sample["image"], image_tensor(resize_image(Image.fromarray(pixels), (32, 32))))
    none = HiddenPartsDataset(Faces(), 0, STN)[0]
    assert torch.equal(none["original"], plain["original"])
    assert torch.equal(none["image"], plain["image"])


def test_masks_of_another_size_say_where_the_parts_are():
    one, other = (HiddenPartsDataset(Faces(mask_side=side), 3, STN)[2] for side in (SIDE, 2 * SIDE))
    assert torch.equal(one["original"], other["original"])
    assert other["mask"].shape == (200, 200)


def test_parts_that_are_not_there_cannot_be_drawn():
    lacking = ("left_eye", "nose", "mouth", "left_brow", "right_brow")
    for index in range(8):
        sample = HiddenPartsDataset(Faces(lacking=lacking), 2, STN)[index]
        assert (sample["original"] > 0).all(), "the one part that there is"
    nobody = HiddenPartsDataset(Faces(lacking=tuple(HIDEABLE_PARTS)), 6, STN)[0]
    assert torch.equal(nobody["original"], Faces(lacking=tuple(HIDEABLE_PARTS))[0]["original"])


def test_helen_has_the_same_parts_elsewhere_in_its_order():
    class Helen(Faces):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            mask = sample["mask"]
            return sample | {"mask": mask + 1 if self.lacking else torch.where(mask > 0, mask + 1, 1)}

    stn, helen = (HiddenPartsDataset(data, 3, space)[4] for data, space in ((Faces(), STN), (Helen(), HELEN)))
    assert torch.equal(stn["original"], helen["original"])


def test_the_cover_reaches_over_a_margin_and_to_the_edge_of_the_image():
    pixels = np.full((50, 50, 3), 150, np.uint8)
    hide, seen = np.zeros((2, 50, 50), bool)
    hide[0:6, 0:6] = seen[0:6, 7:12] = True  # what is seen lies within the margin
    pixels[0:8, 0:6] = pixels[0:6, 0:8] = 0  # the part is drawn 2 pixels larger than its mask: 4 % of 50
    pixels[seen] = (255, 0, 0)
    painted = cover(pixels, hide, seen)
    assert (painted[~seen] == 150).all()
    np.testing.assert_array_equal(painted[seen], pixels[seen])
    assert (pixels[:6, :7] == 0).all(), "the image itself is left alone"
    everything = np.ones((50, 50), bool)
    np.testing.assert_array_equal(cover(pixels, everything, ~everything), pixels)


def test_counts_and_label_spaces_that_cannot_be():
    with pytest.raises(ValueError, match=r"^7 parts to hide; expected 0 to 6$"):
        HiddenPartsDataset(Faces(), 7, STN)
    with pytest.raises(ValueError, match=r"label_space=celebamask_hq \(stn or helen is needed: it has no left_brow\)"):
        HiddenPartsDataset(Faces(), 1, CELEBAMASK_HQ)


class FacesDataModule(SegmentationDataModule):
    originals = Originals(hide_parts=2)

    def make_dataset(self, split):
        return Faces(4)


def test_training_images_keep_their_parts():
    data = FacesDataModule(label_space="stn", size=(32, 32), seed=5)
    assert [hidden(data.dataset("train")[i]) for i in range(4)] == [set()] * 4
    expected = [hidden(HiddenPartsDataset(Faces(4), 2, STN, 5)[i]) for i in range(4)]
    for split in ("val", "test"):
        assert [hidden(data.dataset(split)[i]) for i in range(4)] == expected
        assert {len(parts) for parts in expected} == {2}


@pytest.mark.data
def test_real_parts_are_covered(shared_data):
    root = shared_data / "celebamask_hq_mini"
    plain, bare = (
        CelebAMaskHQDataModule(root, label_space="stn", originals=Originals(128, hide_parts=count)).dataset("test")
        for count in (0, 6)
    )
    changes = []
    for index in range(10):
        before, after = plain[index], bare[index]
        assert torch.equal(before["mask"], after["mask"])
        inside = before["mask"] > 0
        changes.append((before["original"] - after["original"]).abs().mean(0)[inside].mean())
        rest = F.max_pool2d(inside[None].float(), 15, 1, 7)[0] == 0  # 4 % of 128 are 5 pixels
        assert torch.equal(before["original"][:, rest], after["original"][:, rest])
    assert torch.stack(changes).min() > 0.03
