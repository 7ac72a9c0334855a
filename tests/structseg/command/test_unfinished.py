"""A fit whose settings an interrupted run has already names that run."""

import pytest
import yaml

from structseg.command.processes import exclusive_lock
from structseg.command.resume import FINISHED, find_unfinished

CONFIG = {
    "seed_everything": 0,
    "trainer": {"max_epochs": 3, "devices": 1},
    "model": {"class_path": "M", "init_args": {"width": 2}},
    "data": {"class_path": "D", "init_args": {"size": [4, 4], "num_workers": 0}},
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "abc"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    (folder / "experiment.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


def changed(**more):
    return {**CONFIG, **more}


def test_it_is_found_for_any_device_and_length(run):
    for config in (
        CONFIG,
        changed(trainer={"max_epochs": 9, "devices": 2}),
        changed(model={"class_path": "M", "init_args": {"width": 2, "label_space": None, "mean": [0.5]}}),
        changed(data={"class_path": "D", "init_args": {"size": (4, 4), "num_workers": 3}}),
    ):
        assert find_unfinished(run.parent, config) == run


def test_finished_or_other_runs_are_not_found(run, tmp_path):
    assert find_unfinished(tmp_path / "none", CONFIG) is None
    assert find_unfinished(run.parent, changed(seed_everything=1)) is None
    with exclusive_lock(run):  # it is still at work
        assert find_unfinished(run.parent, CONFIG) is None
    (run / FINISHED).touch()
    assert find_unfinished(run.parent, CONFIG) is None
    (run / FINISHED).unlink()
    (run / "experiment.yaml").write_text("[")
    assert find_unfinished(run.parent, CONFIG) is None
