import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from structseg.datamodules.label_spaces import label_space
from structseg.datamodules.round_files import (
    ArtefactManifest,
    read_artefact_mask,
    read_cams,
    read_confounders,
    read_query,
    write_mask,
)
from structseg.lightning_modules.callbacks import round_folder_writer as artefact_folders
from structseg.lightning_modules.callbacks.image_scores import read_table
from structseg.lightning_modules.conta import classifier as conta_classifier
from structseg.lightning_modules.conta import relation_network as conta_relation
from structseg.lightning_modules.conta import round_writers as artefact_writers
from structseg.lightning_modules.conta import segmenter as conta_segmenter
from structseg.lightning_modules.conta.dense_crf import DenseCRF
from structseg.lightning_modules.conta.round_writers import CAMWriter, MaskWriter, PseudoMaskWriter, artefact_writer
from structseg.lightning_modules.conta.settings import CAMSettings
from tests.data.processes import run_ranks

SPACE = label_space("voc[cat,dog]")
NAMES = ("a", "b", "c")
STILL = DenseCRF(1, 0.1, 1e-3, 0.1, 1.0, 1e-3)  # too weak to change a label
TAGS = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])


class Split(Dataset):
    """Three images of 4 x 4: the left half of `a` is a cat, that of `b` too, with a dog at the right; `c` is empty."""

    def __init__(self, truth=True, names=NAMES):
        self.truth, self.names = truth, names

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        mask = torch.zeros(4, 4, dtype=torch.int64)
        mask[:, :2] = int(index < 2)
        mask[:, 3] = 2 * int(index == 1)
        sample = {"image": torch.full((3, 4, 4), 0.1 * (index + 1)), "name": self.names[index], "tags": TAGS[index]}
        return {**sample, "mask": mask} if self.truth else sample


def collate(samples):
    batch = {key: torch.stack([s[key] for s in samples]) for key in ("image", "mask", "tags") if key in samples[0]}
    return {**batch, "name": [sample["name"] for sample in samples]}


class CONTAClassifier(LightningModule):
    """Cams that are right about the cat, and see no dog."""

    notices = ("the network starts from random weights",)

    def predict_step(self, batch):
        cams = [torch.zeros(2, 4, 4) for _ in batch["name"]]
        for cam, tags in zip(cams, batch["tags"], strict=True):
            cam[0, :, :2] = tags[0]
        return {"cams": cams}


class CONTARelationNetwork(LightningModule):
    """Everything is a cat, of which the left half is sure."""

    pairs = (("cat", "dog"),)
    answer = 1

    def predict_step(self, batch):
        masks = [torch.full((4, 4), self.answer, dtype=torch.uint8) for _ in batch["name"]]
        scores = [torch.tensor([0.8, 0.8, 0.6, 0.6]).expand(4, 4) for _ in batch["name"]]
        return {"pseudo_masks": masks, "objects": masks, "scores": scores}


class CONTASegmenter(LightningModule):
    """The left half is a cat, with probability 0.75."""

    def predict_step(self, batch):
        mask = torch.zeros(4, 4, dtype=torch.uint8)
        mask[:, :2] = 1
        query = torch.tensor([0.25, 0.75, 0.0]).view(3, 1, 1).expand(3, 32, 32)
        return {"masks": [mask] * len(batch["name"]), "queries": [query] * len(batch["name"])}


def run(writer, module, data=None, batch_size=2, datamodule=None, **settings):
    data = data or Split()
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[writer],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **settings,
    )
    if datamodule is not None:
        return trainer.predict(module, datamodule=datamodule)
    return trainer.predict(module, DataLoader(data, batch_size, collate_fn=collate))


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("workers", [0, 2])
def test_cams_and_relation_labels(tmp_path, workers):
    out = tmp_path / "round_0"
    assert run(CAMWriter(out, SPACE, STILL, workers=workers), CONTAClassifier()) is None  # nothing piles up in memory
    assert files(out) == [
        *(f"cams/{name}" for name in ("a.npz", "about.json", "b.npz", "c.npz")),
        *(f"relation_labels/{name}" for name in ("a.png", "about.json", "b.png", "c.png")),
    ]
    cams = read_cams(out / "cams", "b", SPACE)
    assert (cams.classes, cams.size) == ((1, 2), (4, 4))  # the dog's map is kept, empty
    assert cams.maps[0].tolist() == [[1, 1, 0, 0]] * 4
    assert read_artefact_mask(out / "relation_labels", "a", SPACE).tolist() == [[1, 1, 0, 0]] * 4
    assert not read_artefact_mask(out / "relation_labels", "c", SPACE).any()
    about = ArtefactManifest.read(out / "cams")
    assert (about.kind, about.place, about.method) == ("cams", "round_0/cams", "CONTAClassifier")
    assert (about.label_space, about.classes, about.images) == (SPACE.name, SPACE.classes, 3)
    # Of 48 pixels 28 are background, 16 cat, 4 dog, which is taken for background: 28 of 32, 16 of 16, 0 of 4.
    assert about.scores["cam_miou"] == pytest.approx((28 / 32 + 1 + 0) / 3)
    assert about.scores["cam_iou/background"] == pytest.approx(28 / 32)
    assert about.scores["cam_threshold"] == pytest.approx(0.01)
    assert about.scores["relation_precision"] == pytest.approx(44 / 48)
    assert about.scores["relation_coverage"] == 1
    assert about.scores["relation_foreground_precision"] == 1
    assert about.notices[0] == "the network starts from random weights"
    assert any("1 image (c) without tags" in text for text in about.notices)
    assert any("1 image (b: dog)" in text for text in about.notices)
    labels = ArtefactManifest.read(out / "relation_labels")
    assert (labels.kind, labels.scores) == ("relation_labels", about.scores)


@pytest.mark.parametrize("height", [1.0, 0.5])
def test_relative_thresholds_follow_the_maps(tmp_path, height):
    """The best threshold of the maps is `height` times as high, so that the seeds are the same."""

    class Low(CONTAClassifier):
        def predict_step(self, batch):
            maps = super().predict_step(batch)["cams"]
            spread = torch.tensor([0.9, 0.8, 0.3, 0.1])  # of each column
            return {"cams": [height * spread * torch.ones_like(one) * one.amax((1, 2), keepdim=True) for one in maps]}

    run(CAMWriter(tmp_path, SPACE, STILL, workers=0, foreground=0.98, background=0.5, relative=True), Low())
    scores = ArtefactManifest.read(tmp_path / "cams").scores
    assert scores["cam_threshold"] == pytest.approx(0.3 * height + 0.01)  # the lowest above the third column
    assert read_artefact_mask(tmp_path / "relation_labels", "a", SPACE).tolist() == [[1, 1, 255, 0]] * 4


def test_relative_thresholds_need_true_masks(tmp_path):
    with pytest.raises(ValueError, match=r"cam\.relative chooses thresholds by true masks, the split has none"):
        run(CAMWriter(tmp_path, SPACE, STILL, workers=0, relative=True), CONTAClassifier(), PartOfTruth("abc"))
    assert not (tmp_path / "cams").exists()


def test_pseudo_masks_are_scored_by_fault(tmp_path):
    out = tmp_path / "round_1"
    run(PseudoMaskWriter(out, SPACE, CONTARelationNetwork.pairs), CONTARelationNetwork())
    assert files(out) == [f"pseudo_masks/{name}" for name in ("a.png", "about.json", "b.png", "c.png", "images.csv.gz")]
    table = read_table(out / "pseudo_masks/images.csv.gz")
    assert [row[0] for row in table] == ["name", "a", "b", "c"]
    assert sum(int(row[table[0].index("tp/cat")]) for row in table[1:]) == 16
    scores = ArtefactManifest.read(out / "pseudo_masks").scores
    assert scores["pseudo_iou/cat"] == pytest.approx(16 / 48)
    assert scores["pseudo_miou"] == pytest.approx(16 / 48 / 3)
    assert scores["pseudo_fp_object/cat"] == pytest.approx(4 / 48)
    assert scores["pseudo_fp_background/cat"] == pytest.approx(28 / 48)
    assert scores["pseudo_on/cat/dog"] == pytest.approx(4 / 48)
    assert "pseudo_fp_object/dog" not in scores  # nan: no dog was predicted
    assert json.loads((out / "pseudo_masks/about.json").read_text())["images"] == 3
    # With the background above 0.6 only the left halves are cats, which 16 of 24 pixels are; background 20 of 32.
    assert scores["walk_threshold"] == pytest.approx(0.61)
    assert scores["walk_iou/cat"] == pytest.approx(16 / 24)
    assert scores["walk_miou"] == pytest.approx((20 / 32 + 16 / 24 + 0) / 3)


def test_masks_queries_and_confounders(tmp_path, monkeypatch):
    out = tmp_path / "round_1"
    said = []
    monkeypatch.setattr(artefact_folders, "rank_zero_info", said.append)
    run(MaskWriter(out, SPACE), CONTASegmenter())
    assert files(out) == [
        "confounders.npz",
        "confounders.png",
        *(f"masks/{name}" for name in ("a.png", "about.json", "b.png", "c.png", "images.csv.gz")),
        *(f"queries/{name}" for name in ("a.npz", "about.json", "b.npz", "c.npz")),
    ]
    assert read_query(out / "queries", "a", SPACE)[:, 0, 0] == pytest.approx([64 / 255, 191 / 255, 0])
    found = read_confounders(out, SPACE)
    assert found.images.tolist() == [2, 1]
    assert (found.maps[0] == 0.75).all()
    assert not found.maps[1].any()
    scores = ArtefactManifest.read(out / "masks").scores
    # background 24 right, of 28 true and 24 predicted; cat 16 right, of 16 and 24; no dog.
    assert scores["mask_miou"] == pytest.approx((20 / 32 + 16 / 24 + 0) / 3)
    assert len(said) == 1
    assert said[0].startswith("round_1/masks: 3 images, mask_miou 0.431, mask_mean_fp_object 0.")
    with Image.open(out / "masks/a.png") as mask:
        assert mask.mode == "P"
        assert mask.getpalette()[:9] == [value for colour in SPACE.palette for value in colour]


def test_confounders_of_pseudo_masks(tmp_path):
    """By hand: a is a cat in its left half, b a dog in its right half, tagged cat too; 255 is of no class."""
    run(PseudoMaskWriter(tmp_path, SPACE), CONTARelationNetwork())
    folder = tmp_path / "pseudo_masks"
    write_mask(folder, "a", np.array([[1, 1, 0, 0]] * 4), SPACE)
    write_mask(folder, "b", np.array([[1, 255, 2, 2]] * 4), SPACE)
    run(MaskWriter(tmp_path, SPACE, pseudo_masks=folder), CONTASegmenter())
    found = read_confounders(tmp_path, SPACE)
    assert found.images.tolist() == [2, 1]
    assert found.maps[0][0].tolist() == [1.0] * 8 + [0.5] * 8 + [0.0] * 16
    assert found.maps[1][0].tolist() == [0.0] * 16 + [1.0] * 16
    assert read_query(tmp_path / "queries", "a", SPACE)[1, 0, 0] == pytest.approx(191 / 255), "queries are predicted"


def test_of_another_split_there_is_no_confounder_set(tmp_path):
    run(MaskWriter(tmp_path, SPACE, confounders=False), CONTASegmenter())
    assert not list(tmp_path.glob("confounders*"))


def test_a_class_without_image_keeps_zeros_and_is_named(tmp_path):
    space = label_space("voc[cat,dog]")
    data = Split(names=("a",))
    with pytest.warns(UserWarning, match="no training image holds dog"):
        run(MaskWriter(tmp_path, space), CONTASegmenter(), data)
    assert any("holds dog" in text for text in ArtefactManifest.read(tmp_path / "masks").notices)
    assert not read_confounders(tmp_path, space).maps[1].any()


def test_background_alone_is_loud(tmp_path):
    module = CONTARelationNetwork()
    module.answer = 0
    with pytest.warns(UserWarning, match="every one of the 3 pseudo_masks is only background"):
        run(PseudoMaskWriter(tmp_path, SPACE), module)
    assert "only background" in ArtefactManifest.read(tmp_path / "pseudo_masks").notices[0]


def test_some_of_background_alone_are_named_unless_they_have_no_tags(tmp_path):
    class Half(CONTARelationNetwork):
        def predict_step(self, batch):
            masks = [torch.full((4, 4), int(n == "a"), dtype=torch.uint8) for n in batch["name"]]
            return {"pseudo_masks": masks, "objects": masks, "scores": [mask.float() for mask in masks]}

    run(PseudoMaskWriter(tmp_path, SPACE), Half())
    (text,) = ArtefactManifest.read(tmp_path / "pseudo_masks").notices
    assert text.endswith("1 image (b)")


def test_masks_and_seeds_without_background_are_noticed(tmp_path):
    class Everywhere(CONTAClassifier):
        notices = ()

        def predict_step(self, batch):
            return {"cams": [torch.ones(2, 4, 4) for _ in batch["name"]]}

    run(PseudoMaskWriter(tmp_path, SPACE), CONTARelationNetwork())
    (text,) = ArtefactManifest.read(tmp_path / "pseudo_masks").notices
    assert text.startswith("pseudo_masks of 3 of 3 images have no background")
    run(CAMWriter(tmp_path, SPACE, STILL, workers=0), Everywhere())
    assert any(
        text.startswith("relation_labels of 3 of 3 images") for text in ArtefactManifest.read(tmp_path / "cams").notices
    )


def test_without_true_masks_there_are_no_scores_and_that_is_said(tmp_path):
    with pytest.warns(UserWarning, match="no true masks"):
        run(PseudoMaskWriter(tmp_path, SPACE), CONTARelationNetwork(), Split(truth=False))
    about = ArtefactManifest.read(tmp_path / "pseudo_masks")
    assert (about.scores, about.images) == ({}, 3)
    assert "no true masks" in about.notices[0]


class PartOfTruth(Split):
    """Of the images that are named nothing is known, which is a mask ignored everywhere."""

    def __init__(self, unknown):
        super().__init__()
        self.unknown = unknown

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        if sample["name"] in self.unknown:
            sample["mask"] = torch.full_like(sample["mask"], 255)
        return sample


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_mask_that_is_ignored_everywhere_is_no_truth(tmp_path, batch_size):
    run(PseudoMaskWriter(tmp_path, SPACE), CONTARelationNetwork(), PartOfTruth("bc"), batch_size)
    about = ArtefactManifest.read(tmp_path / "pseudo_masks")
    assert about.scores["pseudo_iou/cat"] == pytest.approx(8 / 16)
    assert about.notices[0] == "pseudo_masks are scored on the 1 of 3 images that have a true mask"
    assert [row[0] for row in read_table(tmp_path / "pseudo_masks/images.csv.gz")] == ["name", "a"]
    run(PseudoMaskWriter(tmp_path, SPACE), CONTARelationNetwork(), PartOfTruth("abc"), batch_size)
    about = ArtefactManifest.read(tmp_path / "pseudo_masks")
    assert about.scores == {}
    assert "no true masks" in about.notices[0]
    run(CAMWriter(tmp_path, SPACE, STILL, workers=0), CONTAClassifier(), PartOfTruth("bc"), batch_size)
    assert ArtefactManifest.read(tmp_path / "cams").scores["cam_miou"] == pytest.approx(1)


def test_masks_queries_and_confounders_share_an_origin_and_say_their_split(tmp_path):
    class Data(LightningDataModule):
        predict_split = "train"

        def predict_dataloader(self):
            return DataLoader(Split(), batch_size=2, collate_fn=collate)

    class Surer(CONTASegmenter):
        def predict_step(self, batch):
            found = super().predict_step(batch)
            return {**found, "queries": [query.sqrt() for query in found["queries"]]}

    origins = []
    for module in (CONTASegmenter(), CONTASegmenter(), Surer()):
        run(MaskWriter(tmp_path, SPACE), module, datamodule=Data())
        abouts = [ArtefactManifest.read(tmp_path / kind) for kind in ("masks", "queries")]
        assert [about.split for about in abouts] == ["train", "train"]
        origins += {about.origin for about in abouts} | {read_confounders(tmp_path, SPACE).origin}
    assert len(origins) == 3, "one a run, in all three places"
    assert origins[0] == origins[1] != origins[2]
    run(PseudoMaskWriter(tmp_path, SPACE), CONTARelationNetwork(), datamodule=Data())
    about = ArtefactManifest.read(tmp_path / "pseudo_masks")
    assert (about.split, about.origin) == ("train", "")


def test_a_second_run_replaces_the_first_and_counts_from_nothing(tmp_path):
    writer, module = PseudoMaskWriter(tmp_path, SPACE), CONTARelationNetwork()
    module.answer = 0
    run(writer, module)
    (tmp_path / "pseudo_masks/stray.png").touch()
    (tmp_path / "pseudo_masks.part").mkdir()
    (tmp_path / "pseudo_masks.part/old.png").touch()
    run(writer, CONTARelationNetwork())
    assert files(tmp_path) == [
        f"pseudo_masks/{name}" for name in ("a.png", "about.json", "b.png", "c.png", "images.csv.gz")
    ]
    about = ArtefactManifest.read(tmp_path / "pseudo_masks")
    assert about.scores["pseudo_iou/cat"] == pytest.approx(16 / 48)
    assert not any("only background" in text for text in about.notices)


def test_a_second_confounder_set_starts_from_nothing(tmp_path):
    writer = MaskWriter(tmp_path, SPACE)
    for _ in range(2):
        run(writer, CONTASegmenter())
        assert read_confounders(tmp_path, SPACE).images.tolist() == [2, 1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_breaks_off_keeps_the_folder_that_was_whole(tmp_path, error, workers):
    run(CAMWriter(tmp_path, SPACE, workers=0), CONTAClassifier())
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}

    class Broken(CONTAClassifier):
        def predict_step(self, batch):
            if "c" in batch["name"]:
                raise error("here")
            return super().predict_step(batch)

    with pytest.raises((SystemExit, ValueError)):
        run(CAMWriter(tmp_path, SPACE, workers=workers), Broken())
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before
    assert {path.name for path in tmp_path.iterdir()} == {"cams", "relation_labels"}


def test_a_folder_that_had_made_room_when_the_run_was_killed_comes_back(tmp_path):
    run(PseudoMaskWriter(tmp_path, SPACE), CONTARelationNetwork())
    (tmp_path / "pseudo_masks").rename(tmp_path / "pseudo_masks.old")

    class Broken(CONTARelationNetwork):
        def predict_step(self, batch):
            raise ValueError("here")

    with pytest.raises(ValueError, match="here"):
        run(PseudoMaskWriter(tmp_path, SPACE), Broken())
    assert [path.name for path in tmp_path.iterdir()] == ["pseudo_masks"]


def test_a_run_that_breaks_off_between_two_names_keeps_the_old_folder(tmp_path, monkeypatch):
    run(PseudoMaskWriter(tmp_path, SPACE), CONTARelationNetwork())
    rename = Path.rename

    def interrupted(path, target):
        if path.name == "pseudo_masks.part":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(SystemExit):
        run(PseudoMaskWriter(tmp_path, SPACE), CONTARelationNetwork())
    assert files(tmp_path) == [
        f"pseudo_masks/{name}" for name in ("a.png", "about.json", "b.png", "c.png", "images.csv.gz")
    ]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    run(PseudoMaskWriter(tmp_path, SPACE), CONTARelationNetwork())
    written = []

    def full(folder, name, *rest):
        written.append(name)
        if name == "b":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artefact_writers, "write_mask", full)
    with pytest.raises(OSError, match=r"^no room on the disk for .*pseudo_masks\.part \(\d+ MB free\); make room") as e:
        run(PseudoMaskWriter(tmp_path, SPACE), CONTARelationNetwork())
    assert "\n" not in str(e.value)
    assert written == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["pseudo_masks"]
    assert ArtefactManifest.read(tmp_path / "pseudo_masks").images == 3


@pytest.mark.parametrize("settings", [{"limit_predict_batches": 1}, {"fast_dev_run": True}])
def test_a_part_of_the_images_is_not_kept(tmp_path, settings):
    with pytest.warns(UserWarning, match="2 of 3 images were predicted, so no pseudo_masks are kept"):
        run(PseudoMaskWriter(tmp_path, SPACE), CONTARelationNetwork(), **settings)
    assert not list(tmp_path.iterdir())


def test_photographs_of_a_folder_are_no_split(tmp_path):
    class Plain(CONTARelationNetwork):
        def predict_step(self, batch):
            return [torch.zeros(4, 4, dtype=torch.uint8)]

    with pytest.raises(TypeError, match="predicted a list, not artefacts of a split"):
        run(PseudoMaskWriter(tmp_path, SPACE), Plain())


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"no artefacts can go to .*file; set --data\.predict_out|Not a directory"):
        run(PseudoMaskWriter(tmp_path / "file/round_0", SPACE), CONTARelationNetwork())


class Data:
    label_space, predict_split = SPACE, "train"

    def __init__(self, out):
        self.predict_out = str(out)


def untrained(method, **attributes):
    """A module of that method without its network."""
    module = method.__new__(method)
    LightningModule.__init__(module)
    module.__dict__.update(attributes)
    return module


def test_the_writer_follows_the_method(tmp_path):
    data = Data(tmp_path)

    class Child(conta_segmenter.CONTASegmenter):
        pass

    assert type(artefact_writer(untrained(conta_classifier.CONTAClassifier, cam=CAMSettings()), data)) is CAMWriter
    assert type(artefact_writer(untrained(conta_relation.CONTARelationNetwork), data)) is PseudoMaskWriter
    writer = artefact_writer(untrained(Child, pairs=[("cat", "dog")], confounders_from="masks"), data)
    assert type(writer) is MaskWriter
    assert writer.pseudo_masks is None
    other = untrained(Child, confounders_from="pseudo_masks")
    for masks in (None, "truth"):
        data.masks = masks
        with pytest.raises(
            ValueError, match=f"averages --data.masks, which is {masks}; give the folder of pseudo_masks"
        ):
            artefact_writer(other, data)
    data.masks = str(tmp_path / "round_0/pseudo_masks")
    with pytest.raises(FileNotFoundError, match=r"no folder .*--until round_0/pseudo_masks"):
        artefact_writer(other, data)
    run(PseudoMaskWriter(tmp_path / "round_0", SPACE), CONTARelationNetwork())
    assert artefact_writer(other, data).pseudo_masks == tmp_path / "round_0/pseudo_masks"
    (tmp_path / "round_0").rename(tmp_path / "round_1")
    data.masks = str(tmp_path / "round_1/pseudo_masks")
    with pytest.raises(ValueError, match=r"made as round_0/pseudo_masks, of another round"):
        artefact_writer(other, data)
    data.predict_split = "val"
    assert artefact_writer(other, data).pseudo_masks is None
    data.predict_split = "train"
    assert "on/cat/dog" in writer.metrics["mask"].metric_keys
    assert writer.out == tmp_path
    with pytest.raises(ValueError, match="LightningModule makes no artefacts of a split"):
        artefact_writer(LightningModule(), data)


def test_the_confounder_set_is_of_the_training_split(tmp_path):
    data = Data(tmp_path / "val")
    data.predict_split = "val"
    run(artefact_writer(untrained(conta_segmenter.CONTASegmenter), data), CONTASegmenter())
    assert sorted(path.name for path in (tmp_path / "val").iterdir()) == ["masks", "queries"]


def test_artefacts_of_another_split_are_not_replaced(tmp_path):
    class Data(LightningDataModule):
        def predict_dataloader(self):
            return DataLoader(Split(), batch_size=2, collate_fn=collate)

    def split_of(name):
        data = Data()
        data.predict_split = name
        return data

    run(MaskWriter(tmp_path, SPACE), CONTASegmenter(), datamodule=split_of("train"))
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(
        ValueError, match=r"masks holds the masks of the train images, which those of val would replace"
    ):
        run(MaskWriter(tmp_path, SPACE, confounders=False), CONTASegmenter(), datamodule=split_of("val"))
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before
    run(MaskWriter(tmp_path, SPACE), CONTASegmenter(), datamodule=split_of("train"))  # its own are


def test_pairs_are_checked_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match="pair cat / mouse is not two of"):
        CAMWriter(tmp_path, SPACE, pairs=[("cat", "mouse")])


def test_thresholds_are_checked_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match="background <= foreground"):
        CAMWriter(tmp_path, SPACE, foreground=0.1, background=0.2)


TWO_RANKS = """
import sys
from pathlib import Path
import structseg
from pytorch_lightning import Trainer
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader
from structseg.lightning_modules.conta.round_writers import CAMWriter, MaskWriter
from tests.lightning_modules.conta.test_round_writers import SPACE, CONTAClassifier, CONTASegmenter, Split, collate

for writer, module in ((CAMWriter, CONTAClassifier), (MaskWriter, CONTASegmenter)):
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, use_distributed_sampler=False,
        callbacks=[writer(Path(sys.argv[1]), SPACE)], enable_progress_bar=False, enable_checkpointing=False)
    data = Split()
    sampler = UnrepeatedDistributedSampler(data, num_replicas=2, rank=trainer.global_rank, shuffle=False)
    trainer.predict(module(), DataLoader(data, sampler=sampler, collate_fn=collate))
"""


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run(CAMWriter(one / "round_0", SPACE), CONTAClassifier())
    run(MaskWriter(one / "round_0", SPACE), CONTASegmenter())
    script = tmp_path / "run.py"
    script.write_text(TWO_RANKS)
    run_ranks(2, tmp_path / "logs", [str(script), str(two / "round_0")])
    assert files(one) == files(two)
    for name in files(one):
        if name.endswith("npz"):
            with np.load(one / name) as mine, np.load(two / name) as theirs:
                assert all(np.array_equal(mine[key], theirs[key]) for key in mine)
        else:
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
