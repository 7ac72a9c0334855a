import pytest
import torch

from structseg.datamodules.label_spaces import (
    CELEBAMASK_HQ,
    COCO,
    FASSEG,
    HELEN,
    MAPS,
    SPACES,
    STN,
    VOC,
    LabelSpace,
    label_space,
)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("fasseg", 6),
        ("helen", 11),
        ("stn", 9),
        ("parts", 3),
        ("occlusion", 3),
        ("celebamask_hq", 19),
        ("voc", 21),
        ("coco", 81),
        ("scenes", 9),
    ],
)
def test_sizes_of_the_spaces(name, size):
    space = label_space(name)
    assert len(space) == len(space.palette) == size
    assert len(set(space.palette)) == size


@pytest.mark.parametrize("pair", MAPS)
def test_every_map_names_classes_that_exist(pair):
    source, target = SPACES[pair[0]], SPACES[pair[1]]
    assert set(MAPS[pair]) <= set(source.classes)
    assert set(MAPS[pair].values()) <= set(target.classes)
    table = source.lookup(target)
    assert table.shape == (256,)
    assert table[: len(source)].max() < len(target)
    assert (table[len(source) :] == 255).all()


def test_faces_become_fasseg():
    table = CELEBAMASK_HQ.lookup(FASSEG)
    names = {name: FASSEG.classes[table[i]] for i, name in enumerate(CELEBAMASK_HQ.classes)}
    assert names["l_brow"] == names["hair"] == "hair"
    assert names["neck"] == names["l_ear"] == "skin"
    assert names["mouth"] == names["u_lip"] == names["l_lip"] == "mouth"
    assert names["cloth"] == names["hat"] == "background"


def test_left_and_right_stay_themselves_from_celebamask_to_stn():
    table = CELEBAMASK_HQ.lookup(STN)
    assert STN.classes[table[CELEBAMASK_HQ.classes.index("l_eye")]] == "left_eye"
    assert STN.classes[table[CELEBAMASK_HQ.classes.index("r_brow")]] == "right_brow"
    assert STN.classes[table[CELEBAMASK_HQ.classes.index("mouth")]] == "inner_mouth"


def test_voc_and_coco_and_back():
    there, back = VOC.lookup(COCO), COCO.lookup(VOC)
    assert torch.equal(back[there[:21]], torch.arange(21))
    assert COCO.classes[there[VOC.classes.index("tvmonitor")]] == "tv"
    assert back[COCO.classes.index("zebra")] == 0


def test_a_flip_exchanges_sides_and_nothing_else():
    flip = HELEN.flip_lookup()
    left, right = HELEN.classes.index("left_eye"), HELEN.classes.index("right_eye")
    assert (flip[left], flip[right]) == (right, left)
    assert flip[255] == 255
    assert flip[HELEN.classes.index("nose")] == HELEN.classes.index("nose")
    assert torch.equal(flip[flip], torch.arange(256))


def test_the_voc_palette_by_hand():
    assert VOC.palette[:5] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert VOC.palette[15] == (192, 128, 128)


def test_no_map_says_which_there_are():
    with pytest.raises(ValueError, match="no map from label space helen to voc; helen maps to: stn, parts, fasseg"):
        HELEN.lookup(VOC)


def test_an_unknown_space_names_the_known_ones():
    with pytest.raises(ValueError, match=r"no label space 'fasegg'; choose one of fasseg, helen"):
        label_space("fasegg")


@pytest.mark.parametrize(
    ("classes", "palette", "message"),
    [
        (("a", "b"), ((0, 0, 0),), "2 classes but 1 colours"),
        (("a", "a"), ((0, 0, 0), (1, 1, 1)), "repeat"),
        ((), (), "0 classes"),
    ],
)
def test_a_space_that_cannot_be(classes, palette, message):
    with pytest.raises(ValueError, match=message):
        LabelSpace("bad", classes, palette)


def test_a_subset_by_name():
    space = label_space("voc[dog, cat]")
    assert space.name == "voc[dog,cat]"
    assert space.classes == ("background", "dog", "cat")
    assert space.palette[1] == VOC.palette[12]
    lookup = VOC.lookup(space)
    assert [int(lookup[i]) for i in (0, 8, 12, 13, 255, 21)] == [0, 2, 1, 0, 255, 255]
    assert label_space(space.name) == space


def test_a_subset_keeps_pairs_and_groups_that_are_whole():
    space = HELEN.subset(("left_eye", "right_eye", "left_brow", "nose"))
    assert space.flip_pairs == ((1, 2),)
    assert dict(space.groups) == {"eyes": (1, 2), "nose": (4,)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("voc[cow,unicorn]", "no class 'unicorn'; voc has aeroplane, "),
        ("voc[cow,cow]", "a class given twice"),
        ("voc[]", "no class ''"),
        ("voc[background]", "no class 'background'"),
        ("vok[cow]", "no label space 'vok"),
        ("voc[cow", "closing bracket"),
    ],
)
def test_a_subset_that_cannot_be(name, message):
    with pytest.raises(ValueError, match=message):
        label_space(name)
