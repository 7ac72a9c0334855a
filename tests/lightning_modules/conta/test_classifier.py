"""CONTA's classifier: what it needs, what it logs, what it hands on, and what it refuses."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentError
from pytorch_lightning import LightningDataModule, Trainer
from torch.optim import SGD
from torch.utils.data import DataLoader

from structseg.datamodules.label_spaces import LabelSpace
from structseg.datamodules.round_files import TRUE_MASKS
from structseg.lightning_modules.checkpoints.card import read_card
from structseg.lightning_modules.checkpoints.from_card import module_from_card
from structseg.lightning_modules.conta.class_activation import class_activation_maps
from structseg.lightning_modules.conta.classifier import CONTAClassifier
from structseg.lightning_modules.conta.settings import AdjustmentSettings, CAMSettings, ContextSettings, PoolingSettings
from structseg.lightning_modules.metrics.tag_scores import TagScores
from structseg.lightning_modules.networks.context import seen_through
from structseg.lightning_modules.networks.mask_pooling import centre_blob, mask_pooled

SPACE = LabelSpace("pets", ("background", "cat", "dog", "cow"), ((0, 0, 0), (9, 0, 0), (0, 9, 0), (0, 0, 9)))
SIZE = (4, 4)


def _confounders(path, classes=SPACE.classes[1:], maps=None, images=(3, 2, 0), origin=None):
    if maps is None:
        maps = np.random.default_rng(0).random((3, *SIZE)).astype(np.float32)
        maps[2] = 0
    content = {"confounders": maps, "classes": np.array(classes)}
    if origin is not None:
        content["origin"] = np.array(origin)
    np.savez(path, **content, **({} if images is None else {"images": np.array(images)}))
    return str(path)


def _made(context="none", **options):
    torch.manual_seed(0)
    given = {"backbone": "test_resnet", "weights": "random", "cam": CAMSettings((1.0, 0.5))}
    if isinstance(context, str):
        context = ContextSettings(context, size=SIZE)
    return CONTAClassifier(SPACE, context=context, **{**given, **options})


def _class(**options):
    given = {"backbone": "test_resnet", "weights": "random", "cam": {"scales": [1.0, 0.5]}}
    return {"class_path": f"{CONTAClassifier.__module__}.CONTAClassifier", "init_args": {**given, **options}}


def _batch(count=2, context=False, **more):
    generator = torch.Generator().manual_seed(3)
    batch = {
        "image": torch.rand(count, 3, 48, 32, generator=generator),
        "tags": torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])[:count],
        "name": ["a", "b"][:count],
        **more,
    }
    if context:
        batch["context"] = torch.rand(count, 4, *SIZE, generator=generator).softmax(1)
    return {key: value for key, value in batch.items() if value is not None}


class _Data(LightningDataModule):
    def __init__(self, batch, context_of="own", queries=None):
        super().__init__()
        self.batch, self.context_of, self.queries, self.batch_size = batch, context_of, queries, 2

    def train_samples(self, most):
        parts = {key: value for key, value in self.batch.items() if key != "name"}
        return [{key: value[i] for key, value in parts.items()} for i in range(min(most, len(self.batch["image"])))]

    def train_tags(self):
        return torch.tensor([[1.0, 1.0, 0.0]] * 6 + [[0.0, 0.0, 1.0]] * 3 + [[0.0, 0.0, 0.0]])

    def _loader(self):
        return DataLoader([self.batch], batch_size=None)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader


def _trainer(tmp_path, **options):
    given = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(default_root_dir=tmp_path, accelerator="cpu", enable_model_summary=False, **{**given, **options})


def _fit(module, data, tmp_path, **options):
    trainer = _trainer(tmp_path, **options)
    trainer.fit(module, data)
    return trainer


def test_the_loss_is_the_multi_label_soft_margin():
    module = _made(pooling="c2am")
    batch = _batch()
    logits = module(batch["image"]).double()
    tags = batch["tags"]
    expected = -(tags * torch.log(logits.sigmoid()) + (1 - tags) * torch.log(1 - logits.sigmoid())).mean()
    module.log = lambda *args, **kwargs: None
    torch.testing.assert_close(module.training_step(batch, 0)["loss"].double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("of", ["own", "another"])
def test_a_tag_offset_is_for_the_training_alone_and_travels_in_the_checkpoint(of, tmp_path):
    adjustment = AdjustmentSettings("tag_offset", offset_of=of, ridge=0.01)
    module, batch = _made(adjustment=adjustment), _batch()
    path = _saved(module, tmp_path, _Data(batch))
    card = read_card(path)
    assert card["company"]["ridge"] == pytest.approx(0.01)
    assert card["company"]["explains"]["cat"] == {"dog": pytest.approx(float(module.loss.coefficients[1, 0]), abs=1e-4)}
    assert card["company"]["explains"]["cow"] == {}
    assert module.about()["company/cat/dog"] == card["company"]["explains"]["cat"]["dog"]
    again = module_from_card(CONTAClassifier, {**card, "config": {"model": _class(adjustment=vars(adjustment))}}, SPACE)
    again.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    assert torch.equal(again.loss.coefficients, module.loss.coefficients)
    again.eval()
    plain = _made().eval()
    plain.load_state_dict({key: value for key, value in again.state_dict().items() if not key.startswith("loss.")})
    for one, other in zip(again.predict_step(batch, 0)["cams"], plain.predict_step(batch, 0)["cams"], strict=True):
        assert torch.equal(one, other)
    again.log = lambda *args, **kwargs: None
    logits = plain(batch["image"]).detach()
    soft = torch.nn.functional.multilabel_soft_margin_loss
    assert torch.equal(again.validation_step(batch, 0)["loss"], soft(logits, batch["tags"]))
    offsets = again.loss.offsets(batch["tags"])[[0, 1] if of == "own" else [1, 0]]
    torch.testing.assert_close(again.training_step(batch, 0)["loss"], soft(logits + offsets, batch["tags"]))
    with pytest.raises(ValueError, match=r"has adjustment tag_offset, not none; set --model\.adjustment"):
        _made().on_load_checkpoint({"structseg": card})
    card["classifier"].pop("adjustment")
    _made().on_load_checkpoint({"structseg": card})  # from before there was one


def test_tag_scores_by_hand():
    scores = TagScores(("cat", "dog", "cow"))
    # cat, ranked: yes, no, yes, no -> (1 + 2/3) / 2; dog: no, yes, no, no -> 1/2
    scores.update(torch.tensor([[0.9, 0.4, 0.1], [0.8, 0.9, 0.2]]), torch.tensor([[1.0, 0, 0], [0.0, 0, 0]]))
    scores.update(torch.tensor([[0.7, 0.8, 0.3], [0.1, 0.2, 0.4]]), torch.tensor([[1.0, 1, 0], [0.0, 0, 0]]))
    found = {key: float(value) for key, value in scores.compute().items()}
    assert found["ap/cat"] == pytest.approx(5 / 6)
    assert found["ap/dog"] == pytest.approx(1 / 2)
    assert math.isnan(found["ap/cow"])
    assert found["map"] == pytest.approx(2 / 3)
    assert found["absent_classes"] == 1
    assert tuple(found) == scores.metric_keys
    assert math.isnan(TagScores(("cat",)).compute()["map"])
    with pytest.raises(ValueError, match="expected \\(N, 3\\) twice"):
        scores.update(torch.zeros(2, 2), torch.zeros(2, 2))


@pytest.mark.parametrize("context", ["none", "sum", "mean", "constant", "placebo"])
def test_every_context_learns_and_logs_what_it_says(context, tmp_path):
    asks = context in ("sum", "placebo")
    path = _confounders(tmp_path / "confounders.npz") if asks or context == "mean" else None
    module = _made(context, confounders=path)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    view = torch.tensor([[[-0.5, 0.0, 0.1], [0.0, 0.6, 0.0]]]).expand(2, 2, 3)
    data = _Data(_batch(context=asks, crop=view), "another" if context == "placebo" else "own")
    trainer = _fit(module, data, tmp_path)
    logged = set(trainer.logged_metrics) | set(trainer.callback_metrics)
    assert logged == module.logged_keys()
    assert trainer.callback_metrics["val/absent_classes"] == 1
    after = module.state_dict()
    assert not torch.equal(after["network.head.weight"], before["network.head.weight"])
    trainer.test(module, data, verbose=False)
    assert {key.replace("val/", "test/") for key in module.logged_keys() if key.startswith("val/")} == set(
        trainer.callback_metrics
    )
    if asks:
        assert torch.equal(after["network.context.confounders"], torch.from_numpy(np.load(path)["confounders"]))
        assert any("no image of the last round holds cow" in text for text in module.notices)
        assert module.make_card()["notices"] == module.notices


def test_w1_and_w2_and_the_view_take_part(tmp_path):
    module = _made("sum")
    module.network.context.confounders.uniform_()
    module.log = lambda *args, **kwargs: None
    batch = _batch(context=True)
    module.network.start_context(module.normalized(batch["image"]), batch["context"])
    whole = module.training_step(batch, 0)["loss"]
    whole.backward()
    assert module.network.context.w1.grad.abs().sum() > 0
    view = torch.tensor([[[0.3, 0.0, 0.6], [0.0, 0.3, 0.6]]]).expand(2, 2, 3)
    assert module.training_step({**batch, "crop": view}, 0)["loss"] != whole


def test_new_layers_have_their_rate():
    module = _made("sum", optimizer=partial(SGD, lr=0.02), head_lr_factor=5)
    old, new, attention = module.configure_optimizers().param_groups
    assert (old["lr"], new["lr"], attention["lr"]) == (0.02, 0.1, 0.1 / 4)  # of 4 x 4 cells
    network = module.network
    assert {id(p) for p in new["params"]} == {id(p) for p in [network.head.weight, network.fusion.v]}
    assert [id(p) for p in attention["params"]] == [id(network.context.w1), id(network.context.w2)]
    assert any(p is network.fusion.convolution.weight for p in old["params"])  # the identity on the trunk's features
    assert len(old["params"]) + len(new["params"]) + 2 == len(list(module.parameters()))
    assert len(_made().configure_optimizers().param_groups) == 2


def test_confounders_are_of_the_queries_that_come_with_them(tmp_path):
    path = _confounders(tmp_path / "c.npz", origin="0ne")
    data = _Data(_batch(context=True))
    for known in ("0ne", None):
        data.query_origin = known
        _fit(_made("sum", confounders=path), data, tmp_path)
    data.query_origin = "0ther"
    _fit(_made("sum", confounders=_confounders(tmp_path / "old.npz")), data, tmp_path)
    with pytest.raises(ValueError, match=r"c\.npz is of masks 0ne, --data\.queries of 0ther; give .* one round") as got:
        _fit(_made("sum", confounders=path), data, tmp_path)
    assert "\n" not in str(got.value)


def _moved(module, data, tmp_path):
    before = {key: value.clone() for key, value in module.state_dict().items()}
    _fit(module, data, tmp_path, max_epochs=3)  # the residual blocks of this network start at 0
    return {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}


@pytest.mark.parametrize("resumed", [False, True])
def test_frozen_batch_norm_keeps_its_statistics_and_learns_its_scales(resumed, tmp_path):
    module = _made(batch_norm="frozen")
    if resumed:
        module.eval()
        module.train()
    moved = _moved(module, _Data(_batch()), tmp_path)
    norms = [name for name, part in module.named_modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(module.get_submodule(name).training for name in norms)
    assert not {key for key in moved if "running" in key or "batches_tracked" in key}
    assert {f"{name}.{part}" for name in norms for part in ("weight", "bias")} <= moved
    assert module.training
    usual = _moved(_made(), _Data(_batch()), tmp_path)
    assert {f"{name}.running_mean" for name in norms} <= usual


@pytest.mark.parametrize("backbone", ["test_resnet", "torchvision/resnet18", "tf_efficientnet_lite0"])
def test_frozen_stages_stand_still_and_the_others_learn(backbone, tmp_path):
    module = _made(batch_norm="frozen", frozen_stages=3, backbone=backbone)
    names = {name for name, _ in module.network.backbone.named_parameters()}
    frozen = {name for name, one in module.network.backbone.named_parameters() if not one.requires_grad}
    first = {
        "test_resnet": ("conv1", "bn1", "layer1", "layer2"),
        "torchvision/resnet18": ("conv1", "bn1", "layer1", "layer2"),
        "tf_efficientnet_lite0": ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"),
    }[backbone]
    assert frozen == {name for name in names if name.startswith(tuple(f"network.{part}." for part in first))}
    if backbone == "test_resnet":
        moved = _moved(module, _Data(_batch()), tmp_path)
        learnt = {key.removeprefix("network.backbone.") for key in moved}
        assert not learnt & frozen
        assert names - frozen <= learnt
    assert all(one.requires_grad for one in _made(backbone=backbone).parameters())


def test_logits_of_a_fit_are_pooled_over_the_images_own_masks(tmp_path):
    module, seen = _made(pooling=PoolingSettings("masks", 0.75)), torch.zeros(2, 4, *SIZE)
    seen[:, 0], seen[0, 0, :2], seen[0, 1, :2] = 1, 0, 1  # image 0 holds class 1 in its upper half, 1 holds nothing
    view = torch.tensor([[[1.0, 0, 0], [0, 0.5, -0.5]]]).expand(2, 2, 3)  # the upper half alone
    batch = {**_batch(), "context": seen}
    activation = module.network.activation(module.normalized(batch["image"])).detach()
    plain = activation.mean((2, 3))
    masks = seen_through(seen, None, tuple(activation.shape[2:]))[:, 1:]
    said = []
    module.loss.register_forward_pre_hook(lambda _, given: said.append(given[0].detach()))
    module.log = lambda *args, **kwargs: None
    module.training_step(batch, 0)
    module.training_step({**batch, "crop": view}, 0)
    torch.testing.assert_close(said[0], mask_pooled(activation, masks, 0.75))
    assert not torch.allclose(said[0][0, 0], plain[0, 0], rtol=0.01)
    torch.testing.assert_close(said[0][0, 1:], plain[0, 1:])
    torch.testing.assert_close(said[0][1], plain[1])
    torch.testing.assert_close(said[1], plain, atol=0.01, rtol=0)  # the class fills the view, but for half a cell
    assert (said[1] - said[0])[0, 0].abs() > 0.02
    torch.testing.assert_close(module(batch["image"]), plain)  # validation, maps
    with pytest.raises(ValueError, match=r"pooling masks needs the last round's segmentation .* set --data.queries"):
        _fit(_made(pooling="masks"), _Data(_batch()), tmp_path, num_sanity_val_steps=0)
    _fit(_made(pooling="masks"), _Data(_batch(context=True), "another_of_class"), tmp_path)  # its control


def test_the_centre_blob_is_for_the_tags_of_a_training_and_follows_the_crop():
    module, batch = _made(pooling=PoolingSettings("centre", 0.75)), _batch()
    activation = module.network.activation(module.normalized(batch["image"])).detach()
    said = []
    module.loss.register_forward_pre_hook(lambda _, given: said.append(given[0].detach()))
    module.log = lambda *args, **kwargs: None
    module.training_step(batch, 0)
    module.training_step({**batch, "crop": torch.tensor([[[0.2, 0, 0.8], [0, 0.2, 0.8]]]).expand(2, 2, 3)}, 0)
    places = seen_through(centre_blob().expand(2, 3, -1, -1), None, tuple(activation.shape[2:]))
    torch.testing.assert_close(said[0], mask_pooled(activation, places * batch["tags"][:, :, None, None], 0.75))
    assert torch.equal(said[0][0, 1:], activation.mean((2, 3))[0, 1:])  # of classes that the tags lack
    assert (said[1] - said[0])[0, 0].abs() > 1e-3
    torch.testing.assert_close(module(batch["image"]), activation.mean((2, 3)))


def test_the_wrong_source_of_masks_is_refused(tmp_path):
    path = _confounders(tmp_path / "c.npz")
    with pytest.raises(ValueError, match="placebo needs the masks of another image, the data give those of own"):
        _fit(_made("placebo", confounders=path), _Data(_batch(context=True)), tmp_path)
    for given in ("another", "another_of_class"):
        with pytest.raises(
            ValueError, match=rf"sum needs the masks of own image, .*{given}; set --data.context_of own"
        ):
            _fit(_made("sum", confounders=path), _Data(_batch(context=True), given), tmp_path)
    _fit(_made("placebo", confounders=path), _Data(_batch(context=True), "another_of_class"), tmp_path)


@pytest.mark.parametrize(
    ("module", "batch", "message"),
    [
        ({"context": "sum"}, {"context": True}, "sum needs the confounders of the last round; set --model.confounders"),
        ({"pooling": "c2am"}, {}, "c2am needs cams of an earlier round; set --model.global_cams"),
        ({}, {"tags": None}, "the batch has no tags, CONTAClassifier needs 3 an image"),
        ({}, {"tags": torch.zeros(2, 4)}, r"has tags of shape \(2, 4\), CONTAClassifier needs 3"),
    ],
)
def test_what_is_missing_is_named(module, batch, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        _fit(_made(**module), _Data(_batch(**batch)), tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_queries_are_named_in_training_and_noticed_in_validation(tmp_path):
    module = _made("sum", confounders=_confounders(tmp_path / "c.npz"))
    with pytest.raises(ValueError, match=r"the batch lacks; set --data.queries"):
        _fit(module, _Data(_batch()), tmp_path, num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match="mean of the confounders"):
        _trainer(tmp_path).validate(module, _Data(_batch()), verbose=False)
    with pytest.raises(ValueError, match=r"set --data\.queries"):
        module.predict_step(_batch(), 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"classes": ("cat", "cow", "dog")}, "has the classes cat, cow, dog, the data cat, dog, cow"),
        ({"maps": np.zeros((3, 8, 8), np.float32)}, r"shape \(3, 8, 8\), expected \(3, 4, 4\); set --model.context"),
        ({"maps": np.full((3, 4, 4), np.nan, np.float32)}, "not in 0..1"),
        ({"images": (1, 2)}, "has confounders of shape"),
        ({"images": None}, "is damaged .*images"),
        ({"classes": np.array(["cat", "dog", "cow"], dtype=object)}, "is damaged .*pickled objects"),
    ],
)
def test_confounders_that_do_not_fit(given, message, tmp_path):
    path = _confounders(tmp_path / "c.npz", **given)
    with pytest.raises(ValueError, match=message) as caught:
        _made("sum", confounders=path).setup("fit")
    assert "\n" not in str(caught.value)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*c\.npz; run structseg pipeline FILE --until .*/masks$"):
        _made("sum", confounders=str(tmp_path / "c.npz")).setup("fit")
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(ValueError, match=r"c\.npz is damaged"):
        _made("sum", confounders=str(tmp_path / "c.npz")).setup("fit")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cam": CAMSettings(())}, r"cam.scales=\(\)"),
        ({"cam": CAMSettings((1.0, 0.0))}, "cam.scales"),
        ({"cam": CAMSettings(threshold=1.0), "head_lr_factor": 0}, "cam.threshold=1.0 .*, head_lr_factor=0"),
        ({"cam": CAMSettings(relation_thresholds=(0.1, 0.2))}, r"cam.relation_thresholds=\(0.1, 0.2\)"),
        ({"confounders": "c.npz"}, "confounders with context=none"),
        ({"global_cams": "cams"}, "global_cams with pooling=mean"),
        ({"context": ContextSettings("sum", position=7)}, "context_position is 7"),
        ({"context": ContextSettings("sum", position=4)}, "context_position is 4, after which only .* give 1 to 3"),
        ({"batch_norm": "off"}, "batch_norm=off .train or frozen"),
        ({"frozen_stages": 6}, "frozen_stages=6 .0 to 5"),
        ({"adjustment": "offset"}, "adjustment=offset .none or tag_offset"),
        ({"adjustment": AdjustmentSettings("tag_offset", cap=0)}, "cap=0 .above 0"),
        ({"adjustment": "tag_offset", "loss": torch.nn.BCEWithLogitsLoss()}, "loss=BCE.* with adjustment=tag_offset"),
    ],
)
def test_wrong_settings(given, message):
    with pytest.raises(ValueError, match=message):
        _made(**given)


def test_cams_of_a_split_are_those_of_the_tags():
    module, batch = _made().eval(), _batch()
    with torch.no_grad():
        module.network.head.weight.abs_()  # features are never negative: every class is active somewhere
        found = module.predict_step(batch, 0)["cams"]
        whole = class_activation_maps(module.network, module.normalized(batch["image"]), None, (1.0, 0.5))
    assert [tuple(cams.shape) for cams in found] == [(3, 12, 8)] * 2
    for cams, tags, expected in zip(found, batch["tags"], whole, strict=True):
        for klass, tag in enumerate(tags):
            torch.testing.assert_close(cams[klass], expected[klass] * tag)
    assert found[0][0].max() == 1


@pytest.mark.parametrize("verb", ["validation", "test"])
def test_logits_that_are_no_numbers_are_not_scored(verb):
    module = _made().eval()
    with torch.no_grad():
        module.network.head.weight[0] = torch.nan
        with pytest.raises(ValueError, match=r"^the logits of a, b are not finite; .* lower learning rate$"):
            getattr(module, f"{verb}_step")(_batch(), 0)
        with pytest.raises(ValueError, match=r"^the logits of a, b are not finite"):
            module.predict_step({**_batch(), "original": [torch.rand(3, 9, 9)] * 2}, 0)


def test_pairs_are_checked_before_anything_runs():
    with pytest.raises(ValueError, match="pair cat / mouse is not two of background, cat, dog, cow"):
        _made(pairs=[("cat", "mouse")])
    assert _made(pairs=[["cat", "dog"]]).pairs == (("cat", "dog"),)


def test_maps_that_are_not_finite_stop_the_prediction():
    module = _made().eval()
    with torch.no_grad():
        module.network.head.weight[0] = torch.nan
        with pytest.raises(ValueError, match="activation maps of a, b are not finite"):
            module.predict_step(_batch(), 0)


def test_a_photograph_gets_a_class_map_at_its_size():
    module = _made(cam=CAMSettings((1.0, 0.5), threshold=0.6)).eval()
    batch = _batch(tags=None, original=[torch.rand(3, 24, 16), torch.rand(3, 97, 61)])
    with torch.no_grad():
        module.network.head.weight.abs_()
        module.network.head.weight[1] *= -1  # the second class is unlikely, the others likely
        likely = module(batch["image"]).sigmoid() > 0.5
        assert likely.tolist() == [[True, False, True]] * 2
        found = module.predict_step(batch, 0)
        cams = class_activation_maps(module.network, module.normalized(batch["image"]), None, (1.0, 0.5))
    assert [(tuple(one.shape), one.dtype) for one in found] == [((24, 16), torch.uint8), ((97, 61), torch.uint8)]
    small = torch.nn.functional.interpolate(cams[:1], (24, 16), mode="bilinear", align_corners=False)[0]
    best = torch.where(small[0] >= small[2], 1, 3)
    expected = torch.where(torch.maximum(small[0], small[2]) > 0.6, best, 0)
    assert torch.equal(found[0].long(), expected)
    assert set(found[0].unique().tolist()) <= {0, 1, 3}


def _saved(module, tmp_path, data=None):
    trainer = _fit(module, data or _Data(_batch(context=True)), tmp_path)
    path = tmp_path / "made.ckpt"
    trainer.save_checkpoint(path)
    return path


def test_a_checkpoint_alone_knows_the_confounders(tmp_path):
    module = _made("sum", confounders=_confounders(tmp_path / "c.npz"))
    path = _saved(module, tmp_path)
    (tmp_path / "c.npz").unlink()
    assert read_card(path)["classifier"]["context"] == "sum"  # weights_only
    again = _made("sum")
    data = _Data(_batch(context=True), queries="queries")
    out = _trainer(tmp_path).predict(again, data, ckpt_path=path, weights_only=True)
    with torch.no_grad():
        expected = module.eval().predict_step(_batch(context=True), 0)
    for found, cams in zip(out[0]["cams"], expected["cams"], strict=True):
        torch.testing.assert_close(found, cams)


def test_without_confounders_nothing_is_predicted(tmp_path):
    with pytest.raises(ValueError, match="sum has no confounders, all are zero; give --ckpt_path"):
        _trainer(tmp_path).predict(_made("sum"), _Data(_batch(context=True)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"context": "placebo"}, "classifier has context sum, not placebo; set --model.context"),
        ({"context": "none"}, "context sum, not none"),
        ({"context": ContextSettings("sum", 2, size=SIZE)}, "context.position 3, not 2; set --model.context.position"),
        ({"context": ContextSettings("sum", query="classes", size=SIZE)}, "context.query foreground, not classes"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(given, message, tmp_path):
    module = _made("sum", confounders=_confounders(tmp_path / "c.npz"))
    checkpoint = {"structseg": module.make_card()}
    with pytest.raises(ValueError, match=message):
        _made(**given).on_load_checkpoint(checkpoint)
    _made("sum").on_load_checkpoint(checkpoint)
    checkpoint["structseg"]["classifier"]["context.scale"] = True  # as it was once written
    with pytest.raises(
        ValueError, match="context map has an earlier form, which had no effect and was removed; train again"
    ):
        _made("sum").on_load_checkpoint(checkpoint)
    old = {"structseg": _made().make_card()}
    old["structseg"]["classifier"]["context.position"] = 4
    _made().on_load_checkpoint(old)  # without a context it has no place


def test_the_manipulation_check_of_a_prediction(tmp_path):
    module = _made("sum", confounders=_confounders(tmp_path / "c.npz"))
    batch = _batch(context=True)
    trainer = _fit(module, _Data(batch), tmp_path)
    module.eval()
    first, second = (module.predict_step(batch, 0)["moved"] for _ in range(2))
    with torch.no_grad():
        own, other = (module(batch["image"], context) for context in (batch["context"], batch["context"].flip(0)))
        torch.testing.assert_close(first[0], own)
        torch.testing.assert_close(first[2], other)  # of two images, the one before is the other one
        zeroed = module.network.with_map(module.normalized(batch["image"]), torch.zeros(2, 1, *SIZE)).mean((2, 3))
    torch.testing.assert_close(first[1], zeroed)
    torch.testing.assert_close(second[2], first[2])
    one = {**batch, **{key: batch[key][:1] for key in ("image", "tags", "context")}}
    module._trainer = trainer
    module.on_predict_start()
    assert module.predict_step(one, 0)["moved"][2] is None  # a first image by itself
    assert module.predict_step(one, 1)["moved"][2] is not None
    assert "moved" not in _made().eval().predict_step(_batch(), 0)
    assert _made("constant").eval().predict_step(_batch(), 0)["moved"][2] is None


@pytest.mark.parametrize("known", [{"masks": "truth"}, {"query_notices": (TRUE_MASKS,)}])
def test_class_maps_of_true_masks_would_leak_the_labels(known, tmp_path):
    module = _made(ContextSettings("sum", query="classes", size=SIZE), confounders=_confounders(tmp_path / "c.npz"))
    data = _Data(_batch(context=True))
    vars(data).update(known)
    with pytest.raises(
        ValueError, match=r"context\.query classes with true masks hands the classifier its own labels"
    ) as got:
        _fit(module, data, tmp_path)
    assert "\n" not in str(got.value)


def _cams_folder(folder, classes=SPACE.classes, kind="cams"):
    folder.mkdir()
    for name, present, value in (("a", [1], 255), ("b", [1, 3], 51), ("c", [], 0)):
        np.savez_compressed(
            folder / f"{name}.npz",
            cams=np.full((len(present), 5, 6), value, np.uint8),
            classes=np.array(present, np.uint8),
            size=np.array([20, 24], np.int32),
        )
    (folder / "about.json").write_text(json.dumps({"kind": kind, "classes": list(classes)}))
    return str(folder)


def test_c2am_starts_from_an_earlier_classifier_and_its_global_map(tmp_path):
    first = _saved(_made(), tmp_path, _Data(_batch()))
    module = _made(pooling="c2am", global_cams=_cams_folder(tmp_path / "cams"), init_from=str(first))
    module.setup("fit")
    # cat: (1 + 0.2) / 3 images, dog: none, cow: 0.2 / 3
    expected = torch.tensor([0.4, 0.0, 0.2 / 3])[:, None, None].expand(3, 128, 128)
    torch.testing.assert_close(module.network.global_cams, expected)
    assert any("has a map of dog: c2am does not train it" in text for text in module.notices)
    weights = torch.load(first, weights_only=True)["state_dict"]
    assert torch.equal(module.network.head.weight, weights["network.head.weight"])
    assert module.initial_weights == f"checkpoint {first}"
    _fit(module, _Data(_batch()), tmp_path)
    assert not any("random weights" in text for text in module.notices)


def test_global_cams_that_do_not_fit(tmp_path):
    (tmp_path / "none").mkdir()
    wrong = {
        str(tmp_path / "none"): (FileNotFoundError, "holds no finished cams"),
        _cams_folder(tmp_path / "x", SPACE.classes[:3]): (ValueError, "holds cams of cat, dog, expected cams of cat"),
        _cams_folder(tmp_path / "y", kind="masks"): (ValueError, "holds masks"),
    }
    for folder, (error, message) in wrong.items():
        with pytest.raises(error, match=message):
            _made(pooling="c2am", global_cams=folder).setup("fit")


def test_random_weights_and_another_batch_are_noticed(tmp_path):
    module = _made(recipe_batch=16)
    _fit(module, _Data(_batch()), tmp_path)
    assert any("random weights" in text for text in module.notices)
    assert any("the recipe has 16" in text for text in module.notices)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pooling": PoolingSettings("masks", -0.5)}, r"pooling=masks, share -0.5 \(.*; a share from 0 to 1\)"),
        ({"pooling": PoolingSettings("max")}, "pooling=max, share 0.7"),
        ({"pooling": "masks", "context": "sum"}, "pooling=masks with context=sum"),
        ({"pooling": "centre", "context": "mean"}, "pooling=centre with context=mean"),
    ],
)
def test_a_share_that_makes_no_sense(given, message):
    with pytest.raises(ValueError, match=message):
        _made(**given)


@pytest.mark.parametrize(
    ("given", "kind", "position"), [("sum", "sum", 3), ({"kind": "constant", "position": 2}, "constant", 2)]
)
def test_a_configuration_names_a_kind_or_all_settings(given, kind, position):
    options = {"backbone": "test_resnet", "weights": "random", "context": given, "cam": {"scales": [2.0]}}
    config = {"class_path": f"{CONTAClassifier.__module__}.CONTAClassifier", "init_args": options}
    card = {"config": {"model": config}, "mean": [0.5] * 3, "std": [0.5] * 3}
    module = module_from_card(CONTAClassifier, card, SPACE)
    assert (module.context_kind, module.network.position) == (kind, position)
    assert (module.cam.scales, module.cam.threshold) == ((2.0,), 0.3)
    config["init_args"] = {**options, "context": {"position": 3}}
    with pytest.raises(ArgumentError, match="kind"):
        module_from_card(CONTAClassifier, card, SPACE)
