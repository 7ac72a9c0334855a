"""Intact files of other kinds are read, or named for what they are instead of being called damaged."""

import json
import shutil
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from structseg.datamodules.coco.files import read_instances
from structseg.datamodules.files.text import read_tags
from structseg.datamodules.images import read_image, stored_size
from structseg.datamodules.voc.files import tags_from_annotation
from tests.data.coco import make_coco, run_lengths
from tests.data.every_set import make_set
from tests.data.lfw import squares, write_superpixels

Tree = dict[str, Any]


def each(key: str, change: Callable[[Tree], None]) -> Callable[[Tree], None]:
    return lambda tree: [change(item) for item in tree[key]] and None


def string_ids(tree: Tree) -> None:
    for item in (*tree["images"], *tree["categories"]):
        item["id"] = str(item["id"])


COCO_READ: dict[str, Callable[[Tree], None]] = {
    "another category": lambda tree: tree["categories"].append({"id": 999, "name": "drone"}),
    "folder of the images": each("images", lambda i: i.update(file_name=f"train2014/{i['file_name']}")),
    "ids as text": string_ids,
    "no iscrowd": each("annotations", lambda a: a.get("iscrowd") or a.pop("iscrowd", None)),
    "one code in a list": each(
        "annotations", lambda a: a.update(segmentation=[s] if isinstance(s := a["segmentation"], dict) else s)
    ),
    "a polygon without its list": each(
        "annotations",
        lambda a: a.update(segmentation=s[0] if isinstance(s := a["segmentation"], list) and len(s) == 1 else s),
    ),
    "sizes as 30.0": each("images", lambda i: i.update(width=float(i["width"]), height=float(i["height"]))),
    "names in capitals": each("categories", lambda c: c.update(name=c["name"].title())),
    "no licenses, more keys": lambda tree: tree.update(extra=[1]),
}


@pytest.mark.parametrize("kind", COCO_READ)
def test_annotations_as_other_tools_write_them(tmp_path: Path, kind: str) -> None:
    make = make_set("coco", tmp_path)
    before = make().dataset("train")
    names, masks = before.names, [make().truth_of(name) for name in before.names]
    path = tmp_path / "annotations" / "instances_train2014.json"
    tree = json.loads(path.read_text())
    COCO_READ[kind](tree)
    path.write_text(json.dumps(tree), encoding="utf-8-sig")
    after = make()
    assert after.dataset("train").names == names
    for name, mask in zip(names, masks, strict=True):
        np.testing.assert_array_equal(after.truth_of(name), mask)


COCO_TOLD: dict[str, tuple[Callable[[Tree], None], str]] = {
    "annotated extra": (
        each("categories", lambda c: c.update(name="drone")),
        "is drone, which is not one of COCO's 80",
    ),
    "boxes alone": (each("annotations", lambda a: a.pop("segmentation")), "has no segmentation, only a box or points"),
    "no annotations": (lambda tree: tree.pop("annotations"), "it has no annotations; give COCO's instances"),
    "captions": (lambda tree: tree.pop("categories"), "it has no categories"),
    "one id twice": (each("images", lambda i: i.update(id=1)), "two of its images have the same id"),
    "an image that is not listed": (lambda tree: tree["images"].pop(0), "which is not among its images"),
    "no height": (each("images", lambda i: i.pop("height")), "image 9 has no height; write them into the file"),
    "unlisted category": (
        each("annotations", lambda a: a.update(category_id=12345)),
        "of category 12345, which is not",
    ),
}


@pytest.mark.parametrize("kind", COCO_TOLD)
def test_other_annotations_are_named_for_what_they_are(tmp_path: Path, kind: str) -> None:
    path = make_coco(tmp_path) / "annotations" / "instances_train2014.json"
    tree = json.loads(path.read_text())
    change, message = COCO_TOLD[kind]
    change(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=message) as caught:
        read_instances(path)
    assert "copy" not in str(caught.value)


def test_file_names_in_folders(tmp_path: Path) -> None:
    make = make_set("coco", tmp_path)
    path = tmp_path / "annotations" / "instances_train2014.json"
    tree = json.loads(path.read_text())
    file = tree["images"][0]["file_name"]
    (tmp_path / "train2014" / "a").mkdir()
    (tmp_path / "train2014" / file).rename(tmp_path / "train2014" / "a" / file)
    tree["images"][0]["file_name"] = f"a/{file}"
    path.write_text(json.dumps(tree))
    assert len(make().dataset("train")[0]["image"]) == 3
    tree["images"][1]["file_name"] = file
    path.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="both called"):
        make().dataset("train")
    tree["images"][1]["file_name"] = f"../{file}"
    path.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="no name of a file"):
        make().dataset("train")


def test_several_codes_in_a_list_are_united(tmp_path: Path) -> None:
    make = make_set("coco", tmp_path)
    path = tmp_path / "annotations" / "instances_train2014.json"
    tree = json.loads(path.read_text())
    one = next(item for item in tree["annotations"] if not item.get("iscrowd"))
    tree["annotations"] = [one | {"segmentation": [run_lengths(0, 0, 2, 3), run_lengths(1, 0, 4, 3)]}]
    path.write_text(json.dumps(tree))
    data = make()
    assert int((data.truth_of(data.names("train")[0]) > 0).sum()) == 12


def test_a_png_with_a_long_comment(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 2), (9, 8, 7)).save(path)
    text = b"zTXtparameters\0\0" + zlib.compress(b"a" * (2 << 20))
    chunk = (len(text) - 4).to_bytes(4) + text + zlib.crc32(text).to_bytes(4)
    content = path.read_bytes()
    path.write_bytes(content[:33] + chunk + content[33:])
    assert read_image(path).getpixel((0, 0)) == (9, 8, 7)
    assert stored_size(path) == ((3, 2), 1)


XML = "{}<annotation><owner>M\u00fcller \u732b</owner><object><name> cat </name></object></annotation>"


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gbk", "shift_jis", "latin-1", "cp1252"])
def test_annotations_in_any_encoding(tmp_path: Path, encoding: str, declared: bool) -> None:
    (tmp_path / "Annotations").mkdir()
    head = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>\n' if declared else ""
    (tmp_path / "Annotations" / "a.xml").write_bytes(XML.format(head).encode(encoding, errors="ignore"))
    assert tags_from_annotation(tmp_path, "a") == {"cat"}


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".Jpg"])
@pytest.mark.parametrize("name", ["voc", "helen", "lfw", "celebamask_hq", "celebamask_hq_compact"])
def test_suffixes_in_any_letter_case(tmp_path: Path, name: str, suffix: str) -> None:
    make = make_set(name, tmp_path)
    sample = make().file_samples("test", [])[0]
    sample.image.rename(sample.image.with_suffix(suffix))
    if name in ("voc", "celebamask_hq_compact", "lfw"):
        sample.masks[0].rename(sample.masks[0].with_suffix(sample.masks[0].suffix.upper()))
    assert make().dataset("test")[0]["image"].shape[0] == 3
    shutil.copy(make().file_samples("test", [])[0].image, sample.image.with_suffix(".JPeG"))
    if name != "lfw":  # whose thousands of folders are not listed
        with pytest.raises(ValueError, match="have the same stem; keep one of them"):
            make().dataset("test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "is a pointer of Git LFS, not the image",
        ),
        (b"\n<!DOCTYPE html><html>Too many requests</html>", "is a web page, which a server sent"),
    ],
)
@pytest.mark.parametrize("name", ["voc", "coco", "helen", "lfw", "fasseg", "celebamask_hq"])
def test_files_in_place_of_an_image_are_identified(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    make = make_set(name, tmp_path)
    make().file_samples("test", [])[0].image.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        make().check_files(("test",))


@pytest.mark.parametrize(
    ("name", "file", "change"),
    [
        ("voc", "Segmentation/val.txt", lambda line: f"{line} -1\r"),
        ("voc", "Segmentation/val.txt", lambda line: f"JPEGImages\\{line}.jpg"),
        ("helen", "testing.txt", lambda line: f"{line}.jpg\r"),
        ("lfw", "parts_test.txt", lambda line: f"{line}\r"),
    ],
)
def test_lists_of_other_systems_and_tools(tmp_path: Path, name: str, file: str, change: Callable[[str], str]) -> None:
    make = make_set(name, tmp_path)
    before = [sample.name for sample in make().file_samples("test", [])]
    path = next(tmp_path.rglob(file))
    path.write_text("\n".join(change(line.strip()) for line in path.read_text().splitlines()), newline="")
    assert [sample.name for sample in make().file_samples("test", [])] == before
    make().check_files(("test",))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_composed_and_decomposed(tmp_path: Path, form: str) -> None:
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    new, listed = (unicodedata.normalize(f, "J\u00f6rg_Ann\u00e9") for f in (form, other))
    make = make_set("voc", tmp_path / "voc")
    for path in (tmp_path / "voc").rglob("2008_000001.*"):
        path.rename(path.with_stem(new))
    lists = next((tmp_path / "voc").rglob("Segmentation/val.txt"))
    lists.write_text(f"{listed}.jpg\n", encoding="utf-8-sig")
    sample = make().dataset("test")[0]
    assert {"mask", "tags"} <= set(sample)
    make = make_set("lfw", tmp_path / "lfw")
    root = tmp_path / "lfw"
    (root / "lfw_funneled" / "Ann_Lee").rename(root / "lfw_funneled" / new)
    write_superpixels(root, "Ann_Lee_0003", squares((50, 40)))
    (root / "parts_lfw_funneled_superpixels_mat" / "Ann_Lee").rename(root / "parts_lfw_funneled_superpixels_mat" / new)
    for path in [*root.rglob("Ann_Lee_*")]:
        path.rename(path.with_name(path.name.replace("Ann_Lee", new)))
    for path in root.glob("parts_*.txt"):
        path.write_text(path.read_text().replace("Ann_Lee", listed), encoding="utf-8-sig")
    assert len(make().dataset("test")) == 3
    assert "superpixels" in make(blobs="superpixels").make_dataset("test")[0]
    root = tmp_path / "helen"
    make = make_set("helen", root)
    (first, *_), label = make().file_samples("test", []), make().dataset("test")[0]["mask"]
    for path in [*root.rglob(f"{first.name}_lbl*"), *root.rglob(first.name), first.image]:
        path.rename(path.with_name(path.name.replace(first.name, new)))
    (root / "testing.txt").write_text(f"{listed}\n")
    assert torch.equal(make().dataset("test")[0]["mask"], label)
    (tmp_path / "tags.csv").write_text(f"name,classes\n{new},cat\n")
    assert list(read_tags(tmp_path / "tags.csv")) == [unicodedata.normalize("NFC", new)]


@pytest.mark.parametrize("name", ["voc", "helen", "lfw", "fasseg", "celebamask_hq", "celebamask_hq_compact"])
def test_files_that_operating_systems_add_are_skipped(tmp_path: Path, name: str) -> None:
    make = make_set(name, tmp_path)
    for sample in make().file_samples("test", []):
        for path in (sample.image, *sample.masks[:1]):
            path.with_name(f"._{path.name}").write_bytes(b"Mac OS X")
            path.with_name("Thumbs.db").write_bytes(b"\xd0\xcf")
            path.with_name(".DS_Store").write_bytes(b"Bud1")
    make().check_files(("train", "test"))
