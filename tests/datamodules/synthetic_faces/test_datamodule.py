"""SyntheticFaces: the same pixels everywhere, labels that the geometry alone decides, parts where faces have them."""

import dataclasses
import hashlib
import multiprocessing

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from structseg.datamodules.drawing.dice import Dice
from structseg.datamodules.drawing.geometry import Frame, Outline, box, capsule, ellipse, smooth_max, smooth_min
from structseg.datamodules.drawing.texture import Strands, noise
from structseg.datamodules.label_spaces import CELEBAMASK_HQ, FASSEG, HELEN, OCCLUSION, PARTS, STN, VOC
from structseg.datamodules.synthetic_faces.canvas import LABEL, FaceCanvas
from structseg.datamodules.synthetic_faces.dataset import SyntheticFacesDataset
from structseg.datamodules.synthetic_faces.parameters import Light
from structseg.datamodules.synthetic_faces.render import Rendering, render, render_face
from structseg.datamodules.synthetic_faces.sampling import sample_face


def _digest(seed: int, index: int) -> str:
    face = render_face(seed, index, (64, 64))
    return hashlib.sha256(face.image.tobytes() + face.label.tobytes() + face.occluder.tobytes()).hexdigest()


def _face(seed: int, **changes):
    return dataclasses.replace(sample_face(Dice(np.random.default_rng(seed))), **changes)


def _paint(face, size=(128, 128), texture: int = 5, grain: int = 6) -> Rendering:
    return render(face, np.random.default_rng(texture), np.random.default_rng(grain), size)


def _upright(seed: int, **changes):
    """A frontal face without occluders."""
    face = _face(seed, glasses=None, hat=None, occluder=None, beard=None, **changes)
    pose = dataclasses.replace(face.pose, x=0.0, y=0.0, scale=0.8, yaw=0.0, pitch=0.0, roll=0.0)
    hair = dataclasses.replace(face.hair, kind="bald", bun_size=0.0)
    return dataclasses.replace(face, pose=pose, hair=hair)


def _middle(label: np.ndarray, name: str) -> tuple[float, float]:
    """(x, y) of a class's centre of mass in pixels."""
    rows, columns = np.nonzero(label == LABEL[name])
    return columns.mean(), rows.mean()


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """(200, 80, 80) labels of the first 200 faces of seed 0."""
    return np.stack([render_face(0, index, (80, 80)).label for index in range(200)])


@pytest.mark.slow
def test_another_process_paints_the_same_pixels():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.starmap(_digest, [(3, index) for index in range(6)])
    assert there == [_digest(3, index) for index in range(6)]


def test_the_order_of_asking_does_not_matter():
    dataset = SyntheticFacesDataset(4, seed=1, size=(48, 48))
    first = [dataset[index]["image"] for index in range(4)]
    again = [dataset[index]["image"] for index in reversed(range(4))]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))


def test_two_workers_give_the_same_samples_as_the_main_process():
    dataset = SyntheticFacesDataset(8, seed=2, size=(48, 48))
    alone, shared = (list(DataLoader(dataset, batch_size=4, num_workers=workers)) for workers in (0, 2))
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["mask"], other["mask"])
        assert one["name"] == other["name"]


@pytest.mark.parametrize("other", [(0, 1, 0), (1, 0, 0), (0, 0, 1)])
def test_another_seed_index_or_split_is_another_face(other):
    seed, index, split = other
    first, second = render_face(0, 0, (64, 64)), render_face(seed, index, (64, 64), split)
    assert np.mean(first.image != second.image) > 0.5
    assert not np.array_equal(first.label, second.label)


def test_global_random_state_is_neither_read_nor_changed():
    np.random.seed(0)  # noqa: NPY002  # the global state is what is tested
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    _digest(0, 0)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_every_class_occurs(labels):
    present = np.array([[np.any(label == index) for index in range(len(CELEBAMASK_HQ))] for label in labels])
    missing = [name for name, seen in zip(CELEBAMASK_HQ.classes, present.any(0), strict=True) if not seen]
    assert missing == []
    share = dict(zip(CELEBAMASK_HQ.classes, present.mean(0), strict=True))
    assert 0.03 < share["hat"] < 0.15
    assert 0.04 < share["eye_g"] < 0.2
    assert 0.10 < share["ear_r"] < 0.4
    for name in ("skin", "nose", "l_lip", "neck"):
        assert share[name] > 0.9, name


def test_pixel_shares_are_near_those_of_photographs(labels):
    share = np.bincount(labels.ravel(), minlength=19) / labels.size
    # CelebAMask-HQ: background 29 %, skin 25 %, hair 31 %, nose 2 %, a brow .4 %, an eye .2 %.
    for name, low, high in (
        ("background", 0.2, 0.45), ("skin", 0.18, 0.32), ("hair", 0.2, 0.38), ("nose", 0.01, 0.03),
        ("l_brow", 0.002, 0.007), ("r_brow", 0.002, 0.007), ("l_eye", 0.001, 0.006), ("r_eye", 0.001, 0.006),
    ):  # fmt: skip
        assert low < share[LABEL[name]] < high, (name, share[LABEL[name]])


@pytest.mark.parametrize("size", [(32, 32), (1024, 1024), (48, 80), (80, 48), (97, 33)])
def test_shapes_and_types_at_any_size(size):
    face = render_face(0, 7, size)
    assert face.image.shape == (*size, 3)
    assert face.image.dtype == np.uint8
    assert face.label.shape == face.occluder.shape == size
    assert face.label.dtype == np.uint8
    assert face.label.max() <= 18
    assert face.occluder.dtype == np.bool_
    assert {LABEL["skin"], LABEL["nose"]} <= set(np.unique(face.label))


@pytest.mark.parametrize("size", [(31, 64), (64, 1025), (64,), (0, 0)])
def test_a_size_out_of_range_is_refused_in_one_line(size):
    with pytest.raises(ValueError, match=r"expected \(H, W\), each 32..1024") as error:
        render_face(0, 0, size)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="expected"):
        SyntheticFacesDataset(1, size=size)


@pytest.mark.parametrize(("small", "big"), [(64, 128), (128, 256), (96, 288)])
def test_a_face_is_the_same_at_every_size(small, big):
    agree, bounds = [], []
    for index in range(12):
        one, other = (render_face(4, index, (side, side)) for side in (small, big))
        nearest = (np.arange(small) * 2 + 1) * big // (2 * small)
        agree.append(np.mean(one.label == other.label[np.ix_(nearest, nearest)]))
        bounds.append(np.mean(one.occluder == other.occluder[np.ix_(nearest, nearest)]))
    assert np.mean(agree) >= 0.97
    assert np.mean(bounds) >= 0.97


def test_a_wide_picture_holds_the_square_one():
    square, wide = render_face(4, 3, (64, 64)).label, render_face(4, 3, (64, 128)).label
    assert np.mean(square == wide[:, 32:96]) > 0.99


def test_light_and_noise_leave_the_label_alone():
    for seed in range(12):
        face = _face(seed)
        dark = Light((-0.8, 0.0, 0.6), 0.3, np.array([1.2, 1.0, 0.8], np.float32), 0.5)
        rough = dataclasses.replace(face.camera, blur=0.01, noise=0.08, contrast=0.7, exposure=0.6)
        changed = dataclasses.replace(face, light=dark, camera=rough)
        plain, other = _paint(face), _paint(changed, grain=99)
        assert np.array_equal(plain.label, other.label)
        assert np.array_equal(plain.occluder, other.occluder)
        assert np.abs(plain.image.astype(int) - other.image).mean() > 5


def test_grain_changes_with_its_own_seed_only():
    face = _face(3)
    face = dataclasses.replace(face, camera=dataclasses.replace(face.camera, noise=0.02))
    one, same, other = _paint(face, grain=1), _paint(face, grain=1), _paint(face, grain=2)
    assert np.array_equal(one.image, same.image)
    difference = one.image.astype(float) - other.image
    # Two independent grains of 2 % lie sqrt(2) * 5.1 = 7.2 grey levels apart (less where highlights or black clip).
    assert 4 < difference.std() < 8
    assert abs(difference.mean()) < 0.3


def test_left_and_right_are_the_pictured_persons_own():
    for seed in range(8):
        label = _paint(_upright(seed)).label
        for left, right in (("l_eye", "r_eye"), ("l_brow", "r_brow"), ("l_ear", "r_ear")):
            assert _middle(label, left)[0] > 64 + 5 > 64 - 5 > _middle(label, right)[0], (left, seed)


def test_parts_lie_as_in_a_face():
    for seed in range(8):
        face = _upright(seed)
        face = dataclasses.replace(face, mouth=dataclasses.replace(face.mouth, open=0.1))
        label = _paint(face).label
        heights = [_middle(label, name)[1] for name in ("l_brow", "l_eye", "nose", "u_lip", "mouth", "l_lip", "neck")]
        assert heights == sorted(heights), seed
        assert abs(_middle(label, "nose")[0] - 63.5) < 1.5
        assert abs(_middle(label, "skin")[0] - 63.5) < 1.5


def test_a_turn_moves_the_nose_and_hides_the_far_ear():
    face = _upright(1)
    for yaw, near, far in ((0.5, "r_ear", "l_ear"), (-0.5, "l_ear", "r_ear")):
        label = _paint(dataclasses.replace(face, pose=dataclasses.replace(face.pose, yaw=yaw))).label
        assert np.sign(yaw) * (_middle(label, "nose")[0] - _middle(label, "skin")[0]) > 5
        assert np.any(label == LABEL[near])
        assert not np.any(label == LABEL[far])


def test_shut_eyes_are_thinner_than_open_ones():
    face = _upright(2)
    areas = []
    for openness in (0.0, 0.6, 1.0):
        eyes = dataclasses.replace(face.eyes, openness=(openness, openness))
        areas.append(int(np.sum(_paint(dataclasses.replace(face, eyes=eyes)).label == LABEL["l_eye"])))
    assert 0 < areas[0] < areas[1] < areas[2]


def test_a_closed_mouth_has_no_inside():
    face = _upright(2)
    shut, gaping = (dataclasses.replace(face.mouth, open=gap) for gap in (0.0, 0.15))
    assert not np.any(_paint(dataclasses.replace(face, mouth=shut)).label == LABEL["mouth"])
    assert np.sum(_paint(dataclasses.replace(face, mouth=gaping)).label == LABEL["mouth"]) > 50


@pytest.fixture(scope="module")
def clear_pictures() -> list[Rendering]:
    """Forty faces without blur, noise or occluders."""
    pictures = []
    for index in range(40):
        face = _face(index, glasses=None, hat=None, occluder=None, beard=None)
        camera = dataclasses.replace(face.camera, blur=0.0, noise=0.0)
        pictures.append(_paint(dataclasses.replace(face, camera=camera), (160, 160)))
    return pictures


@pytest.mark.parametrize("part", ["u_lip", "l_lip", "l_eye", "r_brow", "hair", "neck"])
def test_edges_of_the_picture_lie_on_edges_of_the_label(part, clear_pictures):
    """The step in brightness across a part's border is lost when the label moves up or down by a single pixel."""
    steps = {}
    for move in (-1, 0, 1):
        of_each = []
        for picture in clear_pictures:
            label = np.roll(picture.label, move, 0)
            inside, skin = label == LABEL[part], label == LABEL["skin"]
            border = (inside[1:] & skin[:-1]) | (skin[1:] & inside[:-1])
            if border.sum() > 5:
                of_each.append(np.abs(np.diff(picture.image.astype(float).mean(-1), axis=0))[border].mean())
        assert len(of_each) > 30
        steps[move] = np.mean(of_each)
    assert steps[0] > 15
    assert steps[0] > 1.5 * max(steps[-1], steps[1])


def test_an_occluder_is_background_and_marked():
    thing = next(f.occluder for f in map(_face, range(200)) if f.occluder is not None and f.occluder.kind == "hand")
    face = _upright(0)
    centred = dataclasses.replace(thing, x=0.1, y=0.4)
    bare, covered = _paint(face), _paint(dataclasses.replace(face, occluder=centred))
    assert not bare.occluder.any()
    assert covered.occluder.sum() > 500
    assert np.all(covered.label[covered.occluder] == 0)
    assert np.array_equal(bare.label[~covered.occluder], covered.label[~covered.occluder])


def test_the_occlusion_space_gets_hands_hats_and_glasses():
    dataset = SyntheticFacesDataset(60, seed=0, size=(64, 64), label_space=OCCLUSION)
    occluder, face = OCCLUSION.classes.index("occluder"), OCCLUSION.classes.index("face")
    hands = 0
    for index in range(60):
        rendered, mask = render_face(0, index, (64, 64)), dataset[index]["mask"].numpy()
        hands += rendered.occluder.any()
        worn = np.isin(rendered.label, [LABEL["hat"], LABEL["eye_g"]])
        assert np.array_equal(mask == occluder, rendered.occluder | worn)
        assert np.all(mask[rendered.label == LABEL["nose"]] == face)
        assert not np.any(mask[rendered.label == LABEL["hair"]] == face)
    assert hands >= 5


@pytest.mark.parametrize("space", [CELEBAMASK_HQ, FASSEG, HELEN, STN, PARTS])
def test_other_spaces_follow_from_the_one_label(space):
    dataset = SyntheticFacesDataset(2, seed=5, size=(48, 64), label_space=space, split=2)
    sample = dataset[1]
    expected = CELEBAMASK_HQ.lookup(space)[torch.from_numpy(render_face(5, 1, (48, 64), 2).label.astype(np.int64))]
    assert torch.equal(sample["mask"], expected)
    assert sample["mask"].dtype == torch.int64
    assert int(sample["mask"].max()) < len(space)
    assert sample["image"].shape == (3, 48, 64)
    assert sample["image"].dtype == torch.float32
    assert 0.0 <= float(sample["image"].min()) < float(sample["image"].max()) <= 1.0
    assert sample["name"] == "face_5_2_000001"


def test_the_dataset_ends_and_refuses_nonsense():
    dataset = SyntheticFacesDataset(3, size=(32, 32))
    assert len(dataset) == 3
    assert dataset[-1]["name"] == dataset[2]["name"]
    with pytest.raises(IndexError, match="sample 3 of 3"):
        dataset[3]
    with pytest.raises(ValueError, match="count 0"):
        SyntheticFacesDataset(0)
    with pytest.raises(ValueError, match="seed -1"):
        SyntheticFacesDataset(1, seed=-1)
    with pytest.raises(ValueError, match="no map from label space celebamask_hq to voc"):
        SyntheticFacesDataset(1, label_space=VOC)


def _grid(*points: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.array([axis], np.float32) for axis in zip(*points, strict=True))


def test_distances_by_hand():
    u, v = _grid((0.0, 0.0), (2.0, 0.0), (0.0, 3.0), (3.0, 0.0))
    assert np.allclose(ellipse(u, v, 2.0, 2.0), [[0.0, 0.0, 1.0, 1.0]], atol=1e-3)  # the centre itself is singular
    assert np.allclose(box(u, v, 1.0, 2.0), [[-1.0, 1.0, 1.0, 2.0]])
    assert np.allclose(capsule(u, v, (0.0, 0.0), (0.0, 2.0), 0.5, 1.0), [[-0.5, 1.5, 0.0, 2.5]])
    outline = Outline(2.0, 1.0, 3.0)
    # On the axes of symmetry the curve is met at right angles.
    assert np.allclose(outline.distance(*_grid((3.0, 0.0), (0.0, 4.0), (0.0, -0.5))), [[1.0, 1.0, -0.5]], atol=0.02)


def test_smooth_union_and_intersection_are_plain_ones_away_from_the_seam():
    a, b = np.array([0.0, 1.0, 0.0], np.float32), np.array([2.0, 0.0, 0.0], np.float32)
    assert np.allclose(smooth_min(a, b, 0.5), [0.0, 0.0, -0.125])
    assert np.allclose(smooth_max(a, b, 0.5), [2.0, 1.0, 0.125])


def test_a_patch_knows_its_frame():
    canvas = FaceCanvas((40, 60))
    frame = Frame.upright((0.25, -0.1), 0.5).turned(0.1, 0.2, 0.3, 0.8, mirror=-1.0)
    patch = canvas.area(frame, -0.5, -0.5, 0.5, 0.5)
    rows, columns = patch.box
    x = frame.x + patch.u * frame.ux + patch.v * frame.vx
    y = frame.y + patch.u * frame.uy + patch.v * frame.vy
    assert np.allclose(x, canvas.x[columns][None], atol=1e-5)
    assert np.allclose(y, canvas.y[rows][:, None], atol=1e-5)
    # Whatever lies within the rectangle is in the patch.
    whole = canvas.whole(frame)
    inside = (np.abs(whole.u) < 0.5) & (np.abs(whole.v) < 0.5)
    inside[rows, columns] = False
    assert not inside.any()


def test_a_patch_off_the_canvas_is_empty():
    patch = FaceCanvas((32, 32)).area(Frame.upright((5.0, 5.0), 1.0), -1.0, -1.0, 1.0, 1.0)
    patch.paint(ellipse(patch.u, patch.v, 1.0, 1.0), np.ones(3, np.float32), "skin")
    assert patch.u.size == 0


def test_coverage_is_the_share_of_the_pixel():
    canvas = FaceCanvas((32, 32))
    patch = canvas.whole(Frame.upright((0.0, 0.0), 1.0))
    # A half plane whose edge lies a quarter of a pixel right of the centre of column 10.
    share = patch.cover(patch.u - np.float32(canvas.x[10] + 0.25 * canvas.pixel))
    assert np.allclose(share[0, 8:13], [1.0, 1.0, 0.75, 0.0, 0.0], atol=1e-3)


def test_noise_is_the_same_at_every_resolution_and_passes_through_its_numbers():
    numbers = np.random.default_rng(0).random((8, 8), dtype=np.float32)
    line = np.array([0.0, 0.25, 0.5], np.float32)
    field = noise(line, line, numbers, 4.0)
    assert np.allclose(field, numbers[:3, :3])
    assert np.allclose(noise(line - 0.125, line, numbers, 4.0)[0, 1], numbers[0, :2].mean())
    strands = Strands(numbers[0], numbers[1])
    assert np.allclose(strands(line + 1.0), strands(line))
    assert np.allclose(strands(np.zeros(1, np.float32)), 0.6 * numbers[0, 0] + 0.4 * numbers[1, 0])


def test_dice_stay_in_range_and_follow_their_weights():
    dice = Dice(np.random.default_rng(0))
    values = [dice.near(1.0, 0.1) for _ in range(4000)]
    assert min(values) >= 0.7
    assert max(values) <= 1.3
    assert abs(np.std(values) - 0.1) < 0.005
    names = [dice.weighted(a=3, b=1) for _ in range(4000)]
    assert abs(names.count("a") / 4000 - 0.75) < 0.03
    assert {dice.choose("xyz") for _ in range(100)} == set("xyz")
