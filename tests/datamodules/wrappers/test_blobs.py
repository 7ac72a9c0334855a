from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.utils.data import Dataset

from structseg.datamodules.augmentation import Augmentation, AugmentationPipeline
from structseg.datamodules.batch import Sample, collate
from structseg.datamodules.label_spaces import PARTS
from structseg.datamodules.lfw_parts.datamodule import LFWPartsDataModule
from structseg.datamodules.wrappers import blobs as blobs_module
from structseg.datamodules.wrappers.blobs import BlobDataset, BlobKind, make_blobs
from tests.data.lfw import face_classes, photograph, squares

KINDS: tuple[BlobKind, ...] = ("labels", "components", "superpixels")
MASK = np.array(
    [
        [0, 0, 2, 2],
        [255, 0, 0, 2],
        [2, 255, 0, 0],
    ]
)


class Faces(Dataset[Sample]):
    """Painted faces; a mask of another size, superpixels and no mask at all on demand."""

    def __init__(self, count: int = 3, masked: bool = True, size: int = 40, mask_size: int = 40) -> None:
        self.count, self.masked, self.size, self.mask_size = count, masked, size, mask_size
        self.superpixels: np.ndarray | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        pixels = photograph(face_classes((self.size, self.size), index), index)
        sample: Sample = {"image": torch.from_numpy(pixels.transpose(2, 0, 1) / np.float32(255)), "name": f"f{index}"}
        if self.masked:
            sample["mask"] = torch.from_numpy(face_classes((self.mask_size,) * 2, index).astype(np.int64))
        if self.superpixels is not None:
            sample["superpixels"] = torch.from_numpy(self.superpixels)
        return sample


class VaryingFaces(Faces):
    """Their noise differs by epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> Sample:
        return super().__getitem__(index + 10 * self.epoch)


@pytest.fixture
def slic_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per call of SLIC."""
    calls: list[int] = []
    real: Callable = blobs_module._slic

    def counting(*args: object, **kwargs: object) -> np.ndarray:
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(blobs_module, "_slic", counting)
    return calls


def check_form(blobs: np.ndarray, mask: np.ndarray) -> None:
    """Dense ids, and one label per blob."""
    assert blobs.dtype == np.int64
    assert blobs.shape == mask.shape
    assert set(np.unique(blobs)) == set(range(blobs.max() + 1))
    for blob in range(blobs.max() + 1):
        assert len(np.unique(mask[blobs == blob])) == 1


def test_labels_by_hand() -> None:
    blobs = make_blobs(MASK, "labels")
    np.testing.assert_array_equal(blobs, [[0, 0, 1, 1], [2, 0, 0, 1], [1, 2, 0, 0]])
    assert blobs.dtype == np.int64


def test_components_touch_by_edges() -> None:
    # The two ignored pixels touch at a corner only, and so do not hold together.
    np.testing.assert_array_equal(make_blobs(MASK, "components"), [[0, 0, 1, 1], [2, 0, 0, 1], [3, 4, 0, 0]])


def test_given_superpixels_are_cut_by_the_labels() -> None:
    superpixels = np.array([[-5, -5, -5, 70000], [-5, -5, -5, 70000], [9, 9, 9, 9]])  # neither dense nor small
    blobs = make_blobs(MASK, "superpixels", superpixels=superpixels)
    # In the order of (number, label): -5 holds 0, 2 and 255; 9 likewise; 70000 holds 2.
    np.testing.assert_array_equal(blobs, [[0, 0, 1, 6], [2, 0, 0, 6], [4, 5, 3, 3]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0, 2, 255])
def test_one_label_everywhere(kind: BlobKind, value: int) -> None:
    mask = np.full((6, 5), value)
    blobs = make_blobs(mask, kind, superpixels=np.ones((6, 5), dtype=np.int32))
    assert blobs.max() == blobs.min() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_random_labels_of_all_values(kind: BlobKind) -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 256, (30, 20))
    mask[:10] = 255
    check_form(make_blobs(mask, kind, image=rng.random((30, 20, 3), dtype=np.float32)), mask)


def test_components_equal_another_routine() -> None:
    mask = np.random.default_rng(1).integers(0, 3, (50, 40))
    blobs = make_blobs(mask, "components")
    check_form(blobs, mask)
    assert blobs.max() + 1 == sum(ndimage.label(mask == value)[1] for value in range(3))


def test_slic_follows_the_image() -> None:
    mask = np.zeros((40, 40), dtype=np.int64)
    image = np.zeros((40, 40, 3), dtype=np.float32)
    image[:, 17:] = (1, 0.5, 0)  # off the grid that SLIC starts with
    blobs = make_blobs(mask, "superpixels", image=image, segments=16)
    check_form(blobs, mask)
    assert 8 <= blobs.max() + 1 <= 24
    assert not set(np.unique(blobs[:, :17])) & set(np.unique(blobs[:, 17:]))
    np.testing.assert_array_equal(blobs, make_blobs(mask, "superpixels", image=image, segments=16))
    of_bytes = make_blobs(mask, "superpixels", image=(image * 255).astype(np.uint8), segments=16)
    np.testing.assert_array_equal(of_bytes, blobs)


def test_slic_of_nothing_to_follow() -> None:
    for side in (1, 2, 9):
        mask = np.zeros((side, side), dtype=np.int64)
        check_form(make_blobs(mask, "superpixels", image=np.zeros((side, side, 3), dtype=np.float32)), mask)


def test_more_segments_make_more_blobs() -> None:
    image = photograph(face_classes((64, 64)))
    counts = [make_blobs(None, "superpixels", image, segments=segments).max() + 1 for segments in (10, 100, 400)]
    assert counts[0] < counts[1] < counts[2]


def test_without_a_mask_superpixels_are_whole() -> None:
    superpixels = np.array([[7, 7], [7, 3]])
    np.testing.assert_array_equal(make_blobs(None, "superpixels", superpixels=superpixels), [[1, 1], [1, 0]])


@pytest.mark.parametrize(
    ("mask", "kind", "superpixels", "message"),
    [
        (None, "labels", None, "blobs of labels need labels; images without mask have"),
        (None, "components", None, "blobs of components need labels"),
        (MASK, "superpixels", None, "need an image or superpixels"),
        (MASK, "superpixels", MASK[:2], r"superpixels are \(2, 4\) but the mask \(3, 4\)"),
        (MASK, "slic", None, "no blobs of kind 'slic'; choose labels"),
    ],
)
def test_missing_inputs_are_named(
    mask: np.ndarray | None, kind: BlobKind, superpixels: np.ndarray | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_blobs(mask, kind, superpixels=superpixels)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_get_blobs(kind: BlobKind) -> None:
    data = BlobDataset(Faces(), kind)
    assert len(data) == 3
    for index in range(3):
        sample = data[index]
        assert set(sample) == {"image", "mask", "blobs", "name"}
        assert sample["blobs"].dtype == torch.int64
        check_form(sample["blobs"].numpy(), sample["mask"].numpy())
        assert torch.equal(sample["blobs"], data[index]["blobs"])
    counts = {"labels": (3, 3), "components": (3, 8), "superpixels": (50, 400)}
    assert counts[kind][0] <= int(data[0]["blobs"].max()) + 1 <= counts[kind][1]


def test_superpixels_of_a_data_set_are_used() -> None:
    faces = Faces()
    faces.superpixels = squares((40, 40))
    sample = BlobDataset(faces, "superpixels")[0]
    expected = make_blobs(sample["mask"].numpy(), "superpixels", superpixels=squares((40, 40)))
    np.testing.assert_array_equal(sample["blobs"], expected)
    assert "superpixels" not in sample
    np.testing.assert_array_equal(BlobDataset(faces, "labels")[0]["blobs"], sample["mask"])  # others replace them


def test_masks_of_another_size_than_the_image() -> None:
    sample = BlobDataset(Faces(size=40, mask_size=100), "superpixels", segments=20)[0]
    assert sample["blobs"].shape == (100, 100)
    check_form(sample["blobs"].numpy(), sample["mask"].numpy())


def test_images_without_mask() -> None:
    sample = BlobDataset(Faces(masked=False), "superpixels")[1]
    assert set(sample) == {"image", "blobs", "name"}
    pixels = photograph(face_classes((40, 40), 1), 1)
    np.testing.assert_array_equal(sample["blobs"], make_blobs(None, "superpixels", image=pixels / np.float32(255)))
    assert sample["blobs"].max() > 20
    with pytest.raises(ValueError, match=r"^f1: blobs of components need labels; .* superpixels only$"):
        BlobDataset(Faces(masked=False), "components")[1]


def test_superpixels_are_made_once(slic_calls: list[int]) -> None:
    data = BlobDataset(Faces(), "superpixels")
    first = [data[index]["blobs"] for index in range(3)]
    kept = first[0].clone()
    first[0].zero_()  # changes of a sample do not reach the memory
    assert torch.equal(data[0]["blobs"], kept)
    assert torch.equal(data[2]["blobs"], first[2])
    assert len(slic_calls) == 3


def test_superpixels_in_memory_are_bounded(slic_calls: list[int]) -> None:
    data = BlobDataset(Faces(), "superpixels", segments=50, memory_bytes=2 * 40 * 40 + 1)  # a byte a pixel
    for _ in range(2):
        for index in range(3):
            assert data[index]["blobs"].max() < 255
    assert len(slic_calls) == 3 + 1


def test_varied_samples_get_their_own_superpixels(slic_calls: list[int]) -> None:
    faces = VaryingFaces()
    data = BlobDataset(faces, "superpixels")
    before = data[0]
    data.set_epoch(2)
    assert faces.epoch == 2
    after = data[0]
    assert len(slic_calls) == 2
    assert not torch.equal(before["blobs"], after["blobs"])
    check_form(after["blobs"].numpy(), after["mask"].numpy())
    BlobDataset(Faces(), "labels").set_epoch(1)  # nothing to tell


@pytest.mark.parametrize("kind", KINDS)
def test_blobs_keep_one_label_through_augmentation(kind: BlobKind) -> None:
    torch.manual_seed(0)
    batch = collate([BlobDataset(Faces(8), kind)[index] for index in range(8)])
    pipeline = AugmentationPipeline(Augmentation(flip=0.5, rotate=60.0, translate=0.2, scale=(0.6, 1.6)), PARTS)
    moved = pipeline(batch)
    assert not torch.equal(moved["blobs"], batch["blobs"])
    for before, labels, after, warped in zip(batch["blobs"], batch["mask"], moved["blobs"], moved["mask"], strict=True):
        label_of = torch.zeros(int(before.max()) + 1, dtype=torch.int64)
        label_of[before.flatten()] = labels.flatten()
        inside = warped != PARTS.ignore_index
        assert 0.2 < inside.float().mean() <= 1
        assert set(after.unique().tolist()) <= set(before.unique().tolist())
        assert torch.equal(label_of[after[inside]], warped[inside])
        assert len(after.unique()) > 1


@pytest.mark.slow
@pytest.mark.data
def test_three_in_ten_components_of_lfw_are_specks(shared_data):
    """As the README says where it explains what equal weights do."""
    data = LFWPartsDataModule(shared_data / "lfw_parts", blobs="components").dataset("train")
    sizes = np.concatenate([np.bincount(data[i]["blobs"].flatten()) for i in range(0, len(data), 5)])
    specks = sizes[sizes <= 5]
    assert 0.28 < len(specks) / len(sizes) < 0.34
    assert specks.sum() / sizes.sum() < 0.0003
