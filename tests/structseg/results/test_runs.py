"""`structseg runs`: lists, compares and prunes run folders, which are made here without a fit."""

import fcntl
import gzip
import subprocess
import sys

import pytest

from structseg.messages import UsageError
from structseg.results.runs import compare_runs, differences, find_runs, main, removable_files

COLUMNS = "name,tp/skin,fp/skin,fn/skin,boundary_f1"


def make_run(root, name, lr="0.1", scores=(0.5, 0.7, 0.6), images=("a,8,1,1,0.5", "b,4,4,2,0.25"), finished=True):
    folder = root / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "experiment.yaml").write_text(
        f"seed_everything: 0\nmodel:\n  class_path: M\n  init_args:\n    optimizer:\n      class_path: torch.optim.Adam\n"
        f"      init_args: {{lr: {lr}}}\ncheckpoint: {{monitor: val/miou, mode: max}}\nruns_dir: {root}\n"
    )
    lines = [f"{epoch},{epoch},{score}" for epoch, score in enumerate(scores)]
    (folder / "metrics.csv").write_text("\n".join(["epoch,step,val/miou", *lines, ""]))
    for file in ("best", "last"):
        (folder / "checkpoints" / f"{file}.ckpt").write_bytes(bytes(2_000_000))
    if finished:
        (folder / "finished.json").write_text("{}")
    if images:
        (folder / "images_test.csv.gz").write_bytes(gzip.compress("\n".join([COLUMNS, *images, ""]).encode()))
    return folder


@pytest.fixture
def runs(tmp_path):
    make_run(tmp_path, "faces/one")
    make_run(tmp_path, "faces/two", lr="0.01", images=("a,9,0,0,1.0", "b,6,2,0,0.75"))
    make_run(tmp_path, "other/three", finished=False, scores=(), images=())
    return tmp_path


def by_name(root):
    return {run.name: run for run in find_runs(root)}


def test_a_run(runs):
    found = by_name(runs)
    assert {name: (run.state, run.epochs, run.best) for name, run in found.items()} == {
        "faces/one": ("finished", 3, "val/miou 0.7000"),
        "faces/two": ("finished", 3, "val/miou 0.7000"),
        "other/three": ("stopped", 0, ""),
    }
    assert 4_000_000 < found["faces/one"].bytes < 4_100_000
    said = dict(zip(found, differences(list(found.values())), strict=True))
    assert said == {"faces/one": "model.optimizer.lr=0.1", "faces/two": "model.optimizer.lr=0.01", "other/three": ""}


def test_copies_that_a_tracker_keeps_are_no_runs(runs):
    inner = runs / "faces/one/wandb/offline-run/files"
    inner.mkdir(parents=True)
    (inner / "experiment.yaml").write_text((runs / "faces/one/experiment.yaml").read_text())
    assert set(by_name(runs)) == {"faces/one", "faces/two", "other/three"}


def test_an_epoch_that_was_stopped_does_not_count(runs):
    metrics = runs / "faces/one/metrics.csv"
    metrics.write_text("epoch,step,val/miou,train/loss_step\n0,1,0.5,\n1,3,,0.7\n")
    assert by_name(runs)["faces/one"].epochs == 1


def test_a_running_run(runs):
    with (runs / "faces/two/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = by_name(runs)["faces/two"]
        assert run.state == "running"
        assert removable_files(run) == []
    assert by_name(runs)["faces/two"].state == "finished"


@pytest.mark.parametrize("text", ["", "{", "just words"])
def test_a_half_written_configuration_is_listed(runs, text, capsys):
    (runs / "faces/one/experiment.yaml").write_text(text)
    main(["--runs_dir", str(runs)])
    assert "faces/one" in capsys.readouterr().out


def test_images_are_paired(runs):
    found = by_name(runs)
    settings, images = compare_runs(found["faces/one"], found["faces/two"])
    assert settings.lines == [("model.optimizer.lr", "0.1", "0.01")]
    rows = {line[0]: line[1:4] for line in images.lines}
    assert rows["miou"] == (f"{12 / 20:.4f}", f"{15 / 17:.4f}", f"{15 / 17 - 12 / 20:+.4f}")
    assert rows["boundary_f1"] == ("0.3750", "0.8750", "+0.5000")


def test_pruning_lists_files_first_and_keeps_the_best(runs, capsys):
    main(["prune", "--runs_dir", str(runs)])
    assert "4 MB would be freed" in capsys.readouterr().out
    assert len(list(runs.rglob("last.ckpt"))) == 3
    main(["prune", "--runs_dir", str(runs), "--yes"])
    assert [path.parts[-3] for path in runs.rglob("last.ckpt")] == ["three"], "what has not finished can go on"
    assert len(list(runs.rglob("best.ckpt"))) == 3
    main(["prune", "--runs_dir", str(runs), "--yes"])
    assert "0 MB freed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "one"], "takes two runs, not 1"),
        (["compare", "one", "tow"], r"no run tow.*structseg runs lists them"),
        (["compare", "one", "three"], "other/three has not been tested; structseg test"),
        (["compare", "one", "broken"], "is damaged .*; test the run again"),
        (["compare", "one", "others"], "not scored on the same images"),
    ],
)
def test_runs_that_cannot_be_compared(runs, words, said):
    (make_run(runs, "faces/broken") / "images_test.csv.gz").write_bytes(b"half")
    make_run(runs, "faces/others", images=("c,1,1,1,1.0",))
    with pytest.raises((UsageError, ValueError), match=said):
        main([*words, "--runs_dir", str(runs)])


def test_no_folder(tmp_path):
    with pytest.raises(UsageError, match=r"no folder .*nothing; give --runs_dir"):
        main(["--runs_dir", str(tmp_path / "nothing")])


def test_it_loads_no_torch(runs):
    code = f"import sys; from structseg.results.runs import main; main(['--runs_dir', {str(runs)!r}]); assert 'torch' not in sys.modules"
    assert "3 runs" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
