from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from structseg.datamodules.helen.files import LISTS, SUBFOLDER, Face, find_faces, find_home, read_label, read_lists
from tests.data.helen import face_classes, make_helen, write_masks


def soft_face(root: Path, masks: dict[int, list[list[int]]], shape: tuple[int, int]) -> Face:
    """A face whose soft masks are given by class, 0 everywhere else."""
    values = np.zeros((11, *shape), dtype=np.uint8)
    for index, rows in masks.items():
        values[index] = rows
    return Face("7_1", root / "images" / "7_1.jpg", write_masks(root, "7_1", values))


def test_the_folder_or_its_parent_may_be_given(tmp_path: Path) -> None:
    home = make_helen(tmp_path / SUBFOLDER, 1, 1, 1)
    assert find_home(home) == find_home(tmp_path) == home
    assert SUBFOLDER == "SmithCVPR2013_dataset_resized"


def test_a_folder_of_another_layout_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^no folder \S+nowhere; give the folder .* as --data\.root$"):
        find_home(tmp_path / "nowhere")
    expected = (
        r"^\S+ holds no HELEN with part labels; expected folders images and labels and files exemplars\.txt, "
        r"tuning\.txt, testing\.txt, there or in SmithCVPR2013_dataset_resized; found "
    )
    with pytest.raises(FileNotFoundError, match=expected + "none$"):
        find_home(tmp_path)
    home = make_helen(tmp_path / SUBFOLDER, 1, 1, 1)
    (home / "tuning.txt").unlink()
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").touch()  # a file where a folder belongs
    there = "images, " + ", ".join(f"{SUBFOLDER}/{name}" for name in ("images", "labels", "exemplars.txt"))
    with pytest.raises(FileNotFoundError, match=expected + there + f", {SUBFOLDER}/testing.txt$"):
        find_home(tmp_path)


def test_list_lines_are_read_whatever_their_spaces(tmp_path: Path) -> None:
    (tmp_path / "exemplars.txt").write_bytes(
        b"\xef\xbb\xbf1 , 100032540_1\r\n2,100040721_1\r\n\r\n  3  ,\t10405146_1  \r\n10405299_1\r\n\t\r\n4 ,a-b_2"
    )
    (tmp_path / "tuning.txt").write_text("\n 2300 , 5_1\n\n")
    (tmp_path / "testing.txt").write_text("9_1\n8_1\n")
    assert read_lists(tmp_path) == {
        "train": ("100032540_1", "100040721_1", "10405146_1", "10405299_1", "a-b_2"),
        "val": ("5_1",),
        "test": ("9_1", "8_1"),
    }


@pytest.mark.parametrize("line", ["3 ,", ", 7_1", "3", "three , 7_1", "3 ; 7_1", "3 7_1", "3 , 7_1 , 8_1", "3 , 12"])
def test_list_lines_that_do_not_parse_are_named(tmp_path: Path, line: str) -> None:
    root = make_helen(tmp_path, 2, 1, 1)
    (root / "tuning.txt").write_text(f"1 , 5_1\n\n{line}\n")
    with pytest.raises(
        ValueError, match=rf"^\S+tuning\.txt, line 3: '{line}' is no number, comma and name, as '1 , 100032540_1', nor "
    ):
        read_lists(root)


def test_names_that_are_listed_twice_are_refused(tmp_path: Path) -> None:
    root = make_helen(tmp_path, 2, 1, 1)
    (root / "exemplars.txt").write_text("1 , 5_1\n\n2 , 6_1\n5_1\n")
    with pytest.raises(
        ValueError,
        match=r"^5_1 is listed twice in \S+: exemplars\.txt, line 1, and exemplars\.txt, line 4; remove one$",
    ):
        read_lists(root)
    (root / "exemplars.txt").write_text("1 , 5_1\n2 , 6_1\n")
    (root / "testing.txt").write_text("1 , 6_1\n")
    with pytest.raises(ValueError, match=r"^6_1 is listed twice .* exemplars\.txt, line 2, and testing\.txt, line 1; "):
        read_lists(root)


@pytest.mark.parametrize("file", LISTS.values())
def test_empty_lists_are_refused(tmp_path: Path, file: str) -> None:
    root = make_helen(tmp_path, 2, 1, 1)
    (root / file).write_text("\n  \n")
    with pytest.raises(ValueError, match=rf"^\S+{file} lists no image; copy it again$"):
        read_lists(root)


def test_files_of_an_image(tmp_path: Path) -> None:
    root = make_helen(tmp_path, 4, 1, 1)
    faces = find_faces(root, ["1002_1", "1000_1"])
    assert [face.name for face in faces] == ["1002_1", "1000_1"]
    assert faces[0].image == root / "images" / "1002_1.jpg"
    assert len(faces[0].masks) == 11
    assert faces[0].masks[0] == root / "labels" / "1002_1" / "1002_1_lbl00.png"
    assert faces[0].masks[10] == root / "labels" / "1002_1" / "1002_1_lbl10.png"
    assert all(path.is_file() for face in faces for path in (face.image, *face.masks))


def test_missing_files_are_counted_and_named(tmp_path: Path) -> None:
    root = make_helen(tmp_path, 5, 1, 1)
    names = read_lists(root)["train"]
    (root / "labels" / "1001_1" / "1001_1_lbl07.png").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"^1 of 55 listed masks are not in \S+labels \(1001_1/1001_1_lbl07\.png\); unpack the whole archive there$",
    ):
        find_faces(root, names)
    for path in (root / "labels" / "1003_1").iterdir():
        path.unlink()
    (root / "labels" / "1003_1").rmdir()
    with pytest.raises(
        FileNotFoundError,
        match=r"^12 of 55 .*\(1001_1/1001_1_lbl07\.png, 1003_1/1003_1_lbl00\.png, 1003_1/1003_1_lbl01\.png, \.\.\.\)",
    ):
        find_faces(root, names)
    for name in names[1:]:
        (root / "images" / f"{name}.jpg").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"^4 of 5 listed images are not in \S+images \(1001_1\.jpg, 1002_1\.jpg, 1003_1\.jpg, \.\.\.\); unpack ",
    ):
        find_faces(root, names)


def test_the_highest_soft_mask_is_the_class(tmp_path: Path) -> None:
    face = soft_face(
        tmp_path,
        {
            0: [[255, 100, 0, 0], [0, 20, 90, 0]],
            1: [[0, 155, 0, 128], [0, 20, 0, 0]],
            4: [[0, 0, 0, 127], [0, 20, 0, 0]],
            6: [[0, 0, 1, 0], [0, 0, 90, 0]],
            10: [[0, 0, 0, 0], [0, 0, 80, 255]],
        },
        (2, 4),
    )
    # background alone; skin of two; the only one that is not 0; 128 of 127; all 0; a tie of three; a tie with a higher
    # one below it; hair alone
    assert read_label(face).tolist() == [[0, 1, 6, 1], [0, 0, 0, 10]]
    assert read_label(face).dtype == np.uint8


def test_ties_go_to_the_lower_index_and_all_values_count(tmp_path: Path) -> None:
    face = soft_face(tmp_path, {9: [[200, 200, 255]], 5: [[200, 199, 254]], 3: [[7, 200, 255]]}, (1, 3))
    assert read_label(face).tolist() == [[5, 3, 3]]


def test_labels_are_what_was_painted(tmp_path: Path) -> None:
    root = make_helen(tmp_path, 2, 1, 1, sizes=((60, 48), (48, 64)))
    for seed, face in enumerate(find_faces(root, read_lists(root)["train"])):
        size = ((60, 48), (48, 64))[seed]
        label = read_label(face)
        np.testing.assert_array_equal(label, face_classes(size, seed=100 + seed))
        assert np.unique(label).tolist() == list(range(11))


def test_a_part_may_be_absent(tmp_path: Path) -> None:
    face = soft_face(tmp_path, {1: [[255, 255]]}, (1, 2))
    Image.new("1", (2, 1)).save(face.masks[4])  # as some tools write an empty one
    assert read_label(face).tolist() == [[1, 1]]


def test_masks_of_another_size_are_named(tmp_path: Path) -> None:
    root = make_helen(tmp_path, 1, 1, 1, sizes=((60, 48),))
    (face,) = find_faces(root, ["1000_1"])
    Image.new("L", (47, 60)).save(face.masks[6])
    with pytest.raises(ValueError, match=r"^\S+1000_1_lbl06\.png is 47x60 but those before it 48x60; the soft masks "):
        read_label(face)


def test_files_that_are_not_masks_are_named(tmp_path: Path) -> None:
    root = make_helen(tmp_path, 1, 1, 1, sizes=((60, 48),))
    (face,) = find_faces(root, ["1000_1"])
    whole = face.masks[3].read_bytes()
    for content, message in (
        (whole[: len(whole) // 2], "cannot be decoded"),
        (b"", "is empty"),
        (b"no", "is no image"),
    ):
        face.masks[3].write_bytes(content)
        with pytest.raises(ValueError, match=rf"1000_1_lbl03\.png {message}") as caught:
            read_label(face)
        assert "\n" not in str(caught.value)
    Image.new("RGB", (48, 60)).save(face.masks[3])
    with pytest.raises(ValueError, match=r"1000_1_lbl03\.png has mode RGB; a soft mask needs one 8-bit channel: copy "):
        read_label(face)
    face.masks[3].unlink()
    with pytest.raises(FileNotFoundError, match=r"1000_1_lbl03\.png"):
        read_label(face)
