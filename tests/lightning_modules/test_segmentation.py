import math

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn

from structseg.datamodules.label_spaces import HELEN, PARTS
from structseg.lightning_modules.checkpoints.card import describe_space, space_of
from structseg.lightning_modules.fasseg_unet import FASSEGUNet
from structseg.lightning_modules.logits import require_finite, resize_logits
from structseg.lightning_modules.networks.readme_unet import ReadmeUNet
from structseg.lightning_modules.schedules import OneCycle, PolyLR
from structseg.lightning_modules.segmentation import SegmentationModule
from tests.data.tiny import TinyDataModule, TinyNetwork


class Sides(nn.Module):
    """Logits that say left_eye on the left half of the picture and right_eye on the right half, whatever it shows."""

    def forward(self, image):
        count, _, height, width = image.shape
        logits = torch.zeros(count, len(HELEN), height, width)
        logits[:, HELEN.classes.index("left_eye"), :, : width // 2] = 4
        logits[:, HELEN.classes.index("right_eye"), :, width // 2 :] = 4
        return logits


def module(network=None, space=PARTS, **settings):
    return SegmentationModule(
        network or TinyNetwork(len(space)), nn.CrossEntropyLoss(ignore_index=255), space, **settings
    )


def trainer(folder, **settings):
    return Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip


def test_images_are_normalised_by_the_module():
    class Seen(nn.Module):
        def forward(self, image):
            self.image = image
            return torch.zeros(len(image), 3, *image.shape[2:])

    seen = Seen()
    module(seen, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.1))(torch.full((1, 3, 2, 2), 0.6))
    torch.testing.assert_close(seen.image[0, :, 0, 0], torch.tensor([1.0, 1.6, 3.0]))


def test_the_mirror_image_exchanges_sides_in_the_average():
    # Mirrored, the left half says left_eye again; exchanged and mirrored back it is right_eye on the right: no change.
    image = torch.rand(1, 3, 4, 6)
    plain, averaged = (module(Sides(), HELEN, flip_test=flip).evaluate(image) for flip in (False, True))
    assert torch.equal(plain.argmax(1), averaged.argmax(1))
    torch.testing.assert_close(averaged.exp().sum(1), torch.ones(1, 4, 6))
    torch.testing.assert_close(averaged, plain.log_softmax(1))


def test_the_average_is_of_probabilities():
    class Brightness(nn.Module):
        def forward(self, image):
            return torch.stack([image[:, 0], torch.zeros_like(image[:, 0]), torch.zeros_like(image[:, 0])], 1)

    image = torch.zeros(1, 3, 1, 2)
    image[..., 0] = 1.0
    found = module(Brightness(), mean=(0, 0, 0), std=(1, 1, 1), flip_test=True).evaluate(image)[0, 0, 0]
    lit, dark = math.e / (math.e + 2), 1 / 3
    # Each pixel meets itself: a pixel-wise network does not change under the mirror.
    torch.testing.assert_close(found.exp(), torch.tensor([lit, dark]))


class TestFiniteLogits:
    """Logits that are no numbers would pass for the first class."""

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_one_pixel_is_enough(self, value):
        logits = torch.zeros(3, 2, 4, 4)
        logits[1, 1, 2, 3] = value
        with pytest.raises(ValueError, match=r"^the logits of b are not finite; .*earlier checkpoint"):
            require_finite(logits, {"name": ["a", "b", "c"]})
        with pytest.raises(ValueError, match=r"^the logits of 1 are not finite"):
            require_finite(logits, {})

    def test_classes_may_be_ruled_out_but_not_all_of_them(self):
        logits = torch.zeros(2, 2, 4, 4)
        logits[:, 0] = -math.inf
        assert require_finite(logits, {"name": ["a", "b"]}) is logits
        logits[0, 1, 0, 0] = -math.inf
        with pytest.raises(ValueError, match=r"^the logits of a are"):
            require_finite(logits, {"name": ["a", "b"]})

    @pytest.mark.parametrize("verb", ["validate", "test", "predict"])
    def test_a_diverged_network_is_not_scored_and_predicts_nothing(self, tmp_path, verb):
        data = TinyDataModule()
        diverged = module(TinyNetwork(3), data.label_space)
        next(diverged.network.parameters()).data[0] = math.nan
        if verb == "predict":
            batch = {"image": torch.rand(1, 3, 8, 8), "original": [torch.rand(3, 8, 8)], "name": ["photo"]}
            with pytest.raises(ValueError, match=r"^the logits of photo are not finite"):
                diverged.eval().label(batch, [(8, 8)])
            return
        with pytest.raises(ValueError, match=r"^the logits of (val|test)_.* are not finite"):
            getattr(trainer(tmp_path), verb)(diverged, data, verbose=False)


def test_weights_that_expect_another_normalisation_are_refused():
    network = TinyNetwork(3)
    network.mean, network.std, network.initial_weights = (0.485, 0.456, 0.406), (0.2, 0.2, 0.2), "imagenet (hub)"
    with pytest.raises(
        ValueError, match=r"imagenet \(hub\)\) expect mean \(0\.485, 0\.456, 0\.406\) .*set --data\.mean"
    ):
        module(network)
    assert module(network, mean=network.mean, std=network.std).initial_weights == "imagenet (hub)"


def test_a_loss_that_ignores_another_value_is_refused():
    with pytest.raises(
        ValueError, match=r"CrossEntropyLoss ignores -100, .* are 255; set --model\.loss\.ignore_index 255"
    ):
        SegmentationModule(TinyNetwork(3), nn.CrossEntropyLoss(), PARTS)


def test_the_card_gives_the_label_space_back():
    assert space_of(describe_space(HELEN)) == HELEN


@pytest.mark.parametrize("schedule", [PolyLR, OneCycle])
def test_schedules_learn_the_number_of_steps_from_the_trainer(schedule, tmp_path):
    tuned = module(lr_scheduler=schedule)
    run = trainer(tmp_path, max_epochs=3)
    run.fit(tuned, datamodule=TinyDataModule(train_images=10, batch_size=4))
    found = run.lr_scheduler_configs[0]
    assert found.interval == "step"
    assert found.scheduler.total_steps == 9
    assert found.scheduler.last_epoch == 9


def test_every_declared_key_is_logged_and_nothing_else(tmp_path):
    tuned = module()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(tuned, datamodule=TinyDataModule())
    assert {key for key in run.callback_metrics if key.startswith(("val/", "train/"))} == tuned.logged_keys() | {
        "train/loss"
    }


def test_named_parts_of_the_test_set_are_scored_apart(tmp_path):
    data = TinyDataModule(test_images=3)
    data.test_subsets = {"first": frozenset({"test_000"}), "all": frozenset(f"test_00{i}" for i in range(3))}
    run = trainer(tmp_path)
    run.test(module(), datamodule=data, verbose=False)
    scores = run.callback_metrics
    assert scores["test/all/miou"] == scores["test/miou"]
    alone = trainer(tmp_path)
    only = TinyDataModule(test_images=1)
    alone.test(run.lightning_module, datamodule=only, verbose=False)
    torch.testing.assert_close(alone.callback_metrics["test/miou"], scores["test/first/miou"])


def test_masks_at_their_native_size_are_scored_at_it(tmp_path):
    data, tuned = TinyDataModule(score_at="native"), module()
    batch = next(iter(data.test_dataloader()))
    assert batch["image"].shape[-2:] != batch["mask"].shape[-2:]
    trainer(tmp_path).test(tuned, datamodule=data, verbose=False)
    assert tuned.test_scores.confusion.sum() == sum((data.dataset("test")[i]["mask"] != 255).sum() for i in range(4))


def test_resized_logits():
    logits = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert resize_logits(logits, (2, 2)) is logits
    assert resize_logits(logits, (3, 5)).shape == (1, 1, 3, 5)


def test_the_default_network_is_the_readmes():
    found = FASSEGUNet(PARTS)
    assert isinstance(found.network, ReadmeUNet)
    assert found(torch.rand(1, 3, 32, 48)).shape == (1, 3, 32, 48)
