"""`structseg.load`: masks and probabilities against the modules that the checkpoints came from, and against numbers by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from structseg import load
from structseg.datamodules.batch import image_tensor
from structseg.datamodules.images import resize_image
from structseg.datamodules.label_spaces import PARTS, STN, VOC, LabelSpace
from structseg.files import ROOT
from structseg.lightning_modules.consensus import ConsensusSegmenter
from structseg.lightning_modules.conta.classifier import CONTAClassifier
from structseg.lightning_modules.conta.segmenter import CONTASegmenter
from structseg.lightning_modules.fasseg_unet import FASSEGUNet
from structseg.lightning_modules.networks.smp import SMPNetwork
from structseg.lightning_modules.segmentation import SegmentationModule
from structseg.lightning_modules.stn.stn_icnn import STNiCNN
from structseg.prediction.command import main as predict
from tests.data.tiny import TinyNetwork
from tests.data.tiny_runs import save_checkpoint

ROOM = "structseg.lightning_modules"
TINY = {"class_path": "tests.data.tiny.TinyNetwork"}
PIXELS = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
OWN = LabelSpace("own", ("nothing", "left", "right"), ((1, 2, 3), (40, 50, 60), (70, 80, 90)), ((1, 2),))


class Recolour(nn.Module):
    """Logits that are the three colours of each pixel."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, classes, 1)
        self.layer.weight.data = torch.eye(3)[:, :, None, None]
        self.layer.bias.data.zero_()

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.layer(image)
        return found


class Other(SegmentationModule):
    """A method that is not the suite's own."""

    def __init__(self, label_space: LabelSpace, **kwargs: Any) -> None:
        super().__init__(TinyNetwork(len(label_space)), nn.CrossEntropyLoss(ignore_index=255), label_space, **kwargs)


def tiny(path: Path, space: LabelSpace = OWN, seed: int = 0, flip_test: bool = False, network: Any = TINY) -> Path:
    torch.manual_seed(seed)
    module = FASSEGUNet(space, TinyNetwork, flip_test=flip_test)
    module.network.layers[2].weight.data *= 20
    return save_checkpoint(path, module, f"{ROOM}.fasseg_unet.FASSEGUNet", network=network, flip_test=flip_test)


def conta(**settings: Any) -> CONTASegmenter:
    return CONTASegmenter(VOC, "tf_efficientnet_lite0", output_stride=16, scales=(), **settings)


def stn() -> STNiCNN:
    stn = STNiCNN(STN, "end_to_end", window=(11, 13), network=TinyNetwork)
    stn.trained, stn.sides = {"network", "localizer", "parts"}, (30, 40)
    return stn


def photograph() -> Image.Image:
    return Image.fromarray(PIXELS)


def by_hand(module: SegmentationModule, size: tuple[int, int] = (32, 32)) -> Any:
    """What the module that was saved says itself."""
    batch = {"image": image_tensor(resize_image(photograph(), size))[None], "name": ["p"]}
    batch["original"] = [image_tensor(photograph())]
    with torch.inference_mode():
        (found,) = module.eval().label(batch, [(50, 70)])
        (chances,) = found.probabilities()
        return found.classes().numpy(), chances.numpy()


@pytest.mark.parametrize(
    ("make", "path", "settings"),
    [
        (partial(FASSEGUNet, PARTS, TinyNetwork), "fasseg_unet.FASSEGUNet", {"network": TINY}),
        (partial(FASSEGUNet, OWN, TinyNetwork), "FASSEGUNet", {"network": TINY}),
        (
            partial(ConsensusSegmenter, OWN, TinyNetwork, flip_test=True), "consensus.ConsensusSegmenter",
            {"network": TINY, "flip_test": True},
        ),
        (stn, "stn.stn_icnn.STNiCNN", {
            "network": TINY, "localizer": f"{ROOM}.networks.localizer.Localizer", "stage": "end_to_end",
            "cropper": "stn", "zoom": True,
        }),
        (partial(conta, test_scales=(0.5, 1.0)), "conta.segmenter.CONTASegmenter", {
            "backbone": "tf_efficientnet_lite0", "output_stride": 16, "scales": [], "test_scales": [0.5, 1.0],
            "crf": False, "weights": "packaged",
        }),
        (partial(Other, OWN), "tests.structseg.test_api.Other", {}),
    ],
    ids=["FASSEG", "own classes", "flip test", "STN-iCNN", "CONTA", "a method of one's own"],
)  # fmt: skip
def test_each_method_as_its_module_evaluates_it(make: Any, path: str, settings: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = make()
    full = path if path.startswith("tests") or "." not in path else f"{ROOM}.{path}"
    segmenter = load(save_checkpoint(tmp_path / "a.ckpt", module, full, **settings), device="cpu")
    found = segmenter(photograph())
    mask, chances = by_hand(module)
    assert found.mask.dtype == np.uint8
    assert np.array_equal(found.mask, mask)
    assert found.probabilities.dtype == np.float32
    np.testing.assert_allclose(found.probabilities, chances, atol=1e-6)
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)
    assert segmenter.classes == module.label_space.classes
    assert segmenter.card["method"] == type(module).__name__


def test_every_form_of_a_photograph_gives_the_same_mask(tmp_path: Path) -> None:
    segmenter = load(tiny(tmp_path / "a.ckpt"))
    photograph().save(tmp_path / "p.png")
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    forms = [
        str(tmp_path / "p.png"), tmp_path / "p.png", photograph(), PIXELS, PIXELS[:, ::-1][:, ::-1], tensor,
        tensor / 255, (tensor / 255).double(),
    ]  # fmt: skip
    expected = segmenter(photograph()).mask
    assert len(np.unique(expected)) == 3
    found = segmenter(forms)
    assert isinstance(found, list)
    for one in [*found, *map(segmenter, forms), *segmenter.each(iter(forms))]:
        assert np.array_equal(one.mask, expected)
    drawn = np.asarray(segmenter(PIXELS).overlay()).astype(int)
    tinted = (PIXELS.astype(int) + np.array(OWN.palette)[expected] + 1) // 2
    assert np.array_equal(drawn, np.where(expected[..., None] == 0, PIXELS, tinted))
    assert segmenter([]) == []


def test_a_photograph_that_lies_on_its_side_is_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph().save(tmp_path / "p.png", exif=exif)
    segmenter = load(tiny(tmp_path / "a.ckpt"))
    for form in (tmp_path / "p.png", Image.open(tmp_path / "p.png")):
        assert np.array_equal(segmenter(form).mask, segmenter(photograph().transpose(Image.Transpose.ROTATE_270)).mask)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (PIXELS[..., 0], r"an array of shape \(50, 70\) and uint8; give \(H, W, 3\) of uint8"),
        (PIXELS.astype(np.float32), r"an array of shape \(50, 70, 3\) and float32"),
        (np.zeros((0, 5, 3), np.uint8), r"an array of shape \(0, 5, 3\)"),
        (torch.zeros(50, 70, 3), r"a tensor of shape \(50, 70, 3\) and torch\.float32; give \(3, H, W\)"),
        (torch.zeros(3, 5, 7, dtype=torch.int64), r"torch\.int64; give \(3, H, W\), uint8 or float from 0 to 1"),
        (torch.full((3, 5, 7), 255.0), "a tensor with values from 255 to 255; give uint8 or float from 0 to 1"),
        (torch.full((3, 5, 7), torch.nan), "a tensor with values from nan"),
        (None, "a NoneType is not a photograph; give a path, PIL image, array or tensor"),
    ],
)
def test_other_forms_are_refused_in_one_line(form: Any, says: str, tmp_path: Path) -> None:
    segmenter = load(tiny(tmp_path / "a.ckpt"))
    for given in (form, [PIXELS, form]):
        with pytest.raises(ValueError, match=says) as error:
            segmenter(given)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="no image at gone"):
        segmenter("gone.jpg")


def test_several_checkpoints_average_their_probabilities(tmp_path: Path) -> None:
    paths = [tiny(tmp_path / f"{seed}.ckpt", seed=seed) for seed in range(3)]
    found = load(paths)(PIXELS)
    mean = np.mean([load(path)(PIXELS).probabilities for path in paths], 0)
    np.testing.assert_allclose(found.probabilities, mean, atol=1e-6)
    assert np.array_equal(found.mask, found.probabilities.argmax(0))
    assert not np.array_equal(found.mask, load(paths[0])(PIXELS).mask)
    assert np.array_equal(load(paths[:1])(PIXELS).mask, load(paths[0])(PIXELS).mask)
    with pytest.raises(
        ValueError, match=r"has the classes background, face, hair, .* has nothing, left, right; average"
    ):
        load([paths[0], tiny(tmp_path / "parts.ckpt", PARTS)])


@pytest.mark.parametrize("size", [(90, 110), (33, 200), (40, 41), (200, 20)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_tiles_label_a_large_image_at_its_own_resolution(
    size: tuple[int, int], batch_size: int, tmp_path: Path
) -> None:
    """Where the network sees single pixels, tiles of any overlap give each pixel's own class."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    network = {"class_path": "tests.structseg.test_api.Recolour"}
    module = FASSEGUNet(OWN, Recolour, mean=(0, 0, 0), std=(1, 1, 1))
    path = save_checkpoint(tmp_path / "a.ckpt", module, f"{ROOM}.fasseg_unet.FASSEGUNet", (40, 40), network=network)
    for overlap in (0.0, 0.25, 0.7):
        found = load([path, path] if overlap else path, tile=40, overlap=overlap, batch_size=batch_size)(pixels)
        assert found.mask.shape == size
        if min(size) >= 40:
            assert np.array_equal(found.mask, pixels.argmax(2))
            chances = torch.from_numpy(pixels / 255).softmax(2).permute(2, 0, 1).numpy()
            np.testing.assert_allclose(found.probabilities, chances, atol=1e-5)
    small = pixels[:40, :40]
    assert np.array_equal(load(path, tile=40)(small).mask, load(path)(small).mask)


def test_blended_logits_by_hand(tmp_path: Path) -> None:
    """Two tiles of 32 columns that share 16: each logit is weighed by the distance to its tile's border."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    module = SegmentationModule(TinyNetwork(3), nn.CrossEntropyLoss(ignore_index=255), OWN).eval()
    with torch.inference_mode():
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
        left, right = module.evaluate(image[..., :32])[0], module.evaluate(image[..., 16:])[0]
    ramp = torch.minimum(torch.arange(1, 33), torch.arange(32, 0, -1))
    total, weights = torch.zeros(3, 32, 48), torch.zeros(48)
    for start, logits in ((0, left), (16, right)):
        total[..., start : start + 32] += ramp * logits
        weights[start : start + 32] += ramp
    full = FASSEGUNet(OWN, TinyNetwork)
    full.load_state_dict(module.state_dict())
    path = save_checkpoint(tmp_path / "a.ckpt", full, f"{ROOM}.fasseg_unet.FASSEGUNet", network=TINY)
    found = load(path, tile=32, overlap=0.5)(pixels)
    np.testing.assert_allclose(found.probabilities, (total / weights).softmax(0).numpy(), atol=1e-5)


def test_options_change_how_a_checkpoint_is_evaluated(tmp_path: Path) -> None:
    path = tiny(tmp_path / "a.ckpt")
    plain, flipped = load(path)(PIXELS).probabilities, load(path, flip_test=True)(PIXELS).probabilities
    assert not np.allclose(plain, flipped)
    again = tiny(tmp_path / "b.ckpt", flip_test=True)
    np.testing.assert_allclose(load(again)(PIXELS).probabilities, flipped, atol=1e-6)
    assert np.array_equal(load(again, flip_test=False)(PIXELS).mask, load(path)(PIXELS).mask)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"crf": True}, r"FASSEGUNet has no crf; it takes flip_test$"),
        ({"device": "abacus"}, r"no device abacus here \(.*\); use cpu or auto"),
        ({"batch_size": 0}, "batch_size is 0; give 1 or more"),
        ({"tile": 3}, "tile is 3; give 16 pixels or more"),
        ({"overlap": 1.0}, "overlap is 1.0; give 0 to 0.9"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        load(tiny(tmp_path / "a.ckpt"), **options)


def test_tiles_are_refused_for_methods_that_need_whole_photographs(tmp_path: Path) -> None:
    settings = {"network": TINY, "localizer": f"{ROOM}.networks.localizer.Localizer", "stage": "end_to_end"}
    path = save_checkpoint(
        tmp_path / "a.ckpt", stn(), f"{ROOM}.stn.stn_icnn.STNiCNN", **settings, cropper="stn", zoom=True
    )
    with pytest.raises(ValueError, match=r"looks at whole photographs .*; leave tile out"):
        load(path, tile=64)
    with pytest.raises(ValueError, match="no true windows without labels"):
        load(path, cropper="true")


def _without_card(path: Path) -> None:
    torch.save({"state_dict": {}}, path)


def _classifier(path: Path) -> None:
    module = CONTAClassifier(VOC, backbone="tf_efficientnet_lite0", weights="random")
    save_checkpoint(path, module, f"{ROOM}.conta.classifier.CONTAClassifier")


def _other_weights(path: Path) -> None:
    module = FASSEGUNet(OWN, Recolour)
    save_checkpoint(path, module, f"{ROOM}.fasseg_unet.FASSEGUNet", network=TINY)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_text("text"), r"a\.ckpt is damaged or no checkpoint"),
        (_without_card, r"a\.ckpt is no checkpoint of structseg: it has no card"),
        (_classifier, r"a\.ckpt is of CONTAClassifier, which labels no pixels; give the checkpoint of a segmenter"),
        (_other_weights, r"a\.ckpt cannot be used \(.*Missing key.*\); use a checkpoint of this version"),
        (lambda path: tiny(path, network="os.system"), r"a\.ckpt cannot be used \(os\.system is not a network"),
        (lambda path: tiny(path, network="datamodules.x.Net"), r"a\.ckpt cannot be used \(No module named"),
    ],
)
def test_wrong_checkpoints_are_one_line_in_python_and_on_the_command_line(make: Any, says: str, tmp_path: Path) -> None:
    make(tmp_path / "a.ckpt")
    photograph().save(tmp_path / "p.png")
    for call in (
        lambda: load(tmp_path / "a.ckpt"),
        lambda: predict([str(tmp_path / "a.ckpt"), str(tmp_path / "p.png"), "--out", str(tmp_path / "out")]),
    ):
        with pytest.raises(ValueError, match=says) as error:
            call()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_run_and_a_published_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "runs/mine/0"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*give its file, or the folder of its run"):
        load(run)
    tiny(run / "checkpoints/last.ckpt", seed=1)
    last = load(run)(PIXELS).mask
    best = load(tiny(run / "checkpoints/best.ckpt"))(PIXELS).mask
    assert not np.array_equal(last, best)
    for folder in (run, run / "checkpoints", run.parent):
        assert np.array_equal(load(folder)(PIXELS).mask, best)
    (tmp_path / "hub").mkdir()
    tiny(tmp_path / "hub/model.ckpt")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(tmp_path / "hub"))
    assert np.array_equal(load("hf://me/model")(PIXELS).mask, best)
    tiny(tmp_path / "hub/other.ckpt")
    with pytest.raises(ValueError, match=r"hf://me/model holds 2 checkpoints \(model\.ckpt, other\.ckpt\); give one"):
        load("hf://me/model")
    with pytest.raises(FileNotFoundError, match="no checkpoint at gone; give its file"):
        load("gone")


def test_heic_without_its_extra_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from structseg.datamodules import images

    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    images._formats.cache_clear()
    (tmp_path / "p.HEIC").write_bytes(b"0")
    with pytest.raises(ValueError, match=r"p\.HEIC: HEIC needs pillow-heif, .*; pip install 'structseg\[heic\]'$"):
        load(tiny(tmp_path / "a.ckpt"))(tmp_path / "p.HEIC")


@pytest.mark.slow
def test_a_photograph_is_labelled_without_lightning_and_as_the_command_does(tmp_path: Path) -> None:
    """In a process of its own: 1024 x 1024, the mask equal byte for byte, and nothing heavy imported."""
    network = {"class_path": f"{ROOM}.networks.readme_unet.ReadmeUNet"}
    module = FASSEGUNet(OWN)
    path = save_checkpoint(tmp_path / "a.ckpt", module, f"{ROOM}.fasseg_unet.FASSEGUNet", (64, 64), network=network)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    of_smp = {"class_path": f"{ROOM}.networks.smp.SMPNetwork", "init_args": {"encoder_weights": "random"}}
    module = FASSEGUNet(OWN, partial(SMPNetwork, encoder_weights="random"))
    other = save_checkpoint(tmp_path / "b.ckpt", module, f"{ROOM}.fasseg_unet.FASSEGUNet", (64, 64), network=of_smp)
    code = """
import json, sys
import numpy as np
from PIL import Image
from structseg import load
from structseg.prediction.command import main
mask = load(sys.argv[1])(sys.argv[2]).mask
main([sys.argv[1], sys.argv[2], "--out", sys.argv[3]])
same = np.array_equal(mask, np.asarray(Image.open(sys.argv[3] + "/p.png")))
load(sys.argv[4])  # timm would import W&B
heavy = {"pytorch_lightning", "lightning_fabric", "torchmetrics", "wandb", "jsonargparse", "matplotlib"}
print(json.dumps([same, mask.shape, sorted(heavy & sys.modules.keys())]))
"""
    words = [str(path), str(tmp_path / "p.png"), str(tmp_path / "out"), str(other)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [True, [1024, 1024], []]
