"""Layouts: their choice from a folder, and textures painted into real label maps that keep their void."""

import numpy as np
import pytest
from PIL import Image

from structseg.datamodules.confounded_scenes.cooccurrence import usual_ground
from structseg.datamodules.confounded_scenes.layouts import PaintedLayouts, choose_layouts, spread_over_void
from structseg.datamodules.label_spaces import VOC
from tests.data.layouts import NAMES, layout_folder

HORSE, PERSON = VOC.classes.index("horse"), VOC.classes.index("person")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return layout_folder(tmp_path_factory.mktemp("layouts"))


def _list(path, *names):
    path.write_text("\n".join(names) + "\n")
    return path


def test_without_lists_the_folder_is_shared_out(folder):
    chosen = choose_layouts(folder, {"train": 5, "val": 1, "test": 4}, seed=3)
    assert [len(names) for names in chosen.values()] == [5, 1, 4]
    assert sorted(name for names in chosen.values() for name in names) == NAMES
    assert choose_layouts(folder, {"train": 5, "val": 1, "test": 4}, seed=3) == chosen
    assert choose_layouts(folder, {"train": 5, "val": 1, "test": 4}, seed=4) != chosen


def test_lists_hold_the_splits_apart_and_val_takes_what_training_leaves(folder, tmp_path):
    lists = {
        "train": _list(tmp_path / "train.txt", *NAMES[:6]),
        "test": _list(tmp_path / "val.txt", *NAMES[6:]),
    }
    chosen = choose_layouts(folder, {"train": 4, "val": 2, "test": 3}, lists)
    assert set(chosen["train"]) | set(chosen["val"]) == set(NAMES[:6])
    assert set(chosen["test"]) < set(NAMES[6:])


def test_every_fault_of_the_lists_has_its_line(folder, tmp_path):
    with pytest.raises(ValueError, match=r"test=6, but 5 layouts are left for it; ask for fewer"):
        choose_layouts(folder, {"train": 5, "test": 6})
    with pytest.raises(ValueError, match=r"list of train names 2099_000001 \(1 such\), not in"):
        choose_layouts(folder, {"train": 1}, {"train": _list(tmp_path / "a.txt", NAMES[0], "2099_000001")})
    both = _list(tmp_path / "b.txt", NAMES[0])
    with pytest.raises(ValueError, match=rf"layout {NAMES[0]} of test is in another split too"):
        choose_layouts(folder, {"train": 1, "test": 1}, {"train": both, "test": both})
    with pytest.raises(FileNotFoundError, match="no list"):
        choose_layouts(folder, {"train": 1}, {"train": tmp_path / "none.txt"})
    with pytest.raises(FileNotFoundError, match=r"no folder .* give --data.layouts"):
        choose_layouts(tmp_path / "none", {"train": 1})
    with pytest.raises(ValueError, match="val=1, but 0 layouts"):
        choose_layouts(folder, {"test": 1, "val": 1}, {"test": both})


def test_void_gets_its_neighbours_class_near_the_rim_only():
    layout = np.zeros((8, 100), np.uint8)
    layout[:, :10] = 13
    layout[:, 10:12] = 255  # two wide: one column from either side
    layout[:, 40:90] = 255
    grown = spread_over_void(layout)
    assert np.all(grown[:, :11] == 13)
    assert np.all(grown[:, 11:] == 0)
    assert layout[0, 10] == 255  # the input is not changed
    layout[:, 90:] = 15
    assert np.flatnonzero(spread_over_void(layout)[0] == 15).tolist() == list(range(87, 100))  # 100 // 32 = 3 steps
    corner = np.full((3, 3), 255, np.uint8)
    corner[0, 0] = 7
    assert spread_over_void(corner).tolist() == [[7, 7, 7], [7, 7, 0], [7, 0, 0]]


def test_the_mask_is_the_layout_with_its_void(folder):
    painted = PaintedLayouts(folder, 0, (60, 80))
    picture = painted.render(NAMES[0], 0.0)
    with Image.open(folder / f"{NAMES[0]}.png") as file:
        expected = np.asarray(file.resize((80, 60), Image.Resampling.NEAREST))
    assert np.array_equal(picture.mask, expected)
    assert set(np.unique(picture.mask)) == {0, HORSE, PERSON, 255}
    assert picture.image.shape == (60, 80, 3)


def test_a_picture_follows_from_seed_and_name(folder):
    one, same = (PaintedLayouts(folder, 1, (48, 48)).render(NAMES[0], 0.3).image for _ in range(2))
    assert np.array_equal(one, same)
    assert np.mean(one != PaintedLayouts(folder, 2, (48, 48)).render(NAMES[0], 0.3).image) > 0.8
    assert np.mean(one != PaintedLayouts(folder, 1, (48, 48)).render(NAMES[1], 0.3).image) > 0.8


def test_the_void_rim_is_painted_like_what_it_borders(folder):
    """The edge of the picture lies outside the rim, or in its middle, but never at a third tone of its own."""
    painted = PaintedLayouts(folder, 0, (96, 96))
    off = []
    for name in NAMES:
        picture = painted.render(name, 0.0)
        shapes = spread_over_void(picture.mask)
        rim = (picture.mask == 255) & (shapes > 0)
        colours = picture.image.astype(float)
        for kind in set(np.unique(picture.mask)) - {0, 255}:
            own, outside = colours[picture.mask == kind].mean(0), colours[picture.mask == 0].mean(0)
            here = colours[rim & (shapes == kind)].mean(0)
            off.append(np.abs(here - own).sum() < np.abs(here - outside).sum())
    assert np.mean(off) > 0.85


def test_grounds_keep_to_the_strength(folder, monkeypatch):
    drawn = []

    def spy(dice, kind, strength):
        drawn.append((kind, strength))
        return usual_ground(kind)

    monkeypatch.setattr("structseg.datamodules.confounded_scenes.layouts.draw_ground", spy)
    PaintedLayouts(folder, 0, (48, 48)).render(NAMES[0], 0.25)
    assert drawn == [(HORSE, 0.25)]  # the class with most pixels


def test_an_empty_layout_has_ground_only(tmp_path):
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(tmp_path / "empty.png")
    picture = PaintedLayouts(tmp_path, 0, (48, 48)).render("empty", 1.0)
    assert not picture.mask.any()
    assert picture.image.std() > 3


def test_many_regions_of_a_class_are_all_painted(tmp_path):
    layout = np.zeros((96, 96), np.uint8)
    for row in range(6, 96, 18):
        for column in range(6, 96, 18):
            layout[row : row + 8, column : column + 8] = PERSON
    Image.fromarray(layout).save(tmp_path / "crowd.png")
    bare = np.zeros_like(layout)
    Image.fromarray(bare).save(tmp_path / "bare.png")
    painted = PaintedLayouts(tmp_path, 0)
    picture = painted.render("crowd", 1.0)
    colours = picture.image.astype(float)
    ground = np.median(colours[layout == 0], 0)
    spread = np.abs(colours[layout == 0] - ground).sum(-1).mean()
    for row in range(6, 96, 18):
        for column in range(6, 96, 18):
            region = colours[row : row + 8, column : column + 8]
            assert np.abs(region - ground).sum(-1).mean() > spread


def test_a_class_beyond_voc_is_refused_by_file(tmp_path):
    Image.fromarray(np.full((40, 40), 33, np.uint8)).save(tmp_path / "odd.png")
    with pytest.raises(ValueError, match=r"odd.png holds class 33; voc has classes 0..20"):
        PaintedLayouts(tmp_path).render("odd", 0.0)


@pytest.mark.data
def test_the_real_layouts_keep_their_company(shared_data):
    voc = shared_data / "voc12_masks" / "SegmentationClass"
    lists = {"train": shared_data / "voc12_lists" / "train.txt", "test": shared_data / "voc12_lists" / "val.txt"}
    chosen = choose_layouts(voc, {"train": 1464, "test": 1449}, lists)
    assert len({*chosen["train"], *chosen["test"]}) == 2913
    painted = PaintedLayouts(voc)
    for name in chosen["train"][:20]:
        picture = painted.render(name, 0.5)
        assert np.array_equal(picture.mask, painted.layout(name))
        assert picture.image.std() > 10
