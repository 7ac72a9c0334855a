import errno
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from structseg.datamodules import round_files as artefacts
from structseg.datamodules.label_spaces import OCCLUSION, PARTS, VOC, label_space
from structseg.datamodules.round_files import (
    ArtefactManifest,
    check_folder,
    origin_of,
    place_of,
    read_artefact_mask,
    read_cams,
    read_confounders,
    read_query,
    write_cams,
    write_confounders,
    write_mask,
    write_query,
)

PETS = label_space("voc[cat,dog]")


def made(root: Path, kind: str = "cams", names: tuple[str, ...] = ("a", "b"), place: str | None = None) -> Path:
    folder = root / "round_1" / kind
    folder.mkdir(parents=True)
    for name in names:
        if kind in ("cams", "queries"):
            write_query(folder, name, np.zeros((3, 2, 2)))
        else:
            write_mask(folder, name, np.zeros((2, 2), dtype=np.uint8), PETS)
    about = ArtefactManifest(
        kind, place or f"round_1/{kind}", "Method", PETS.name, PETS.classes, len(names), {"miou": 0.5}, ("!",)
    )
    about.write(folder)
    return folder


def test_cams_keep_their_classes_to_eight_bits(tmp_path: Path) -> None:
    maps = np.zeros((20, 3, 4))
    maps[7] = np.linspace(0, 1, 12).reshape(3, 4)
    maps[14, 1, 2] = 0.3
    write_cams(tmp_path, "x", maps, (12, 16))
    read = read_cams(tmp_path, "x", VOC)
    assert (read.classes, read.size) == ((8, 15), (12, 16))
    assert read.maps.dtype == np.float32
    np.testing.assert_allclose(read.maps, maps, atol=0.5 / 255 + 1e-6)
    assert read.maps[7].max() == 1
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        assert {key: file[key].dtype for key in file} == {"cams": "u1", "classes": "u1", "size": "i4"}
        assert file["cams"].shape == (2, 3, 4)
        assert file["cams"][1, 1, 2] == 76  # 0.3 * 255 = 76.5, rounded to even
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_an_empty_cam_can_be_kept_by_name(tmp_path: Path) -> None:
    write_cams(tmp_path, "x", np.zeros((2, 3, 4)), (12, 16))
    assert read_cams(tmp_path, "x", PETS).classes == ()
    write_cams(tmp_path, "x", np.zeros((2, 3, 4)), (12, 16), classes=[2])
    read = read_cams(tmp_path, "x", PETS)
    assert read.classes == (2,)
    assert read.maps.shape == (2, 3, 4)
    assert not read.maps.any()


def test_queries_masks_and_confounders_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    query = rng.random((3, 5, 6))
    write_query(tmp_path, "q", query)
    np.testing.assert_allclose(read_query(tmp_path, "q", PETS), query, atol=0.5 / 255 + 1e-6)
    mask = np.array([[0, 1, 2], [255, 0, 1]], dtype=np.int64)
    write_mask(tmp_path, "m", mask, PETS)
    np.testing.assert_array_equal(read_artefact_mask(tmp_path, "m", PETS), mask)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        colours = np.asarray(image.convert("RGB"))
    assert colours[0].tolist() == [[0, 0, 0], [64, 0, 0], [64, 0, 128]]  # VOC's cat and dog
    assert colours[1, 0].tolist() == [224, 224, 192]
    maps = rng.random((2, 4, 4))
    write_confounders(tmp_path, maps, np.array([3, 0]), PETS)
    read = read_confounders(tmp_path, PETS)
    np.testing.assert_array_equal(read.maps, maps.astype(np.float32))
    assert (read.images.tolist(), read.classes) == ([3, 0], ("cat", "dog"))
    assert read_confounders(tmp_path / "confounders.npz", PETS).classes == ("cat", "dog")


def test_confounders_keep_their_origin_and_need_none(tmp_path: Path) -> None:
    maps, images = np.zeros((2, 4, 4)), np.array([3, 0])
    write_confounders(tmp_path, maps, images, PETS, origin="abc")
    assert read_confounders(tmp_path, PETS).origin == "abc"
    write_confounders(tmp_path, maps, images, PETS)
    assert read_confounders(tmp_path, PETS).origin == ""
    np.savez(tmp_path / "old.npz", confounders=maps, images=images, classes=np.array(["cat", "dog"]))
    assert read_confounders(tmp_path / "old.npz", PETS).origin == ""


def test_an_origin_is_of_names_and_contents(tmp_path: Path) -> None:
    for name, folder in (("a", "one"), ("a", "two"), ("b", "renamed"), ("a", "other")):
        (tmp_path / folder).mkdir()
        write_query(tmp_path / folder, name, np.full((3, 2, 2), 0.5 if folder == "other" else 0.25))
    (tmp_path / "two" / "about.json").write_text("{}")
    origins = [origin_of(tmp_path / folder) for folder in ("one", "two", "renamed", "other")]
    assert origins[0] == origins[1]
    assert len(set(origins)) == 3
    assert all(len(origin) == 16 for origin in origins)


def test_a_folder_of_another_split_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path, "masks")
    check_folder(folder, ("masks",), ["a"], PETS, split="train")  # it does not say of which
    replace(ArtefactManifest.read(folder), split="val").write(folder)
    assert check_folder(folder, ("masks",), ["a"], PETS).split == "val"
    with pytest.raises(ValueError, match=r"holds masks of the val images, those of train are needed; .*round_1/masks"):
        check_folder(folder, ("masks",), ["a", "missing"], PETS, split="train")


def test_nothing_outside_of_its_range_is_written(tmp_path: Path) -> None:
    for values in (np.full((2, 2, 2), 1.01), np.full((2, 2, 2), -0.01), np.full((2, 2, 2), np.nan), np.zeros((2, 2))):
        with pytest.raises(ValueError, match=r"cams of x: shape .* not \(classes, h, w\) in 0\.\.1"):
            write_cams(tmp_path, "x", values, (8, 8))
    for mask, what in ((np.array([[3]]), "class 3"), (np.array([[-1]]), "class -1"), (np.zeros(3), r"shape \(3,\)")):
        with pytest.raises(ValueError, match=f"mask of x has {what}"):
            write_mask(tmp_path, "x", mask, PETS)
    with pytest.raises(ValueError, match=r"2 foreground classes; give one map and one count each"):
        write_confounders(tmp_path, np.zeros((3, 2, 2)), np.zeros(3, dtype=int), PETS)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_query(tmp_path, "q", np.ones((3, 2, 2)))

    def full(file: object, **_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artefacts.np, "savez_compressed", full)
    with pytest.raises(OSError, match=r"no room on the disk for .*q\.npz; make room and run the stage again"):
        write_query(tmp_path, "q", np.zeros((3, 2, 2)))
    assert read_query(tmp_path, "q", PETS).min() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["q.npz"]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    write_query(tmp_path, "x", np.zeros((3, 8, 8)))
    whole = path.read_bytes()
    for content in (b"", b"PK nonsense", whole[: len(whole) // 2], pickle.dumps({"query": 1})):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.npz is damaged \(.*; remove .* and run its stage again"):
            read_query(tmp_path, "x", PETS)
    np.savez(path, query=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"x\.npz is damaged \(query holds pickled objects"):
        read_query(tmp_path, "x", PETS)
    write_query(tmp_path, "x", np.zeros((4, 8, 8)))
    with pytest.raises(ValueError, match=r"x\.npz is damaged \(not a map of the 3 classes\)"):
        read_query(tmp_path, "x", PETS)
    with pytest.raises(ValueError, match=r"x\.npz is damaged \(.*no item named 'cams"):
        read_cams(tmp_path, "x", PETS)
    write_cams(tmp_path, "x", np.ones((5, 2, 2)), (8, 8))
    with pytest.raises(ValueError, match=r"damaged \(not maps of voc\[cat,dog\]\)"):
        read_cams(tmp_path, "x", PETS)
    with pytest.raises(FileNotFoundError, match=r"no file .*y\.npz"):
        read_query(tmp_path, "y", PETS)
    write_mask(tmp_path, "x", np.full((4, 4), 20), VOC)
    with pytest.raises(ValueError, match=r"x\.png holds class 20; voc\[cat,dog\] has classes 0\.\.2"):
        read_artefact_mask(tmp_path, "x", PETS)
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"x\.png"):
        read_artefact_mask(tmp_path, "x", PETS)


def test_confounders_of_other_classes_or_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*; run structseg pipeline FILE --until round_2/masks"):
        read_confounders(tmp_path / "round_2", PETS)
    write_confounders(tmp_path, np.zeros((2, 4, 4)), np.zeros(2, dtype=int), OCCLUSION)
    with pytest.raises(ValueError, match="has the classes face, occluder, the data cat, dog"):
        read_confounders(tmp_path, PETS)


def test_a_whole_folder_says_what_it_holds(tmp_path: Path) -> None:
    folder = made(tmp_path)
    about = check_folder(folder, ("cams",), ["b", "a"], PETS)
    assert about == ArtefactManifest(
        "cams", "round_1/cams", "Method", PETS.name, PETS.classes, 2, {"miou": 0.5}, ("!",)
    )
    assert place_of(folder) == "round_1/cams"
    assert json.loads((folder / "about.json").read_text())["classes"] == ["background", "cat", "dog"]


@pytest.mark.parametrize(
    ("kind", "stage"),
    [("cams", "cams"), ("relation_labels", "cams"), ("pseudo_masks", "pseudo_masks"), ("queries", "masks")],
)
def test_a_missing_or_unfinished_folder_names_the_stage(tmp_path: Path, kind: str, stage: str) -> None:
    folder = tmp_path / "round_1" / kind
    with pytest.raises(FileNotFoundError, match=rf"no folder .*; run .* --until round_1/{stage}$"):
        check_folder(folder, (kind,), ["a"], PETS)
    made(tmp_path, kind)
    (folder / "about.json").unlink()
    with pytest.raises(FileNotFoundError, match=rf"no about\.json, .* did not end; .* --until round_1/{stage}$"):
        check_folder(folder, (kind,), ["a"], PETS)


def test_what_is_not_expected_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path, "masks")
    with pytest.raises(ValueError, match="holds masks; pseudo_masks are expected"):
        check_folder(folder, ("pseudo_masks",), ["a"], PETS)
    with pytest.raises(ValueError, match=r"masks of voc\[cat,dog\] \(3 classes\), not of parts \(3 classes\)"):
        check_folder(folder, ("masks",), ["a"], PARTS)
    with pytest.raises(FileNotFoundError, match=r"has no masks for 2 of 3 images, first c; .* --until round_1/masks"):
        check_folder(folder, ("masks",), ["a", "c", "d"], PETS)
    (folder / "about.json").write_text('{"kind": "masks"')
    with pytest.raises(ValueError, match=r"about\.json is damaged"):
        check_folder(folder, ("masks",), ["a"], PETS)
    (folder / "about.json").write_text('{"kind": "masks", "classes": [], "notices": []}')
    with pytest.raises(ValueError, match=r"about\.json is damaged"):
        check_folder(folder, ("masks",), ["a"], PETS)


def test_masks_of_another_round_in_place_are_seen(tmp_path: Path) -> None:
    folder = made(tmp_path, "pseudo_masks", place="round_0/pseudo_masks")
    with pytest.raises(ValueError, match="holds pseudo_masks made as round_0/pseudo_masks, of another round or arm"):
        check_folder(folder, ("pseudo_masks",), ["a"], PETS)
    linked = tmp_path / "round_2"
    linked.mkdir()
    (linked / "pseudo_masks").symlink_to(folder)
    with pytest.raises(ValueError, match="of another round"):
        check_folder(linked / "pseudo_masks", ("pseudo_masks",), ["a"], PETS)
