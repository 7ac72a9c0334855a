"""Writes predictions."""

from pathlib import Path

from pytorch_lightning.callbacks import BasePredictionWriter

from datamodules.label_spaces import LabelSpace


class PredictionWriter(BasePredictionWriter):
    """Writes an index PNG, an overlay and a row of `summary.csv` for each image."""

    def __init__(self, out: Path, label_space: LabelSpace) -> None:
        super().__init__("batch")
        self.out, self.label_space = out, label_space
