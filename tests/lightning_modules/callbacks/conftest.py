"""One tracked run that the callbacks' tests look at from all sides."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from pytorch_lightning.loggers import CSVLogger, WandbLogger

from structseg.lightning_modules.callbacks.pictures import Pictures
from structseg.lightning_modules.callbacks.tables import ScoreTables
from structseg.lightning_modules.segmentation import SegmentationModule
from tests.data.tiny import TinyDataModule
from tests.data.tiny_runs import make_module, make_trainer
from tests.data.wandb_file import WandbRun, read_wandb_file


@dataclass
class TrackedRun:
    folder: Path
    data: TinyDataModule
    module: SegmentationModule
    wandb: WandbRun

    @property
    def media(self):
        (files,) = self.folder.glob("wandb/offline-run-*/files")
        return files


@pytest.fixture(scope="session")
def tracked_run(tmp_path_factory):
    """Five epochs with masks at their own size, drawn every second epoch, then the test."""
    folder = tmp_path_factory.mktemp("tracked")
    data = TinyDataModule(score_at="native")
    data.test_subsets = {"easy": frozenset({"test_000", "test_002"})}
    module = make_module(data)
    tracker = WandbLogger(project="tiny", save_dir=folder, id="tiny0001", offline=True)
    trainer = make_trainer(
        folder,
        [ScoreTables(), Pictures(count=3, every_n_epochs=2)],
        [tracker, CSVLogger(folder, name="", version="")],
        max_epochs=5,
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(folder / "last.ckpt")
    trainer.test(module, data, verbose=False)
    tracker.experiment.finish()
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return TrackedRun(folder, data, module, read_wandb_file(file))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """W&B takes seconds to start: what looks at the tracked run is slow."""
    for item in items:
        if "tracked_run" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
