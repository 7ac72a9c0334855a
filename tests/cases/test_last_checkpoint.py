"""`last.ckpt` is the state after the last finished epoch, whatever is watched; `best.ckpt` outlives a move."""

import csv
import shutil
import signal
import sys
import warnings

import pytest
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from structseg.command import lightning as cli
from structseg.command.lightning import run
from structseg.lightning_modules.callbacks.step_seed import StepSeed
from tests.data.tiny import config_text

STEPS = 2  # an epoch: 8 images, 4 a batch
FALLS = ("--checkpoint.monitor", "val/loss", "--checkpoint.mode", "max", "--model.optimizer.lr", "0.0003")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["structseg"])
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(config_text(max_epochs=4))
    return path


def fit(config, folder, *more):
    return run(["fit", "--config", str(config), "--runs_dir", str(folder), "--trainer.log_every_n_steps", "1", *more])


def auto(config, folder, *more):
    return fit(config, folder, "--resume", "auto", *more)


def load(path):
    return torch.load(path, weights_only=True)


def state_of(folder):
    """`last.ckpt` of the only run in `folder`: (epochs finished, optimiser steps, state of the callback)."""
    (path,) = folder.glob("*/*/checkpoints/last.ckpt")
    content = load(path)
    over = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]
    return content["epoch"] + over, content["global_step"], content["callbacks"]["BestAndLast"]


def best_step(folder):
    """Optimiser steps in `best.ckpt`, which holds nothing to resume from."""
    (path,) = folder.glob("*/*/checkpoints/best.ckpt")
    content = load(path)
    assert not {"optimizer_states", "lr_schedulers", "callbacks"} & set(content)
    return content["global_step"]


def rows(folder):
    (path,) = folder.glob("*/*/metrics.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_no_row_twice(folder):
    for key in ("train/loss_step", "train/loss_epoch", "val/loss"):
        steps = [row["step"] for row in rows(folder) if row[key]]
        assert steps, key
        assert len(steps) == len(set(steps)), key


class Recorded(StepSeed):
    """Keeps what `last.ckpt` holds when each epoch begins, and raises or signals before a step that is asked for."""

    at, what, seen = None, None, None

    def on_train_epoch_start(self, trainer, pl_module):
        path = cli.Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        Recorded.seen.append(load(path)["global_step"] if path.is_file() else 0)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if trainer.global_step == Recorded.at:
            signal.raise_signal(Recorded.what)


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(cli, "StepSeed", Recorded)
    monkeypatch.setattr(Recorded, "seen", [])
    return Recorded


class TestEachEpoch:
    @pytest.mark.parametrize(
        "more",
        [
            FALLS,
            (*FALLS, "--trainer.check_val_every_n_epoch", "2"),
            (*FALLS, "--trainer.val_check_interval", "1"),
            ("--trainer.check_val_every_n_epoch", "3"),
            ("--data.val_images", "0"),
            ("--data.val_images", "0", "--trainer.check_val_every_n_epoch", "2"),
            ("--checkpoint.monitor", "null"),
            ("--checkpoint.monitor", "null", "--trainer.check_val_every_n_epoch", "2"),
            ("--trainer.limit_val_batches", "0"),
        ],
        ids=" ".join,
    )
    def test_last_is_the_last_finished_epoch(self, config, tmp_path, recorded, more):
        auto(config, tmp_path, *more)
        assert recorded.seen == [0, STEPS, 2 * STEPS, 3 * STEPS]
        assert state_of(tmp_path)[:2] == (4, 4 * STEPS)
        recorded.seen.clear()
        auto(config, tmp_path, *more, "--trainer.max_epochs", "5")
        assert recorded.seen == [4 * STEPS], "one epoch more is one epoch"
        assert state_of(tmp_path)[:2] == (5, 5 * STEPS)

    def test_a_score_that_falls_leaves_the_best_and_is_in_last(self, config, tmp_path):
        auto(config, tmp_path, *FALLS)
        scores = [float(row["val/loss"]) for row in rows(tmp_path) if row["val/loss"]]
        assert scores == sorted(scores, reverse=True), "the case needs a score that only falls"
        assert best_step(tmp_path) == STEPS
        assert float(state_of(tmp_path)[2]["best_model_score"]) == pytest.approx(scores[0])

    @pytest.mark.parametrize("more", [(), ("--trainer.check_val_every_n_epoch", "2")], ids=["each", "second"])
    def test_resumed_by_path_no_row_stands_twice(self, config, tmp_path, more):
        done = fit(config, tmp_path, *FALLS, *more)
        last = done.folder.checkpoints / "last.ckpt"
        again = fit(config, tmp_path, *FALLS, *more, "--trainer.max_epochs", "6", "--ckpt_path", str(last))
        assert again.folder.path == done.folder.path.resolve()
        assert state_of(tmp_path)[:2] == (6, 6 * STEPS)
        assert_no_row_twice(tmp_path)

    def test_the_best_is_refused_as_a_start(self, config, tmp_path):
        done = fit(config, tmp_path, *FALLS)
        with pytest.raises(ValueError, match=r"best\.ckpt has no optimiser state; resume from .*last\.ckpt"):
            fit(config, tmp_path, *FALLS, "--ckpt_path", str(done.folder.checkpoints / "best.ckpt"))

    def test_what_a_finished_run_keeps(self, config, tmp_path):
        auto(config, tmp_path)
        assert sorted(path.name for path in tmp_path.glob("*/*/checkpoints/*")) == ["best.ckpt", "last.ckpt"]

    @pytest.mark.parametrize("more", [(), ("--trainer.check_val_every_n_epoch", "2")], ids=["each", "second"])
    def test_two_pieces_are_one_run(self, config, tmp_path, more):
        for folder, pieces in ((tmp_path / "whole", "4"), (tmp_path / "cut", "134")):
            for epochs in pieces:
                constant = ("--model.lr_scheduler", "null", "--trainer.max_epochs", epochs)
                auto(config, folder, *FALLS, *more, *constant)
        whole, cut = ((tmp_path / name) for name in ("whole", "cut"))
        assert rows(cut) == rows(whole)
        assert_no_row_twice(cut)
        paths = [next(folder.glob("*/*/checkpoints/last.ckpt")) for folder in (whole, cut)]
        one, two = (load(path)["state_dict"] for path in paths)
        assert all(torch.equal(one[key], two[key]) for key in one)

    def test_each_epoch_writes_it_once(self, config, tmp_path, monkeypatch):
        written = []
        save = cli.AtomicCheckpointIO.save_checkpoint

        def counted(self, checkpoint, path, storage_options=None):
            written.append(cli.Path(path).name)
            save(self, checkpoint, path, storage_options)

        monkeypatch.setattr(cli.AtomicCheckpointIO, "save_checkpoint", counted)
        auto(config, tmp_path, *FALLS, "--checkpoint.save_every_steps", "1")
        assert written.count("last.ckpt") == 4 * STEPS
        assert written.count("best.ckpt") == 1


class TestWithinAnEpoch:
    @pytest.fixture
    def config(self, tmp_path):
        path = tmp_path / "tiny.yaml"
        path.write_text(config_text(train_images=16, max_epochs=2))  # 4 steps an epoch
        return path

    def test_the_validation_at_a_saved_step_counts_too(self, config, tmp_path, recorded, monkeypatch):
        more = ("--checkpoint.save_every_steps", "2", "--trainer.val_check_interval", "2")
        monkeypatch.setattr(recorded, "at", 3)
        monkeypatch.setattr(recorded, "what", signal.SIGINT)
        with pytest.raises(SystemExit):
            auto(config, tmp_path, *more)
        assert state_of(tmp_path)[:2] == (0, 2)
        assert best_step(tmp_path) == 2, "the first validation is the best so far"
        assert state_of(tmp_path)[2]["best_model_score"] is not None
        monkeypatch.setattr(recorded, "at", None)
        auto(config, tmp_path, *more)
        auto(config, tmp_path / "whole", *more)
        assert rows(tmp_path / "whole") == rows(tmp_path)

    def test_a_fit_that_ends_amid_an_epoch(self, config, tmp_path):
        fixed = ("--model.lr_scheduler", "null")
        auto(config, tmp_path / "cut", *fixed, "--trainer.max_steps", "6")
        assert state_of(tmp_path / "cut")[1] == 6
        for name in ("cut", "whole"):
            auto(config, tmp_path / name, *fixed, "--trainer.max_steps", "8")
        one, two = (load(next((tmp_path / n).glob("*/*/checkpoints/last.ckpt"))) for n in ("cut", "whole"))
        assert all(torch.equal(one["state_dict"][key], two["state_dict"][key]) for key in one["state_dict"])


class TestInterrupted:
    @pytest.mark.parametrize(
        ("number", "left"), [(signal.SIGTERM, 2 * STEPS + 1), (signal.SIGINT, 2 * STEPS)], ids=["SIGTERM", "Ctrl-C"]
    )
    @pytest.mark.parametrize("every", ["1", "2"])
    def test_it_goes_on_as_if_nothing_had_been(self, config, tmp_path, recorded, monkeypatch, number, left, every):
        more = (*FALLS, "--trainer.check_val_every_n_epoch", every)
        auto(config, tmp_path / "whole", *more)
        monkeypatch.setattr(recorded, "at", 2 * STEPS)
        monkeypatch.setattr(recorded, "what", number)
        with pytest.raises((SIGTERMException, SystemExit)):
            auto(config, tmp_path / "cut", *more)
        assert state_of(tmp_path / "cut")[1] == left
        monkeypatch.setattr(recorded, "at", None)
        auto(config, tmp_path / "cut", *more)
        assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
        one, two = (load(next((tmp_path / n).glob("*/*/checkpoints/last.ckpt"))) for n in ("cut", "whole"))
        assert all(torch.equal(one["state_dict"][key], two["state_dict"][key]) for key in one["state_dict"])

    def test_a_signal_in_the_last_step_of_an_epoch_stops_after_it(self, config, tmp_path, recorded, monkeypatch):
        monkeypatch.setattr(recorded, "at", 2 * STEPS - 1)
        monkeypatch.setattr(recorded, "what", signal.SIGTERM)
        with pytest.raises(SIGTERMException):
            auto(config, tmp_path, *FALLS)
        assert state_of(tmp_path)[:2] == (2, 2 * STEPS)


class TestNoBest:
    def test_no_validation_ran_is_said(self, config, tmp_path):
        with pytest.warns(UserWarning, match=r"no best\.ckpt: .*val/miou.*check_val_every_n_epoch"):
            auto(config, tmp_path, "--trainer.check_val_every_n_epoch", "5")
        assert [path.name for path in tmp_path.glob("*/*/checkpoints/*")].count("best.ckpt") == 0

    @pytest.mark.parametrize("more", [(), ("--data.val_images", "0", "--trainer.check_val_every_n_epoch", "5")])
    def test_nothing_is_said_where_there_is_one(self, config, tmp_path, more):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            auto(config, tmp_path, *more)
        assert not [str(one.message) for one in caught if "no best.ckpt" in str(one.message)]
        assert best_step(tmp_path)


class TestMoved:
    @pytest.fixture
    def moved(self, config, tmp_path):
        """A run whose score only fell, in another folder than it was trained in."""
        done = auto(config, tmp_path / "old", *FALLS, "--run_id", "mine")
        assert best_step(tmp_path / "old") == STEPS
        shutil.move(tmp_path / "old", tmp_path / "new")
        return tmp_path / "new" / done.folder.path.relative_to(tmp_path / "old")

    def test_the_best_so_far_stays_the_best(self, config, tmp_path, moved):
        auto(config, tmp_path / "new", *FALLS, "--run_id", "mine", "--trainer.max_epochs", "6")
        assert best_step(tmp_path / "new") == STEPS
        kept = state_of(tmp_path / "new")[2]
        best = str(moved.resolve() / "checkpoints" / "best.ckpt")
        assert kept["best_model_path"] == kept["kth_best_model_path"] == best
        assert list(kept["best_k_models"]) == [best]
        assert kept["last_model_path"] == str(moved.resolve() / "checkpoints" / "last.ckpt")
        assert not (tmp_path / "old").exists()

    def test_without_its_file_the_next_epoch_is_the_best(self, config, tmp_path, moved):
        (moved / "checkpoints" / "best.ckpt").unlink()
        with pytest.warns(UserWarning, match=r"best\.ckpt does not exist"):
            auto(config, tmp_path / "new", *FALLS, "--run_id", "mine", "--trainer.max_epochs", "6")
        assert best_step(tmp_path / "new") == 5 * STEPS

    def test_another_key_has_another_best(self, config, tmp_path, moved):
        more = ("--run_id", "mine", "--trainer.max_epochs", "5", "--checkpoint.monitor", "val/miou")
        with pytest.warns(UserWarning, match=r"val/loss \(max\) was watched"):
            auto(config, tmp_path / "new", *FALLS[2:], *more, "--checkpoint.mode", "max")
        assert best_step(tmp_path / "new") == 5 * STEPS

    def test_a_test_of_its_checkpoint_says_nothing_of_it(self, moved):
        checkpoint = moved / "checkpoints" / "best.ckpt"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(["test", "--config", str(moved / "experiment.yaml"), "--ckpt_path", str(checkpoint),
                 "--checkpoint.monitor", "val/miou"])  # fmt: skip
        assert not [str(one.message) for one in caught if "was watched" in str(one.message)]
