"""Every name of torchmetrics is there, whichever way it was loaded."""

import json
import os
import subprocess
import sys

import pytest

from structseg.files import ROOT

_NAMES = """
import json, sys
from structseg import torchvision_fallback
if sys.argv[1] == "lazy":
    from structseg import lazy_torchmetrics
    assert not {"scipy", "torchvision"} & sys.modules.keys()
import torchmetrics
from torchmetrics.image import StructuralSimilarityIndexMeasure
print(json.dumps([torchmetrics.__version__, {name: getattr(torchmetrics, name).__name__ for name in torchmetrics.__all__}]))
"""


@pytest.mark.slow
def test_its_names_are_those_of_the_package():
    plain, lazy = (
        subprocess.run(
            [sys.executable, "-c", _NAMES, how], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        ).stdout
        for how in ("plain", "lazy")
    )  # fmt: skip
    assert json.loads(lazy) == json.loads(plain)
    assert len(json.loads(plain)[1]) > 50
