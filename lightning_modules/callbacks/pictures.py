"""Pictures of a run."""

from pytorch_lightning import Callback


class Pictures(Callback):
    """Draws image | truth | prediction."""

    def __init__(self, count: int = 8, every_n_epochs: int = 10) -> None:
        self.count, self.every_n_epochs = count, every_n_epochs
