"""CONTARelationNetwork: labels, rates, the mean displacement in checkpoints, walks that stop at edges, what is refused."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

from structseg.datamodules.label_spaces import label_space
from structseg.lightning_modules.callbacks.checkpoints import BestAndLast
from structseg.lightning_modules.checkpoints.card import KEY, describe_space
from structseg.lightning_modules.conta.relation_network import CONTARelationNetwork
from structseg.losses.affinity_displacement import affinity_displacement_loss
from structseg.losses.multi_scale import resized_labels

SPACE = label_space("voc[cat,dog]")
TINY = "test_resnet"


def module(**settings):
    torch.manual_seed(0)
    given = {"backbone": TINY, "weights": "random", "optimizer": partial(torch.optim.SGD, lr=0.1), "radius": 4}
    return CONTARelationNetwork(SPACE, **{**given, **settings})


def sample(seed, size=(40, 44)):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(size, dtype=torch.int64)
    mask[8:24, 8:28] = 1 + seed % 2
    mask[30:] = 255
    return {
        "image": (torch.rand(3, *size, generator=generator) + (mask > 0)) / 2,
        "mask": mask,
        "tags": F.one_hot(torch.tensor(seed % 2), 2).float(),
        "name": str(seed),
    }


def batch_of(count, **kwargs):
    return torch.utils.data.default_collate([sample(seed, **kwargs) for seed in range(count)])


def loader(count=6, batch=2, **kwargs):
    return DataLoader([sample(seed, **kwargs) for seed in range(count)], batch_size=batch)


def trainer(folder, **settings):
    given = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    quiet = {"enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": folder}
    return Trainer(**{**given, **quiet, **settings})


# Labels


def test_labels_are_reduced_as_the_published_ones(golden):
    content = np.load(golden / "irn_loss.npz", allow_pickle=False)
    for prefix in ("r5", "r10"):
        full, small = (torch.from_numpy(content[f"{prefix}_label_{kind}"]).long() for kind in ("full", "reduced"))
        assert torch.equal(resized_labels(full, tuple(small.shape[-2:])), small)


def test_reduced_labels_by_hand():
    labels = torch.arange(10)[None, None]
    assert resized_labels(labels, (1, 3)).tolist() == [[[1, 5, 8]]]  # centres at 1.67, 5, 8.33
    assert resized_labels(labels, (1, 10)).tolist() == labels.tolist()
    assert resized_labels(labels, (2, 1)).tolist() == [[[5], [5]]]


# Training


def test_the_loss_is_that_of_the_reduced_labels_and_its_terms_are_logged(tmp_path):
    model = module(optimizer=partial(torch.optim.SGD, lr=0.0))
    batch = batch_of(6)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, loader(6, 6), loader(6, 6))
    with torch.no_grad():
        edges, displacement = model.train()(batch["image"])
    expected = affinity_displacement_loss(edges, displacement, resized_labels(batch["mask"], (10, 11)), 4, 3)
    logged = run.logged_metrics
    assert logged["train/loss_epoch"] == pytest.approx(expected.total.item(), rel=1e-5)
    assert logged["val/loss"] == pytest.approx(expected.total.item(), rel=1e-5)
    for name, value in expected._asdict().items():
        if name != "total":
            assert logged[f"train/{name}"] == pytest.approx(value.item(), rel=1e-4)
    assert set(logged) | {"train/loss"} == model.logged_keys()
    assert trainer(tmp_path).test(model, loader(6, 6), verbose=False) == [
        {"test/loss": pytest.approx(expected.total.item(), rel=1e-5)}
    ]


def test_rates_of_the_branches():
    model = module(displacement_lr_factor=10.0)
    optimizer = model.configure_optimizers()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 1.0]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    scheduled = module(lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1)).configure_optimizers()
    assert scheduled["lr_scheduler"]["scheduler"].base_lrs == [0.1, 1.0]


def test_a_fit_learns_and_leaves_the_backbone_alone(tmp_path):
    model = module(optimizer=partial(torch.optim.Adam, lr=0.01))
    before = {key: value.clone() for key, value in model.network.backbone.state_dict().items()}
    run, batch = trainer(tmp_path, max_epochs=6), batch_of(6)
    with torch.no_grad():
        start = model._plain_loss(*model(batch["image"]), resized_labels(batch["mask"], (10, 11))).total.item()
    run.fit(model, loader(6, 2))
    assert run.logged_metrics["train/loss_epoch"] < 0.8 * start
    assert all(torch.equal(value, before[key]) for key, value in model.network.backbone.state_dict().items())
    assert "random weights" in model.notices[0]


# Lightning saves at the end of the epoch, or of a validation where there are several in one.
@pytest.mark.parametrize(("validates", "interval"), [(True, 1.0), (False, 1.0), (True, 0.5)])
def test_checkpoints_hold_the_mean_displacement_of_the_epoch(tmp_path, validates, interval):
    model = module(optimizer=partial(torch.optim.SGD, lr=0.0))
    keep = BestAndLast(monitor="val/loss" if validates and interval == 1 else None, mode="min")
    keep.dirpath = str(tmp_path)
    run = trainer(tmp_path, max_epochs=1, val_check_interval=interval, enable_checkpointing=True, callbacks=[keep])
    run.fit(model, loader(6, 4), loader(2) if validates else None)
    with torch.no_grad():
        _, raw = model.train()(batch_of(6)["image"])  # two unequal batches: pixels count, not batches
    expected = raw.double().mean((0, 2, 3)).float()
    assert expected.abs().min() > 1e-3
    for name in ("best", "last"):
        content = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        torch.testing.assert_close(content["state_dict"]["network.mean_shift"], expected, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        _, shifted = model.eval()(batch_of(6)["image"])
    assert shifted.mean((0, 2, 3)).abs().max() < 1e-4


def test_validation_by_itself_leaves_the_mean_displacement(tmp_path):
    model = module()
    model.network.mean_shift.fill_(3.0)
    model._sums += 1
    trainer(tmp_path).validate(model, loader(2), verbose=False)
    assert model.network.mean_shift.tolist() == [3.0, 3.0]


def test_labels_without_foreground_are_noticed(tmp_path):
    bare = [{**sample(seed), "mask": torch.zeros(40, 44, dtype=torch.int64)} for seed in range(2)]
    for data, found in ((bare, True), ([sample(0), sample(1)], False)):
        model = module()
        trainer(tmp_path, max_epochs=1).fit(model, DataLoader(data, batch_size=2))
        assert any("hold no foreground" in text for text in model.notices) is found


def test_all_ignored_gives_a_zero_loss_and_no_nan(tmp_path):
    empty = [{**sample(0), "mask": torch.full((40, 44), 255)}]
    model, run = module(), trainer(tmp_path, max_epochs=1)
    run.fit(model, DataLoader(empty))
    assert run.logged_metrics["train/loss_epoch"] == 0
    assert all(p.isfinite().all() for p in model.parameters())


# What it starts from


def classifier_checkpoint(path, method="CONTAClassifier", backbone=TINY, mean=(0.5, 0.5, 0.5)):
    from structseg.lightning_modules.networks.backbones import Backbone

    torch.manual_seed(5)
    weights = Backbone(backbone, 16, "random").state_dict()
    state = {f"network.backbone.{key}": value for key, value in weights.items()} | {"network.head": torch.zeros(1)}
    settled = {"mean": list(mean), "std": [0.5] * 3, "initial_weights": "packaged x", "config": {}}
    card = {"method": method, **describe_space(SPACE), **settled}
    torch.save({KEY: card, "state_dict": state}, path)
    return weights


def test_the_classifiers_backbone_is_taken_over(tmp_path):
    weights = classifier_checkpoint(tmp_path / "c.ckpt")
    model = module(init_from=str(tmp_path / "c.ckpt"))
    trainer(tmp_path, max_epochs=1).fit(model, loader(2))
    assert all(torch.equal(value, weights[key]) for key, value in model.network.backbone.state_dict().items())
    assert model.make_card()["initial_weights"] == "CONTAClassifier, from packaged x"
    assert not model.notices


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "CONTASegmenter"}, "init_from takes one of CONTAClassifier"),
        ({"backbone": "test_efficientnet"}, "is another one: .*set --model.backbone"),
        ({"mean": (0.4, 0.5, 0.5)}, "set --data.mean"),
    ],
)
def test_what_is_not_taken_over(tmp_path, wrong, message):
    classifier_checkpoint(tmp_path / "c.ckpt", **wrong)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, max_epochs=1).fit(module(init_from=str(tmp_path / "c.ckpt")), loader(2))
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        trainer(tmp_path, max_epochs=1).fit(module(init_from=str(tmp_path / "none.ckpt")), loader(2))


def test_a_resumed_fit_reads_no_classifier(tmp_path):
    classifier_checkpoint(tmp_path / "c.ckpt")
    model = module(init_from=str(tmp_path / "c.ckpt"))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, loader(2))
    run.save_checkpoint(tmp_path / "r.ckpt")
    (tmp_path / "c.ckpt").unlink()
    again = module(init_from=str(tmp_path / "c.ckpt"))
    trainer(tmp_path, max_epochs=2).fit(again, loader(2), ckpt_path=str(tmp_path / "r.ckpt"), weights_only=True)
    assert again.initial_weights == "CONTAClassifier, from packaged x"


# Prediction


class Drawn(nn.Module):
    """Edges are what is drawn white in the image."""

    def __init__(self):
        super().__init__()
        self.backbone = SimpleNamespace(strides=(2, 4, 8, 16, 16))
        self.weight = nn.Parameter(torch.ones(()))
        self.sizes = []

    def forward(self, image):
        self.sizes.append(tuple(image.shape[-2:]))
        edges = 60 * F.max_pool2d(image[:, :1], 4, ceil_mode=True)  # normalised: -1 or 1
        return self.weight * edges, torch.zeros(len(image), 2, *edges.shape[-2:])


def ring(height=96, width=112, name="a"):
    """A closed white line, one cell of the map wide, around the map's cells 6..13 x 8..17; a seed of `dog` inside."""
    cells = torch.zeros(-(-height // 4), -(-width // 4))
    cells[5:15, 7:19] = 1
    cells[6:14, 8:18] = 0
    image = cells.repeat_interleave(4, 0).repeat_interleave(4, 1)[:height, :width]
    cams = torch.zeros(2, *cells.shape)
    cams[1, 9:11, 10:12] = 1.0
    return {"image": image.expand(1, 3, -1, -1), "cams": [cams], "tags": torch.tensor([[0.0, 1.0]]), "name": [name]}


def drawn(**settings):
    model = module(**settings)
    model.network = Drawn()
    return model.eval()


@pytest.mark.parametrize("size", [(96, 112), (95, 109)])
def test_maps_fill_what_edges_close_and_go_no_further(size):
    mask = drawn().predict_step(ring(*size), 0)["pseudo_masks"][0]
    assert mask.shape == size
    assert mask.dtype == torch.uint8
    assert (mask[25:55, 33:71] == 2).all()  # inside, but for the half cell that is enlarged across the line
    outside = torch.ones(size, dtype=torch.bool)
    outside[20:60, 28:76] = False
    assert not mask[outside].any()


def test_without_the_line_they_go_further():
    batch = ring()
    batch["image"] = torch.zeros_like(batch["image"])
    assert drawn().predict_step(batch, 0)["pseudo_masks"][0][:20].any()


def test_only_classes_of_the_tags_are_spread_and_size_may_be_off_by_one():
    batch = ring(95, 109)
    cams = F.pad(batch["cams"][0], (0, 1))
    cams[0] = 1.0  # strong, everywhere, but of no tag
    batch["cams"] = [cams]
    mask = drawn().predict_step(batch, 0)["pseudo_masks"][0]
    assert sorted(mask.unique().tolist()) == [0, 2]


def test_images_of_a_batch_do_not_touch():
    alone = [ring(), ring(name="b")]
    alone[1]["image"] = alone[1]["image"].roll(8, -1)
    alone[1]["tags"], alone[1]["cams"] = torch.tensor([[1.0, 0.0]]), [alone[1]["cams"][0].roll((1, 2), (0, 2))]
    both = {
        "image": torch.cat([one["image"] for one in alone]),
        "tags": torch.cat([one["tags"] for one in alone]),
        "cams": alone[0]["cams"] + alone[1]["cams"],
        "name": ["a", "b"],
    }
    found = drawn().predict_step(both, 0)["pseudo_masks"]
    for mask, one in zip(found, alone, strict=True):
        assert torch.equal(mask, drawn().predict_step(one, 0)["pseudo_masks"][0])
    assert found[1].unique().tolist() == [0, 1]


def test_edges_are_averaged_with_the_mirror_image_on_whole_cells():
    class Ramp(Drawn):  # logit = column of the map, of the image as it is seen
        def forward(self, image):
            self.sizes.append(tuple(image.shape[-2:]))
            h, w = image.shape[-2] // 4, image.shape[-1] // 4
            return torch.arange(float(w)).expand(len(image), 1, h, w), torch.zeros(len(image), 2, h, w)

    model = module()
    model.network = Ramp()
    edges = model.edges(torch.rand(1, 3, 30, 45))
    assert model.network.sizes == [(32, 48)] * 2
    assert edges.shape == (1, 8, 12)
    torch.testing.assert_close(edges, torch.full((1, 8, 12), 5.5).sigmoid())  # (c + 11 - c) / 2


def test_a_whole_prediction(tmp_path):
    images = [ring(), ring(name="b"), ring(name="c")]
    images[1]["cams"] = [torch.zeros_like(images[1]["cams"][0])]
    images[2]["tags"] = torch.zeros(1, 2)
    model = drawn()
    found = trainer(tmp_path).predict(model, DataLoader(images, batch_size=None))
    assert [bool(each["pseudo_masks"][0].any()) for each in found] == [True, False, False]
    scores, objects, mask = (found[0][key][0] for key in ("scores", "objects", "pseudo_masks"))
    assert torch.equal(mask, objects * (scores > model.walk_background))
    assert scores.max() == 1


def test_a_real_network_predicts(tmp_path):
    batch = {**ring(), "cams": [torch.rand(2, 24, 28)]}
    found = trainer(tmp_path).predict(module(), DataLoader([batch], batch_size=None))
    assert found[0]["pseudo_masks"][0].shape == (96, 112)


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"original": [torch.zeros(3, 9, 9)]}, "predict these with CONTASegmenter"),
        ({"cams": None}, "no cams, .*set --data.cams"),
        ({"tags": None}, "no tags"),
        ({"cams": [torch.zeros(20, 24, 28)]}, "cams of a are of 20 classes, .* has 2 beside"),
        (
            {"image": torch.full((1, 3, 96, 112), torch.nan)},
            "^the logits of a are not finite; the training has diverged",
        ),
    ],
)
def test_predictions_that_are_refused(change, message):
    batch = {key: value for key, value in {**ring(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message) as error:
        drawn().predict_step(batch, 0)
    assert "\n" not in str(error.value)


def test_batches_that_are_refused(tmp_path):
    bare = [{key: value for key, value in sample(0).items() if key != "mask"}]
    with pytest.raises(ValueError, match=r"the train batch has no masks.*set --data\.masks"):
        trainer(tmp_path).fit(module(), DataLoader(bare))
    with pytest.raises(ValueError, match="the val batch has no masks"):
        trainer(tmp_path).validate(module(), DataLoader(bare), verbose=False)
    small = "images of 36 x 72 have maps of 9 x 18; pairs of radius 10 need 10 x 19, so images of 37 x 73 or more;"
    with pytest.raises(ValueError, match=small):
        trainer(tmp_path).fit(module(radius=10), loader(1, 1, size=(36, 72)))
    trainer(tmp_path, max_epochs=1).fit(module(radius=10), loader(1, 1, size=(37, 73)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"radius": 1},
        {"walk_radius": 1},
        {"beta": 0.0},
        {"log2_steps": -1},
        {"displacement_lr_factor": 0.0},
        {"walk_background": 1.0},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} .*{next(iter(wrong.values()))}"):
        module(**wrong)


@pytest.mark.parametrize("verb", ["validation", "test"])
def test_an_evaluation_that_is_no_number_is_refused(verb):
    with pytest.raises(ValueError, match=r"^the logits of a are not finite"):
        getattr(drawn(), f"{verb}_step")({**ring(), "image": torch.full((1, 3, 96, 112), torch.nan)}, 0)


def test_masks_that_are_missing_have_the_remedy_of_their_split():
    batch = {key: value for key, value in ring().items() if key != "mask"}
    with pytest.raises(ValueError, match=r"the train batch has no masks.*folder of relation_labels"):
        drawn().training_step(batch, 0)
    with pytest.raises(ValueError, match=r"the test batch has no masks.*give a split or a list of images that have"):
        drawn().test_step(batch, 0)


def test_pairs_of_unknown_classes():
    with pytest.raises(ValueError, match="pair cat / mouse is not two of"):
        module(pairs=[("cat", "mouse")])
