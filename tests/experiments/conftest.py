import sys

import pytest


@pytest.fixture(autouse=True)
def _quiet_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["structseg"])


@pytest.fixture
def tiny_config(tmp_path):
    """A configuration of the real command line on rectangles made in memory, with dropout, augmentation, a schedule."""
    path = tmp_path / "tiny.yaml"
    path.write_text(
        """
model:
  class_path: FASSEGUNet
  init_args:
    network: {class_path: ReadmeUNet}
    loss: {class_path: CrossEntropyDiceLoss}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.003}}
    lr_scheduler: {class_path: OneCycle}
data:
  class_path: tests.data.tiny.TinyDataModule
  init_args:
    augmentation: {flip: 0.5, rotate: 20, scale: [0.8, 1.2], brightness: 0.2}
trainer:
  accelerator: cpu
  max_epochs: 4
  enable_progress_bar: false
  enable_model_summary: false
"""
    )
    return path
