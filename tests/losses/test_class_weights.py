"""Class weights: by hand, against torch's, invalid settings, and counted, saved and loaded by a module."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structseg.datamodules.label_spaces import PARTS
from structseg.lightning_modules.segmentation import SegmentationModule
from structseg.losses import ConsensusLoss, CrossEntropyDiceLoss, CrossEntropyLoss, OneHotBCELoss
from structseg.losses.class_weights import ClassWeighted
from structseg.losses.consensus import consensus_loss
from structseg.losses.multi_scale import MultiScaleCrossEntropy
from tests.data.tiny import TinyDataModule, TinyNetwork
from tests.data.tiny_runs import make_trainer

WEIGHTS = [0.5, 2.0, 4.0]
LIKE_TORCH = [
    CrossEntropyLoss,
    lambda weight: CrossEntropyDiceLoss(dice_weight=0, weight=weight),
    lambda weight: MultiScaleCrossEntropy(weight=weight),
    lambda weight: PixelsAsBlobs(alpha=1, beta=0, weight=weight),
]
ALL: list[Any] = [CrossEntropyLoss, CrossEntropyDiceLoss, OneHotBCELoss, MultiScaleCrossEntropy, ConsensusLoss]


class PixelsAsBlobs(ConsensusLoss):
    """With each pixel as its own blob, the label term is cross-entropy."""

    def forward(self, logits: Tensor, target: Tensor, *_: Any) -> Tensor:  # type: ignore[override]
        pixels = torch.arange(target[0].numel()).view(target.shape[1:]).expand_as(target)
        return super().forward(logits, target, pixels)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 4, generator=generator, requires_grad=True)
    target = torch.randint(0, 3, (2, 5, 4), generator=generator)
    target[0, 0, :2] = 255
    return logits, target


@pytest.mark.parametrize("make", LIKE_TORCH)
def test_equals_torchs_weighted_cross_entropy(make: Any) -> None:
    logits, target = batch()
    wanted = F.cross_entropy(logits, target, torch.tensor(WEIGHTS), ignore_index=255)
    found = make(weight=WEIGHTS)(logits, target)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(wanted, logits))
    nothing = make(weight=WEIGHTS).eval()(logits, torch.full_like(target, 255))
    assert nothing.item() == 0 or (make is CrossEntropyLoss and nothing.isnan()), "torch's own is nan there"


@pytest.mark.parametrize("make", ALL)
def test_weights_of_1_change_nothing(make: Any) -> None:
    logits, target = batch()
    torch.testing.assert_close(make(weight=[1, 1, 1])(logits, target), make()(logits, target))


def test_by_hand() -> None:
    """Two pixels of classes 0 and 1, with weights 1 and 3."""
    logits, target, two = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]]), [1.0, 3.0]
    logits[0, 0, 0, 0] = math.log(3)  # the first pixel: p = 3/4, -log p = 0.2877; the second: 1/2, 0.6931
    entropy = (1 * 0.287682 + 3 * 0.693147) / 4
    assert CrossEntropyLoss(two)(logits, target).item() == pytest.approx(entropy, abs=1e-6)
    dice = [2 * 0.75 / (1.25 + 1), 2 * 0.5 / (0.75 + 1)]
    wanted = entropy + (1 * (1 - dice[0]) + 3 * (1 - dice[1])) / 4
    assert CrossEntropyDiceLoss(weight=two)(logits, target).item() == pytest.approx(wanted, abs=1e-6)
    # sigmoids 3/4 and 1/2 of the first pixel, 1/2 and 1/2 of the second
    pixels = [(0.287682 + 0.693147) / 2, 0.693147]
    assert OneHotBCELoss(weight=two)(logits, target).item() == pytest.approx((pixels[0] + 3 * pixels[1]) / 4, abs=1e-6)
    both = MultiScaleCrossEntropy(weight=two)([logits, logits[..., 1:]], target).item()
    assert both == pytest.approx(entropy + 0.693147, abs=1e-6), "the small one has only the label 1"


@pytest.mark.parametrize("blob_weight", ["equal", "size"])
def test_the_label_term_of_the_consensus_loss_by_hand(blob_weight: Any) -> None:
    """A blob of one pixel, p = 3/4, of class 0 and one of two, t = 1/2, of class 1; the consensus term has no weights."""
    logits, target = torch.zeros(1, 2, 1, 3), torch.tensor([[[0, 1, 1]]])
    logits[0, 0, 0, 0] = math.log(3)
    size = 2 if blob_weight == "size" else 1
    settings = {"alpha": 1, "beta": 0, "blob_weight": blob_weight}
    found = consensus_loss(logits, target, weight=torch.tensor([1.0, 3.0]), **settings)
    assert found.item() == pytest.approx((0.287682 + 3 * size * 0.693147) / (1 + 3 * size), abs=1e-6)
    soft = F.one_hot(target, 2).movedim(-1, 1).float()
    again = consensus_loss(logits, soft, weight=torch.tensor([1.0, 3.0]), **settings)
    torch.testing.assert_close(again, found)
    apart = torch.randn(1, 2, 1, 3, generator=torch.Generator().manual_seed(0))
    plain = consensus_loss(apart, target, alpha=0, beta=1)
    torch.testing.assert_close(consensus_loss(apart, target, alpha=0, beta=1, weight=torch.tensor([1.0, 3.0])), plain)


def test_gradients_of_the_weighted_consensus_loss() -> None:
    """First and second derivatives, of hard and soft targets."""
    logits, target = batch()
    logits = logits.detach()[:, :, :2, :2].double().requires_grad_(True)
    soft = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(1)).double().softmax(1)
    weight = torch.tensor(WEIGHTS)
    for labels in (target[:, :2, :2], soft):
        function = lambda x, labels=labels: consensus_loss(x, labels, weight=weight)  # noqa: E731
        assert torch.autograd.gradcheck(function, logits)
        assert torch.autograd.gradgradcheck(function, logits)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1.0, 2.0], "weight has 2 values for 3 classes; give one for each of background, face, hair"),
        ({"face": 2.0, "beard": 1.0}, "weight names beard; the classes are background, face, hair"),
        ([1.0, -2.0, 1.0], "weights are 0 or more and finite"),
        ([1.0, math.nan, 1.0], "weights are 0 or more and finite"),
        ([0.0, 0.0, 0.0], "one of them is above 0"),
        ("even", "weight='even'; give a list, a weight by class name, or balanced"),
    ],
)
def test_invalid_weights_are_refused_in_one_line(make: Any, weight: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make(weight=weight).set_classes(PARTS.classes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", ALL)
def test_the_number_of_weights_differs_from_that_of_the_logits(make: Any) -> None:
    with pytest.raises((ValueError, RuntimeError), match="weight"):
        make(weight=[1.0, 2.0])(*batch())
    for unknown in ({"face": 2.0}, "balanced"):
        with pytest.raises(RuntimeError, match="weight="):
            make(weight=unknown)(*batch())


def test_the_published_normalization_has_no_weights() -> None:
    with pytest.raises(ValueError, match="weight with normalization='published'"):
        ConsensusLoss(normalization="published", weight="balanced")


def test_balanced_by_hand() -> None:
    """6 pixels of two classes that occur: 6 / (2 * 4) and 6 / (2 * 2); an absent class has 1."""
    loss = CrossEntropyLoss("balanced")
    loss.set_classes(PARTS.classes)
    loss.balance(torch.tensor([4, 0, 2]))
    assert loss.weight is not None
    assert loss.weight.tolist() == [0.75, 1.0, 1.5]
    with pytest.raises(ValueError, match="no pixel of the training masks"):
        loss.balance(torch.zeros(3, dtype=torch.int64))


def segmenter(weight: Any = "balanced", loss: Any = None) -> SegmentationModule:
    torch.manual_seed(0)
    return SegmentationModule(TinyNetwork(3), loss or CrossEntropyDiceLoss(weight=weight), PARTS)


def test_balanced_is_counted_once_and_kept_in_the_checkpoint(tmp_path: Any, monkeypatch: Any) -> None:
    data, fitted = TinyDataModule(blobs="components"), segmenter()
    fit = make_trainer(tmp_path, [], accumulate_grad_batches=1)
    fit.fit(fitted, datamodule=data)
    masks = torch.stack([sample["mask"] for sample in (data.make_dataset("train")[i] for i in range(8))])
    pixels = torch.stack([(masks == label).sum() for label in range(3)])
    wanted = (pixels.sum() / (3 * pixels)).tolist()
    assert isinstance(fitted.loss, ClassWeighted)
    assert fitted.loss.weight is not None
    assert fitted.loss.weight.tolist() == pytest.approx(wanted, rel=1e-5)
    assert fitted.make_card()["class_weights"] == pytest.approx(dict(zip(PARTS.classes, wanted, strict=True)), rel=1e-4)

    fit.save_checkpoint(tmp_path / "a.ckpt")
    monkeypatch.setattr(TinyDataModule, "class_pixels", lambda _: pytest.fail("counted again"))
    again = segmenter()
    make_trainer(tmp_path, [], max_epochs=2).fit(again, datamodule=data, ckpt_path=tmp_path / "a.ckpt")
    tested = segmenter()
    make_trainer(tmp_path, []).test(tested, datamodule=data, ckpt_path=tmp_path / "a.ckpt", verbose=False)
    for module in (again, tested):
        assert isinstance(module.loss, ClassWeighted)
        assert torch.equal(torch.as_tensor(module.loss.weight), fitted.loss.weight)


def test_names_and_torchs_own_weights_reach_the_loss() -> None:
    assert segmenter({"hair": 3.0}).make_card()["class_weights"] == {"background": 1.0, "face": 1.0, "hair": 3.0}
    torchs = segmenter(loss=nn.CrossEntropyLoss(torch.tensor(WEIGHTS), ignore_index=255))
    assert torchs.make_card()["class_weights"] == dict(zip(PARTS.classes, WEIGHTS, strict=True))
    assert "class_weights" not in segmenter(None).make_card()
    with pytest.raises(ValueError, match="2 values for 3 classes"):
        segmenter(loss=nn.CrossEntropyLoss(torch.tensor([1.0, 2.0]), ignore_index=255))


def test_without_a_datamodule_nothing_is_counted(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="no datamodule counts the pixels of the training masks"):
        make_trainer(tmp_path, []).fit(segmenter(), TinyDataModule().train_dataloader())
