"""Damaged data sets: lists, annotations, markers and splits; every fault names its file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from structseg.datamodules.base import SegmentationDataModule
from structseg.datamodules.batch import Split
from structseg.datamodules.celebamask_hq.datamodule import CelebAMaskHQDataModule
from structseg.datamodules.coco.datamodule import COCODataModule
from structseg.datamodules.coco.files import read_instances
from structseg.datamodules.fasseg.datamodule import FASSEGDataModule
from structseg.datamodules.files.text import read_tags
from structseg.datamodules.helen.datamodule import HelenDataModule
from structseg.datamodules.lfw_parts.datamodule import LFWPartsDataModule
from structseg.datamodules.voc.datamodule import VOCDataModule
from tests.data.celebamask_hq import make_celebamask_hq
from tests.data.coco import make_coco
from tests.data.fasseg import make_fasseg
from tests.data.helen import make_helen
from tests.data.lfw import make_lfw
from tests.data.voc import make_voc
from tests.fuzz.harm import Damage, Wreck, fault_of, part_of, put, ruin, spoil, template

FASSEG = template("fasseg", lambda folder: make_fasseg(folder, train=4, test=2))
LFW = template("lfw", lambda folder: make_lfw(folder, superpixels=True))
CELEBA = template("celeba", lambda folder: make_celebamask_hq(folder, count=5))
CELEBA_FULL = template("celeba_full", lambda folder: make_celebamask_hq(folder, "full", count=5))
HELEN = template("helen", lambda folder: make_helen(folder, train=2, val=1, test=1))
VOC = template("voc", lambda folder: make_voc(folder))
COCO = template("coco", lambda folder: make_coco(folder))


def _walk(data: SegmentationDataModule) -> None:
    splits: tuple[Split, ...] = ("train", "test", *(("val",) if data.has_validation else ()))
    for split in splits:
        samples = data.dataset(split)
        for index in range(len(samples)):  # type: ignore[arg-type]
            samples[index]


def fasseg(root: Path) -> None:
    _walk(FASSEGDataModule(root, size=(32, 32)))


def lfw(root: Path) -> None:
    _walk(LFWPartsDataModule(root, size=(32, 32), blobs="superpixels"))


def celeba(root: Path) -> None:
    _walk(CelebAMaskHQDataModule(root, size=(32, 32), split="split_622.json"))


def celeba_full(root: Path) -> None:
    _walk(CelebAMaskHQDataModule(root, size=(32, 32), split="official"))


def helen(root: Path) -> None:
    _walk(HelenDataModule(root, size=(32, 32)))


def voc(root: Path) -> None:
    _walk(VOCDataModule(root, size=(32, 32), masks="truth"))


def voc_tags(root: Path) -> None:
    _walk(VOCDataModule(root, size=(32, 32), masks="truth", tags="tags.csv"))


def coco(root: Path) -> None:
    _walk(COCODataModule(root, size=(32, 32), masks="truth"))


def _with(copy: Callable[[Path], Path], name: str, content: str) -> Callable[[Path], Path]:
    """The tree with one file more."""

    def lay(folder: Path) -> Path:
        root = copy(folder)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
        return root

    return lay


HOME = "VOCdevkit/VOC2012"
TAGS = _with(VOC, f"{HOME}/tags.csv", "name,classes\n" + "".join(f"2007_00000{n},horse dog\n" for n in range(1, 5)))


def _entity_bomb() -> str:
    entities = '<!ENTITY a "dog">' + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(12))
    return f"<!DOCTYPE annotation [{entities}]><annotation><object><name>&m;</name></object></annotation>"


_ENTITY = '<!DOCTYPE annotation [<!ENTITY x SYSTEM "{}">]><annotation><object><name>&x;</name></object></annotation>'
XML: dict[str, str] = {
    "a billion laughs": _entity_bomb(),
    "a quadratic entity": f'<!DOCTYPE a [<!ENTITY x "{"a" * 100_000}">]><a><object><name>{"&x;" * 100_000}</name></object></a>',
    "an external entity": _ENTITY.format("file:///etc/passwd"),
    "an entity of the network": _ENTITY.format("http://127.0.0.1:9/x"),
    "an entity of its own": '<!DOCTYPE a [<!ENTITY x "&x;">]><a><object><name>&x;</name></object></a>',
    "an unknown class": "<annotation><object><name>unicorn</name></object></annotation>",
    "an object without a name": "<annotation><object></object></annotation>",
    "a tag that is not closed": "<annotation><object><name>dog</name>",
    "an unknown encoding": '<?xml version="1.0" encoding="no-such"?><annotation/>',
    "100,000 levels": "<a>" * 100_000 + "</a>" * 100_000,
}  # fmt: skip
BORNE_XML = ("100,000 levels",)


def _coco(change: Callable[[dict[str, Any]], object]) -> Wreck:
    def wreck(whole: bytes) -> bytes:
        content = json.loads(whole)
        change(content)
        return json.dumps(content).encode()

    return wreck


def _first(**values: object) -> Wreck:
    return _coco(lambda content: content["annotations"][0].update(values))


def _outline(value: object) -> Wreck:
    return _first(segmentation=value)


def _image(**values: object) -> Wreck:
    return _coco(lambda content: content["images"][0].update(values))


RLE = {"size": [20, 30], "counts": [0, 600]}
INSTANCES: dict[str, Wreck] = {
    "a list": put("[]"),
    "a number": put("3"),
    "null": put("null"),
    "deeper than Python goes": put("[" * 100_000),
    "a number of 10^6 digits": put('{"images": ' + "9" * 1_000_000 + "}"),
    "no images": _coco(lambda content: content.pop("images")),
    "images as a text": _coco(lambda content: content.update(images="none")),
    "annotations as a number": _coco(lambda content: content.update(annotations=3)),
    "annotations as numbers": _coco(lambda content: content.update(annotations=[3])),
    "an unknown category": _coco(lambda content: content["categories"][0].update(name="unicorn")),
    "a category without a name": _coco(lambda content: content["categories"][0].pop("name")),
    "a category of no list": _first(category_id=12345),
    "a category that is a list": _first(category_id=[1]),
    "an image of no list": _first(image_id=12345),
    "an image id that is a list": _image(id=[1]),
    "a file name that is a number": _image(file_name=5),
    "a file name that leads out": _image(file_name="../../../../etc/hostname"),
    "an absolute file name": _image(file_name="/etc/hostname"),
    "no height": _coco(lambda content: content["images"][0].pop("height")),
    "a height that is a text": _image(height="20"),
    "a height of 0": _image(height=0),
    "a negative height": _image(height=-20),
    "a height of 2.5": _image(height=2.5),
    "a height that is no number": _image(height=float("nan")),
    "a height of 10^9": _image(height=10**9, width=10**9),
    "another size than the photograph's": _image(height=21),
    "no outline": _coco(lambda content: content["annotations"][0].pop("segmentation")),
    "an outline that is a text": _outline("polygon"),
    "an outline that is null": _outline(None),
    "an outline of texts": _outline([["a", "b", "c", "d", "e", "f"]]),
    "an outline of nan": _outline([[float("nan")] * 8]),
    "an outline at infinity": _outline([[float("inf")] * 8]),
    "an outline at 10^30": _outline([[1e30, -1e30, 1e30, 1e30, -1e30, 1e30]]),
    "an outline at 10^9": _outline([[0, 0, 1e9, 0, 1e9, 1e9]]),
    "an outline of odd length": _outline([[1, 2, 3, 4, 5, 6, 7]]),
    "an outline of lists": _outline([[[1, 2], [3, 4], [5, 6]]]),
    "counts that are missing": _outline({"size": [20, 30]}),
    "counts that are a number": _outline({"size": [20, 30], "counts": 7}),
    "counts of another size": _outline({**RLE, "size": [200, 300]}),
    "counts of a huge size": _outline({"size": [10**6, 10**6], "counts": [10**12]}),
    "counts of a negative size": _outline({"size": [-20, -30], "counts": [600]}),
    "counts that are negative": _outline({**RLE, "counts": [-5, 605]}),
    "counts beyond the image": _outline({**RLE, "counts": [0, 10**9]}),
    "counts of too few pixels": _outline({**RLE, "counts": [0, 10]}),
    "counts of texts": _outline({**RLE, "counts": ["a"]}),
    "counts of 2^40": _outline({**RLE, "counts": [2**40]}),
    "packed counts of noise": _outline({**RLE, "counts": "\x7f~zzzz}}||oooo"}),
    "packed counts beyond the image": _outline({**RLE, "counts": "0PPYo1"}),
    "packed counts of no letters": _outline({**RLE, "counts": "é日本"}),
    "size that is a text": _outline({**RLE, "size": "20x30"}),
}  # fmt: skip

CASES: list[Damage] = [
    *ruin("FASSEG label", FASSEG, "V2/Train_Labels/1.png", fasseg, says="1"),
    *ruin("FASSEG photograph", FASSEG, "V2/Test_RGB/2.png", fasseg, says="2", odd=False),
    Damage("FASSEG: another root", lambda folder: folder / "gone", fasseg, "gone"),
    Damage("FASSEG: an empty folder", lambda folder: folder, fasseg, "holds no FASSEG"),
    *ruin("LFW list", LFW, "parts_train.txt", lfw, bears=("cut at 95 %",), says="parts_train|no train images"),
    *(
        Damage(f"LFW list: {name}", spoil(LFW, "parts_train.txt", put(text)), lfw, "parts_train|listed twice|photographs")
        for name, text in {
            "a name that leads out": "../../etc/passwd 1\n",
            "a number of 5,000 digits": "Train_A " + "9" * 5000 + "\n",
            "a line of 1 MB": "x" * 1_000_000,
            "names of people who are not there": "Nobody 1\nNo_One 2\n",
        }.items()
    ),
    *ruin("CelebAMask-HQ split", CELEBA, "split_622.json", celeba),
    *ruin("CelebAMask-HQ sides", CELEBA, "left_right_reversed.json", celeba, odd=False),
    *(
        Damage(f"CelebAMask-HQ split: {text[:30]}", spoil(CELEBA, "split_622.json", put(text)), celeba, "split_622.json")
        for text in (
            "[]", '{"train": 3}', '{"train": [], "val": [], "test": {}}', '{"train": [[1]], "val": [], "test": []}',
            '{"train": ["../x"], "val": [], "test": []}', "[" * 100_000,
        )
    ),
    *ruin(
        "CelebAMask-HQ mapping", CELEBA_FULL, "CelebAMask-HQ/CelebA-HQ-to-CelebA-mapping.txt", celeba_full,
    ),
    *ruin(
        "CelebAMask-HQ partition", _with(CELEBA_FULL, "list_eval_partition.txt", "".join(f"{n:06}.jpg 0\n" for n in range(1, 900))),
        "list_eval_partition.txt", celeba_full, odd=False,
    ),
    *ruin("HELEN list", HELEN, "exemplars.txt", helen, bears=("cut in half", "cut at 95 %"), says="exemplars.txt|images are not in"),
    *(
        Damage(f"HELEN list: {text[:30]!r}", spoil(HELEN, "exemplars.txt", put(text)), helen, "exemplars|images are not in")
        for text in ("1 , ../../x\n", "1 , a b\n", "1 ,\n", "\0\n", "x" * 1_000_000, "9" * 10_000)
    ),
    *ruin("VOC list", VOC, f"{HOME}/ImageSets/Segmentation/train.txt", voc, bears=("cut in half",), says="train"),
    *(
        Damage(f"VOC list: {text[:30]!r}", spoil(VOC, f"{HOME}/ImageSets/Segmentation/train.txt", put(text)), voc, "train.txt")
        for text in ("../../../etc/passwd\n", "/\n", "\0\n", "x" * 100_000, "nobody\n" * 1000)
    ),
    *ruin(
        "VOC annotation", VOC, f"{HOME}/Annotations/2007_000002.xml", voc, odd=False,
        says="2007_000002",
    ),
    *(
        Damage(f"VOC annotation: {name}", spoil(VOC, f"{HOME}/Annotations/2007_000002.xml", put(text)), voc, "2007_000002", name in BORNE_XML)
        for name, text in XML.items()
    ),
    *ruin("VOC tags", TAGS, f"{HOME}/tags.csv", voc_tags, says="tags|2007_"),
    *(
        Damage(f"VOC tags: {text[:30]!r}", lambda folder, text=text: _with(lambda f: f, "tags.csv", text)(folder) / "tags.csv", read_tags, r"tags\.csv")
        for text in (
            "name;classes\na;b\n", "name,classes\na,dog\na,cat\n", "classes\ndog\n", 'name,classes\n"' + "x" * 200_000,
            "name,classes\na\0b,dog\n", "name,name\na,b\n", "name,classes,more\na,b,c,d,e\nf\n,dog\n",
        )
    ),
    *ruin("COCO instances", COCO, "annotations/instances_train2014.json", read_coco := (lambda root: read_instances(root / "annotations" / "instances_train2014.json"))),
    *(
        Damage(f"COCO: {name}", spoil(COCO, "annotations/instances_train2014.json", wreck), coco, "instances_train2014.json|COCO_train2014|train2014")
        for name, wreck in INSTANCES.items()
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", part_of(CASES))
def test_damaged_data_sets(case: Damage, tmp_path: Path) -> None:
    assert fault_of(case, tmp_path) is None
