"""Importing the package is fast and registers torchvision's operators in time."""

import subprocess
import sys

import pytest

from structseg.files import ROOT


def python(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize("first", ["torchvision", "torchmetrics", "structseg.command.run_folder"])
def test_the_first_import_of_torchvision_finds_its_operators(first):
    code = f"import structseg, {first}, torch; from torchvision.ops import nms; print(hasattr(torch.ops.torchvision, 'nms'))"
    assert python(code) == ["True"]
