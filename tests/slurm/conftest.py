import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from structseg.files import ROOT
from tests.slurm.cluster import Cluster, NoCluster, install


@pytest.fixture(scope="session")
def cluster():
    """A real cluster of two nodes, which this process's commands of SLURM find; skipped where it cannot be installed."""
    try:
        install()
    except NoCluster as reason:
        pytest.skip(f"no SLURM: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    made = Cluster(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**made.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["structseg"])
        try:
            made.up()
            yield made
        finally:
            made.down()
            shutil.rmtree(folder, ignore_errors=True)
