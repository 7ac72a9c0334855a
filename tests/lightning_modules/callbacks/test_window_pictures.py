"""Pictures of the windows: what is drawn where, and that a test writes them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from structseg.datamodules.label_spaces import STN
from structseg.lightning_modules.callbacks.window_pictures import WindowPictures, WindowView, draw_views


def view(side: int = 144) -> WindowView:
    """A white face with all windows in its upper left quarter, and a mask that is all nose."""
    boxes = torch.tensor([[0.0, 0, side / 2, side / 2]] * 6)
    parts = torch.stack([torch.full((9, 9), label) for label in (1, 2, 3, 4, 5, 6)])
    nose = torch.full((side, side), 5)
    return WindowView(torch.ones(3, side, side), nose[:16, :16], boxes, torch.zeros(6, 3, 9, 9), parts, nose)


def test_a_line_holds_every_step() -> None:
    """Image, coarse mask, six windows over six part masks, remapped mask; windows drawn in colour on the white."""
    page = np.asarray(draw_views([view()], STN))
    nose = np.array(STN.palette[5])
    image, coarse = page[6 : 6 + 288, 6 : 6 + 288], page[6 : 6 + 288, 300 : 300 + 288]
    assert (image[200:, 200:] == 255).all(), "nothing is drawn outside of the windows"
    assert (image[144, 20:120] != 255).any(axis=1).all(), "the windows' lower edge, at half of the height"
    assert (coarse == nose).all()
    for column, label in enumerate((1, 2, 3, 4, 5, 6)):
        left = 6 + 2 * 294 + column * 147
        assert (page[20, left + 70] == 0).all(), "the crop above"
        assert (page[6 + 147 + 70, left + 70] == STN.palette[label]).all(), "its labels below"


def test_two_faces_two_lines() -> None:
    one, two = draw_views([view()], STN), draw_views([view(), view(100)], STN)
    assert two.height == one.height + 294


class Views(LightningModule):
    """Gives two views a batch."""

    label_space = STN

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.asked = 0

    def views(self, batch: Tensor) -> list[WindowView]:
        self.asked += 1
        return [view(), view()][: len(batch)]

    def test_step(self, batch: Tensor) -> None:
        assert len(batch) == 2


def test_a_test_draws_its_first_faces(tmp_path: Path) -> None:
    """Three of ten: two batches are looked at, no more."""
    module = Views()
    trainer = Trainer(
        default_root_dir=tmp_path, logger=False, accelerator="cpu", callbacks=[WindowPictures(3)],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.test(module, DataLoader(torch.zeros(10, 1), batch_size=2), verbose=False)  # type: ignore[arg-type]
    assert module.asked == 2
    with Image.open(tmp_path / "pictures" / "windows_test.png") as drawn:
        assert drawn.height == draw_views([view()] * 3, STN).height
