"""CONTASegmenter: what learns and how fast, how it is evaluated, what it hands to the next round, and what is loud."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import nn

from structseg.datamodules.label_spaces import HELEN, PARTS, VOC
from structseg.lightning_modules.conta import dense_crf
from structseg.lightning_modules.conta import segmenter as conta_segmenter
from structseg.lightning_modules.conta.dense_crf import DenseCRF
from structseg.lightning_modules.conta.segmenter import CONTASegmenter
from structseg.lightning_modules.networks import deeplab_v2
from structseg.lightning_modules.networks.deeplab_v2 import MultiScale
from structseg.lightning_modules.schedules import PolyLR
from structseg.losses.multi_scale import multi_scale_cross_entropy
from tests.data.tiny import TinyDataModule
from tests.data.tiny_runs import make_trainer

SGD = partial(torch.optim.SGD, lr=0.01)
LITE = {"backbone": "tf_efficientnet_lite0", "weights": "random"}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """`resnet101` with one narrow block a stage."""
    monkeypatch.setattr(deeplab_v2, "_BLOCKS", (1, 1, 1, 1))
    monkeypatch.setattr(deeplab_v2, "_WIDTHS", (4, 8, 8, 8))


def make(space=PARTS, **settings):
    torch.manual_seed(0)
    return CONTASegmenter(space, **settings)


def batch_of(n=2, size=(32, 40), seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, 3, (n, *size), generator=generator)
    mask[:, :4] = 255
    image = torch.rand(n, 3, *size, generator=generator)
    return {"image": image, "mask": mask, "name": [f"{i}" for i in range(n)]}


class Paint(nn.Module):
    """Logits at half the size that look at colour and place, so that scales and mirrors differ."""

    def __init__(self, classes=3):
        super().__init__()
        self.classes = classes

    def forward(self, image):
        columns = torch.linspace(0, 1, image.shape[-1]).expand_as(image[:, 0])
        planes = [image[:, 0], image[:, 1] * columns, image[:, 2] - columns, *[columns * 0.3] * (self.classes - 3)]
        return 4 * F.avg_pool2d(torch.stack(planes, 1), 2)


class TestWhatLearns:
    def test_the_published_numbers(self, monkeypatch):
        monkeypatch.undo()
        with torch.device("meta"):
            module = CONTASegmenter(VOC)
        trunk, weights, biases = ([p.numel() for p in group["params"]] for group in module._parameter_groups())
        assert sum(trunk) + sum(weights) + sum(biases) == 43_943_188
        assert (len(trunk), sum(weights), sum(biases)) == (104, 4 * 21 * 2048 * 9, 84)
        learning = sum(p.numel() for p in module.parameters() if p.requires_grad)
        assert learning == 43_943_188

    @pytest.mark.parametrize("batch_norm", ["frozen", "train", "sync"])
    def test_groups_hold_each_learning_number_once(self, batch_norm):
        module = make(batch_norm=batch_norm, optimizer=partial(SGD, weight_decay=0.1))
        optimizer = module.configure_optimizers()
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.1, 0.2])
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]
        grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(grouped) == sorted(id(p) for p in module.parameters() if p.requires_grad)
        norms = {id(p) for norm in module.norms() for p in norm.parameters()}
        assert bool(norms & set(grouped)) is (batch_norm != "frozen")

    def test_rates_are_the_golden_ones(self, golden):
        known = json.loads((golden / "poly_lr.json").read_text())
        module = make(optimizer=partial(SGD, lr=known["lr"]), lr_scheduler=partial(PolyLR, total_steps=20000, every=10))
        found = module.configure_optimizers()
        schedule = found["lr_scheduler"]["scheduler"]
        assert found["lr_scheduler"]["interval"] == "step"
        for row in known["table"]:
            schedule.last_epoch = row["k"]
            assert schedule.get_lr() == pytest.approx([row["1x"], row["10x"], row["20x"]], rel=1e-12, abs=1e-18)

    @pytest.mark.parametrize("settings", [{}, LITE])
    def test_frozen_batch_norm_stays_through_a_fit(self, tmp_path, settings):
        module = make(optimizer=SGD, **settings)
        for norm in module.norms():
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
        before = {key: value.clone() for key, value in module.state_dict().items()}
        make_trainer(tmp_path, [], max_epochs=1).fit(module, datamodule=TinyDataModule())
        norms = {f"network.{name}." for name, part in module.network.named_modules() if part in set(module.norms())}
        assert norms
        for key, value in module.state_dict().items():
            if key.startswith(tuple(norms)):
                assert torch.equal(value, before[key]), key
        moved = [key for key, value in module.state_dict().items() if not torch.equal(value, before[key])]
        assert "network.network.aspp.0.weight" in moved
        assert any("backbone" in key for key in moved)
        assert module.train().training
        assert not any(norm.training for norm in module.norms())

    def test_batch_norm_that_learns_does(self, tmp_path):
        module = make(optimizer=SGD, batch_norm="train")
        before = module.deeplab.backbone.bn1.running_mean.clone()
        scale = module.deeplab.backbone.bn1.weight.clone()
        make_trainer(tmp_path, [], max_epochs=1).fit(module, datamodule=TinyDataModule())
        assert not torch.equal(module.deeplab.backbone.bn1.running_mean, before)
        assert not torch.equal(module.deeplab.backbone.bn1.weight, scale)

    def test_batch_norm_is_joined_over_devices(self, monkeypatch):
        module = make(batch_norm="sync", **LITE)
        count = sum(isinstance(part, BatchNormAct2d) for part in module.modules())
        keys = list(module.state_dict())

        class Strategy:
            root_device = torch.device("cpu")

        class Several:
            world_size, strategy = 2, Strategy()

        module._trainer = Several()
        with pytest.raises(ValueError, match="batch_norm sync needs accelerators"):
            module.setup("fit")
        Strategy.root_device = torch.device("cuda")
        module.setup("fit")
        joined = [part for part in module.modules() if isinstance(part, SyncBatchNormAct)]
        assert len(joined) == count > 10
        assert any(isinstance(part.act, nn.ReLU6) for part in joined)  # torch's own conversion drops it
        assert list(module.state_dict()) == keys


class TestTraining:
    def test_the_loss_is_the_sum_over_scales(self):
        module = make()
        module.network = MultiScale(Paint()).train()
        batch = batch_of()
        logits = module(batch["image"])
        expected = 0.0
        for one, size in zip(logits, [(16, 20), (8, 10), (12, 15), (16, 20)], strict=True):
            assert one.shape[-2:] == size
            rows = [(2 * i + 1) * 32 // (2 * size[0]) for i in range(size[0])]
            columns = [(2 * i + 1) * 40 // (2 * size[1]) for i in range(size[1])]
            labels = batch["mask"][:, rows][:, :, columns]
            expected = expected + F.cross_entropy(one, labels, ignore_index=255)
        torch.testing.assert_close(module._loss(logits, batch), expected)

    def test_without_masks(self, tmp_path):
        module, batch = make(), batch_of()
        del batch["mask"]
        with pytest.raises(ValueError, match=r"the train batch has no masks, .* set --data\.masks"):
            module._step(batch, "train")

    def test_accumulated_batches_give_the_gradient_of_their_mean(self, tmp_path):
        batches = [batch_of(1, (32, 32), seed) for seed in (1, 2)]
        for batch in batches:
            del batch["name"]
        module = make(optimizer=SGD)
        head = module.deeplab.aspp[1].weight
        start = head.detach().clone()
        loss = sum(multi_scale_cross_entropy(module.train()(b["image"]), b["mask"]) for b in batches) / 2
        (gradient,) = torch.autograd.grad(loss, head)
        loader = torch.utils.data.DataLoader([{k: v[0] for k, v in b.items()} for b in batches], batch_size=1)
        make_trainer(tmp_path, [], accumulate_grad_batches=2).fit(module, loader)
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(head.detach(), start - 0.1 * gradient, atol=1e-6, rtol=1e-4)

    def test_the_moving_average_is_over_optimizer_steps(self, tmp_path):
        module = make(optimizer=SGD)
        kept = []
        step = module._step
        module._step = lambda batch, split: kept.append(step(batch, split)) or kept[-1]
        trainer = make_trainer(tmp_path, [], max_epochs=24, accumulate_grad_batches=2, limit_val_batches=0)
        trainer.fit(module, datamodule=TinyDataModule(batch_size=4))
        losses = torch.stack([output["loss"].detach() for output in kept])
        assert len(losses) == 48
        expected = losses[-40:].mean()  # 20 steps of 2 batches
        torch.testing.assert_close(trainer.callback_metrics["train/loss_average"], expected)
        assert not torch.isclose(losses.mean(), expected)

    def test_every_declared_key_is_logged_and_nothing_else(self, tmp_path):
        module = make(pairs=[("face", "hair")])
        trainer = make_trainer(tmp_path, [])
        trainer.fit(module, datamodule=TinyDataModule())
        assert set(trainer.callback_metrics) == module.logged_keys() | {"train/loss"}
        assert "val/on/face/hair" in module.logged_keys()

    def test_a_file_of_weights_is_read_once_a_fit_starts(self, tmp_path):
        path = tmp_path / "trunk.pth"
        donor = make()
        nn.init.constant_(donor.deeplab.backbone.bn1.weight, 0.25)
        torch.save(donor.deeplab.backbone.state_dict(), path)
        module = make(weights=str(path), optimizer=SGD)
        trainer = make_trainer(tmp_path, [])
        trainer.fit(module, datamodule=TinyDataModule())
        assert (module.deeplab.backbone.bn1.weight == 0.25).all()
        assert not any("random weights" in text for text in module.notices)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        path.unlink()
        # A checkpoint alone can be tested and resumed.
        again = make(weights=str(path), optimizer=SGD)
        trainer = make_trainer(tmp_path, [], max_epochs=2)
        trainer.fit(again, datamodule=TinyDataModule(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
        assert (again.deeplab.backbone.bn1.weight == 0.25).all()


def test_settings_that_make_no_sense():
    for scale in (0.0, 1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"scales are .*above 0 and below 1"):
            make(scales=(0.5, scale))
    assert make(scales=[]).network.scales == ()
    with pytest.raises(ValueError, match=r"test_scales are \(\)"):
        make(test_scales=())
    with pytest.raises(ValueError, match=r"test_scales are \(1\.0, -2\.0\)"):
        make(test_scales=(1.0, -2.0))
    with pytest.raises(ValueError, match=r"batch_norm is 'off'; expected frozen, sync or train"):
        make(batch_norm="off")
    with pytest.raises(ValueError, match=r"pair face / beard is not two of background, face, hair"):
        make(pairs=[("face", "beard")])


class TestEvaluation:
    def test_scales_and_flips_are_averaged(self):
        module = make(HELEN, test_scales=(1.0, 0.5, 1.5), flip_test=True).eval()
        module.network = MultiScale(Paint(len(HELEN))).eval()
        image = batch_of()["image"]
        total = torch.zeros(2, len(HELEN), 32, 40)
        for height, width in ((32, 40), (16, 20), (48, 60)):
            scaled = F.interpolate(image, (height, width), mode="bilinear", align_corners=False)
            for mirrored in (False, True):
                logits = module(scaled.flip(3) if mirrored else scaled)
                chances = F.interpolate(logits, (32, 40), mode="bilinear", align_corners=False).softmax(1)
                if mirrored:
                    chances = chances.flip(3)[:, HELEN.flip_lookup()[: len(HELEN)]]
                total += chances / 6
        found = module.evaluate(image)
        torch.testing.assert_close(found.exp(), total)
        assert (found.exp() - make_plain(module, image)).abs().max() > 0.01

    def test_one_scale_without_a_flip_is_the_network_alone(self):
        module = make().eval()
        image = batch_of()["image"]
        assert torch.equal(module.evaluate(image), module(image))

    def test_background_alone_is_noticed_until_it_is_over(self, tmp_path):
        module = make()
        module.network = MultiScale(Constant((1.0, 0.0, 0.0)))
        trainer = make_trainer(tmp_path, [])
        trainer.test(module, datamodule=TinyDataModule(), verbose=False)
        assert module.notices[0].startswith("the test is scored without the dense CRF")
        assert module.notices[1:] == [
            "the test predicts only background, at every pixel of the split; look at the loss, masks and weights"
        ]
        trainer.validate(module, datamodule=TinyDataModule(), verbose=False)
        assert len(module.notices) == 3
        assert module.make_card()["notices"] == module.notices
        module.network = MultiScale(Constant((1.0, 0.0, 2.0)))
        trainer.test(module, datamodule=TinyDataModule(), verbose=False)
        trainer.validate(module, datamodule=TinyDataModule(), verbose=False)
        assert len(module.notices) == 1

    def test_with_the_crf_both_are_scored(self, tmp_path):
        pytest.importorskip("pydensecrf")
        data = TinyDataModule(test_images=3, batch_size=2)
        for crf in (False, True):
            module = make(crf=crf, crf_workers=0)
            module.network = MultiScale(Paint())
            (scores,) = make_trainer(tmp_path, []).test(module, datamodule=data, verbose=False)
            assert scores["test/crf"] == crf
            assert any("scored without the dense CRF" in text for text in module.notices) != crf
            if not crf:
                plain = scores
        assert not any("without_crf" in key for key in plain)
        assert scores["test/without_crf/miou"] == plain["test/miou"] != scores["test/miou"]
        confusion = np.zeros((3, 3), int)
        for sample in (data.dataset("test")[i] for i in range(3)):
            refined = by_hand(module, sample["image"])
            truth = sample["mask"].numpy()
            np.add.at(confusion, (truth[truth < 255], refined[truth < 255]), 1)
        assert np.array_equal(module.test_scores.confusion.numpy(), confusion)

    def test_a_missing_crf_stops_every_start(self, tmp_path, monkeypatch):
        module = make(crf=True)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ValueError, match=r"pip install 'structseg\[crf\]'"):
            module.setup("fit")


class Constant(nn.Module):
    """The same logits everywhere, at half the size."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, image):
        return self.logits[:, None, None].expand(len(image), -1, image.shape[2] // 2, image.shape[3] // 2)


def make_plain(module, image):
    logits = F.interpolate(module(image), image.shape[2:], mode="bilinear", align_corners=False)
    return logits.softmax(1)


def by_hand(module, image):
    """The classes (H, W) of an image (3, H, W) after DeepLab's CRF."""
    with torch.no_grad():
        chances = make_plain(module.eval(), image[None])[0].numpy()
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    return DenseCRF(10, 1, 3, 67, 3, 4).probabilities(pixels, chances).argmax(0)


def predicting(module, split, devices=1):
    """As in a prediction of that split on so many devices."""
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(predict_split=split), num_devices=devices)


class TestPrediction:
    @pytest.fixture
    def module(self):
        module = make(use_tags=True, crf_workers=0)
        module.network = MultiScale(Paint())
        predicting(module, "train")
        return module.eval()

    def test_of_a_split_gives_masks_and_queries(self, module):
        batch = batch_of(2, (64, 96))
        found = module.predict_step(batch, 0)
        chances = make_plain(module, batch["image"])
        for i in range(2):
            assert found["masks"][i].dtype == torch.uint8
            assert torch.equal(found["masks"][i].long(), chances[i].argmax(0))
            blocks = chances[i].reshape(3, 32, 2, 32, 3).mean((2, 4))
            torch.testing.assert_close(found["queries"][i], blocks)
        assert module._foreground

    def test_is_at_the_size_of_the_truth_where_it_is_known(self, module):
        batch = {**batch_of(1, (32, 32)), "mask": torch.zeros(1, 48, 40, dtype=torch.long)}
        assert module.predict_step(batch, 0)["masks"][0].shape == (48, 40)
        del batch["mask"]
        assert module.predict_step(batch, 0)["masks"][0].shape == (32, 32)

    def test_tags_rule_out_the_other_classes(self, module):
        batch = {**batch_of(3, (64, 64)), "tags": torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])}
        free = make_plain(module, batch["image"])
        assert (free[1].argmax(0) == 1).any()
        found = module.predict_step(batch, 0)
        assert torch.equal(found["masks"][0].long(), free[0].argmax(0))
        allowed = free[1].clone()
        allowed[1] = 0
        assert torch.equal(found["masks"][1].long(), allowed.argmax(0))
        expected = F.avg_pool2d(allowed / allowed.sum(0), 2)
        torch.testing.assert_close(found["queries"][1], expected)
        assert not found["masks"][2].any()
        torch.testing.assert_close(found["queries"][2][0], torch.ones(32, 32))
        for split in ("val", "test", None):  # whose tags nobody knows
            predicting(module, split)
            assert torch.equal(module.predict_step(batch, 0)["masks"][1].long(), free[1].argmax(0))
        predicting(module, "train")
        module.use_tags = False
        assert torch.equal(module.predict_step(batch, 0)["masks"][1].long(), free[1].argmax(0))

    def test_of_photographs_is_at_their_sizes(self, module):
        image = batch_of(2)["image"]
        originals = [torch.rand(3, 50, 30), torch.rand(3, 16, 20)]
        found = module.label({"image": image, "name": ["a", "b"]}, [original.shape[1:] for original in originals])
        logits = module(image)
        for i, original in enumerate(originals):
            expected = F.interpolate(logits[i : i + 1], original.shape[1:], mode="bilinear").softmax(1)[0]
            (chances,) = found[i].probabilities()
            torch.testing.assert_close(chances, expected)
            assert found[i].classes().dtype == torch.uint8
            assert torch.equal(found[i].classes().long(), expected.argmax(0))

    @pytest.mark.parametrize("crf", [False, True])
    def test_logits_that_are_no_numbers_are_no_background(self, module, crf):
        class Diverged(nn.Module):
            def forward(self, image):
                return torch.full((len(image), 3, 4, 4), torch.nan)

        module.network, module.crf = Diverged(), crf
        batch = batch_of(2)
        photograph = {"image": batch["image"], "original": [*batch["image"]], "name": ["0", "1"]}
        steps = (
            (module.predict_step, batch, 0),
            (module.label, photograph, [(8, 8)] * 2),
            (module.test_step, batch, 0),
        )
        for step, *given in steps:
            with pytest.raises(ValueError, match=r"^the logits of 0, 1 are not finite"):
                step(*given)

    def test_the_crf_works_on_the_photograph(self, module):
        pytest.importorskip("pydensecrf")
        module.crf = True
        image = batch_of(1, (32, 32))["image"]
        original = F.interpolate(image, (48, 40), mode="bilinear")[0]
        (found,) = module.label({"image": image, "original": [original], "name": ["a"]}, [(48, 40)])
        chances = F.interpolate(module(image), (48, 40), mode="bilinear", align_corners=False).softmax(1)[0].numpy()
        pixels = (original * 255).round().byte().permute(1, 2, 0).numpy()
        expected = DenseCRF.deeplab().probabilities(pixels, chances).argmax(0)
        assert np.array_equal(found.classes().numpy(), expected)
        assert not np.array_equal(expected, chances.argmax(0))

    def test_masks_and_queries_are_after_the_crf(self, module):
        pytest.importorskip("pydensecrf")
        module.crf = True
        batch = {**batch_of(1, (64, 64)), "tags": torch.tensor([[0.0, 1.0]])}
        found = module.predict_step(batch, 0)
        two = make_plain(module, batch["image"])[0][[0, 2]]
        pixels = (batch["image"][0] * 255).round().byte().permute(1, 2, 0).numpy()
        refined = DenseCRF.deeplab().probabilities(pixels, (two / two.sum(0)).numpy())
        assert np.array_equal(found["masks"][0].numpy(), 2 * refined.argmax(0))
        torch.testing.assert_close(found["queries"][0][[0, 2]], F.avg_pool2d(torch.from_numpy(refined), 2))
        assert (found["queries"][0][1] == 0).all()

    def test_classes_that_are_nowhere_likely_are_left_out_of_the_crf(self, module):
        pytest.importorskip("pydensecrf")
        image = batch_of(1, (24, 32))["image"]
        image[..., 16:] *= 0.4
        chances = make_plain(module, image)[0]
        rare = torch.tensor([0.0, 9e-4, 2e-4])[:, None, None] * torch.rand(3, 24, 32)
        nothing = torch.zeros(1, 24, 32)  # background, that is not there at all
        chances = torch.cat([nothing, rare[:2], chances, rare[2:]])
        chances = chances / chances.sum(0)
        asked = []

        class Pool:
            def probabilities(self, jobs):
                asked.extend(jobs)
                return [DenseCRF.deeplab().probabilities(*job) for job in jobs]

        module._crf_pool = Pool()
        found, other = module.refined([image[0]] * 2, [chances, torch.eye(7)[0][:, None, None].expand(7, 24, 32)])
        (pixels, kept), (_, alone) = asked
        assert (len(kept), len(alone)) == (4, 1)
        np.testing.assert_allclose(kept.sum(0), 1, atol=1e-6)
        expected = torch.from_numpy(DenseCRF.deeplab().probabilities(pixels, chances.numpy()))
        assert not found[[1, 2, 6]].any()
        torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)
        assert torch.equal(found.argmax(0), expected.argmax(0))
        assert (found[3:6] - chances[3:6]).abs().max() > 0.05
        assert torch.equal(other, torch.eye(7)[0][:, None, None].expand(7, 24, 32))

    @pytest.mark.parametrize(("given", "devices", "expected"), [(None, 1, None), (None, 2, 4), (None, 9, 0), (3, 2, 3)])
    def test_devices_share_out_the_cores(self, module, monkeypatch, given, devices, expected):
        asked = []

        class Pool:
            def __init__(self, crf, workers):
                asked.append(workers)

            def __enter__(self):
                return self

            def __exit__(self, *error):
                return None

            def probabilities(self, jobs):
                return [chances for _, chances in jobs]

        monkeypatch.setattr(conta_segmenter, "CRFPool", Pool)
        monkeypatch.setattr(dense_crf.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
        module.crf, module.crf_workers = True, given
        predicting(module, "train", devices)
        module.predict_step(batch_of(2), 0)
        module.predict_step(batch_of(2), 0)
        assert asked == [expected]

    def test_background_alone_is_noticed(self, tmp_path):
        module, data = make(), TinyDataModule()
        module.network = MultiScale(Constant((1.0, 0.0, 0.0)))
        trainer = make_trainer(tmp_path, [])
        trainer.predict(module, dataloaders=data.test_dataloader())
        assert [text[:50] for text in module.notices] == ["the prediction finds only background in the whole "]
        module.network = MultiScale(Constant((0.0, 1.0, 0.0)))
        module.notices.clear()
        trainer.predict(module, dataloaders=data.test_dataloader())
        assert module.notices == []

    def test_the_pool_is_closed(self, tmp_path):
        pytest.importorskip("pydensecrf")
        module = make(crf=True, crf_workers=2)
        module.network = MultiScale(Paint())
        workers, teardown = [], module.teardown
        module.teardown = lambda stage: workers.extend(module._crf_pool._all) or teardown(stage)
        make_trainer(tmp_path, []).predict(module, dataloaders=TinyDataModule(test_images=2).test_dataloader())
        assert len(workers) == 2
        assert all(worker.process.poll() is not None for worker in workers)
        assert module._crf_pool is None
