"""ConfoundedScenes: co-occurrence of the given strength, exact masks, the same pixels everywhere."""

import hashlib
import math
import multiprocessing

import numpy as np
import pytest

from structseg.datamodules.confounded_scenes.cooccurrence import (
    FREQUENCY,
    GROUNDS,
    base_probability,
    draw_classes,
    draw_ground,
    partner,
    usual_ground,
)
from structseg.datamodules.confounded_scenes.dataset import ConfoundedScenes
from structseg.datamodules.confounded_scenes.scene import SceneCanvas, Thing
from structseg.datamodules.confounded_scenes.shapes import outline
from structseg.datamodules.confounded_scenes.textures import PATTERNS, Coat, colour, ground, pattern
from structseg.datamodules.drawing.dice import Dice
from structseg.datamodules.label_spaces import SCENES

KINDS = range(1, len(SCENES))
STRENGTHS = [0.0, 0.5, 0.9, 1.0]


def _dice(seed: int = 0) -> Dice:
    return Dice(np.random.default_rng(seed))


def _digest(index: int, size: tuple[int, int] = (48, 64)) -> str:
    picture = ConfoundedScenes(3, size).render(1, index, 0.7)
    return hashlib.sha256(picture.image.tobytes() + picture.mask.tobytes()).hexdigest()


def partner_probability(strength: float) -> float:
    return base_probability(strength) + strength * (1 - base_probability(strength))


def ground_probability(strength: float) -> float:
    return 1 / len(GROUNDS) + strength * (1 - 1 / len(GROUNDS))


def _near(share: float, expected: float, trials: int, deviations: float = 4.0) -> bool:
    """Whether a share is within that many standard deviations of sampling from the expected one."""
    return abs(share - expected) <= deviations * math.sqrt(expected * (1 - expected) / trials) + 1e-12


def test_partners_are_mutual_and_share_a_ground():
    assert [partner(kind) for kind in KINDS] == [2, 1, 4, 3, 6, 5, 8, 7]
    assert [GROUNDS[usual_ground(kind)] for kind in (1, 3, 5, 7)] == ["night", "water", "meadow", "pavement"]
    assert all(usual_ground(kind) == usual_ground(partner(kind)) for kind in KINDS)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_base_gives_every_strength_the_same_frequency(strength):
    base = base_probability(strength)
    both, neither = base * partner_probability(strength), (1 - base) ** 2 + strength * base * (1 - base)
    assert neither == pytest.approx(1 - 2 * base + both)  # the table of a pair sums to 1
    assert base / (1 - neither**4) == pytest.approx(FREQUENCY)


def test_the_probabilities_that_the_documentation_states():
    assert base_probability(0.0) == pytest.approx(0.278, abs=5e-4)
    assert base_probability(1.0) == pytest.approx(0.1205, abs=5e-4)
    assert partner_probability(0.0) == base_probability(0.0)
    assert partner_probability(1.0) == 1.0
    assert ground_probability(0.0) == pytest.approx(1 / 6)
    assert ground_probability(1.0) == 1.0
    assert ground_probability(0.4) == pytest.approx(0.5)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_classes_co_occur_with_the_given_strength(strength):
    dice, images = _dice(1), 20000
    here = np.zeros((images, len(SCENES)), bool)
    for row in here:
        row[draw_classes(dice, strength)] = True
    assert here[:, 1:].any(1).all()
    base, together = base_probability(strength), partner_probability(strength)
    for kind in KINDS:
        assert _near(here[:, kind].mean(), FREQUENCY, images), SCENES.classes[kind]
        with_kind = here[here[:, kind]]
        for other in set(KINDS) - {kind}:
            expected = together if other == partner(kind) else base
            assert _near(with_kind[:, other].mean(), expected, len(with_kind), 4.5), (kind, other)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_grounds_are_usual_with_the_given_strength(strength):
    dice, draws = _dice(2), 4000
    for kind in (1, 4, 7):
        grounds = np.bincount([draw_ground(dice, kind, strength) for _ in range(draws)], minlength=len(GROUNDS)) / draws
        for index, share in enumerate(grounds):
            usual = index == usual_ground(kind)
            expected = ground_probability(strength) if usual else (1 - strength) / len(GROUNDS)
            assert _near(share, expected, draws), (kind, index)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_whole_scenes_have_the_given_strength(strength):
    scenes = ConfoundedScenes(5)
    all_things = [scenes.things(0, index, strength) for index in range(1500)]
    pairs = [
        (thing, next((other for other in things if other.kind == partner(thing.kind)), None))
        for things in all_things
        for thing in things
    ]
    # The objects of a scene are dependent: at worst there are half as many independent images as objects.
    trials = len(pairs) // 2
    assert _near(np.mean([other is not None for _, other in pairs]), partner_probability(strength), trials)
    at_home = np.mean([thing.ground == usual_ground(thing.kind) for thing, _ in pairs])
    assert _near(at_home, ground_probability(strength), trials)
    together = [(thing, other) for thing, other in pairs if other is not None]
    assert _near(np.mean([thing.touching for thing, _ in together]), strength, len(together) // 2)
    for thing, other in together:
        if thing.touching:
            assert other.touching
            assert other.ground == thing.ground
            distance = math.hypot(thing.x - other.x, thing.y - other.y)
            assert 0.6 < distance / (thing.radius + other.radius) < 0.8


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_the_mask_holds_every_thing_and_no_other(strength):
    scenes = ConfoundedScenes(0, (64, 64))
    smallest = 64 * 64
    for index in range(150):
        kinds = {thing.kind for thing in scenes.things(2, index, strength)}
        areas = np.bincount(scenes.render(2, index, strength).mask.ravel(), minlength=256)
        assert set(np.flatnonzero(areas)) == {0, *kinds}
        smallest = min(smallest, min(areas[kind] for kind in kinds))
    assert smallest >= 12


def test_touching_partners_touch_in_the_mask():
    scenes, touch = ConfoundedScenes(0, (64, 64)), []
    for index in range(60):
        mask = scenes.render(0, index, 1.0).mask.astype(int)
        for first in {thing.kind for thing in scenes.things(0, index, 1.0)} & {1, 3, 5, 7}:
            across = [(mask[:, 1:], mask[:, :-1]), (mask[1:], mask[:-1])]
            touch.append(any(np.any((a + b == 2 * first + 1) & (abs(a - b) == 1)) for a, b in across))
    assert np.mean(touch) > 0.9


def test_the_topmost_thing_has_the_pixel():
    canvas = SceneCanvas((64, 64))
    for kind in (7, 5):
        canvas.paint_thing(Thing(kind, 0.0, 0.0, 0.5, 0, False), _dice())
    below = SceneCanvas((64, 64))
    below.paint_thing(Thing(7, 0.0, 0.0, 0.5, 0, False), _dice())
    assert canvas.mask[32, 32] == 5
    covered = below.mask != canvas.mask
    assert np.all(canvas.mask[covered] == 5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_is_in_its_frame_and_partly_distinctive(kind):
    axis = np.linspace(-1.5, 1.5, 121, dtype=np.float32)
    distance, distinctive = outline(kind, axis[None, :] + 0 * axis[:, None], axis[:, None] + 0 * axis[None, :])
    inside = distance < 0
    rows, columns = np.nonzero(inside)
    assert max(np.abs(axis[rows]).max(), np.abs(axis[columns]).max()) <= 1.4
    assert 0.2 < np.mean(distinctive[inside] < 0) < 0.65
    assert 0.1 < inside.mean() * 9 / math.pi < 0.75  # of the unit disc


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_repeats_and_has_both_tones(name):
    axis = np.arange(64, dtype=np.float32) / 16
    u, v = np.meshgrid(axis, axis)
    values = pattern(name, u, v)
    assert values.min() == 0.0
    assert values.max() == 1.0
    assert 0.15 < values.mean() < 0.85
    if name != "rings":
        assert np.array_equal(values[:32, :48], values[32:, 16:])  # 2 cells down, 1 across


def test_stripes_and_dots_by_hand():
    t = np.array([[0.0, 0.25, 0.5, 0.75]], np.float32)
    assert np.allclose(pattern("stripes", t, 0 * t), [[0.0, 0.5, 1.0, 0.5]])
    assert np.allclose(pattern("dots", t, 0 * t + 0.5), [[0.0, 0.775, 1.0, 0.775]])  # (0.09 - r^2) / 0.1 + 0.5


def test_colours_by_hand():
    assert np.allclose(colour(0.0, 1.0, 1.0), [1.0, 0.0, 0.0])
    assert np.allclose(colour(4 / 3, 1.0, 0.5), [0.0, 0.5, 0.0], atol=1e-6)
    assert np.allclose(colour(-1 / 3, 0.5, 1.0), [0.5, 0.5, 1.0], atol=1e-6)


def test_twenty_classes_differ_in_pattern_or_in_hue():
    looks = {}
    for kind in range(1, 21):
        coats = [Coat(kind, _dice(seed)) for seed in range(30)]
        assert {coat.pattern for coat in coats} == {PATTERNS[(kind - 1) % 10]}
        looks[kind] = np.mean([coat.plain - coat.plain.mean() for coat in coats], 0)
    for kind in range(1, 11):
        assert looks[kind] @ looks[kind + 10] < 0, kind  # opposite hues


def test_the_distinctive_part_has_the_contrast():
    axis = np.linspace(0, 4, 64, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    for kind in KINDS:
        contrast = [
            np.mean([Coat(kind, _dice(seed)).colours(u, v, np.full_like(u, share)).std((1, 2)) for seed in range(10)])
            for share in (0.0, 1.0)
        ]
        assert contrast[1] > 2 * contrast[0], kind


@pytest.mark.parametrize("kind", range(len(GROUNDS)))
def test_a_ground_fills_its_box_and_varies(kind):
    x, y = np.linspace(-1, 1, 48, dtype=np.float32), np.linspace(-1, 1, 32, dtype=np.float32)
    one, same, other = (ground(kind, x, y, _dice(seed)) for seed in (0, 0, 1))
    assert one.shape == (3, 32, 48)
    assert np.array_equal(one, same)
    assert np.abs(one - other).mean() > 0.01


@pytest.mark.slow
def test_another_process_paints_the_same_pixels():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_digest, range(4)) == [_digest(index) for index in range(4)]


def test_the_pixels_do_not_depend_on_what_was_asked_before():
    scenes = ConfoundedScenes(1, (48, 48))
    first = [scenes.render(0, index, 0.5).image for index in range(4)]
    again = [scenes.render(0, index, 0.5).image for index in reversed(range(4))]
    assert all(np.array_equal(a, b) for a, b in zip(first, reversed(again), strict=True))


@pytest.mark.parametrize("other", [(0, 1, 0), (1, 0, 0), (0, 0, 1)])
def test_another_seed_index_or_split_is_another_scene(other):
    seed, split, index = other
    one = ConfoundedScenes(0, (48, 48)).render(0, 0, 0.5)
    two = ConfoundedScenes(seed, (48, 48)).render(split, index, 0.5)
    assert np.mean(one.image != two.image) > 0.8
    assert not np.array_equal(one.mask, two.mask)


@pytest.mark.parametrize("size", [(32, 32), (40, 96), (96, 40), (33, 65)])
def test_any_size_is_painted_to_its_borders(size):
    picture = ConfoundedScenes(0, size).render(0, 3, 0.3)
    assert picture.image.shape == (*size, 3)
    assert picture.image.dtype == picture.mask.dtype == np.uint8
    assert picture.mask.shape == size
    assert all(edge.any() for edge in (picture.image[0], picture.image[-1], picture.image[:, 0], picture.image[:, -1]))


def test_a_scene_is_the_same_at_twice_the_size():
    agree = []
    for index in range(12):
        small, big = (ConfoundedScenes(4, (side, side)).render(0, index, 0.5).mask for side in (64, 192))
        agree.append(np.mean(small == big[1::3, 1::3]))
    assert np.mean(agree) > 0.99


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(ValueError, match=r"co_occurrence=.*; expected 0"):
        ConfoundedScenes().things(0, 0, strength)


@pytest.mark.parametrize(("seed", "size"), [(-1, (64, 64)), (0, (31, 64)), (0, (64, 1025))])
def test_settings_out_of_range_are_refused(seed, size):
    with pytest.raises(ValueError, match="expected seed 0 or more"):
        ConfoundedScenes(seed, size)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_is_where_a_thing_covers_half_of_the_pixel_or_more(kind):
    black, white = SceneCanvas((80, 80)), SceneCanvas((80, 80))
    white.image[...] = 1.0
    for canvas in (black, white):
        canvas.paint_thing(Thing(kind, 0.1, -0.1, 0.6, 0, False), _dice(kind))
    cover = 1.0 - (white.image - black.image).mean(0)  # what shows of the canvas is what differs
    sure = np.abs(cover - 0.5) > 1e-4
    assert np.array_equal((cover > 0.5)[sure], (black.mask == kind)[sure])
    assert 200 < (black.mask == kind).sum() < 2500
    assert ((cover > 0.01) & (cover < 0.99)).sum() > 30  # the rim is smooth
