"""What is drawn from a seed stays the same; faces but for rounding, which sines and roots of arrays differ in by machine."""

import hashlib

import pytest

from structseg.datamodules.confounded_scenes.dataset import ConfoundedScenes
from structseg.datamodules.label_spaces import CELEBAMASK_HQ
from structseg.datamodules.synthetic_faces.dataset import SyntheticFacesDataset
from structseg.datamodules.wrappers.occluders import KINDS, OCCLUDED, OccludedDataset, Occluders


def figures(data):
    """The mean brightness of the images, in grey levels, and the mean class of the masks."""
    samples = [data[index] for index in range(len(data))]
    images, masks = (sum(float(sample[key].double().mean()) for sample in samples) for key in ("image", "mask"))
    return 255 * images / len(data), masks / len(data)


@pytest.mark.parametrize(("size", "expected"), [((48, 48), (96.245, 5.626)), ((64, 40), (92.505, 7.02))])
def test_faces(size, expected):
    assert figures(SyntheticFacesDataset(6, 1, size)) == pytest.approx(expected, abs=0.01)


def test_occluders():
    faces = SyntheticFacesDataset(6, 2, (64, 64), CELEBAMASK_HQ, 0, OCCLUDED)
    expected = {
        "glasses": (98.645, 0.4), "sunglasses": (93.036, 0.406), "mask": (95.464, 0.488),
        "scarf": (93.482, 0.588), "hat": (89.578, 0.677), "cup": (96.834, 0.475),
        "microphone": (99.079, 0.385), "phone": (90.697, 0.567), "hand": (107.052, 0.701),
        "shape": (96.394, 0.416), "patch": (93.032, 0.421),
    }  # fmt: skip
    for kind in KINDS:
        found = figures(OccludedDataset(faces, Occluders(1.0, (kind,)), 3, 0, vary=False))
        assert found == pytest.approx(expected[kind], abs=0.01), kind


@pytest.mark.parametrize(("strength", "expected"), [(0.0, "a3c1d4a22cbe"), (0.9, "76e618f9830d")])
def test_scenes(strength, expected):
    pictures = [ConfoundedScenes(4, (48, 64)).render(0, index, strength) for index in range(6)]
    content = b"".join(array.tobytes() for picture in pictures for array in (picture.image, picture.mask))
    assert hashlib.sha256(content).hexdigest()[:12] == expected
