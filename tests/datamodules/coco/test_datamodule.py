import json
from pathlib import Path

import numpy as np
import pytest

from structseg.datamodules.coco.datamodule import COCODataModule, paint, read_instances
from structseg.datamodules.label_spaces import COCO
from tests.data.coco import SIZE, TRAIN, box, file_name, make_coco

PERSON, DOG, HORSE, CUP = (COCO.classes.index(name) for name in ("person", "dog", "horse", "cup"))


def data_of(root: Path, **settings) -> COCODataModule:
    return COCODataModule(make_coco(root), size=SIZE, **settings)


def test_the_ids_of_categories_become_the_80_classes(tmp_path: Path) -> None:
    make_coco(tmp_path)
    pictures = read_instances(tmp_path / "annotations" / "instances_train2014.json")
    assert list(pictures) == [f"COCO_train2014_{number:012}" for number in TRAIN]
    first = pictures["COCO_train2014_000000000009"]
    assert first.size == SIZE
    assert sorted((found.label, found.crowd) for found in first.instances) == [
        (PERSON, False), (PERSON, True), (CUP, False),
    ]  # fmt: skip
    assert (PERSON, DOG, HORSE, CUP, COCO.classes.index("toothbrush")) == (1, 17, 18, 42, 80)


def test_tags_are_of_all_instances_and_empty_images_do_not_train(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    assert data.names("train") == ("COCO_train2014_000000000009", "COCO_train2014_000000000025")
    assert data.names("test") == ("COCO_val2014_000000000042", "COCO_val2014_000000000073")
    assert data.tags_of("COCO_train2014_000000000009") == {"person", "cup"}
    assert not data.has_validation
    sample = data.dataset("train")[1]  # without masks nothing is painted
    assert set(sample) == {"image", "name", "tags", "crop"}
    assert sample["tags"].shape == (80,)
    assert sample["tags"].nonzero()[:, 0].tolist() == [DOG - 1]
    subset = data_of(tmp_path, label_space="coco[dog,horse]")
    assert subset.names("train") == ("COCO_train2014_000000000025",)
    assert subset.names("test") == data.names("test")
    assert data_of(tmp_path, label_space="coco[dog,horse]", unknown_classes="leave_out").names("test") == (
        "COCO_val2014_000000000073",
    )


def test_masks_are_painted_large_to_small_over_ignored_crowds(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    train = data_of(tmp_path, masks="truth").dataset("train")
    expected = np.zeros(SIZE, dtype=int)
    expected[4:16, 10:28] = 255
    expected[2:18, 2:14] = PERSON
    expected[6:9, 6:10] = CUP
    np.testing.assert_array_equal(train[0]["mask"], expected)
    expected = np.zeros(SIZE, dtype=int)
    expected[0:10, 0:10] = expected[10:20, 20:30] = DOG
    np.testing.assert_array_equal(train[1]["mask"], expected)


def test_test_images_have_masks_too(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    data = data_of(tmp_path, label_space="coco[horse]", score_at="native")
    expected = np.zeros(SIZE, dtype=int)
    expected[5:15, 5:25] = 1
    expected[0:12, 10:16] = 0  # the person, on top as it is smaller, is background
    np.testing.assert_array_equal(data.dataset("test")[0]["mask"], expected)
    assert data.dataset("test")[0]["tags"].tolist() == [1]
    empty = data.dataset("test")[1]
    assert not empty["mask"].any()
    assert empty["tags"].tolist() == [0]


def test_compressed_codes_and_slivers_are_read(tmp_path: Path) -> None:
    coco_mask = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    make_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    code = coco_mask.merge(coco_mask.frPyObjects([box(3, 4, 9, 12)], *SIZE))
    shape = {"size": list(SIZE), "counts": code["counts"].decode()}
    content["annotations"] = [
        {"id": 1, "image_id": 25, "category_id": 18, "iscrowd": 0, "segmentation": shape},
        {"id": 2, "image_id": 25, "category_id": 1, "iscrowd": 0, "segmentation": [[1, 1, 5, 5]]},  # no area
    ]
    path.write_text(json.dumps(content))
    painted = paint(read_instances(path)["COCO_train2014_000000000025"])
    expected = np.zeros(SIZE, dtype=int)
    expected[3:9, 4:12] = DOG
    np.testing.assert_array_equal(painted, expected)


def test_the_layout_of_2017_is_read_too(tmp_path: Path) -> None:
    data = COCODataModule(make_coco(tmp_path, 2017), year=2017)
    assert data.names("train") == ("000000000009", "000000000025")


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*instances_train2014\.json; --data\.root is the folder"):
        COCODataModule(tmp_path).dataset("train")
    make_coco(tmp_path)
    (tmp_path / "train2014" / file_name("train", 25)).unlink()
    with pytest.raises(ValueError, match=r"photographs missing for 1 of 3 images: \S+COCO_train2014_000000000025\.jpg"):
        COCODataModule(tmp_path).dataset("train")
    path = tmp_path / "annotations" / "instances_train2014.json"
    path.write_text(path.read_text().replace('"cup"', '"hydra"'))
    with pytest.raises(ValueError, match=r"annotation \d+ of image 9 is hydra, which is not one of COCO's 80 classes"):
        COCODataModule(tmp_path).dataset("train")
    path.write_text("[1")
    with pytest.raises(ValueError, match=r"is not a file of COCO's instances"):
        COCODataModule(tmp_path).dataset("train")


def test_without_pycocotools_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(
        ValueError,
        match=r"000009: COCO's masks need pycocotools, which is not installed; pip install 'structseg\[coco\]'",
    ):
        data_of(tmp_path, masks="truth").dataset("train")[0]
