from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_lightning import LightningModule, Trainer

from structseg.datamodules.augmentation import Augmentation
from structseg.datamodules.batch import Split
from structseg.datamodules.label_spaces import LabelSpace, label_space
from structseg.datamodules.round_files import ArtefactManifest, write_cams, write_mask, write_query
from structseg.datamodules.weak.crops import CropSettings
from structseg.datamodules.weak.datamodule import Read, WeaklySupervisedDataModule

PETS = label_space("voc[cat,dog]")
SIZES = ((40, 60), (50, 30))


class Halves(WeaklySupervisedDataModule):
    """Images whose left half has one class: by their number in turn cat (1) and dog (2)."""

    def __init__(self, train: int = 6, val: int = 0, test: int = 5, truth: bool = True, **settings) -> None:
        super().__init__(**{"label_space": "voc[cat,dog]", "size": (32, 32), "batch_size": 2, **settings})
        self.counts: dict[Split, int] = {"train": train, "val": val, "test": test}
        self.truth = truth
        self.wrong_tags: dict[str, frozenset[str] | None] = {}

    def entries(self, split: Split) -> Sequence[str]:
        return [f"{split}_{index}" for index in range(self.counts[split])]

    def read(self, name: str) -> Read:
        number = int(name.split("_")[1])
        label, size = 1 + number % 2, SIZES[number % 2]
        mask = np.zeros(size, dtype=np.uint8)
        mask[:, : size[1] // 2] = label
        pixels = np.repeat(mask[..., None] * 100, 3, axis=2)
        pixels[..., 0] = number
        tags = self.wrong_tags.get(name, frozenset({PETS.classes[label]}))
        vector = None if tags is None else self.tag_vector(tags, name)
        return Image.fromarray(pixels), mask if self.truth else None, vector

    def tags_of(self, name: str) -> frozenset[str] | None:
        return self.wrong_tags[name] if name in self.wrong_tags else super().tags_of(name)


def numbers(batch) -> list[int]:
    return [int(name.split("_")[1]) for name in batch["name"]]


def folder_of(root: Path, kind: str, names: Sequence[str], space: LabelSpace = PETS, stage: int = 0) -> Path:
    folder = root / f"round_{stage}" / kind
    folder.mkdir(parents=True)
    for name in names:
        number = int(name.split("_")[1])
        if kind == "cams":
            write_cams(folder, name, np.full((2, 3, 4 + number), [[[1.0]], [[0.0]]]), (12, 16))
        elif kind == "queries":
            write_query(folder, name, np.full((3, 4, 4), number / 10))
        else:
            write_mask(folder, name, np.array([[2, 255]]), space)  # left half 2, right half ignored, at 1x2
    notices = ("weights are random",) if kind == "queries" else ()
    ArtefactManifest(kind, f"round_{stage}/{kind}", "M", space.name, space.classes, len(names), {}, notices).write(
        folder
    )
    return folder


def test_training_without_masks_has_images_tags_and_crops() -> None:
    data = Halves()
    (batch,) = (batch for batch in data.train_dataloader() if "train_0" in batch["name"])
    assert set(batch) == {"image", "name", "tags", "crop"}
    assert batch["image"].shape == (2, 3, 32, 32)
    assert batch["tags"].dtype == torch.float32
    assert batch["tags"].tolist() == [[1 - n % 2, n % 2] for n in numbers(batch)]
    assert torch.equal(batch["crop"], torch.eye(2, 3).expand(2, 2, 3))
    colours = Halves(augmentation=Augmentation(brightness=0.3))
    varied = colours.augment(batch, [1, 2])
    assert not torch.equal(varied["image"], batch["image"])
    assert set(varied) == set(batch)


def test_training_masks_are_cropped_with_their_images(tmp_path: Path) -> None:
    truth = Halves(masks="truth").dataset("train")[1]
    assert truth["mask"][:, :16].eq(2).all()
    assert truth["mask"][:, 16:].eq(0).all()
    names = Halves().entries("train")
    data = Halves(masks=str(folder_of(tmp_path, "pseudo_masks", names)), crops=CropSettings(scale=(1.5, 1.5), flip=0.5))
    labels = set()
    for index in range(6):  # the artefact is 1x2, whatever the image's size
        sample = data.dataset("train")[index]
        left = sample["image"][1] > 0.15  # painted: the left half of the image, 100 or 200 of 255, beside 0
        inside = F.grid_sample(
            torch.ones(1, 1, 2, 2),
            F.affine_grid(sample["crop"][None], [1, 1, 32, 32], align_corners=False),
            mode="nearest",
            align_corners=False,
        )[0, 0].bool()
        assert (sample["mask"].eq(2) == left)[inside].float().mean() > 0.95
        assert sample["mask"][~inside].eq(255).all()
        labels |= set(sample["mask"].unique().tolist())
    assert labels == {2, 255}


def test_crops_depend_on_seed_epoch_and_index_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    crops = CropSettings(long_side=(40, 80), flip=0.5)
    first, again = Halves(crops=crops).dataset("train"), Halves(crops=crops, num_workers=2)
    one = [first[index]["crop"] for index in range(6)]
    assert len({tuple(view.flatten().tolist()) for view in one}) == 6
    loader = again.train_dataloader()  # persistent workers see the next epoch
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        first.set_epoch(epoch)
        for batch in loader:
            for number, view in zip(numbers(batch), batch["crop"], strict=True):
                assert torch.equal(view, first[number]["crop"])
                assert torch.equal(view, one[number]) == (epoch == 0)
    monkeypatch.setenv("PL_GLOBAL_SEED", "4")
    assert not torch.equal(Halves(crops=crops).dataset("train")[0]["crop"], one[0])


def test_outside_the_image_is_the_mean_colour() -> None:
    data = Halves(crops=CropSettings(scale=(0.2, 0.2)), mean=(0.2, 0.4, 0.6), masks="truth")
    sample = data.dataset("train")[0]
    beyond = sample["mask"] == 255
    assert beyond.sum() == 32 * 32 - 8 * 12
    assert torch.allclose(sample["image"][:, beyond].mean(1), torch.tensor([51, 102, 153]) / 255)


def test_evaluation_has_the_whole_image_and_its_true_mask() -> None:
    data = Halves(val=3, crops=CropSettings(long_side=(40, 80), flip=1.0))
    (first, second) = data.val_dataloader()
    assert set(first) == {"image", "mask", "name", "tags", "crop"}
    assert torch.equal(first["crop"], torch.eye(2, 3).expand(2, 2, 3))
    assert first["mask"][1, :, :16].eq(2).all()
    assert second["name"] == ["val_2"]
    native = list(Halves(score_at="native").test_dataloader())
    assert [tuple(batch["image"].shape) for batch in native[:2]] == [(1, 3, 40, 60), (1, 3, 50, 30)]
    assert [tuple(batch["mask"].shape) for batch in native[:2]] == [(1, 40, 60), (1, 50, 30)]
    assert "mask" not in next(iter(Halves(truth=False).test_dataloader()))
    assert Halves(val=3).has_validation
    assert not Halves().has_validation
    assert Halves().val_dataloader() == []


class Partly(Halves):
    """Only images with an even number have a true mask."""

    def read(self, name: str) -> Read:
        image, mask, tags = super().read(name)
        return image, None if int(name.split("_")[1]) % 2 else mask, tags


@pytest.mark.parametrize("entries", [("test_0", "test_1"), ("test_1", "test_0")])
def test_images_without_true_mask_beside_others_are_ignored_everywhere(entries: tuple[str, str]) -> None:
    data = Partly()
    data.entries = lambda split: entries  # type: ignore[method-assign]
    (batch,) = data.test_dataloader()
    known = [name == "test_0" for name in batch["name"]]
    assert [bool(mask.eq(255).all()) for mask in batch["mask"]] == [not one for one in known]
    assert batch["mask"][known.index(True), :, :16].eq(1).all()
    data = Partly(predict_split="train", score_at="native")
    masks = [batch["mask"] for batch in data.predict_dataloader()]
    assert [tuple(mask.shape) for mask in masks[:2]] == [(1, 40, 60), (1, 50, 30)]
    assert [bool(mask.eq(255).all()) for mask in masks] == [False, True] * 3
    with pytest.raises(ValueError, match="train_1 has no true mask"):
        Partly(masks="truth").dataset("train")[1]


@pytest.mark.parametrize("missing", ["test_0", "test_1"])
def test_if_some_images_have_no_tags_no_sample_has_tags(missing: str) -> None:
    data = Halves(test=2, predict_split="test")
    data.wrong_tags = {missing: None}
    with pytest.warns(UserWarning, match=f"1 of 2 test images have no tags, first {missing}; all go without"):
        (batch,) = data.test_dataloader()
    assert "tags" not in batch
    (batch,) = data.predict_dataloader()
    assert "tags" not in batch
    assert len(data.notices) == 1


def test_queries_become_context(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "queries", Halves().entries("train"))
    data = Halves(queries=str(folder))
    for batch in data.train_dataloader():
        assert batch["context"].shape == (2, 3, 4, 4)
        assert torch.allclose(batch["context"].mean((1, 2, 3)), torch.tensor(numbers(batch)) / 10, atol=0.002)
    assert data.notices == [], "those of the folder are in its own report"
    assert "context" not in next(iter(data.test_dataloader())), "the last round did not predict these"


def test_the_placebo_gives_each_image_the_context_of_another(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "queries", Halves().entries("train"))

    def donors(**settings) -> list[int]:
        data = Halves(queries=str(folder), context_of="another", **settings).dataset("train")
        return [round(10 * float(data[index]["context"].mean())) for index in range(6)]

    first = donors()
    assert sorted(first) == list(range(6))
    assert all(donor != index for index, donor in enumerate(first))
    assert donors() == first
    assert len({tuple(donors(seed=seed)) for seed in range(5)}) > 1
    with pytest.raises(ValueError, match="context_of=another needs 2 train images"):
        Halves(train=1, queries=str(folder), context_of="another").dataset("train")


def test_another_context_for_each_class_is_of_an_image_that_has_it(tmp_path: Path) -> None:
    """Queries of image i are i/10 everywhere; each image has cat, dog or both."""
    names = Halves(train=6).entries("train")
    folder = folder_of(tmp_path, "queries", names)
    tags = [{"cat"}, {"dog"}, {"cat", "dog"}, {"cat"}, {"cat", "dog"}, {"dog"}]

    def contexts(**settings) -> list[list[float]]:
        data = Halves(train=6, truth=False, queries=str(folder), context_of="another_of_class", **settings)
        data.wrong_tags = {name: frozenset(held) for name, held in zip(names, tags, strict=True)}
        samples = data.dataset("train")
        return [(10 * samples[i]["context"].mean((1, 2))).tolist() for i in range(6)]

    found = contexts()
    for index, cls in ((1, "cat"), (2, "dog")):
        holders = [i for i in range(6) if cls in tags[i]]
        assert sorted(round(found[i][index]) for i in holders) == holders, "each gives once"
        assert all(round(found[i][index]) != i for i in holders)
        assert all(found[i][index] == 0 for i in range(6) if i not in holders)
    for background, cat, dog in found:
        assert background == pytest.approx(max(0, 10 - cat - dog), abs=0.03)
    assert contexts() == found
    assert any(contexts(seed=seed) != found for seed in range(1, 4))


def test_a_displaced_context_is_shifted(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "queries", ())
    names = Halves(train=6).entries("train")
    mark = np.zeros((3, 8, 8))
    mark[1, 2:4, 3] = 0.8  # a cat of two cells, a dog of three, that do not overlap
    mark[2, 6, 0:3] = 0.4
    mark[0] = 1 - mark[1:].sum(0)
    for name in names:
        write_query(folder, name, mark)
    about = ArtefactManifest.read(folder)
    replace(about, images=6).write(folder)

    def contexts(**settings) -> list[torch.Tensor]:
        data = Halves(train=6, queries=str(folder), context_of="displaced", **settings).dataset("train")
        return [data[index]["context"] for index in range(6)]

    found = contexts()
    places = set()
    for context in found:
        assert context[1].sum().item() == pytest.approx(1.6, abs=0.02)
        assert context[2].sum().item() == pytest.approx(1.2, abs=0.02)
        assert torch.allclose(context[0], (1 - context[1:].sum(0)).clamp(min=0))
        (rows, columns) = context[1].nonzero(as_tuple=True)
        assert columns.unique().numel() == 1
        assert (rows[1] - rows[0]).item() in (1, 7), "one above the other, round the edge"
        places |= {(*context[1].nonzero()[0].tolist(), *context[2].nonzero()[0].tolist())}
    assert len(places) > 3
    assert all(torch.equal(a, b) for a, b in zip(contexts(), found, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(contexts(seed=1), found, strict=True))


def test_a_class_of_a_single_image_gets_no_context(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "queries", Halves(train=3).entries("train"))
    data = Halves(train=3, truth=False, queries=str(folder), context_of="another_of_class")
    data.wrong_tags = {"train_0": frozenset({"cat"}), "train_1": frozenset({"dog"}), "train_2": frozenset({"cat"})}
    with pytest.warns(UserWarning, match="only train_1 of the train images has dog"):
        sample = data.dataset("train")[1]
    assert sample["context"][1:].count_nonzero() == 0
    assert sample["context"][0].min() == 1
    names = Halves(test=2).entries("test")
    data = Halves(
        test=2, truth=False, queries=str(folder_of(tmp_path, "queries", names, stage=1)), context_of="another_of_class"
    )
    data.wrong_tags = {"test_1": None}
    with pytest.raises(ValueError, match="another_of_class needs the tags of all test images; test_1 has none"):
        data.dataset("test")


def test_a_split_can_be_predicted_once_over_all_its_images(tmp_path: Path) -> None:
    names = Halves().entries("train")
    cams, queries = folder_of(tmp_path, "cams", names), folder_of(tmp_path, "queries", names)
    data = Halves(
        predict_split="train",
        cams=str(cams),
        queries=str(queries),
        crops=CropSettings(scale=(1, 2), flip=1),
        batch_size=4,
    )
    batches = list(data.predict_dataloader())
    assert [number for batch in batches for number in numbers(batch)] == list(range(6))
    assert [len(batch["name"]) for batch in batches] == [4, 2]
    assert set(batches[0]) == {"image", "mask", "name", "tags", "crop", "context", "cams"}
    assert torch.equal(batches[0]["crop"], torch.eye(2, 3).expand(4, 2, 3))
    assert [tuple(maps.shape) for maps in batches[0]["cams"]] == [(2, 3, 4 + number) for number in range(4)]
    assert batches[0]["cams"][1].mean((1, 2)).tolist() == [1, 0]
    native = Halves(predict_split="test", score_at="native", batch_size=4).predict_dataloader()
    assert [len(batch["name"]) for batch in native] == [1] * 5
    assert "cams" not in next(iter(Halves(cams=str(cams)).train_dataloader()))
    with pytest.raises(ValueError, match=r"Halves has no val images; choose another --data\.predict_split"):
        Halves(predict_split="val").predict_dataloader()
    with pytest.raises(ValueError, match="no split to predict"):
        Halves().predict_dataloader()


class Keys(LightningModule):
    """Records the keys of the batches that it gets from a trainer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), set()

    def training_step(self, batch, batch_idx):
        self.seen.add(frozenset(batch))
        return self.layer.weight.sum()

    def predict_step(self, batch, batch_idx):
        return batch["name"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_trainer_gets_the_batches_as_they_are() -> None:
    module = Keys()
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, barebones=False)  # fmt: skip
    trainer.fit(module, datamodule=Halves(augmentation=Augmentation(noise=0.1), masks=None))
    assert module.seen == {frozenset({"image", "name", "tags", "crop"})}
    named = trainer.predict(module, datamodule=Halves(predict_split="test"))
    assert [name for batch in named for name in batch] == [f"test_{index}" for index in range(5)]


def test_artefacts_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    names = Halves().entries("train")
    missing = tmp_path / "round_0" / "pseudo_masks"
    with pytest.raises(FileNotFoundError, match="run structseg pipeline FILE --until round_0/pseudo_masks"):
        Halves(masks=str(missing)).dataset("train")
    folder = folder_of(tmp_path, "masks", names[:4])
    with pytest.raises(FileNotFoundError, match="has no masks for 2 of 6 images, first train_4"):
        Halves(masks=str(folder)).dataset("train")
    folder.rename(missing)
    with pytest.raises(ValueError, match="holds masks; pseudo_masks are expected"):
        Halves(masks=str(missing)).dataset("train")
    cams = folder_of(tmp_path, "cams", names)
    with pytest.raises(ValueError, match="holds cams; relation_labels or pseudo_masks or masks are expected"):
        Halves(masks=str(cams)).dataset("train")
    with pytest.raises(FileNotFoundError, match="--until round_3/masks"):
        Halves(queries=str(tmp_path / "round_3" / "queries")).dataset("train")
    with pytest.raises(FileNotFoundError, match="--until round_3/cams"):
        Halves(predict_split="train", cams=str(tmp_path / "round_3" / "cams")).predict_dataloader()
    queries = folder_of(tmp_path, "queries", [*names, "test_0"])
    with pytest.raises(FileNotFoundError, match="has no queries for 4 of 5 images, first test_1"):
        Halves(queries=str(queries)).dataset("test")


def test_artefacts_of_another_split_are_not_trained_on(tmp_path: Path) -> None:
    names = Halves().entries("train")
    for kind in ("pseudo_masks", "queries", "cams"):
        folder = folder_of(tmp_path, kind, names)
        about = ArtefactManifest.read(folder)
        replace(about, split="train").write(folder)
        given = {kind: str(folder)} if kind != "pseudo_masks" else {"masks": str(folder)}
        use = Halves(predict_split="train", **given)
        read = (lambda data: data.predict_dataloader()) if kind == "cams" else (lambda data: data.dataset("train"))
        read(use)
        replace(about, split="val").write(folder)
        with pytest.raises(ValueError, match=rf"holds {kind} of the val images, those of train are needed") as caught:
            read(Halves(predict_split="train", **given))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("most", "expected"), [(2, [0, 3]), (6, [0, 1, 2, 3, 4, 5]), (99, [0, 1, 2, 3, 4, 5])])
def test_training_samples_are_spread_over_the_set(most: int, expected: list[int]) -> None:
    data = Halves(train=6)
    assert [sample["name"] for sample in data.train_samples(most)] == [data.names("train")[i] for i in expected]


def test_the_origin_of_queries_is_known(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "queries", Halves().entries("train"))
    assert Halves().query_origin is None
    assert Halves(queries=str(folder)).query_origin is None, "of a folder that does not say"
    replace(ArtefactManifest.read(folder), origin="abc", notices=("look",)).write(folder)
    assert Halves(queries=str(folder)).query_origin == "abc"
    assert (Halves().query_notices, Halves(queries=str(folder)).query_notices) == ((), ("look",))
    assert Halves(queries=str(tmp_path / "none")).query_origin is None


def test_training_on_true_masks_needs_them() -> None:
    with pytest.raises(ValueError, match=r"train_0 has no true mask; train with --data\.masks of an earlier stage"):
        Halves(masks="truth", truth=False).dataset("train")[0]


def test_missing_and_unknown_tags_are_named() -> None:
    data = Halves()
    data.wrong_tags = {"train_1": None, "train_3": frozenset(), "train_4": None}
    with pytest.raises(ValueError, match="3 of 6 training images have no tags, first train_1"):
        data.dataset("train")
    data = Halves()
    data.wrong_tags = {"train_2": frozenset({"cat", "unicorn"})}
    with pytest.raises(ValueError, match="tag 'unicorn' of train_2 is no class; the data have cat, dog"):
        data.dataset("train")
    data = Halves()
    data.wrong_tags = {"test_0": None}
    assert "tags" not in data.dataset("test")[0]


def test_tags_that_disagree_with_masks_are_noticed() -> None:
    data = Halves(train=20)
    data.wrong_tags = {f"train_{index}": frozenset({"cat", "dog"}) for index in range(3, 12)}
    with pytest.warns(UserWarning, match=r"in 9 of 20 training images: train_3, .*, train_7, \.\.\.$"):
        data.dataset("train")
    assert data.tag_faults("train") == [f"train_{index}" for index in range(3, 12)]
    assert len(data.notices) == 1
    assert Halves().tag_faults("train") == []
    assert Halves(truth=False).tag_faults("train") == []


def test_a_class_without_training_images_is_noticed() -> None:
    data = Halves(train=1)
    with pytest.warns(UserWarning, match="no training image holds dog; their confounders stay zero"):
        data.dataset("train")


class Others(Halves):
    """Tags of all of VOC: image 0 has a cat and a sofa, 1 a dog, 2 only a sofa, 3 a cat."""

    data_space = label_space("voc")

    def tags_of(self, name: str) -> frozenset[str] | None:
        return [{"cat", "sofa"}, {"dog"}, {"sofa"}, {"cat"}, None][int(name.split("_")[1])]

    def read(self, name: str) -> Read:
        image, mask, _ = super().read(name)
        tags = self.tags_of(name)
        return image, mask, None if tags is None else self.tag_vector(frozenset(tags), name)


def test_unknown_classes_are_background_or_their_images_left_out() -> None:
    data = Others(train=4, test=4)
    assert data.names("train") == ("train_0", "train_1", "train_3")
    assert data.names("test") == ("test_0", "test_1", "test_2", "test_3")
    assert data.dataset("test")[2]["tags"].tolist() == [0, 0]
    assert data.dataset("train")[0]["tags"].tolist() == [1, 0]
    data = Others(train=4, test=5, unknown_classes="leave_out")
    assert data.names("train") == ("train_1", "train_3")
    assert data.names("test") == ("test_1", "test_3", "test_4")


def test_wrong_settings_are_named_together() -> None:
    with pytest.raises(
        ValueError, match=r"augmentation\.flip .*augmentation\.scale .*context_of=another without queries"
    ):
        Halves(augmentation=Augmentation(flip=0.5, scale=(0.5, 1), hue=0.1), context_of="another")
    with pytest.raises(ValueError, match=r"augmentation\.random_subset \(geometry belongs in --data\.crops"):
        Halves(augmentation=Augmentation(random_subset=True))
    with pytest.raises(ValueError, match=r"crops\.flip with helen \(a flip would exchange classes"):
        WeaklySupervisedDataModule(label_space="helen", crops=CropSettings(flip=0.5))
    with pytest.raises(ValueError, match="WeaklySupervisedDataModule has no train images"):
        WeaklySupervisedDataModule().dataset("train")


def test_a_name_may_occur_once_in_a_list() -> None:
    data = Halves()
    data.entries = lambda split: ["train_0", "train_1", "train_0"]
    with pytest.raises(ValueError, match="the train list holds train_0 twice"):
        data.dataset("train")


def test_the_tags_of_all_training_images() -> None:
    data = Halves(train=3)
    data.wrong_tags = {"train_2": frozenset({"cat", "dog"})}
    assert data.train_tags().tolist() == [[1, 0], [0, 1], [1, 1]]
