"""The STN-iCNN experiments through the real command line, on small trees in the published layouts."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from structseg.command.lightning import run
from structseg.command.main import main
from structseg.lightning_modules.checkpoints.card import read_card
from structseg.prediction.command import main as predict
from tests.data.celebamask_hq import make_celebamask_hq
from tests.data.helen import make_helen, name_of

CONFIGS = Path(__file__).parents[2] / "experiments" / "stn_icnn"
SMALL = [
    "--model.network", "tests.data.tiny.TinyNetwork", "--model.window", "[11, 13]", "--data.size", "[32, 32]",
    "--data.batch_size", "2", "--data.num_workers", "0", "--data.repeats", "1", "--trainer.max_epochs", "1",
    "--trainer.precision", "32", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
    "--trainer.enable_model_summary", "false",
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _plain_argv():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["structseg"])
        yield


def fit(config, folder, stage, *more):
    args = ["fit", "--config", str(CONFIGS / f"{config}.yaml"), *SMALL, "--model.stage", stage, *more]
    return run([*args, "--experiment", stage, "--runs_dir", str(folder)])


def best(fitted):
    return str(fitted.folder.checkpoints / "best.ckpt")


def score(checkpoint, *more):
    found = run(["test", "--ckpt_path", checkpoint, *more]).trainer.callback_metrics
    return {key: float(value) for key, value in found.items()}


@pytest.fixture(scope="module")
def helen(tmp_path_factory):
    return ["--data.root", str(make_helen(tmp_path_factory.mktemp("helen") / "helen"))]


@pytest.fixture(scope="module")
def stages(helen, tmp_path_factory):
    """The first three stages on photographs of three sizes, a batch of two, each from the one before."""
    runs = tmp_path_factory.mktemp("runs")
    coarse = fit("helen_base", runs, "coarse", *helen)
    watched = ["--checkpoint.monitor", "val/center_error", "--checkpoint.mode", "min"]
    localizer = fit("helen_base", runs, "localizer", *helen, "--model.init_from", f"[{best(coarse)}]", *watched)
    parts = fit("helen_base", runs, "parts", *helen, "--model.init_from", f"[{best(localizer)}]")
    return localizer, parts


@pytest.mark.slow
def test_all_stages_on_helen(helen, stages, tmp_path):
    """Four fits of the last stage, one of them tested three ways."""
    localizer, parts = stages
    for more in ([], ["--model.theta_weight", "1"], ["--model.loss_on", "pasted"], ["--model.lr_coarse", "0"]):
        joint = fit("helen_base", tmp_path, "end_to_end", *helen, "--model.init_from", f"[{best(parts)}]", *more)
    assert read_card(Path(best(joint)))["trained"] == ["localizer", "network", "parts"]

    found = score(best(joint))
    assert {"test/group_f1/overall", "test/published_overall_f1", "test/true_windows/group_f1/overall"} <= set(found)
    assert found["test/center_error"] > 0
    baseline = score(best(joint), "--model.cropper", "baseline")
    assert baseline["test/true_windows/group_f1/overall"] == found["test/true_windows/group_f1/overall"]
    assert baseline["test/center_error"] != found["test/center_error"]
    hidden = score(best(localizer), "--data.originals.hide_parts", "3")
    assert hidden["test/absent_parts"] == score(best(localizer))["test/absent_parts"], "the labels keep hidden parts"
    with (joint.folder.path / "images_test.csv.gz").open("rb") as file:
        assert file.read(2) == b"\x1f\x8b"
    assert (joint.folder.path / "pictures" / "windows_test.png").is_file()


@pytest.mark.slow
def test_shrunk_photographs_are_scored_at_their_masks_size(tmp_path):
    """Test masks of 48 x 48 beside photographs shrunk to 40: all 48 x 48 x images pixels are counted."""
    root = make_celebamask_hq(tmp_path / "celeba")
    more = ["--data.root", str(root), "--data.originals.max_side", "40"]
    parts = fit("celebamask_hq_small_base", tmp_path / "runs", "parts", *more, "--model.cropper", "true")
    tested = run(["test", "--ckpt_path", best(parts)])
    count = len(tested.datamodule.dataset("test"))
    assert tested.model.test_scores.confusion.sum() == count * 48 * 48


@pytest.mark.slow
def test_predict_gives_each_photograph_a_mask_of_its_size(stages, tmp_path):
    """Larger, smaller than the window, grey and on its side: each mask has its photograph's own size."""
    _, parts = stages
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    rng = np.random.default_rng(0)
    sizes = {"large": (90, 70), "tiny": (9, 6), "wide": (20, 200)}
    for name, (height, width) in sizes.items():
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels if name != "wide" else pixels[..., 0]).save(photographs / f"{name}.png")
    out = tmp_path / "out"
    predict([best(parts), str(photographs), "--out", str(out)])
    for name, size in sizes.items():
        mask = np.asarray(Image.open(out / f"{name}.png"))
        assert mask.shape == size
        assert mask.max() < 9
    with (out / "summary.csv").open() as file:
        assert len(list(csv.reader(file))) == 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--model.stage", "parts"],
            "stage parts needs a trained coarse network and localizer; give --model.init_from",
        ),
        (["--model.stage", "localizer"], "watches val/group_f1/overall, which no step logs; choose"),
        (["--model.stage", "coarse", "--model.init_from", "[none.ckpt]"], "no checkpoint at none.ckpt"),
        (["--model.stage", "coarse", "--data.label_space", "helen"], "not helen; set label_space: stn"),
    ],
)
def test_one_line_says_what_is_wrong(more, message, tmp_path, capsys, monkeypatch):
    root = make_helen(tmp_path / "helen")
    args = ["fit", "--config", str(CONFIGS / "helen_base.yaml"), *SMALL, "--data.root", str(root)]
    monkeypatch.setattr("sys.argv", ["structseg", *args, *more, "--runs_dir", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (1, 2)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("structseg: error:")]
    assert len(errors) == 1
    assert message in errors[0]


def test_a_missing_mask_and_a_broken_list_are_named(tmp_path, capsys, monkeypatch):
    for damage, message in (("mask", "lbl03"), ("list", "exemplars.txt")):
        root = make_helen(tmp_path / damage)
        if damage == "mask":
            name = name_of("train", 0)
            (root / "labels" / name / f"{name}_lbl03.png").unlink()
        else:
            (root / "exemplars.txt").write_text("1 , 2 , 3 , four\n")
        args = ["fit", "--config", str(CONFIGS / "helen_base.yaml"), *SMALL, "--model.stage", "coarse"]
        monkeypatch.setattr(
            "sys.argv", ["structseg", *args, "--data.root", str(root), "--runs_dir", str(tmp_path / "runs")]
        )
        with pytest.raises(SystemExit):
            main()
        assert message in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob("*.ckpt"))
