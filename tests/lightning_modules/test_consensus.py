"""ConsensusSegmenter: the regions reach the loss, structure is scored, a teacher labels."""

import pytest
import torch
from torch import nn

from structseg.datamodules.label_spaces import OCCLUSION, PARTS
from structseg.lightning_modules.checkpoints.from_card import load_teacher
from structseg.lightning_modules.consensus import ConsensusSegmenter
from structseg.losses import ConsensusLoss
from tests.data.tiny import TinyDataModule, TinyNetwork
from tests.data.tiny_runs import make_trainer


def make_module(loss=None, **settings):
    torch.manual_seed(0)
    return ConsensusSegmenter(PARTS, TinyNetwork, loss, **settings)


class Recorder(ConsensusLoss):
    """Keeps what it is given."""

    def forward(self, logits, target, blobs=None, names=None):
        self.seen = {"target": target, "blobs": blobs, "names": names}
        return super().forward(logits, target, blobs, names)


def batch_of(n=2, size=8):
    mask = torch.zeros(n, size, size, dtype=torch.long)
    mask[:, :4] = 1
    return {"image": torch.rand(n, 3, size, size), "mask": mask, "name": [f"{i}.png" for i in range(n)]}


def test_blobs_and_names_reach_the_loss():
    module = make_module(Recorder())
    batch = batch_of()
    module._loss(module(batch["image"]), batch)
    assert module.loss.seen["blobs"] is None
    batch["blobs"] = 3 * batch["mask"]
    module._loss(module(batch["image"]), batch)
    assert torch.equal(module.loss.seen["blobs"], batch["blobs"])
    batch["blobs"] = torch.zeros_like(batch["mask"])
    with pytest.raises(ValueError, match=r"blob 0 of 0\.png holds labels"):
        module._loss(module(batch["image"]), batch)


def test_any_other_loss_takes_its_place():
    module = make_module(nn.CrossEntropyLoss(ignore_index=255))
    batch = {**batch_of(), "blobs": torch.zeros(2, 8, 8, dtype=torch.long)}
    expected = nn.functional.cross_entropy(module(batch["image"]), batch["mask"])
    torch.testing.assert_close(module._loss(module(batch["image"]), batch), expected)
    with pytest.raises(ValueError, match=r"CrossEntropyLoss ignores -100, .* --model.loss.ignore_index 255"):
        make_module(nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="a soft teacher needs ConsensusLoss, not CrossEntropyLoss"):
        make_module(nn.CrossEntropyLoss(ignore_index=255), teacher="soft", teacher_ckpt="t.ckpt")


def test_a_fit_and_a_test_score_structure(tmp_path):
    module, data = make_module(optimizer=lambda p: torch.optim.Adam(p, lr=0.03)), TinyDataModule()
    data.blobs = "components"
    trainer = make_trainer(tmp_path, [], max_epochs=15)
    trainer.fit(module, datamodule=data)
    assert trainer.callback_metrics["val/miou"] > 0.9
    assert {"val/component_error", "val/mean_boundary_f1", "val/boundary_f1/face"} <= set(trainer.callback_metrics)
    assert {key for key in trainer.callback_metrics if key.startswith("val/")} <= module.logged_keys()
    data = TinyDataModule()
    data.test_subsets = {"first": frozenset({"test_000"})}
    (scores,) = trainer.test(module, datamodule=data, verbose=False)
    assert scores["test/component_error"] == pytest.approx(float(trainer.callback_metrics["test/component_error"]))
    assert "test/first/component_error_relative" in scores
    assert "test/superpixel_accuracy" not in scores
    first = module.subset_scores["first"]
    assert int(first.components.images) == 1


def test_superpixel_accuracy_where_the_data_have_superpixels(tmp_path):
    module, data = make_module(), TinyDataModule()
    data.blobs, data.tests_superpixels = "superpixels", True
    (scores,) = make_trainer(tmp_path, []).test(module, datamodule=data, verbose=False)
    assert 0 <= scores["test/superpixel_accuracy"] <= 1


class TestTeacher:
    @pytest.fixture
    def checkpoint(self, tmp_path):
        """A teacher whose card says how to make it again."""
        module = make_module()
        module.resolved_config = {
            "model": {
                "class_path": "structseg.lightning_modules.consensus.ConsensusSegmenter",
                "init_args": {"network": "tests.data.tiny.TinyNetwork", "label_space": None, "loss": None},
            }
        }
        trainer = make_trainer(tmp_path, [], max_epochs=3)
        trainer.fit(module, datamodule=TinyDataModule())
        trainer.save_checkpoint(tmp_path / "teacher.ckpt")
        return tmp_path / "teacher.ckpt", module.eval()

    def test_is_made_again_from_its_checkpoint_alone(self, checkpoint):
        path, module = checkpoint
        again = load_teacher(path, PARTS)
        image = torch.rand(1, 3, 32, 32)
        torch.testing.assert_close(again(image), module(image))
        assert not again.training
        assert not any(p.requires_grad for p in again.parameters())

    @pytest.mark.parametrize("kind", ["hard", "soft"])
    def test_labels_the_training_images(self, checkpoint, tmp_path, kind):
        path, teacher = checkpoint
        student = make_module(Recorder(), teacher_ckpt=str(path), teacher=kind)
        trainer = make_trainer(tmp_path / "student", [], limit_val_batches=0)
        trainer.fit(student, datamodule=TinyDataModule())
        batch = {
            "image": torch.rand(2, 3, 32, 32),
            "name": ["a", "b"],
            "mask": torch.zeros(2, 32, 32, dtype=torch.long),
        }
        batch["mask"][0, :3] = 255
        outside = batch["mask"] == 255
        probabilities = teacher.evaluate(batch["image"]).softmax(1)
        taught = student._with_teacher_labels(batch)
        if kind == "soft":
            torch.testing.assert_close(taught["mask"], probabilities * ~outside[:, None])
        else:
            assert torch.equal(taught["mask"], probabilities.argmax(1).masked_fill(outside, 255))
        loss = student._loss(student(batch["image"]), taught)
        assert torch.isfinite(loss)
        assert loss.requires_grad
        assert not any("teacher" in key for key in student.state_dict())

    def test_outside_the_image_stays_unlabelled_and_regions_are_cut(self, checkpoint, tmp_path):
        path, teacher = checkpoint
        student = make_module(teacher_ckpt=str(path))
        make_trainer(tmp_path, [], limit_val_batches=0).fit(student, datamodule=TinyDataModule())
        batch = batch_of(size=32)
        batch["mask"][0, :3] = 255
        batch["blobs"] = torch.zeros_like(batch["mask"])
        taught = student._with_teacher_labels(batch)
        assert (taught["mask"][0, :3] == 255).all()
        assert (taught["mask"][0, 3:] != 255).all()
        assert torch.equal(taught["blobs"], teacher.evaluate(batch["image"]).argmax(1))

    def test_of_other_classes_or_none(self, checkpoint, tmp_path):
        path, _ = checkpoint
        with pytest.raises(ValueError, match=r"has the classes of parts .* not those of occlusion"):
            load_teacher(path, OCCLUSION)
        student = make_module(teacher_ckpt=str(tmp_path / "missing.ckpt"))
        with pytest.raises(FileNotFoundError, match="no checkpoint at"):
            make_trainer(tmp_path, []).fit(student, datamodule=TinyDataModule())
        data = TinyDataModule()
        data.unlabelled = "faces"
        with pytest.raises(ValueError, match="training images without labels need a teacher"):
            make_trainer(tmp_path, []).fit(make_module(), datamodule=data)
        with pytest.raises(ValueError, match="teacher is soft, but no teacher is given"):
            make_module(teacher="soft")
