import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from structseg.datamodules.celebamask_hq.files import (
    PART_CLASSES,
    Pair,
    find_home,
    find_pairs,
    official_split,
    read_label,
    reversed_from_file,
    seeded_split,
    split_from_file,
)
from structseg.datamodules.label_spaces import CELEBAMASK_HQ
from tests.data.celebamask_hq import compact_names, face_parts, make_celebamask_hq, merge, original, write_mapping


def part_mask(path: Path, rows: list[list[int]], mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(rows, dtype=np.uint8) * 255).convert(mode).save(path)


def home_of(tmp_path: Path, layout: str, **settings) -> Path:
    return find_home(make_celebamask_hq(tmp_path, layout, **settings))


@pytest.mark.parametrize("layout", ["compact", "full"])
def test_the_folder_or_its_parent_may_be_given(tmp_path: Path, layout: str) -> None:
    home = home_of(tmp_path / "CelebAMask-HQ" if layout == "compact" else tmp_path, layout, count=1, mirrored=0)
    assert home == tmp_path / "CelebAMask-HQ"
    assert find_home(tmp_path) == home


def test_a_folder_of_neither_layout_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^no folder .*nowhere; give the folder .* as --data\.root$"):
        find_home(tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError,
        match=r"^\S+ holds no CelebAMask-HQ; expected CelebA-HQ-img and CelebAMask-HQ-mask-anno \(published\), or images "
        r"and masks \(compact\), there or in CelebAMask-HQ; found none$",
    ):
        find_home(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "CelebAMask-HQ" / "CelebA-HQ-img").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"found images, CelebAMask-HQ/CelebA-HQ-img$"):
        find_home(tmp_path)


def test_compact_pairs_are_by_name(tmp_path: Path) -> None:
    home = home_of(tmp_path, "compact", count=3)
    (home / "images" / ".hidden.jpg").touch()
    (home / "masks" / "notes.txt").touch()
    pairs = find_pairs(home)
    assert list(pairs) == compact_names(3)
    name = compact_names(3)[1]
    assert pairs[name] == Pair(name, home / "images" / f"{name}.jpg", home / "masks" / f"{name}.png")
    assert pairs[name].mask_files == (home / "masks" / f"{name}.png",)


def test_published_pairs_are_by_number(tmp_path: Path) -> None:
    home = home_of(tmp_path, "full", numbers=(10, 2, 1999, 2000, 29999))
    pairs = find_pairs(home)
    assert list(pairs) == ["2", "10", "1999", "2000", "29999"]  # 2 before 10
    assert pairs["1999"].mask_files[0] == home / "CelebAMask-HQ-mask-anno" / "0" / "01999_skin.png"
    assert pairs["2000"].mask_files[1] == home / "CelebAMask-HQ-mask-anno" / "1" / "02000_nose.png"
    assert pairs["29999"].mask_files[-1] == home / "CelebAMask-HQ-mask-anno" / "14" / "29999_cloth.png"
    assert pairs["29999"].image == home / "CelebA-HQ-img" / "29999.jpg"
    assert pairs["10"].parts == PART_CLASSES  # the first of the made faces has all
    assert pairs["2"].parts == tuple(part for part in PART_CLASSES if part not in ("eye_g", "hat", "ear_r", "neck_l"))
    assert all(path.is_file() for pair in pairs.values() for path in pair.mask_files)


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_later_parts_cover_earlier_ones(tmp_path: Path, mode: str) -> None:
    """The order of g_mask.py, not of the alphabet nor of the disk."""
    make_celebamask_hq(tmp_path, "full", numbers=(7,), mirrored=0)
    folder = tmp_path / "CelebAMask-HQ" / "CelebAMask-HQ-mask-anno" / "0"
    for path in folder.iterdir():
        path.unlink()
    part_mask(folder / "00007_cloth.png", [[0, 0, 0, 0, 0, 1]], mode)  # 18
    part_mask(folder / "00007_neck.png", [[0, 0, 0, 0, 1, 1]], mode)  # 17
    part_mask(folder / "00007_hair.png", [[0, 0, 0, 1, 0, 0]], mode)  # 13
    part_mask(folder / "00007_u_lip.png", [[0, 0, 0, 1, 0, 0]], mode)  # 11
    part_mask(folder / "00007_l_eye.png", [[0, 0, 1, 0, 0, 0]], mode)  # 4
    part_mask(folder / "00007_eye_g.png", [[0, 0, 1, 0, 0, 0]], mode)  # 3
    part_mask(folder / "00007_skin.png", [[0, 1, 1, 1, 1, 1]], mode)  # 1
    label = read_label(find_pairs(tmp_path / "CelebAMask-HQ")["7"])
    assert label.dtype == np.uint8
    assert label.tolist() == [[0, 1, 4, 13, 17, 18]]


@pytest.mark.parametrize("layout", ["compact", "full"])
def test_labels_are_what_was_painted(tmp_path: Path, layout: str) -> None:
    pairs = list(find_pairs(home_of(tmp_path, layout, count=2, mirrored=0)).values())
    for seed, pair in enumerate(pairs):
        np.testing.assert_array_equal(read_label(pair), merge(face_parts(seed=seed)))
    assert np.unique(read_label(pairs[0])).tolist() == list(range(19))


@pytest.mark.parametrize("layout", ["compact", "full"])
def test_unpaired_images_and_masks_are_counted(tmp_path: Path, layout: str) -> None:
    home = home_of(tmp_path, layout, count=6)
    pairs = list(find_pairs(home).values())
    for pair in pairs[:4]:
        for path in pair.mask_files:
            path.unlink()
    with pytest.raises(
        FileNotFoundError,
        match=rf"^4 of the images in \S+{pairs[0].image.parent.name} have no mask in \S+ "
        rf"\({', '.join(pair.name for pair in pairs[:3])}, \.\.\.\); add what is missing or remove the rest$",
    ):
        find_pairs(home)
    for pair in pairs[:5]:
        pair.image.unlink()
    with pytest.raises(FileNotFoundError, match=rf"^1 of the masks in \S+ have no image in \S+ \({pairs[4].name}\); "):
        find_pairs(home)
    pairs[5].image.unlink()
    with pytest.raises(ValueError, match=r"has no images; expected JPEG files"):
        find_pairs(home)


def test_files_that_are_not_of_the_layout_are_named(tmp_path: Path) -> None:
    home = home_of(tmp_path, "full", count=1)
    folder = home / "CelebAMask-HQ-mask-anno"
    for name in ("00000_left_eye.png", "0_skin.png", "00000.png"):
        (folder / "0" / name).touch()
        with pytest.raises(
            ValueError, match=rf"{name} is no part mask, as 00012_skin\.png; the parts are skin, nose, "
        ):
            find_pairs(home)
        (folder / "0" / name).unlink()
    (folder / "0" / "02000_skin.png").touch()
    with pytest.raises(ValueError, match=r"0/02000_skin\.png belongs in folder 1; move it there$"):
        find_pairs(home)
    (folder / "0" / "02000_skin.png").unlink()
    image = home / "CelebA-HQ-img" / "0.jpg"
    (home / "CelebA-HQ-img" / "0.png").write_bytes(image.read_bytes())
    with pytest.raises(ValueError, match=r"0\.jpg and 0\.png have the same stem; keep one of them$"):
        find_pairs(home)
    image.rename(home / "CelebA-HQ-img" / "00000.jpg")
    with pytest.raises(ValueError, match=r"00000\.jpg is not named by its number; the published images are 0\.jpg to "):
        find_pairs(home)


def test_files_that_are_not_masks_are_named(tmp_path: Path) -> None:
    compact = next(iter(find_pairs(home_of(tmp_path / "c", "compact", count=1)).values()))
    Image.fromarray(np.full((4, 4), 19, dtype=np.uint8)).save(compact.mask)
    with pytest.raises(ValueError, match=rf"{compact.mask.name} holds class 19; celebamask_hq has classes 0\.\.18"):
        read_label(compact)
    compact.mask.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{compact.mask.name} is empty"):
        read_label(compact)
    full = find_pairs(home_of(tmp_path / "f", "full", count=1))["0"]
    part_mask(full.mask_files[2], [[0, 1]])
    with pytest.raises(ValueError, match=r"00000_eye_g\.png is 2x1 but the parts before it 48x48; the part masks "):
        read_label(full)
    full.mask_files[1].write_bytes(full.mask_files[1].read_bytes()[:60])
    with pytest.raises(ValueError, match=r"00000_nose\.png cannot be decoded "):
        read_label(full)
    full.mask_files[0].unlink()
    with pytest.raises(FileNotFoundError, match=r"00000_skin\.png"):
        read_label(full)


def test_seeded_split_is_numpys_shuffle_cut_at_60_and_80_percent() -> None:
    names = list("abcdefghij")
    assert np.random.default_rng(0).permutation(10).tolist() == [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]  # what the shuffle does
    assert seeded_split(names, 0) == {"train": tuple("egchdf"), "val": ("j", "a"), "test": ("i", "b")}
    assert names == list("abcdefghij")
    assert seeded_split(names, 1) != seeded_split(names, 0)
    for count in range(30):
        split = seeded_split([str(i) for i in range(count)], 0)
        assert sorted(int(name) for part in split.values() for name in part) == list(range(count))
        assert len(split["train"]) == int(count * 0.6 + 1e-9)
        assert len(split["train"]) + len(split["val"]) == int(count * 0.8 + 1e-9)


def test_split_files_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text('{"train": ["c", "a"], "val": [], "test": [7], "note": "numbers and other keys are fine"}')
    assert split_from_file(path, ("a", "b", "c", "7")) == {"train": ("c", "a"), "val": (), "test": ("7",)}


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("nonsense", ValueError, r'is no JSON \(.*\); expected \{"train": \[\.\.\.\], "val": \[\.\.\.\], "test": '),
        ('{"train": ["a"], "test": []}', ValueError, r"has no list val; expected"),
        ('{"train": "a", "val": null, "test": []}', ValueError, r"has no list train, val; expected"),
        ("[1]", ValueError, r"has no list train, val, test; expected"),
        (
            '{"train": ["a", "b"], "val": ["b"], "test": []}',
            ValueError,
            r"lists b more than once \(b: train, val\); list each image once$",
        ),
        ('{"train": ["a", "a"], "val": [], "test": []}', ValueError, r"lists a more than once \(a: train\)"),
        (
            '{"train": ["a", "x"], "val": ["y", "z"], "test": ["w"]}',
            FileNotFoundError,
            r"lists 4 of 5 images that are not there \(w, x, y, \.\.\.\); add them, or give the split file of ",
        ),
    ],
)
def test_faulty_split_files_are_refused(tmp_path: Path, content: str, error: type[Exception], message: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(error, match=re.escape(str(path)) + " " + message) as caught:
        split_from_file(path, ("a", "b"))
    assert "\n" not in str(caught.value)


def test_missing_lists_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'no file \S+none\.json; expected JSON, \{"train": '):
        split_from_file(tmp_path / "none.json", ())
    with pytest.raises(FileNotFoundError, match=r'no file \S+none\.json; expected JSON, \{"reversed": \[\.\.\.\]\}'):
        reversed_from_file(tmp_path / "none.json")
    (tmp_path / "list.json").write_text(json.dumps({"reversed": ["a", 3], "undecided": ["b"]}))
    assert reversed_from_file(tmp_path / "list.json") == {"a", "3"}


def test_official_split_follows_celeba(tmp_path: Path) -> None:
    home = home_of(tmp_path, "full", count=7)
    names = tuple(find_pairs(home))
    assert [original(index) for index in (3, 4)] == [170003, 190004]
    expected = {"train": ("0", "1", "2", "5", "6"), "val": ("3",), "test": ("4",)}
    assert official_split(home, tmp_path, names) == expected
    # CelebA's partition changes at these numbers, counted from 1.
    numbers = (1, 162770, 162771, 182637, 182638, 202599)
    write_mapping(home, {str(index): number for index, number in enumerate(numbers)})
    assert official_split(home, tmp_path, names[:6]) == {"train": ("0", "1"), "val": ("2", "3"), "test": ("4", "5")}
    # The file decides where it is there, beside the images or above.
    lines = [f"{number:06}.jpg {index % 3}" for index, number in enumerate(numbers)]
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    assert official_split(home, tmp_path, names[:6]) == {"train": ("0", "3"), "val": ("1", "4"), "test": ("2", "5")}
    (home / "list_eval_partition.txt").write_text("\n".join(line[:-1] + "2" for line in lines))
    assert official_split(home, tmp_path, names[:6]) == {"train": (), "val": (), "test": names[:6]}


def test_official_split_names_what_it_lacks(tmp_path: Path) -> None:
    home = home_of(tmp_path / "full", "full", count=2)
    with pytest.raises(ValueError, match=r"mapping\.txt has no line for image 2; copy it again or set --data\.split "):
        official_split(home, home, ("0", "2"))
    (home / "list_eval_partition.txt").write_text("001000.jpg 0\n")
    with pytest.raises(ValueError, match=r"list_eval_partition\.txt has no line for 002001\.jpg \(image 1\); "):
        official_split(home, home, ("0", "1"))
    (home / "list_eval_partition.txt").write_text("001000.jpg 0\n002001.jpg 3\n")
    with pytest.raises(
        ValueError, match=r"line 2 reads '002001\.jpg 3'; expected lines like '000001\.jpg 0': copy it again"
    ):
        official_split(home, home, ("0", "1"))
    compact = home_of(tmp_path / "compact", "compact", count=2)
    with pytest.raises(FileNotFoundError, match=r"has no CelebA-HQ-to-CelebA-mapping\.txt, which split=official needs"):
        official_split(compact, compact, compact_names(2))


@pytest.mark.data
def test_seed_0_gives_the_split_that_the_real_copy_lists(shared_data: Path) -> None:
    pairs = find_pairs(find_home(shared_data / "celebamask_hq_mini"))
    listed = split_from_file(shared_data / "celebamask_hq_mini" / "split_622.json", pairs)
    assert [len(listed[split]) for split in ("train", "val", "test")] == [600, 200, 200]
    assert seeded_split(tuple(pairs), 0) == listed


def test_parts_are_the_classes() -> None:
    assert PART_CLASSES == (
        "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth", "u_lip", "l_lip",
        "hair", "hat", "ear_r", "neck_l", "neck", "cloth",
    )  # fmt: skip  # label_list of g_mask.py
    assert [CELEBAMASK_HQ.classes.index(part) for part in PART_CLASSES] == list(range(1, 19))


def test_images_and_masks_of_something_else_are_refused(tmp_path):
    """Discs and boxes would otherwise be skin and nose."""
    from tests.data.folder import make_folder

    root = make_folder(tmp_path, file=False)
    with pytest.raises(ValueError, match=r"nothing says that they are of CelebAMask-HQ.*structseg init"):
        find_pairs(find_home(root))
    (root / "celebamask_hq.txt").touch()
    assert len(find_pairs(find_home(root))) == 6
