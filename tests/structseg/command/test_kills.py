"""SIGKILL at random moments, the writing of checkpoints among them; `reliability.json` has the figures of 50."""

import json
import os
import subprocess
import sys

import pytest
import yaml


@pytest.mark.slow
def test_a_fit_survives_kills_at_random_moments(tiny_config, tmp_path):
    config = yaml.safe_load(tiny_config.read_text())
    config["trainer"]["max_epochs"] = 60
    config["checkpoint"] = {"save_every_steps": 1, "monitor": "val/loss", "mode": "max"}  # a score that falls
    config["pictures"] = {"every_n_epochs": 60}
    tiny_config.write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-m", "tests.data.kills", str(tiny_config), str(tmp_path), "5", "0"],
        capture_output=True, text=True, timeout=500, check=False, env={**os.environ, "WANDB_MODE": "disabled"},
    )  # fmt: skip
    found = json.loads(done.stdout or "{}")
    assert found.get("injected", 0) >= 4, done.stderr
    assert found["survived"] == found["injected"], done.stderr
    assert found["lost"] == 0
    assert found["codes"] == [0, 0]
    assert found["equal"], "the weights are not those of the undisturbed run"
    assert found["step_at_last_kill"] > 0
