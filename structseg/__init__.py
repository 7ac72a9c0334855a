"""Structured segmentation with PyTorch Lightning: four published methods, whole, tested and measured."""

import os
from pathlib import Path

# Read once, when torch loads its threads: those that wait shall sleep. Spinning ones, with another job on the same
# cores, make a training step take 30 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_ROOT = Path(__file__).resolve().parents[1]
if (_ROOT / "pyproject.toml").is_file():  # a checkout: the rooms lie beside this folder, in a wheel inside it
    __path__.append(str(_ROOT))
