import shutil
from pathlib import Path

import pytest
from PIL import Image

from structseg.datamodules.fasseg.files import (
    MISMATCHED_TEST,
    UNLABELLED_TEST_POSES,
    find_pairs,
    find_version,
    is_clean,
    select,
    split_folds,
)
from tests.data.fasseg import make_fasseg


@pytest.mark.parametrize("version", ["V1", "V2"])
@pytest.mark.parametrize("ext", ["png", "bmp", "jpg"])
def test_frontal_versions_are_paired_by_stem(version: str, ext: str, tmp_path: Path) -> None:
    root = make_fasseg(tmp_path, version, train=11, test=3, ext=ext)
    found = find_pairs(root, version, "train")
    # 2 comes before 10.
    assert [pair.name for pair in found.pairs] == [f"{version}/Train_RGB/{i}" for i in range(1, 12)]
    assert found.unlabelled == found.mismatched == ()
    assert str(found) == "11 labelled photographs"
    first = found.pairs[0]
    assert first.image == root / version / "Train_RGB" / f"1.{ext}"
    assert first.label == root / version / "Train_Labels" / f"1.{'png' if ext == 'jpg' else ext}"
    assert (first.pose, first.subject) == ("0", "1")
    assert len(find_pairs(root, version, "test").pairs) == 3


def test_v3_has_poses_and_subjects(tmp_path: Path) -> None:
    root = make_fasseg(tmp_path, "V3", train=2, test=1, ext="bmp")
    found = find_pairs(root, "V3", "train")
    assert [pair.name.removeprefix("V3/Train_RGB/") for pair in found.pairs] == [
        "-90/personne01140+0-90",
        "-90/personne02140+0-90",
        "-30/personne01144+0-30",
        "-30/personne02144+0-30",
        "0/personne01146+0+0",
        "0/personne02146+0+0",
        "+30/personne01148+0+30",
        "+30/personne02148+0+30",
    ]
    assert [pair.pose for pair in found.pairs] == ["-90", "-90", "-30", "-30", "0", "0", "+30", "+30"]
    assert [pair.subject for pair in found.pairs] == ["01", "02"] * 4
    assert found.pairs[2].label == root / "V3" / "Train_labels" / "-30" / "personne01144+0-30.bmp"


def test_v3_test_counts_what_it_leaves_out(tmp_path: Path) -> None:
    root = make_fasseg(tmp_path, "V3", train=1, test=8)  # persons 08 to 15
    for folder in ("Test_RGB", "Test_labels"):
        # The maker writes series 1 alone; the faulty pair of +30 is of series 2.
        Image.new("RGB", (9, 7 if folder == "Test_RGB" else 8)).save(
            root / "V3" / folder / "+30" / "personne15248+0+30.png"
        )
    found = find_pairs(root, "V3", "test")
    assert len(found.pairs) == 24
    assert found.unlabelled == tuple(f"V3/Test_RGB/-90/personne{i:02}140+0-90" for i in range(8, 16))
    assert found.mismatched == ("V3/Test_RGB/+30/personne15248+0+30",)
    assert str(found) == (
        "24 labelled photographs; 8 without label left out (poses -90); "
        "1 left out whose labels are of another crop (personne15248+0+30)"
    )


@pytest.mark.data
def test_real_data_are_complete(shared_data: Path) -> None:
    root = shared_data / "fasseg"
    assert len(find_pairs(root, "V2", "train").pairs) == 20
    test = find_pairs(root, "V2", "test").pairs
    assert len(test) == 50
    assert sum(is_clean(pair.name) for pair in test) == 38
    train = find_pairs(root, "V3", "train").pairs
    assert len(train) == 182
    assert {pair.subject for pair in train} == {f"0{i}" for i in range(1, 8)}
    assert len({pair.pose for pair in train}) == 13
    assert len({pair.name for pair in train}) == 182


@pytest.mark.data
def test_repeated_photographs_are_those_listed(shared_data: Path) -> None:
    root = shared_data / "fasseg"
    train = {Image.open(pair.image).tobytes() for pair in find_pairs(root, "V2", "train").pairs}
    repeated = {
        pair.subject for pair in find_pairs(root, "V2", "test").pairs if Image.open(pair.image).tobytes() in train
    }
    assert repeated == {"13", "17", "20", "23", "26", "44"}


def test_clean_leaves_out_repeats_and_same_sittings() -> None:
    numbers = [str(i) for i in range(1, 51)]
    for version in ("V1", "V2"):
        unclean = [n for n in numbers if not is_clean(f"{version}/Test_RGB/{n}")]
        assert unclean == ["1", "3", "5", "6", "7", "8", "13", "17", "20", "23", "26", "44"]
        assert is_clean(f"{version}/Train_RGB/13")
    assert is_clean("V3/Test_RGB/0/personne08146+0+0")


def test_known_faults_are_of_the_published_count() -> None:
    assert len(UNLABELLED_TEST_POSES) * 16 == 112
    assert len(MISMATCHED_TEST) == 4


@pytest.mark.parametrize("place", ["V2", "frontal02", "Frontal02", "v2", "FASSEG-repository/V2", "."])
def test_root_may_be_given_in_many_ways(place: str, tmp_path: Path) -> None:
    made = make_fasseg(tmp_path / "made", "V2", train=1, test=1) / "V2"
    root = tmp_path / "data"
    target = root / place
    target.parent.mkdir(parents=True, exist_ok=True)
    made.rename(target)
    assert find_version(root, "V2").resolve() == target.resolve()
    # The name does not depend on the disk.
    assert find_pairs(root, "V2", "train").pairs[0].name == "V2/Train_RGB/1"


def test_folder_names_of_any_case_will_do(tmp_path: Path) -> None:
    root = make_fasseg(tmp_path, "V2", train=1, test=1)
    (root / "V2" / "Train_Labels").rename(root / "V2" / "train_labels")
    (root / "V2" / "Train_RGB" / "1.png").rename(root / "V2" / "Train_RGB" / "1.PNG")
    assert len(find_pairs(root, "V2", "train").pairs) == 1


def test_other_files_than_images_are_skipped(tmp_path: Path) -> None:
    root = make_fasseg(tmp_path, "V2", train=2, test=1)
    for name in (".DS_Store", "README.md", "._1.png", "Thumbs.db"):
        (root / "V2" / "Train_RGB" / name).write_text("no image")
    assert len(find_pairs(root, "V2", "train").pairs) == 2


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; give the folder that holds FASSEG's V2"):
        find_pairs(tmp_path / "nowhere", "V2", "train")
    with pytest.raises(
        FileNotFoundError, match=r"holds no FASSEG V3; expected a folder V3 or multipose01 .*download true"
    ):
        find_pairs(tmp_path, "V3", "train")
    root = make_fasseg(tmp_path, "V2")
    with pytest.raises(ValueError, match="no FASSEG version 'V4'; choose one of V1, V2, V3"):
        find_pairs(root, "V4", "train")
    with pytest.raises(ValueError, match=r"V2 holds FASSEG V2, but V1 was asked for; set --data.version V2"):
        find_pairs(root / "V2", "V1", "train")
    shutil.rmtree(root / "V2" / "Test_RGB")
    with pytest.raises(FileNotFoundError, match="V2 has no folder Test_RGB; "):
        find_pairs(root, "V2", "test")


def test_empty_folder_is_named(tmp_path: Path) -> None:
    root = make_fasseg(tmp_path, "V2", train=0, test=1)
    with pytest.raises(ValueError, match="V2 has no photographs in Train_RGB; expected BMP, PNG or JPEG files"):
        find_pairs(root, "V2", "train")


@pytest.mark.parametrize("version", ["V2", "V3"])
def test_photograph_without_label_is_named(version: str, tmp_path: Path) -> None:
    root = make_fasseg(tmp_path, version, train=2, test=1)
    label = find_pairs(root, version, "train").pairs[1].label
    label.unlink()
    with pytest.raises(
        ValueError, match=rf"{label.stem.replace('+', '.')}\.png has no label .*add it or remove the photo"
    ):
        find_pairs(root, version, "train")


def test_missing_labels_of_v3_are_errors(tmp_path: Path) -> None:
    root = make_fasseg(tmp_path, "V3", train=1, test=1)
    (root / "V3" / "Test_labels" / "0" / "personne08146+0+0.png").unlink()
    with pytest.raises(ValueError, match=r"has no label 0/personne08146.0.0 in Test_Labels"):
        find_pairs(root, "V3", "test")
    shutil.rmtree(root / "V3" / "Train_labels" / "-90")  # only the test part lacks poses
    with pytest.raises(ValueError, match=r"has no label -90/personne01140.0-90 in Train_Labels"):
        find_pairs(root, "V3", "train")


def test_label_without_photograph_is_named(tmp_path: Path) -> None:
    root = make_fasseg(tmp_path, "V2", train=2, test=1)
    (root / "V2" / "Train_RGB" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"Train_Labels/2\.png has no photograph 2 in Train_RGB; add it or remove"):
        find_pairs(root, "V2", "train")


def test_two_files_of_one_stem_are_named(tmp_path: Path) -> None:
    root = make_fasseg(tmp_path, "V2", train=2, test=1)
    Image.open(root / "V2" / "Train_RGB" / "2.png").save(root / "V2" / "Train_RGB" / "2.bmp")
    with pytest.raises(ValueError, match=r"2\.bmp and 2\.png have the same stem; keep one of them"):
        find_pairs(root, "V2", "train")


def test_folds_part_the_groups() -> None:
    names = [str(i) for i in range(1, 21)]
    parts = split_folds(names, 3, seed=0)
    assert [len(part) for part in parts] == [7, 7, 6]
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert parts == split_folds(list(reversed(names)) * 2, 3, seed=0)  # neither order nor repeats matter
    assert parts != split_folds(names, 3, seed=1)
    assert parts[0] != sorted(names)[:7]
    for folds in (1, 21):
        with pytest.raises(ValueError, match=f"{folds} folds asked of 20 groups; choose 2 to 20"):
            split_folds(names, folds, seed=0)


def test_select_keeps_whole_subjects(tmp_path: Path) -> None:
    pairs = find_pairs(make_fasseg(tmp_path, "V3", train=3, test=1), "V3", "train").pairs
    assert {pair.subject for pair in select(pairs, ["02"])} == {"02"}
    assert len(select(pairs, ["02"])) == 4
    assert {pair.subject for pair in select(pairs, ["02"], inside=False)} == {"01", "03"}
