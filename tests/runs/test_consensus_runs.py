"""The consensus experiments through the real command line, on small trees in the published layouts."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from structseg.command.lightning import run
from structseg.command.main import main
from structseg.prediction.command import main as predict
from tests.data.celebamask_hq import make_celebamask_hq
from tests.data.lfw import make_lfw

CONFIGS = Path(__file__).parents[2] / "experiments" / "consensus"
SMALL = [
    "--model.network", "tests.data.tiny.TinyNetwork", "--data.size", "[32, 32]", "--data.batch_size", "2",
    "--trainer.max_epochs", "1", "--trainer.precision", "32", "--trainer.accelerator", "cpu",
    "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
]  # fmt: skip
CROSS_ENTROPY = ["--model.loss", "torch.nn.CrossEntropyLoss", "--model.loss.ignore_index", "255"]


@pytest.fixture(autouse=True, scope="module")
def _plain_argv():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["structseg"])
        yield


@pytest.fixture(scope="module")
def lfw(tmp_path_factory):
    return make_lfw(tmp_path_factory.mktemp("lfw") / "lfw", train=4, val=2, test=3, extra=2, superpixels=True)


@pytest.fixture(scope="module")
def fitted(lfw, tmp_path_factory):
    """A finished fit of `lfw_parts`."""
    return fit("lfw_parts", tmp_path_factory.mktemp("runs"), "--data.root", str(lfw))


def fit(name, folder, *more):
    return run(["fit", "--config", str(CONFIGS / f"{name}.yaml"), *SMALL, *more, "--runs_dir", str(folder)])


def score(fitted, *more):
    return run(["test", "--ckpt_path", str(fitted.folder.checkpoints / "best.ckpt"), *more])


def logged(cli):
    return {key: float(value) for key, value in cli.trainer.callback_metrics.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "arm"),
    [
        ("lfw_parts", ["--data.blobs", "components"]),
        ("lfw_parts", ["--data.blobs", "superpixels"]),
        ("lfw_parts", CROSS_ENTROPY),
        ("lfw_parts_light", []),
        ("lfw_parts_scratch", []),
    ],
)
def test_lfw_fit_and_test(config, arm, lfw, tmp_path):
    done = fit(config, tmp_path / "runs", "--data.root", str(lfw), *arm)
    assert type(done.model.loss).__name__ == ("CrossEntropyLoss" if arm == CROSS_ENTROPY else "ConsensusLoss")
    found = logged(score(done))
    assert {"test/miou", "test/component_error", "test/component_error_relative", "test/mean_boundary_f1"} <= set(found)
    assert "test/new_people/component_error" in found, "Ann_Lee is in train and test, the others are new"
    assert ("test/superpixel_accuracy" in found) is ("superpixels" in arm), "the tree has published superpixels"
    assert (done.folder.path / "images_test.csv.gz").is_file()


@pytest.mark.slow
def test_masks_at_their_own_size_are_another_score(fitted):
    native, at_size = (logged(score(fitted, "--data.score_at", size))["test/miou"] for size in ("native", "size"))
    assert native != at_size


@pytest.mark.slow
def test_predict_from_the_checkpoint_alone(fitted, lfw, tmp_path):
    best, out = str(fitted.folder.checkpoints / "best.ckpt"), tmp_path / "out"
    photographs = lfw / "lfw_funneled" / "Ann_Lee"
    predict([best, str(photographs), "--out", str(out)])
    rows = list(csv.DictReader((out / "summary.csv").open()))
    assert len(rows) == 3
    masks = [np.asarray(Image.open(file)) for file in out.rglob("*.png") if "overlay" not in str(file)]
    assert any(mask.shape == (50, 50) and set(np.unique(mask)) <= {0, 1, 2} for mask in masks)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_student_learns_from_a_teacher_on_faces_without_labels(kind, fitted, lfw, tmp_path):
    best = tmp_path / "teacher.ckpt"
    best.write_bytes((fitted.folder.checkpoints / "best.ckpt").read_bytes())
    taught = ["--data.root", str(lfw), "--data.unlabelled", str(lfw / "lfw_funneled"), "--model.teacher", kind]
    student = fit("lfw_parts", tmp_path / "runs", *taught, "--model.teacher_ckpt", str(best))
    assert len(student.datamodule.dataset("train")) == 2
    state = torch.load(student.folder.checkpoints / "best.ckpt", weights_only=True)["state_dict"]
    assert set(state) == set(torch.load(best, weights_only=True)["state_dict"])
    best.unlink()
    assert "test/miou" in logged(score(student)), "a student needs its teacher in training only"


@pytest.mark.slow
def test_occlusion(tmp_path):
    root = make_celebamask_hq(tmp_path / "celeba", count=10)
    fitted = fit("celebamask_hq_occlusion", tmp_path / "runs", "--data.root", str(root), "--data.blobs", "components")
    found = logged(score(fitted))
    assert {"test/iou/occluder", "test/boundary_f1/face"} <= set(found)
    few = ["--data.train", "4", "--data.val", "2", "--data.test", "2"]
    assert "test/iou/occluder" in logged(score(fit("synthetic_occlusion", tmp_path / "runs", *few)))


def refused(args, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["structseg", *args])
    with pytest.raises(SystemExit):
        main()
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_bad_input_gets_one_line(tmp_path, capsys, monkeypatch):
    lfw = make_lfw(tmp_path / "lfw", train=4, val=2, test=3, extra=2, superpixels=True)
    args = ["fit", "--config", str(CONFIGS / "lfw_parts.yaml"), *SMALL, "--runs_dir", str(tmp_path / "runs")]
    said = refused([*args, "--data.root", str(lfw), "--model.loss.beta", "-1"], capsys, monkeypatch)
    assert "beta=-1" in said
    image = next((lfw / "lfw_funneled").rglob("*.jpg"))
    image.write_bytes(image.read_bytes()[:200])
    said = refused([*args, "--data.root", str(lfw)], capsys, monkeypatch)
    assert image.name in said
    assert "cannot be decoded" in said
    assert not (tmp_path / "runs").exists(), "nothing is half-written"
