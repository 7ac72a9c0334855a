"""`structseg init`: its proposal can be trained with unchanged; faults are listed; nothing is overwritten."""

import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from structseg.command.main import main as structseg
from structseg.command.processes import exclusive_lock
from structseg.datamodules.folder.datamodule import FolderDataModule, WeakFolderDataModule
from structseg.datamodules.folder.layout import find_layout
from structseg.own_data.command import main
from structseg.own_data.propose import _flip_pairs
from tests.data.folder import COLOURS, make_folder, mask_of

NAMES = [f"p{person}_{shot}" for person in range(6) for shot in range(4)]


def proposed(root, *args):
    main([str(root), "--workers", "1", *args])
    return yaml.safe_load((root / "dataset.yaml").read_text())


def palette(order=(0, 1, 2)):
    def save(path, mask):
        image = Image.fromarray(np.argsort(order)[mask].astype(np.uint8))
        image.putpalette([int(v) for i in order for v in COLOURS[i]])
        image.save(path)

    return save


@pytest.mark.parametrize(
    ("save", "classes"),
    [
        (lambda path, mask: Image.fromarray(mask).save(path), ["background", "class_1", "class_2"]),
        (lambda path, mask: Image.fromarray(mask.astype(np.uint16)).save(path), ["background", "class_1", "class_2"]),
        (palette(), "colours"),
        (palette((2, 0, 1)), "colours"),
        (lambda path, mask: Image.fromarray(COLOURS[mask]).save(path), "colours"),
        (lambda path, mask: Image.fromarray(np.where(mask == 1, 255, 0).astype(np.uint8)).save(path), [{"name": "foreground", "values": [255]}]),
        (lambda path, mask: Image.fromarray(mask == 1).save(path), [{"name": "class_1"}]),
        (lambda path, mask: Image.fromarray(np.where(mask == 2, 255, mask).astype(np.uint8)).save(path), ["background", "class_1"]),
    ],
    ids=["index", "16 bit", "palette", "packed palette", "colours", "0 and 255", "1 bit", "255 is void"],
)  # fmt: skip
def test_every_encoding_is_proposed_and_read_alike(save, classes, tmp_path, capsys):
    root = make_folder(tmp_path, NAMES, save, file=False)
    tree = proposed(root)
    if classes == "colours":
        assert [entry["name"] for entry in tree["classes"]] == ["background", "class_1", "class_2"]
        two = [[30, 60, 200], [200, 30, 30]]
        assert sorted(entry["rgb"][0] for entry in tree["classes"][1:]) == two
    elif isinstance(classes[0], str):
        assert tree["classes"] == classes
    data = FolderDataModule(root)
    assert tuple(data.size) == (32, 32)
    assert set(tree["split"]) == {"seed", "val", "test", "group"}
    people = [{name.partition("_")[0] for name in data.names(split)} for split in ("train", "val", "test")]
    assert all(people)
    assert not people[0] & people[1] | people[0] & people[2] | people[1] & people[2]
    index = NAMES.index(data.names("train")[0])
    mask = data.folder.label(data.folder.splits["train"][0])
    for index_of in (1, 2):
        found = set(mask[mask_of(index) == index_of].tolist())
        assert len(found) == 1
    assert tree.get("ignore") == ([255] if len(np.unique(mask)) == 3 and 255 in mask else None)
    out = capsys.readouterr().out
    assert "next: structseg fit own/fasseg_unet --data.root" in out
    assert "6 groups by the names" in out


LAYOUTS = {
    "images/a.png masks/a.png": {"images": "images", "masks": "masks"},
    "JPEGImages/a.jpg SegmentationClass/a.png": {"images": "JPEGImages", "masks": "SegmentationClass"},
    "a.jpg b.jpg labels/a.png labels/b.png": {"images": ".", "masks": "labels"},
    "a.jpg a_mask.png b.jpg b_mask.png": {"images": ".", "masks": "{parent}/{stem}_mask.png"},
    "images/a.jpg masks/a_label.png": {"images": "images", "masks": "masks/{stem}_label.png"},
    "images/x/a.jpg gt/x/gt_a.png": {"images": "images", "masks": "gt/{parent}/gt_{stem}.png"},
    "train/images/a.jpg train/masks/a.png test/images/b.jpg test/masks/b.png": {
        "train": {"images": "train/images", "masks": "train/masks"},
        "test": {"images": "test/images", "masks": "test/masks"},
    },
    "images/train/a.jpg masks/train/a.png images/valid/b.jpg masks/valid/b.png": {
        "train": {"images": "images/train", "masks": "masks/train"},
        "val": {"images": "images/valid", "masks": "masks/valid"},
    },
    "train/a.jpg train_masks/a.png": {"images": "train", "masks": "train_masks"},
    "images/a.jpg tags.csv": {"images": "images", "tags": "tags.csv"},
    "cat/a.jpg dog/b.jpg": {"images": ".", "tags": "folders"},
    "cat/a.jpg dog/a.jpg": r"cat and .*dog hold files of the same names",
    "a.jpg b.jpg": "2 images but no masks: no folder",
    "images/a.jpg masks/a.npy": r"1 image but no masks that can be read \(a.npy is an array; save masks as PNG",
    "images/a.jpg masks/sky/a.png masks/sea/a.png": "masks holds the folders sea, sky, as if each were a class",
    "notes.txt": "holds no images",
}  # fmt: skip


@pytest.mark.parametrize("files", LAYOUTS)
def test_layouts(files, tmp_path):
    for name in files.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    if isinstance(LAYOUTS[files], str):
        with pytest.raises(ValueError, match=LAYOUTS[files]):
            find_layout(tmp_path)
    else:
        assert find_layout(tmp_path) == LAYOUTS[files]


def test_tags_only(tmp_path):
    root = make_folder(tmp_path, NAMES, file=False)
    for path in (root / "masks").iterdir():
        path.unlink()
    (root / "masks").rmdir()
    (root / "tags.csv").write_text("name,classes\n" + "".join(f"{name},dog;traffic light\n" for name in NAMES))
    tree = proposed(root)
    assert tree["classes"] == ["background", "dog", "traffic light"]
    assert WeakFolderDataModule(root).train_tags().sum() == 2 * len(WeakFolderDataModule(root).names("train"))


def test_it_never_overwrites(tmp_path):
    root = make_folder(tmp_path)
    before = (root / "dataset.yaml").read_text()
    with pytest.raises(ValueError, match="is there already; --overwrite"):
        main([str(root)])
    assert (root / "dataset.yaml").read_text() == before
    assert "val" not in proposed(root, "--overwrite").get("groups", {})
    assert (root / "dataset.yaml").read_text() != before


def test_faults_are_listed_and_the_file_is_written(tmp_path, capsys):
    root = make_folder(tmp_path, NAMES, file=False)
    (root / "masks" / "p0_0.png").unlink()
    Image.new("L", (5, 5)).save(root / "masks" / "p0_1.png")
    (root / "masks" / "p0_2.png").write_bytes(b"x")
    with pytest.raises(SystemExit) as end:
        proposed(root)
    assert end.value.code == 1
    out = capsys.readouterr().out
    assert "3 faults" in out
    for part in ("p0_0.png has no mask", "but its mask", "p0_2.png is no image"):
        assert part in out
    assert (root / "dataset.yaml").is_file()


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda path, mask: Image.fromarray(mask * 0).save(path), "nothing but value 0; 2 classes or more"),
        (lambda path, mask: Image.fromarray(mask * 100).save(path, format="JPEG"), "is JPEG, which changes values"),
        (lambda path, mask: Image.fromarray(np.random.default_rng(0).integers(0, 256, (*mask.shape, 3), dtype=np.uint8)).save(path), "more than 254 values; is it a photograph"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_trained_on_gets_no_file(save, message, tmp_path):
    root = make_folder(tmp_path, NAMES, save, file=False)
    with pytest.raises(ValueError, match=message):
        proposed(root)
    assert not (root / "dataset.yaml").exists()


def tagged(root, names):
    make_folder(root, names, file=False)
    for path in sorted((root / "masks").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (root / "masks").rmdir()


@pytest.mark.parametrize("sep", ["/", "_"])
def test_a_class_is_no_group(sep, tmp_path, capsys):
    names = [
        f"{kind}{sep}{kind[0]}{kind[2]}{shot}" for kind in ("bus", "car", "cat", "cow", "dog") for shot in range(6)
    ]
    tagged(tmp_path, names)
    if sep == "_":
        (tmp_path / "tags.csv").write_text("name,classes\n" + "".join(f"{n},{n.partition(sep)[0]}\n" for n in names))
    assert "group" not in proposed(tmp_path)["split"]
    data = WeakFolderDataModule(tmp_path)
    assert {name[:3] for name in data.names("train")} == {"bus", "car", "cat", "cow", "dog"}
    lines = [line for line in capsys.readouterr().out.splitlines() if "image has" in line]
    held = {split: {name[:3] for name in data.names(split)} for split in ("val", "test")}
    missing = {split: sorted({"bus", "car", "cat", "cow", "dog"} - found) for split, found in held.items()}
    wanted = [
        f"  no {split} image has {', '.join(names)}; correct split in the file"
        for split, names in missing.items()
        if names
    ]
    assert lines == wanted


def test_groups_leave_each_class_to_train_on(tmp_path):
    """One person has all masks of class 2; the first seed would hold some of them out."""
    for person in range(6):

        def save(path, mask, own=f"p{person}_"):
            Image.fromarray(mask * (path.name.startswith(own) | (mask < 2))).save(path)

        root = make_folder(tmp_path / str(person), NAMES, save, file=False)
        assert proposed(root)["split"]["group"]
        assert any(name.startswith(f"p{person}_") for name in FolderDataModule(root).names("train"))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("tags", [False, True])
def test_a_truncated_photograph_is_a_fault(suffix, tags, tmp_path, capsys):
    make_folder(tmp_path, NAMES, file=False)
    if tags:
        tagged(tmp_path, NAMES)
        (tmp_path / "tags.csv").write_text("name,classes\n" + "".join(f"{name},dog\n" for name in NAMES))
    photo = tmp_path / "images" / "p0_0.png"
    image = Image.open(photo).copy()
    photo.unlink()
    photo = photo.with_suffix(suffix)
    image.save(photo)
    photo.write_bytes(photo.read_bytes() + b"more" * 3000 if suffix == ".jpg" else photo.read_bytes())
    proposed(tmp_path)
    image.save(photo)
    photo.write_bytes(photo.read_bytes()[:-200])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        proposed(tmp_path, "--overwrite")
    out = capsys.readouterr().out
    assert "1 fault, which fit refuses:" in out
    assert "p0_0" in out
    assert f"next: mend the faults, then structseg init {tmp_path} --overwrite" in out
    assert "next: structseg fit" not in out


def test_palettes_keep_their_order_and_colours_are_rgb(tmp_path, capsys):
    tree = proposed(make_folder(tmp_path, NAMES, palette(), file=False))
    assert [entry["rgb"] for entry in tree["classes"]] == [[c] for c in COLOURS.tolist()]
    assert "in the order of the palettes' indices" in capsys.readouterr().out
    tree = proposed(
        make_folder(tmp_path, NAMES, lambda path, mask: Image.fromarray(COLOURS[mask]).save(path), file=False),
        "--overwrite",
    )
    assert [entry["rgb"] for entry in tree["classes"]] == [[COLOURS[i].tolist()] for i in (0, 1, 2)]
    assert "in the order of their colours" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"batchsize": 3}, "unknown key 'batchsize' (did you mean batch_size?)"), ({"classes": ["a", "b", "b"]}, "names repeat, 'b' is")],
)  # fmt: skip
def test_a_wrong_file_is_one_useful_line(wrong, message, tmp_path, capsys, monkeypatch):
    root = make_folder(tmp_path, **wrong)
    monkeypatch.setattr(sys, "argv", ["structseg", "check", "own/fasseg_unet", "--data.root", str(root)])
    with pytest.raises(SystemExit) as end:
        structseg()
    err = capsys.readouterr().err
    assert end.value.code == 2
    assert err.startswith(f"structseg: error: {root}/dataset.yaml: ")
    assert message in err
    assert len(err) < 350


def test_left_and_right_names_are_flip_pairs(tmp_path):
    root = make_folder(tmp_path, NAMES, file=False)
    (root / "classes.txt").write_text("ground\nleft_eye\nright_eye\n")
    assert proposed(root)["flip_pairs"] == [["left_eye", "right_eye"]]
    assert _flip_pairs(["l_brow", "r_brow", "EarLeft", "EarRight", "Left Hand", "Right Hand", "copyright", "bleft"]) == [
        ["l_brow", "r_brow"], ["EarLeft", "EarRight"], ["Left Hand", "Right Hand"],
    ]  # fmt: skip


def test_it_loads_no_torch():
    code = "import sys, structseg.own_data.propose; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_is_a_page(capsys):
    with pytest.raises(SystemExit):
        main(["-h"])
    assert len(capsys.readouterr().out.splitlines()) < 30
    with pytest.raises(SystemExit) as end:
        main(["x", "--workers", "0"])
    assert end.value.code == 2


def test_a_pipeline_in_use_is_found_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["structseg", "pipeline", "own/conta", "--runs_dir", str(tmp_path)])
    with exclusive_lock(tmp_path / "own_conta" / "0"), pytest.raises(SystemExit):
        structseg()
    line = (
        f"structseg: error: another process is at work in {tmp_path}/own_conta/0; wait until it ends, or give another"
    )
    assert capsys.readouterr().err == f"{line} --runs_dir or --seed\n"
