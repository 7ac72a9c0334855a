"""STNiCNN: windows that hold what they should, losses by hand, stages that build on each other, what is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from structseg.datamodules.batch import Batch, Sample, collate
from structseg.datamodules.label_spaces import FASSEG, STN
from structseg.lightning_modules.networks.spatial_transformer import (
    centers_from_theta,
    crop_parts,
    integer_crop,
    theta_from_centers,
)
from structseg.lightning_modules.stn.face_windows import (
    FACE_PARTS,
    NETWORKS,
    class_count,
    paste_channels,
    soft_centers,
    true_centers,
    window_labels,
    window_probabilities,
    with_background,
)
from structseg.lightning_modules.stn.padded_originals import pad_labels, pad_originals, size_of, small_labels
from structseg.lightning_modules.stn.stn_icnn import STNiCNN
from structseg.losses.one_hot_binary_cross_entropy import OneHotBCELoss
from structseg.metric_names import nest_metrics

BOXES = {1: (50, 20), 2: (20, 20), 3: (50, 30), 4: (20, 30), 5: (35, 42), 6: (35, 54), 7: (35, 57), 8: (35, 60)}  # x, y
SURE = 30.0  # a logit that leaves no doubt


def face(height: int = 72, width: int = 72, shift: int = 0, without: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """A photograph (3, H, W) whose grey is the class over 10, and its mask: each class 7 x 3 pixels around its centre."""
    mask = torch.zeros(height, width, dtype=torch.int64)
    for label, (x, y) in BOXES.items():
        if label not in without:
            mask[y - 1 : y + 2, x - 3 + shift : x + 4 + shift] = label
    return (mask / 10).expand(3, -1, -1).contiguous(), mask


def sample(name: str = "a", **kwargs: Any) -> Sample:
    photograph, mask = face(**kwargs)
    image = F.interpolate(photograph[None], (64, 64), mode="nearest-exact")[0]
    return {"image": image, "original": photograph, "mask": mask, "name": name}


class Reads(nn.Module):
    """Reads the class that a pixel's grey tells; a network of 9 classes, or of the part's that `classes` lists."""

    def __init__(self, classes: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.classes = classes
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, normalized: Tensor) -> Tensor:
        grey = (normalized[:, :1] / 2 + 0.5) * 10
        known = [torch.stack([(grey[:, 0] - c).abs() for c in each]).amin(0) for each in self.classes]
        distances = torch.stack(known, 1)
        rest = torch.full_like(distances[:, :1], 0.5)
        return (
            self.weight
            * SURE
            * (
                (torch.cat([rest, distances], 1) < 0.3).float()
                + 0.5 * F.pad(torch.ones_like(rest), (0, 0, 0, 0, 0, len(self.classes)))
            )
        )


class Points(nn.Module):
    """A localizer that always answers the same: (x, y) in -1..1 and log zooms."""

    def __init__(self, centers: Tensor, zoom: float = 0.0) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.cat([centers, torch.full_like(centers, zoom)], -1))

    def forward(self, mask: Tensor) -> Tensor:
        return self.answer.expand(len(mask), -1, -1)


def module(stage: str = "end_to_end", **kwargs: Any) -> STNiCNN:
    """With networks that read the truth from the photograph, and a localizer that knows `face`."""
    small: dict[str, Any] = {"stage": stage, "window": (21, 25), "network": partial(nn.Conv2d, 3, kernel_size=1)}
    made = STNiCNN(STN, **{**small, **kwargs})
    made.network = Reads(tuple((c,) for c in range(1, 9)))
    for name, members in NETWORKS.items():
        parts = [list(FACE_PARTS.values())[member] for member in members]
        made.parts[name] = Reads(tuple(zip(*parts, strict=True)))
    centers, _ = true_centers(face()[1][None])
    made.localizer = Points(centers[0] * 2 / 71 - 1)
    made.trained = {"network", "localizer", "parts"}
    return made


def test_where_the_parts_are() -> None:
    """The mouth's centre is the mean of its classes' centres, not of its pixels."""
    mask = face()[1]
    mask[60, 31:40] = 8  # more of the lower lip: its own centre moves to y = (3 * 7 * 60) and two columns more
    centers, present = true_centers(mask[None])
    assert present.all()
    assert centers[0, 0].tolist() == [50, 20]
    assert centers[0, 4].tolist() == [35, 42]
    assert centers[0, 5].tolist() == pytest.approx([35, (54 + 57 + 60) / 3])


def test_a_part_that_is_not_there_is_in_the_middle_of_its_own_image() -> None:
    """Of an image of 40 x 61 in the corner of a larger frame: x 30, y 19.5."""
    mask = torch.full((1, 72, 72), 255)
    mask[0, :40, :61] = 0
    centers, present = true_centers(mask, torch.tensor([[40, 61]]))
    assert not present.any()
    assert centers[0].tolist() == [[30, 19.5]] * 6


def test_a_mouth_of_one_lip() -> None:
    centers, present = true_centers(face(without=(6, 7))[1][None])
    assert present.all()
    assert centers[0, 5].tolist() == [35, 60]


def test_labels_of_windows() -> None:
    """An eye's window knows its eye alone; ignored pixels stay ignored."""
    table = window_labels()
    assert table[2].tolist()[:9] == [0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert table[5].tolist()[:9] == [0, 0, 0, 0, 0, 0, 1, 2, 3]
    assert (table[:, 255] == 255).all()
    assert [class_count(name) for name in NETWORKS] == [2, 2, 2, 4]
    assert paste_channels().tolist() == [[0, c, -1, -1] for c in range(1, 6)] + [[0, 6, 7, 8]]


def test_background_is_what_no_window_claims() -> None:
    """0.7 of a part from one window, 0.2 from another: background 0.3, whatever the second says."""
    pasted = torch.zeros(1, 9, 1, 1)
    pasted[0, 0], pasted[0, 3] = 0.7, 0.7
    scores = with_background(pasted)
    assert scores[0, :, 0, 0].tolist() == pytest.approx([0.3, 0, 0, 0.7, 0, 0, 0, 0, 0])


def test_window_probabilities_by_hand() -> None:
    """A mouth's logits log 1, 2, 3, 4: the whole is 0.9, the lips 0.2, 0.3, 0.4."""
    single = torch.zeros(1, 2, 1, 1)
    mouth = torch.tensor([1.0, 2, 3, 4]).log().view(1, 4, 1, 1)
    windows = window_probabilities([single] * 5 + [mouth])
    assert windows.shape == (1, 6, 4, 1, 1)
    assert windows[0, 0, :, 0, 0].tolist() == pytest.approx([0.5, 0.5, 0, 0])
    assert windows[0, 5, :, 0, 0].tolist() == pytest.approx([0.9, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("cropper", ["stn", "baseline", "true"])
def test_networks_that_are_right_give_the_mask_back(cropper: str) -> None:
    """Cropped, mirrored where on the right, labelled, mirrored back, pasted: the truth, pixel by pixel."""
    batch = collate([sample(), sample("b")])
    stn = module(cropper=cropper).eval()
    outputs = evaluated(stn, batch)
    assert torch.equal(outputs["prediction"], batch["mask"])


def evaluated(stn: STNiCNN, batch: Batch, split: Any = "val") -> dict[str, Any]:
    with torch.no_grad():
        return dict(stn._step(dict(batch), split))


def test_what_is_on_the_right_goes_through_mirrored() -> None:
    """A network that marks the left half of its window marks the right half on the right-hand parts."""

    class LeftHalf(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            column = torch.arange(image.shape[-1]) < image.shape[-1] // 2
            mark = torch.where(column, SURE, -SURE).expand(len(image), *image.shape[-2:])
            return torch.stack([torch.zeros_like(mark), mark], 1)

    stn = module()
    stn.parts["brow"] = LeftHalf()
    frame = torch.stack([face()[0]])
    centers, _ = true_centers(face()[1][None])
    left, right = stn.label_windows(frame, theta_from_centers(centers, (21, 25), (72, 72)))[:2]
    assert (left[0, 1, :, :12] > 0).all()
    assert (left[0, 1, :, 12:] < 0).all()
    assert (right[0, 1, :, -12:] > 0).all()
    assert (right[0, 1, :, :-12] < 0).all()


def test_images_of_different_sizes_share_a_batch() -> None:
    """Each has its own windows; the padding is neither labelled nor scored."""
    batch = collate([sample(), sample("b", height=80, width=90, shift=15)])
    stn = module(cropper="true").eval()
    prediction = evaluated(stn, batch)["prediction"]
    assert prediction.shape == (2, 80, 90)
    counted = batch["mask"] != 255
    assert torch.equal(prediction[counted], batch["mask"][counted])
    assert stn.val_scores.confusion.sum() == counted.sum() == 72 * 72 + 80 * 90


def test_the_localizers_output_is_relative_to_each_images_size() -> None:
    """The same answer means another pixel in a wider image: centres in -1..1 of each."""
    stn = module()
    frame, sizes = pad_originals(collate([sample(), sample("b", height=100, width=141)]), stn.window)
    theta = stn.stn_theta(torch.zeros(2, 9, 64, 64), sizes, size_of(frame))
    centers = (theta[..., 2] + 1) / 2 * torch.tensor([140, 99])
    assert centers[0, 4].tolist() == pytest.approx([35, 42], abs=1e-4)
    assert centers[1, 4].tolist() == pytest.approx([35 / 71 * 140, 42 / 71 * 99], abs=1e-4)


def test_zoom_scales_the_window_unless_it_is_off() -> None:
    """log 1.5 makes sx half as large again; at most twice."""
    for zoom, on, factor in ((0.405465, True, 1.5), (0.405465, False, 1.0), (9.0, True, 2.0)):
        stn = module(zoom=on)
        stn.localizer = Points(torch.zeros(6, 2), zoom)
        frame, sizes = pad_originals(collate([sample()]), stn.window)
        theta = stn.stn_theta(torch.zeros(1, 9, 64, 64), sizes, size_of(frame))
        assert theta[0, 0, 0, 0].item() == pytest.approx(factor * 24 / 71, rel=1e-4)
        assert theta[0, 0, 1, 1].item() == pytest.approx(factor * 20 / 71, rel=1e-4)
        assert theta[0, 0, 0, 1] == theta[0, 0, 1, 0] == 0


def test_an_image_smaller_than_a_window_is_padded() -> None:
    """The nose and the mouth, of which there is one each, are found in windows that reach beyond the image."""
    batch = collate([sample()])
    prediction = evaluated(module(cropper="true", window=(101, 111)).eval(), batch)["prediction"]
    for label in (5, 6, 7, 8):
        assert torch.equal(prediction == label, batch["mask"] == label)


def test_masks_of_another_size_than_their_image_are_scored_as_they_are() -> None:
    """As with shrunk images scored at native size: one image a batch, the prediction enlarged to the mask."""
    one = sample()
    one["mask"] = F.interpolate(one["mask"][None, None].float(), (144, 144), mode="nearest-exact")[0, 0].long()
    stn = module(cropper="true").eval()
    prediction = evaluated(stn, collate([one]))["prediction"]
    assert prediction.shape == (1, 144, 144)
    assert (prediction == one["mask"]).float().mean() > 0.97


def test_parts_loss_by_hand() -> None:
    """Undecided networks: the mean of five log 2 and one log 4; a window that does not count leaves a zero behind."""
    stn = module("parts")
    labels = face()[1][None]
    theta = theta_from_centers(true_centers(labels)[0], (21, 25), (72, 72))
    logits = [torch.zeros(1, 2, 21, 25) for _ in range(5)] + [torch.zeros(1, 4, 21, 25)]
    whole = stn._parts_loss(logits, labels, theta)
    assert whole.item() == pytest.approx((5 * 0.693147 + 1.386294) / 6, rel=1e-5)
    counted = torch.tensor([[True, True, True, True, True, False]])
    assert stn._parts_loss(logits, labels, theta, counted).item() == pytest.approx(5 * 0.693147 / 6, rel=1e-5)


def test_other_parts_are_background_in_a_window() -> None:
    """A brow's window of 21 rows also holds the eye 10 rows below: to take it for the brow costs."""
    stn = module("parts")
    labels = face()[1][None]
    theta = theta_from_centers(true_centers(labels)[0], (21, 25), (72, 72))
    sure = torch.full((1, 2, 21, 25), 0.0)
    sure[:, 0] = SURE  # all background
    logits = [sure.clone() for _ in range(5)] + [F.pad(sure, (0, 0, 0, 0, 0, 2))]
    logits[0][0, 1, 9:12, 9:16] = 2 * SURE  # the brow itself: right
    before = stn._parts_loss(logits, labels, theta)
    logits[0][0, 1, 19:, 9:16] = 2 * SURE  # the eye's first rows, called brow
    assert stn._parts_loss(logits, labels, theta) > before + 0.1


def test_pasted_loss_charges_what_no_window_covers() -> None:
    """All windows far from their parts: each of the 8 * 21 pixels costs 13.8, spread over 6 windows of 525 pixels."""
    stn = module(loss_on="pasted")
    labels = face()[1][None]
    away = theta_from_centers(torch.tensor([[[66.0, 4.0]] * 6]), (21, 25), (72, 72))
    sure = torch.zeros(1, 2, 21, 25)
    sure[:, 0] = SURE
    logits = [sure] * 5 + [F.pad(sure, (0, 0, 0, 0, 0, 2))]
    cost = stn._pasted_loss(logits, labels, away).item()
    assert cost == pytest.approx(8 * 21 * 13.8155 / (6 * 525), rel=1e-3)
    assert stn._parts_loss(logits, labels, away).item() < 1e-6, "the windows' own loss does not see it"


def test_pasted_loss_is_0_where_all_is_right_and_leaves_out_ignored_pixels() -> None:
    stn = module(loss_on="pasted").eval()
    frame, labels = face()[0][None], face()[1][None]
    theta = theta_from_centers(true_centers(labels)[0].round(), (21, 25), (72, 72))
    logits = [part * 3 for part in stn.label_windows(frame, theta)]
    assert stn._pasted_loss(logits, labels, theta).item() == pytest.approx(0, abs=1e-4)
    wrong = labels.clone()
    wrong[0, 0, 0] = 5
    assert stn._pasted_loss(logits, wrong, theta).item() > 1e-3
    wrong[0, 0, 0] = 255
    assert stn._pasted_loss(logits, wrong, theta).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("loss_on", ["parts", "pasted"])
def test_end_to_end_the_localizer_learns_from_the_masks(loss_on: Any) -> None:
    """The gradient reaches the windows through the crops; with theta_weight it also pulls to the truth."""
    batch = dict(collate([sample()]))
    stn = module(loss_on=loss_on)
    stn.parts.update({name: nn.Conv2d(3, class_count(name), 3, padding=1) for name in NETWORKS})
    stn.log = lambda *_args, **_kwargs: None  # type: ignore[method-assign]
    stn._training_loss(batch).backward()
    assert isinstance(stn.localizer, Points)
    grad = stn.localizer.answer.grad
    assert grad is not None
    assert grad.isfinite().all()
    assert (grad[:, :2] != 0).any()


def test_nothing_labelled_costs_nothing() -> None:
    """An image of ignored pixels alone: loss 0 and no nan, in every stage."""
    one = sample()
    one["mask"] = torch.full_like(one["mask"], 255)
    for stage in ("coarse", "localizer", "parts", "end_to_end"):
        stn = module(stage)
        stn.log = lambda *_args, **_kwargs: None  # type: ignore[method-assign]
        loss = stn._training_loss(dict(collate([one])))
        assert loss.item() == 0, stage
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in stn.parameters())


def test_the_papers_loss_by_option() -> None:
    """Equation 16 in the place of the published code's cross-entropy."""
    batch = dict(collate([sample()]))
    stn = module("coarse", loss=OneHotBCELoss(255))
    target = small_labels(batch)
    by_hand = F.binary_cross_entropy_with_logits(stn(batch["image"]), F.one_hot(target, 9).movedim(-1, 1).float())
    assert stn._training_loss(batch).item() == pytest.approx(by_hand.item(), rel=1e-5)


@pytest.mark.parametrize("window", [(21, 25), (20, 24)])
def test_the_baseline_cuts_whole_pixels_around_soft_centres(window: tuple[int, int]) -> None:
    """A coarse mask sure of a nose at x 22, y 11 of 36: at 44.5 and 22.5 of 72, of which the even; to the pixel."""
    stn = module(cropper="baseline", window=window)
    coarse = torch.zeros(1, 9, 36, 36)
    coarse[:, 0] = SURE
    coarse[:, 5, 10:13, 20:25] = 2 * SURE
    frame, sizes = pad_originals(collate([sample()]), stn.window)
    theta = stn._baseline_theta(coarse, sizes, size_of(frame))
    crops = crop_parts(frame, theta, window)
    whole = integer_crop(frame, torch.tensor([[[44.0, 22.0]]]), window)
    assert torch.allclose(crops[:, 4], whole[:, 0], atol=1e-5)
    nowhere = (theta[0, 0, :, 2] + 1) / 2 * 71  # of a part that the mask lacks: the middle, away from the nose
    assert nowhere.tolist() == pytest.approx([35 - (window[1] % 2 == 0) / 2, 36 - (window[0] % 2 == 0) / 2], abs=1e-3)


def test_soft_centres_by_hand() -> None:
    """Probabilities 0.75 and 0.25 in columns 0 and 4: 1; the mouth is the mean of its classes' centroids."""
    soft = torch.zeros(1, 9, 1, 5)
    soft[0, 1:, 0, 0], soft[0, 1:, 0, 4] = 0.75, 0.25
    soft[0, 6, 0] = torch.tensor([0.0, 0, 0, 0, 1])  # an upper lip at 4
    centers = soft_centers(soft)
    assert centers[0, 0].tolist() == [1, 0]
    assert centers[0, 5].tolist() == [2, 0]


# Stages, as fits


def loader(count: int = 2) -> DataLoader[Sample]:
    return DataLoader([sample(f"{i}") for i in range(count)], batch_size=2, collate_fn=collate)  # type: ignore[arg-type]


def trainer(folder: Path, epochs: int = 1) -> Trainer:
    return Trainer(
        default_root_dir=folder, max_epochs=epochs, logger=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip


def conv(classes: int) -> nn.Module:
    """A network with batch norm, so that statistics that move would show."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, classes, 1))


def fitted(folder: Path, stage: Any, init_from: list[str] | None = None, **kwargs: Any) -> tuple[STNiCNN, str]:
    torch.manual_seed(0)
    stn = STNiCNN(STN, stage, init_from, window=(21, 25), network=conv, **kwargs)
    fit = trainer(folder)
    fit.fit(stn, loader(), loader())
    path = folder / f"{stage}.ckpt"
    fit.save_checkpoint(path)
    return stn, str(path)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints of coarse, localizer and parts, each from the one before."""
    folder = tmp_path_factory.mktemp("stages")
    made: dict[str, str] = {}
    for stage in ("coarse", "localizer", "parts"):
        before = list(made.values())[-1:]
        made[stage] = fitted(folder, stage, before)[1]
    return made


def state(path: str, name: str) -> dict[str, Tensor]:
    content = torch.load(path, weights_only=True)["state_dict"]
    return {key: value for key, value in content.items() if key.startswith(f"{name}.")}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_each_stage_trains_its_own_and_leaves_the_rest(stages: dict[str, str]) -> None:
    """Weights and batch statistics of what is frozen are the earlier stage's to the bit."""
    assert same(state(stages["coarse"], "network"), state(stages["localizer"], "network"))
    assert same(state(stages["localizer"], "network"), state(stages["parts"], "network"))
    assert same(state(stages["localizer"], "localizer"), state(stages["parts"], "localizer"))
    assert not same(state(stages["localizer"], "parts"), state(stages["parts"], "parts"))
    assert not same(state(stages["coarse"], "localizer"), state(stages["localizer"], "localizer"))


def test_a_rate_of_0_freezes(stages: dict[str, str], tmp_path: Path) -> None:
    """The published end to end: coarse network and localizer stand still, statistics too."""
    _, path = fitted(tmp_path, "end_to_end", [stages["parts"]], lr_coarse=0, lr_localizer=0)
    assert same(state(stages["parts"], "network"), state(path, "network"))
    assert same(state(stages["parts"], "localizer"), state(path, "localizer"))
    assert not same(state(stages["parts"], "parts"), state(path, "parts"))


def test_end_to_end_all_three_move_each_at_its_rate(stages: dict[str, str], tmp_path: Path) -> None:
    stn, path = fitted(tmp_path, "end_to_end", [stages["parts"]], lr_coarse=1e-6, lr_localizer=1e-5, lr_parts=1e-3)
    for name in ("network", "localizer", "parts"):
        assert not same(state(stages["parts"], name), state(path, name)), name
    assert [group["lr"] for group in stn._parameter_groups()] == [1e-6, 1e-5, 1e-3]
    assert sorted(stn.make_card()["trained"]) == ["localizer", "network", "parts"]


@pytest.mark.parametrize("settings", [{"stage": "end_to_end"}, {"stage": "parts", "jitter": "localizer"}])
def test_frozen_batch_norm_keeps_what_earlier_stages_measured(
    stages: dict[str, str], tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Weights learn, statistics stay; a network that no stage has trained has none to keep."""
    _, path = fitted(tmp_path, init_from=[stages["parts"]], batch_norm="frozen", **settings)
    before, after = (state(checkpoint, "parts") for checkpoint in (stages["parts"], path))
    assert not same(before, after)
    for name in ("network", "localizer", "parts"):
        before, after = (state(checkpoint, name) for checkpoint in (stages["parts"], path))
        assert all(torch.equal(before[key], after[key]) for key in before if "running" in key), name
    with pytest.raises(ValueError, match="needs a trained part networks"):
        fitted(tmp_path, init_from=[stages["localizer"]], batch_norm="frozen", **settings)


def test_jitter_by_the_localizers_own_error() -> None:
    """A localizer that errs by (3, -2) on the first face alone moves the second face's windows by that, and not the first's."""
    stn = module("parts", jitter="localizer")
    batch = dict(collate([sample(), sample("b", without=(5,))]))
    frame, _, sizes, truth, present = stn._framed(batch)

    class Errs(nn.Module):
        def forward(self, mask: Tensor) -> Tensor:
            centers = torch.stack([true_centers(one[None])[0][0] for one in batch["mask"]])
            centers[0] += torch.tensor([3.0, -2.0])
            centers[1, 4] = 0  # of the nose that is not there: no error
            return torch.cat([centers * 2 / 71 - 1, torch.zeros_like(centers)], -1)

    stn.localizer = Errs()
    moved = stn._jittered(batch, truth, present, sizes, size_of(frame))
    moves = centers_from_theta(moved, size_of(frame)) - centers_from_theta(truth, size_of(frame))
    assert moves[0].abs().max().item() == pytest.approx(0, abs=1e-4)
    assert moves[1, 0].tolist() == pytest.approx([3, -2], abs=1e-4)
    assert moves[1, 4].tolist() == [0, 0], "the absent nose stays"


def test_jitter_in_pixels_is_the_mean_distance() -> None:
    stn = module("parts", jitter=4.0)
    batch = dict(collate([sample()] * 500))
    frame, _, sizes, truth, present = stn._framed(batch)
    torch.manual_seed(0)
    moved = stn._jittered(batch, truth, present, sizes, size_of(frame))
    moves = centers_from_theta(moved, size_of(frame)) - centers_from_theta(truth, size_of(frame))
    assert moves.norm(dim=-1).mean().item() == pytest.approx(4, rel=0.03)
    assert moves.mean((0, 1)).tolist() == pytest.approx([0, 0], abs=0.2)


def test_labels_are_shrunk_as_the_data_say() -> None:
    """Four pixels in one: the most frequent label, where nearest takes the last."""
    batch = {"image": torch.zeros(1, 3, 1, 1), "mask": torch.tensor([[[5, 5], [5, 2]]])}
    assert small_labels(batch).item() == 2
    assert small_labels(batch, "majority").item() == 5
    framed = {**batch, "original": [torch.zeros(3, 1, 1)]}
    assert pad_labels(framed, (1, 1), 255, "majority").item() == 5


def test_rates_are_halved_every_5_epochs() -> None:
    stn = STNiCNN(STN, "coarse", network=conv, lr_coarse=0.008)
    configured: Any = stn.configure_optimizers()
    rates = []
    for _ in range(11):
        rates.append(configured["optimizer"].param_groups[0]["lr"])
        configured["optimizer"].step()
        configured["lr_scheduler"]["scheduler"].step()
    assert rates == pytest.approx([0.008] * 5 + [0.004] * 5 + [0.002])


def test_stages_that_are_missing_are_named(stages: dict[str, str], tmp_path: Path) -> None:
    for stage, before, message in (
        ("localizer", [], "stage localizer needs a trained coarse network; give --model.init_from"),
        ("parts", [stages["coarse"]], "stage parts needs a trained localizer"),
        ("end_to_end", [stages["localizer"]], "stage end_to_end needs a trained part networks"),
    ):
        with pytest.raises(ValueError, match=message):
            fitted(tmp_path, stage, before)


def test_parts_on_true_windows_need_no_other_stage(tmp_path: Path) -> None:
    stn, _ = fitted(tmp_path, "parts", cropper="true")
    assert "val/center_error" not in stn.logged_keys()


def test_checkpoints_that_do_not_fit_are_refused(stages: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has window \[21, 25\], not \[31, 31\]; give a checkpoint"):
        trainer(tmp_path).fit(
            STNiCNN(STN, "parts", [stages["localizer"]], window=(31, 31), network=conv), loader(), loader()
        )
    other = partial(nn.Conv2d, 3, kernel_size=1)
    with pytest.raises(ValueError, match=r"the network of .* has other layers"):
        trainer(tmp_path).fit(
            STNiCNN(STN, "localizer", [stages["coarse"]], window=(21, 25), network=other), loader(), loader()
        )
    torch.manual_seed(1)
    again = STNiCNN(STN, "coarse", window=(21, 25), network=conv)
    fit = trainer(tmp_path)
    fit.fit(again, loader(), loader())
    fit.save_checkpoint(tmp_path / "again.ckpt")
    with pytest.raises(ValueError, match="hold different trained networks"):
        fitted(tmp_path, "localizer", [stages["coarse"], str(tmp_path / "again.ckpt")])
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        fitted(tmp_path, "localizer", [str(tmp_path / "none.ckpt")])


def test_what_was_never_trained_is_not_scored(stages: dict[str, str], tmp_path: Path) -> None:
    stn = STNiCNN(STN, "end_to_end", window=(21, 25), network=conv)
    with pytest.raises(ValueError, match="test needs a trained coarse network and localizer and part networks"):
        trainer(tmp_path).test(stn, loader(), ckpt_path=None, verbose=False)
    assert stages


def test_a_test_scores_found_and_true_windows(stages: dict[str, str], tmp_path: Path) -> None:
    stn = STNiCNN(STN, "parts", window=(21, 25), network=conv)
    run = trainer(tmp_path)
    run.test(stn, loader(), ckpt_path=stages["parts"], verbose=False)
    keys = set(run.callback_metrics)
    assert {
        "test/group_f1/overall", "test/published_overall_f1", "test/center_error", "test/part_inside/nose",
        "test/true_windows/group_f1/overall", "test/absent_parts",
    } <= keys  # fmt: skip
    nested = nest_metrics({key: float(value) for key, value in run.callback_metrics.items()}, "test")
    assert set(nested["true_windows"]["group_f1"]) == {"eyes", "brows", "nose", "mouth", "overall"}
    assert set(nested["all"]["part_center_error"]) == set(FACE_PARTS)


def test_prediction_needs_trained_networks_and_windows_of_its_own(stages: dict[str, str]) -> None:
    stn = STNiCNN(STN, "parts", window=(21, 25), network=conv)
    with pytest.raises(ValueError, match="prediction needs a trained coarse network and localizer and part networks"):
        stn.check_prediction()
    stn.on_load_checkpoint(torch.load(stages["parts"], weights_only=True))
    stn.check_prediction()
    stn.cropper = "true"
    with pytest.raises(ValueError, match="no true windows without labels"):
        stn.check_prediction()


def labelled(stn: STNiCNN, batch: Batch) -> list[Tensor]:
    """The classes that a prediction finds, (h, w) each."""
    with torch.no_grad():
        found = stn.label(batch, [size_of(image) for image in batch["original"]])
        for one in found:
            (chances,) = one.probabilities()
            assert torch.equal(chances.argmax(0).byte(), one.classes())
            torch.testing.assert_close(chances.sum(0), torch.ones(chances.shape[1:]))
    return [one.classes() for one in found]


def test_prediction_is_the_evaluations() -> None:
    """The lean way of prediction labels every pixel as the scored one does."""
    batch = collate([sample(), sample("b", shift=4)])
    stn = module().eval()
    assert torch.equal(torch.stack(labelled(stn, batch)).long(), evaluated(stn, batch)["prediction"])


@pytest.mark.parametrize("broken", ["network", "parts"])
def test_logits_that_are_no_numbers_are_no_background(broken: str) -> None:
    batch = collate([sample(), sample("b", shift=4)])
    stn = module().eval()
    weight: Any = stn.network.weight if broken == "network" else stn.parts["nose"].weight
    weight.data.fill_(torch.nan)
    for step in (lambda: labelled(stn, batch), lambda: evaluated(stn, batch)):
        with torch.no_grad(), pytest.raises(ValueError, match=r"^the logits of a, b are not finite"):
            step()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage": "coarse", "loss_on": "pasted"}, "loss_on=pasted with stage coarse"),
        ({"stage": "end_to_end", "jitter": 2.0}, r"jitter=2.0 with stage end_to_end \(only for parts\)"),
        ({"stage": "parts", "jitter": -1.0}, r"jitter=-1.0 \(pixels, 0 or more, or localizer\)"),
        (
            {"stage": "parts", "jitter": 2.0, "train_on": "stn"},
            r"jitter=2.0 with train_on=stn \(it moves true windows\)",
        ),
        ({"stage": "parts", "theta_weight": 0.1}, "theta_weight=0.1, loss_on=parts with stage parts"),
        ({"stage": "end_to_end", "theta_weight": -1.0}, "theta_weight=-1"),
        (
            {"stage": "end_to_end", "theta_weight": 1.0, "lr_coarse": 0, "lr_localizer": 0},
            "nothing would be trained by it",
        ),
        ({"stage": "coarse", "lr_coarse": 0}, "stage coarse has no learning rate above 0"),
        ({"stage": "end_to_end", "train_on": "stn"}, "train_on=stn with stage end_to_end"),
        ({"stage": "localizer", "cropper": "true"}, "cropper=true with stage localizer"),
        ({"stage": "parts", "window": (1, 9)}, r"window=\(1, 9\)"),
        ({"stage": "parts", "lr_parts": -0.1}, "parts=-0.1"),
        (
            {"stage": "end_to_end", "lr_coarse": 0, "lr_localizer": 0, "lr_parts": 0},
            "stage end_to_end has no learning rate above 0",
        ),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        STNiCNN(STN, network=conv, **settings)


def test_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="not fasseg; set label_space: stn"):
        STNiCNN(FASSEG, "coarse", network=conv)


def test_images_without_originals_are_refused() -> None:
    one = sample()
    del one["original"]
    with pytest.raises(ValueError, match=r"no full-size images.*set --data.originals"):
        evaluated(module(), collate([one]))


@pytest.mark.parametrize("cropper", ["stn", "true"])
def test_the_steps_of_a_face(cropper: Any) -> None:
    """The nose's window of 21 x 25 around (35, 42) reaches half a pixel beyond its outermost centres."""
    stn = module(cropper=cropper).eval()
    view = stn.views(dict(collate([sample()])))[0]
    assert view.image.shape == (3, 72, 72)
    assert view.boxes[4].tolist() == pytest.approx([35 - 12.5, 42 - 10.5, 35 + 12.5, 42 + 10.5], abs=1e-3)
    assert torch.equal(view.mask.long(), face()[1])
    assert view.parts.shape == (6, 21, 25)
    assert set(view.parts[5].unique().tolist()) == {0, 6, 7, 8}
    assert torch.equal(view.parts[4] == 5, face()[1][32:53, 23:48] == 5)


def test_small_labels_of_a_batch_of_sizes_that_make_the_small_size() -> None:
    """64 x 48 beside 48 x 64, small size 64 x 64: squeezed as their images are, nothing ignored."""
    batch = collate([sample(height=64, width=72), sample("b", height=72, width=64)])
    batch["image"] = torch.zeros(2, 3, 72, 72)
    small = small_labels(batch)
    assert small.shape == (2, 72, 72)
    assert (small != 255).all()


def test_theta_costs_the_same_beside_a_larger_photograph() -> None:
    """A window off by 0.1 of its image's extent, alone and beside an image twice as large."""
    stn = module("localizer")
    stn.log = lambda *_args, **_kwargs: None  # type: ignore[method-assign]
    assert isinstance(stn.localizer, Points)
    with torch.no_grad():
        stn.localizer.answer[:, 0] += 0.1
    alone = stn._training_loss(dict(collate([sample()])))
    other = sample("b", height=143, width=143)
    other["mask"] = torch.full_like(other["mask"], 255)
    beside = stn._training_loss(dict(collate([sample(), other])))
    assert beside.item() == pytest.approx(alone.item(), rel=1e-4)
    assert alone.item() == pytest.approx(0.5 * 0.1**2 / 4, rel=1e-3)


def test_prediction_brings_photographs_to_the_scale_of_training() -> None:
    """Trained on faces of 72 pixels: one of 216 is seen at a third, and its mask enlarged again."""
    stn = module().eval()
    stn.sides = (72, 72)
    one = sample()
    one["original"] = F.interpolate(one["original"][None], (216, 216), mode="nearest-exact")[0]
    (mask,) = labelled(stn, collate([{**one, "mask": torch.zeros(216, 216, dtype=torch.int64)}]))
    whole = F.interpolate(face()[1][None, None].float(), (216, 216), mode="nearest-exact")[0, 0]
    assert mask.shape == (216, 216)
    assert (mask == whole).float().mean() > 0.98
    assert stn._at_scale(torch.zeros(3, 36, 18)).shape == (3, 72, 36)
    stn.sides = (50, 300)
    assert stn._at_scale(torch.zeros(3, 200, 100)).shape == (3, 200, 100)


def test_the_localizers_windows_are_float32_under_autocast() -> None:
    """In bf16 a centre would be known to a 256th."""
    stn = module()
    stn.localizer = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(24), nn.Unflatten(1, (6, 4)))
    frame, sizes = pad_originals(collate([sample()]), stn.window)
    coarse = torch.randn(1, 9, 64, 64)
    plain = stn.stn_theta(coarse, sizes, size_of(frame))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stn.stn_theta(coarse, sizes, size_of(frame)), plain)


def test_the_localizer_is_not_watched_by_masks_that_stand_still(stages: dict[str, str]) -> None:
    keys = STNiCNN(STN, "localizer", window=(21, 25), network=conv).logged_keys()
    assert "val/center_error" in keys
    assert not {key for key in keys if key.startswith("val/") and "f1" in key}
    assert stages


def test_a_resumed_fit_needs_no_earlier_stage(stages: dict[str, str], tmp_path: Path) -> None:
    """Its checkpoint holds all networks; the files of `init_from` may be gone."""
    stn = STNiCNN(STN, "parts", ["gone.ckpt"], window=(21, 25), network=conv)
    trainer(tmp_path, 2).fit(stn, loader(), loader(), ckpt_path=stages["parts"])
    held = {f"network.{key}": value for key, value in stn.network.state_dict().items()}
    assert same(held, state(stages["parts"], "network"))
    assert stn.trained == {"network", "localizer", "parts"}


def test_a_resumed_fit_is_of_the_same_stage(stages: dict[str, str], tmp_path: Path) -> None:
    stn = STNiCNN(STN, "parts", window=(21, 25), network=conv)
    with pytest.raises(ValueError, match=r"is of stage localizer, not parts; to build on it"):
        trainer(tmp_path, 2).fit(stn, loader(), loader(), ckpt_path=stages["localizer"])
    other = STNiCNN(STN, "parts", window=(31, 31), network=conv)
    with pytest.raises(ValueError, match=r"windows of \(21, 25\), not \(31, 31\)"):
        trainer(tmp_path).test(other, loader(), ckpt_path=stages["parts"], verbose=False)


def test_a_fit_does_not_watch_the_baselines_windows(stages: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cropper baseline is for its tests"):
        fitted(tmp_path, "localizer", [stages["coarse"]], cropper="baseline")
