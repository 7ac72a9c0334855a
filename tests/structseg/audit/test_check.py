import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from structseg.audit import command as command
from structseg.audit.check import CORRECTED, IDENTICAL, LEAKS, LISTS, NEAR, SIDES, check
from structseg.audit.copies import find_copies, thumbnail
from structseg.audit.samples import BROKEN, EMPTY, LABELS, MISSING, SIZES, TAGS, sides
from structseg.command.main import main as structseg
from structseg.datamodules.celebamask_hq.datamodule import CelebAMaskHQDataModule
from structseg.datamodules.coco.datamodule import COCODataModule
from structseg.datamodules.fasseg.datamodule import FASSEGDataModule
from structseg.datamodules.helen.datamodule import HelenDataModule
from structseg.datamodules.label_spaces import CELEBAMASK_HQ, HELEN, VOC
from structseg.datamodules.lfw_parts.datamodule import LFWPartsDataModule
from structseg.datamodules.voc.datamodule import VOCDataModule
from tests.data.celebamask_hq import compact_names, make_celebamask_hq


def scene(seed: int, size: tuple[int, int] = (60, 80)) -> Image.Image:
    """A picture of soft patches, unlike that of any other seed."""
    random = np.random.default_rng(seed)
    patches = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return patches.resize(size[::-1], Image.Resampling.BICUBIC)


def cut(path: Path, share: float = 0.6) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def faults(datamodule) -> set[tuple[str, str]]:
    """Kind and the first file that each fault names, by its stem."""
    return {(kind, words(message)) for kind, message in check(datamodule).faults}


def words(message: str) -> str:
    return Path(message.split()[0].rstrip(":")).name


def recolour(root: Path, names: list[str]) -> None:
    """Gives each image a picture of its own, as those of the small trees look alike."""
    for seed, name in enumerate(names):
        scene(seed, (48, 48)).save(root / "images" / f"{name}.jpg", quality=95)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """CelebAMask-HQ in the compact layout: 30 images, each a picture of its own, 18 / 6 / 6."""
    root = make_celebamask_hq(tmp_path / "faces", count=30, mirrored=0)
    recolour(root, compact_names(30))
    return root


def test_a_sound_data_set_has_no_faults(faces):
    report = check(CelebAMaskHQDataModule(faces))
    assert report.counts == {"train": 18, "val": 6, "test": 6}
    assert report.faults == []
    assert report.notices == []


@pytest.mark.parametrize("workers", [0, 2])
def test_every_fault_is_found_at_once_and_nothing_else(faces, workers):
    names = compact_names(30)
    images = [faces / "images" / f"{name}.jpg" for name in names]
    masks = [faces / "masks" / f"{name}.png" for name in names]
    cut(images[0])
    images[1].write_bytes(b"")
    cut(masks[2], 0.5)
    masks[3].write_text("no image")
    wrong = np.array(Image.open(masks[4]))
    wrong[5, 5] = 19
    Image.fromarray(wrong).save(masks[4])
    Image.fromarray(np.zeros((48, 48), np.uint8)).save(masks[5])
    Image.fromarray(np.full((48, 48), 255, np.uint8)).save(masks[6])
    Image.fromarray(wrong[:40].clip(0, 18)).save(masks[7])
    Image.open(masks[8]).convert("LA").save(masks[8])
    masks[9].unlink()
    images[10].unlink()
    swapped = np.array(Image.open(masks[11]))
    Image.fromarray(CELEBAMASK_HQ.flip_lookup().numpy().astype(np.uint8)[swapped]).save(masks[11])
    images[12].write_bytes(images[29].read_bytes())  # train = test
    scene(13, (48, 48)).resize((72, 72)).save(images[20], quality=60)  # train ~ val
    Image.fromarray(np.asarray(Image.open(masks[20])).repeat(2, 0).repeat(2, 1)).save(masks[20])  # of the same aspect
    scene(15, (48, 48)).save(images[14], quality=40)  # within train
    cut(masks[16], 0.5)  # both of a pair
    cut(images[16])
    report = check(CelebAMaskHQDataModule(faces), workers)
    found = {(kind, words(message)) for kind, message in report.faults}
    assert found == {
        (BROKEN, images[0].name),
        (BROKEN, images[1].name),
        (BROKEN, masks[2].name),
        (BROKEN, masks[3].name),
        (LABELS, "mask"),
        (EMPTY, masks[5].name),
        (EMPTY, masks[6].name),
        (SIZES, images[7].name),
        (LABELS, masks[8].name),
        (LISTS, names[9]),
        (LISTS, names[10]),
        (LISTS, "split_622.json"),  # lists the image that is gone
        (SIDES, masks[11].name),
        (IDENTICAL, images[12].name),
        (LEAKS, images[13].name),
        (BROKEN, images[16].name),
        (BROKEN, masks[16].name),
    }
    assert len(report.faults) == 17, report.faults
    assert [(kind, words(message)) for kind, message in report.notices] == [(NEAR, images[14].name)]


def test_listed_reversed_sides_are_notices_and_a_wrong_list_is_a_fault(faces):
    names = compact_names(30)
    for name in names[:3]:
        path = faces / "masks" / f"{name}.png"
        mask = np.asarray(Image.open(path))
        Image.fromarray(CELEBAMASK_HQ.flip_lookup().numpy().astype(np.uint8)[mask]).save(path)
    listing = {"reversed": [names[0], names[1], names[20]], "undecided": []}
    (faces / "left_right_reversed.json").write_text(json.dumps(listing))
    report = check(CelebAMaskHQDataModule(faces))
    assert [(kind, words(message)) for kind, message in report.faults] == [
        (SIDES, f"{names[2]}.png"),
        (SIDES, f"{names[20]}.png"),
    ]
    assert "take it off the list" in report.faults[1][1]
    assert sorted(words(message) for kind, message in report.notices if kind == CORRECTED) == [
        f"{name}.png" for name in names[:2]
    ]
    plain = check(CelebAMaskHQDataModule(faces, mend_left_right=False))
    assert {words(message) for _, message in plain.faults} == {f"{name}.png" for name in names[:3]}


def test_labels_that_are_all_reversed_are_one_fault(faces):
    for path in (faces / "masks").iterdir():
        mask = np.asarray(Image.open(path))
        Image.fromarray(CELEBAMASK_HQ.flip_lookup().numpy().astype(np.uint8)[mask]).save(path)
    report = check(CelebAMaskHQDataModule(faces))
    assert len(report.faults) == 1
    assert "l_eye and r_eye, l_brow and r_brow, l_ear and r_ear are exchanged in most" in report.faults[0][1]


def test_sides_of_a_face_by_hand():
    mask = np.zeros((100, 100), np.uint8)
    left, right = CELEBAMASK_HQ.flip_pairs[0]
    mask[40:50, 60:70], mask[40:50, 20:30] = left, right
    assert sides(mask, CELEBAMASK_HQ) == (1, 0, 0), "the person's left is on the right of the picture"
    assert sides(mask[:, ::-1], CELEBAMASK_HQ) == (-1, 0, 0)
    assert sides(mask.T, CELEBAMASK_HQ) == (0, 0, 0), "a face that lies on its side has none"
    mask[mask == right] = 0
    assert sides(mask, CELEBAMASK_HQ) == (0, 0, 0), "nor has a profile"
    mask[10, 10] = right
    assert sides(mask, CELEBAMASK_HQ) == (0, 0, 0), "nor a speck"
    assert sides(mask, VOC) == ()


class TestCopies:
    @staticmethod
    def found(images: list[Image.Image], folder: Path) -> set[tuple[int, int, bool, bool]]:
        paths = [folder / f"{i}.png" for i in range(len(images))]
        for image, path in zip(images, paths, strict=True):
            image.save(path)
        return {copy[:4] for copy in find_copies([thumbnail(image) for image in images], paths)}

    def test_identical_resized_recoloured_and_mirrored_images(self, tmp_path):
        first = scene(1)
        mirror = first.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        brighter = first.point(lambda value: min(255, value + 12))
        images = [first, scene(2), first.copy(), first.resize((200, 150)), brighter, mirror, scene(3)]
        found = self.found(images, tmp_path)
        assert {(0, 2, True, False), (0, 3, False, False), (0, 4, False, False), (0, 5, False, True)} <= found
        assert not {pair[:2] for pair in found} & {(a, b) for a in range(7) for b in (1, 6)}
        assert not {pair[:2] for pair in found} & {(a, b) for a in (1, 6) for b in range(7)}

    def test_flat_images_are_copies_only_by_their_pixels(self, tmp_path):
        grey = [Image.new("RGB", (40, 40), (value,) * 3) for value in (0, 90, 91, 90, 255)]
        dotted = grey[1].copy()
        dotted.putpixel((3, 3), (91, 90, 90))  # the same thumbnail
        faint = [
            Image.fromarray(np.full((40, 40, 3), value, np.uint8) + np.arange(40, dtype=np.uint8)[:, None, None] // 8)
            for value in (120, 130)
        ]  # the same shade, hardly seen
        assert self.found([*grey, dotted, *faint], tmp_path) == {(1, 3, True, False)}

    def test_many_unlike_images_have_none(self, tmp_path):
        assert self.found([scene(i) for i in range(300)], tmp_path) == set()

    def test_fewer_than_two(self):
        assert find_copies([], []) == []
        assert find_copies([thumbnail(scene(0))], [Path("a")]) == []


def test_fasseg(tmp_path):
    from tests.data.fasseg import make_fasseg

    root = make_fasseg(tmp_path, train=4, test=4)
    home = root / "V2"
    for number, part in enumerate(("Train", "Train", "Train", "Train", "Test", "Test", "Test", "Test")):
        scene(number, (48, 36)).save(home / f"{part}_RGB" / f"{number % 4 + 1}.png")
    assert faults(FASSEGDataModule(root)) == set()
    (home / "Train_Labels" / "1.png").unlink()
    (home / "Test_RGB" / "1.png").unlink()
    scene(1, (50, 36)).save(home / "Train_RGB" / "2.png")
    (home / "Train_Labels" / "3.png").write_bytes((home / "Train_RGB" / "3.png").read_bytes())
    (home / "Test_RGB" / "2.png").write_bytes((home / "Train_RGB" / "4.png").read_bytes())
    assert faults(FASSEGDataModule(root)) == {
        (LISTS, "1.png"),
        (SIZES, "2.png"),
        (LABELS, "3.png"),
        (IDENTICAL, "4.png"),
    }
    assert len(check(FASSEGDataModule(root)).faults) == 5, "the photograph and the label that are alone"


def test_lfw(tmp_path):
    from tests.data.lfw import make_lfw

    root = make_lfw(tmp_path)
    images = sorted((root / "lfw_funneled").glob("*/*.jpg"))
    for seed, path in enumerate(images):
        scene(seed, (50, 50)).save(path)
    assert faults(LFWPartsDataModule(root)) == set()
    labels = {path.stem: path for path in (root / "parts_lfw_funneled_gt_images").iterdir()}
    stems = [path.stem for path in images]
    images[0].unlink()
    labels[stems[1]].unlink()
    Image.new("RGB", (50, 50), (0, 255, 255)).save(labels[stems[2]])
    Image.new("RGB", (50, 50), (0, 0, 255)).save(labels[stems[3]])
    with (root / "parts_train.txt").open("a") as file:
        file.write("Ann_Lee one\nAnn_Lee 3\n")
    found = check(LFWPartsDataModule(root)).faults
    assert {
        (kind, message.split()[0 if kind in (LABELS, EMPTY) else -1]) for kind, message in found if kind != MISSING
    } == {
        (LABELS, str(labels[stems[2]])),
        (EMPTY, str(labels[stems[3]])),
        (LISTS, "it"),
        (LISTS, "one"),
    }
    assert (
        sorted(stem for kind, message in found if kind == MISSING for stem in stems[:2] if stem in message) == stems[:2]
    )
    assert len(found) == 6


def test_helen(tmp_path):
    from tests.data.helen import make_helen, name_of, write_masks

    root = make_helen(tmp_path)
    home = next(path.parent for path in root.rglob("exemplars.txt"))
    for seed, path in enumerate(sorted((home / "images").iterdir())):
        scene(seed, Image.open(path).size[::-1]).save(path)
    assert {kind for kind, _ in check(HelenDataModule(root)).faults} <= {SIDES}
    first, second = name_of("train", 0), name_of("train", 1)
    for index in (3, 4):
        (home / "labels" / first / f"{first}_lbl{index:02}.png").unlink()
    cut(home / "labels" / second / f"{second}_lbl02.png", 0.4)
    cut(home / "labels" / second / f"{second}_lbl05.png", 0.4)
    third = name_of("test", 0)
    size = Image.open(home / "images" / f"{third}.jpg").size
    write_masks(home, third, np.zeros((len(HELEN), size[1], size[0]), np.uint8))
    found = sorted((kind, message) for kind, message in check(HelenDataModule(root)).faults if kind != SIDES)
    assert [kind for kind, _ in found] == [EMPTY, BROKEN, BROKEN, LISTS, LISTS]
    assert all(second in message for kind, message in found if kind == BROKEN)
    assert all(first in message for kind, message in found if kind == LISTS)


def make_voc(root: Path, count: int = 6) -> Path:
    """Pictures with a box of class i + 1, tagged so; the last two are validation."""
    names = [f"im{i}" for i in range(count)]
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for i, name in enumerate(names):
        scene(i).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
        mask = np.zeros((60, 80), np.uint8)
        mask[10:30, 10:30] = i + 1
        mask[10:30, 30:32] = 255
        Image.fromarray(mask).save(root / "SegmentationClass" / f"{name}.png")
    rows = [f"{name},{VOC.classes[i + 1]}" for i, name in enumerate(names)]
    (root / "tags.csv").write_text("\n".join(["name,classes", *rows, ""]))
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(names[:-2]))
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(names[-2:]))
    return root


def test_voc_holds_tags_against_masks(tmp_path):
    root = make_voc(tmp_path)
    assert check(VOCDataModule(root, tags="tags.csv", val_list="val")).faults == [], (
        "one list for val and test is usual"
    )
    text = (root / "tags.csv").read_text().replace("im1,bicycle", "im1,bicycle person").replace("im2,bird", "im2,cat")
    (root / "tags.csv").write_text(text.replace("im3,boat", "im3,boot").replace("im0,aeroplane\n", ""))
    (root / "SegmentationClass" / "im4.png").unlink()
    (root / "JPEGImages" / "im5.jpg").unlink()
    with (root / "ImageSets/Segmentation/val.txt").open("a") as file:
        file.write("\nim0")
    found = dict(reversed(check(VOCDataModule(root, tags="tags.csv")).faults))
    messages = sorted(message for _, message in check(VOCDataModule(root, tags="tags.csv")).faults)
    assert set(found) == {LISTS, MISSING, TAGS}
    assert len(messages) == 7
    for part in (
        "im1.png has no person, which the tags name",
        "im2.png holds bird, which the tags lack and has no cat, which the tags name",
        "tag 'boot' of im3 is no class",
        "training image im0 has no tags",
        "im4 of ",
        "no image at ",
        "im0.jpg is in train and test",
    ):
        assert sum(part in message for message in messages) == 1, part


def test_coco(tmp_path):
    from tests.data.coco import make_coco

    root = make_coco(tmp_path)
    datamodule = COCODataModule(root)
    for seed, split in enumerate(("train", "test")):
        for number, sample in enumerate(datamodule.file_samples(split, [])):
            scene(100 * seed + number, Image.open(sample.image).size[::-1]).save(sample.image)
    assert check(datamodule).faults == []
    first, second = (sample.image for sample in datamodule.file_samples("train", [])[:2])
    first.unlink()
    scene(7, (31, 17)).save(second)
    assert faults(COCODataModule(root)) == {(MISSING, "no"), (SIZES, second.name)}


class TestCommand:
    @staticmethod
    def run(monkeypatch, *args: str) -> int:
        monkeypatch.setattr(sys, "argv", ["structseg", "check", *args])
        try:
            structseg()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    @staticmethod
    def config(folder: Path, root: Path) -> str:
        path = folder / "faces.yaml"
        path.write_text(f"data: {{class_path: CelebAMaskHQDataModule, init_args: {{root: {root}}}}}")
        return str(path)

    def test_the_report_is_sorted_by_kind_and_the_code_says_whether_there_is_any(self, faces, monkeypatch, capsys):
        config = self.config(faces.parent, faces)
        assert self.run(monkeypatch, config, "--workers", "0") == 0
        assert capsys.readouterr().out == "CelebAMaskHQDataModule: 30 images (18 train, 6 val, 6 test), 0 faults\n"
        names = compact_names(30)
        for index in (5, 2):
            cut(faces / "images" / f"{names[index]}.jpg")
        Image.fromarray(np.zeros((48, 48), np.uint8)).save(faces / "masks" / f"{names[1]}.png")
        assert self.run(monkeypatch, config, "--workers", "0") == 1
        out, err = capsys.readouterr()
        lines = out.splitlines()
        assert lines[0] == "empty masks: 1 fault"
        assert lines[2] == "files that cannot be read: 2 faults"
        assert [names[2] in lines[3], names[5] in lines[4]] == [True, True]
        assert lines[5:] == ["CelebAMaskHQDataModule: 30 images (18 train, 6 val, 6 test), 3 faults"]
        assert err == "", "no bar without a terminal"

    def test_wrong_commands(self, faces, monkeypatch, capsys, tmp_path):
        config = self.config(tmp_path, faces)
        (tmp_path / "none.yaml").write_text("model: {}")
        (tmp_path / "bad.yaml").write_text("data: [")
        for args, message in (
            (["nowhere.yaml"], "no configuration nowhere.yaml"),
            ([], "CONFIG is missing"),
            ([str(tmp_path / "none.yaml")], "has no data part; check needs a datamodule"),
            ([str(tmp_path / "bad.yaml")], "is no YAML"),
            ([config, "--workers", "-1"], "--workers is -1"),
            ([config, "--wrokers", "1"], "unknown option"),
        ):
            assert self.run(monkeypatch, *args) == 2, args
            err = capsys.readouterr().err
            assert message in err
            assert err.count("\n") == 1

    def test_missing_data_are_one_fault(self, tmp_path, monkeypatch, capsys):
        assert self.run(monkeypatch, self.config(tmp_path, tmp_path / "gone"), "--workers", "0") == 1
        assert capsys.readouterr().err.count("no folder") == 1

    def test_drawn_data_have_no_files(self, tmp_path, monkeypatch, capsys):
        path = tmp_path / "made.yaml"
        path.write_text("data: {class_path: SyntheticFacesDataModule}")
        assert self.run(monkeypatch, str(path)) == 0
        assert (
            capsys.readouterr().out == "SyntheticFacesDataModule reads no labelled files: there is nothing to check\n"
        )


def test_findings_are_small(faces):
    from structseg.audit.samples import examine

    finding = examine(CelebAMaskHQDataModule(faces).file_samples("train", [])[0])
    assert finding.faults == ()
    assert len(finding.thumbnail) == 256
    assert finding.sides == (1, 1, 1)


@pytest.mark.data
@pytest.mark.slow
class TestRealData:
    """What the READMEs of the data sets list, and nothing else."""

    def test_fasseg_v2(self, shared_data):
        report = check(FASSEGDataModule(shared_data / "fasseg"), 2)
        identical = {message for kind, message in report.faults if kind == IDENTICAL}
        for train, test in ((15, 26), (16, 17), (17, 13), (18, 20), (19, 23), (20, 44)):
            assert sum(f"Train_RGB/{train}.png (" in m and f"Test_RGB/{test}.png (" in m for m in identical) == 1
        leaks = [message for kind, message in report.faults if kind == LEAKS]
        assert len(identical) == 6
        assert len(leaks) == 1, "of the sittings that come again, one is near enough"
        assert "Train_RGB/3.png" in leaks[0]
        assert "Test_RGB/1.png" in leaks[0]
        assert len(report.faults) == 7

    def test_fasseg_v3(self, shared_data):
        report = check(FASSEGDataModule(shared_data / "fasseg", version="V3", split="subjects", fold=0), 2)
        assert {kind for kind, _ in report.faults} == {IDENTICAL}
        pairs = [("03142+0-60", "03242+0-60"), ("03151+0+75", "03251+0+75")]
        for one, other in pairs:
            assert sum(one in message and other in message for _, message in report.faults) == 1
        assert len(report.faults) == len(pairs)

    def test_lfw_parts(self, shared_data):
        report = check(LFWPartsDataModule(shared_data / "lfw_parts"), 2)
        assert report.counts == {"train": 1500, "val": 500, "test": 927}
        assert report.faults == []
        assert [kind for kind, _ in report.notices] == [NEAR]
        assert report.notices[0][1].count("Mariana_Pollack/") == 2

    def test_celebamask_hq(self, shared_data):
        root = shared_data / "celebamask_hq_mini"
        listed = set(json.loads((root / "left_right_reversed.json").read_text())["reversed"])
        report = check(CelebAMaskHQDataModule(root), 2)
        assert report.faults == []
        assert {words(message).removesuffix(".png") for _, message in report.notices} == listed
        report = check(CelebAMaskHQDataModule(root, mend_left_right=False), 2)
        assert {(kind, words(message).removesuffix(".png")) for kind, message in report.faults} == {
            (SIDES, name) for name in listed
        }

    def test_voc_photographs(self, shared_data):
        tags = str(shared_data / "voc12_lists" / "tags.csv")
        report = check(VOCDataModule(shared_data / "voc_photos_mini", tags=tags), 2)
        assert report.counts == {"train": 437, "test": 445}
        assert report.faults == [], "neither of the two images with a wrong tag is among these"

    def test_tags_of_voc_that_disagree_with_the_masks(self, shared_data, tmp_path):
        """The photographs are not there; pictures of the masks' sizes stand in for them."""
        wrong = {"2008_005245": "holds person, which the tags lack", "2011_001621": "has no tvmonitor"}
        folder = shared_data / "voc12_masks" / "SegmentationClass"
        names = sorted({*random.Random(0).sample(sorted(path.stem for path in folder.iterdir()), 60), *wrong})
        for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (tmp_path / part).mkdir(parents=True)
        for seed, name in enumerate(names):
            mask = Image.open(folder / f"{name}.png")
            scene(seed, mask.size[::-1]).save(tmp_path / "JPEGImages" / f"{name}.jpg")
            (tmp_path / "SegmentationClass" / f"{name}.png").write_bytes((folder / f"{name}.png").read_bytes())
        (tmp_path / "ImageSets/Segmentation/train.txt").write_text("\n".join(names[::2]))
        (tmp_path / "ImageSets/Segmentation/val.txt").write_text("\n".join(names[1::2]))
        report = check(VOCDataModule(tmp_path, tags=str(shared_data / "voc12_lists" / "tags.csv")), 2)
        assert [kind for kind, _ in report.faults] == [TAGS, TAGS]
        for name, text in wrong.items():
            assert sum(name in message and text in message for _, message in report.faults) == 1


def test_the_module_is_what_the_command_line_calls():
    assert callable(command.main)
