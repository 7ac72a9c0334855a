"""Every method's steps on CUDA tensors, as far as that goes without a GPU: devices, and how often the host waits."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from structseg.losses import ConsensusLoss
from tests.data.fake_cuda import fake_cuda, on_cuda
from tests.data.ranks import CASES, RankData

# Waits of a training step; every other method has none. The consensus loss looks for faults of its regions.
WAITS = {"stn_parts": 2, "stn_parts_bce": 2, "stn_end_to_end": 2, "stn_pasted": 3}


@pytest.fixture(scope="module")
def batches():
    """One training batch of each kind of data."""
    return {
        kind: next(iter(RankData(kind, 2, (4, 2, 2)).train_dataloader())) for kind in {c.kind for c in CASES.values()}
    }


@pytest.mark.parametrize("name", CASES)
def test_steps_of_every_method(name, batches):
    case = CASES[name]
    module = case.make()
    with fake_cuda() as waits, torch.no_grad():
        module, batch = on_cuda(module), on_cuda(batches[case.kind])
        loss = module.training_step(batch, 0)["loss"]
        assert (loss.device.type, loss.shape) == ("cuda", ())
        expected = 2 if isinstance(getattr(module, "loss", None), ConsensusLoss) else WAITS.get(name, 0)
        assert sum(waits.counts.values()) == expected, waits.counts
        waits.counts.clear()
        output = module.eval().validation_step(batch, 0)
        assert output["loss"].device.type == "cuda"
        assert sum(waits.counts.values()) <= 20, waits.counts  # scores ask for values, once a batch
        if "predict_step" in type(module).__dict__:
            module.predict_step({**batch, "cams": [on_cuda(torch.rand(2, 10, 11))] * 2}, 0)


@pytest.mark.parametrize("normalization", ["blob", "published"])
def test_the_consensus_loss_without_validation_never_waits(normalization, batches):
    loss = ConsensusLoss(1.0, 1.0, normalization=normalization, validate=False)
    with fake_cuda() as waits:
        batch = on_cuda(batches["blobs"])
        value = loss(on_cuda(torch.rand(2, 3, 32, 32)), batch["mask"], batch["blobs"])
        assert (value.device.type, dict(waits.counts)) == ("cuda", {})


def test_a_tensor_of_the_cpu_is_found():
    with fake_cuda() as waits:
        weighted = nn.CrossEntropyLoss(torch.rand(3))
        with pytest.raises(RuntimeError, match=r"cuda.*cpu"):
            weighted(on_cuda(torch.rand(2, 3, 4)), on_cuda(torch.zeros(2, 4, dtype=torch.int64)))
        found = on_cuda(torch.rand(2, 3, 4))[0, ..., None, 1:2]
        assert (type(found), tuple(found.shape)) == (FakeTensor, (3, 1, 1))
        assert not waits.counts
        assert found.sum().item() == 1.0
        assert dict(waits.counts) == {"item": 1}
