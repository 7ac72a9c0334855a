import os
import subprocess
import sys
import textwrap
import time
from functools import partial

import pytest
import torch
from torch import nn

from structseg.files import ROOT
from structseg.lightning_modules.callbacks.checkpoints import BestAndLast
from structseg.lightning_modules.callbacks.numeric_guard import NumericGuard
from structseg.lightning_modules.callbacks.step_seed import StepSeed
from structseg.lightning_modules.checkpoints.failed_batch import failed_loss
from structseg.lightning_modules.consensus import ConsensusSegmenter
from tests.data.tiny import TinyDataModule, TinyNetwork
from tests.data.tiny_runs import make_module, make_trainer


class Breaks(nn.Module):
    """A loss that is right until its third call; then `value` times what it was, in value or in slope alone."""

    ignore_index = 255

    def __init__(self, value, slope_only=False):
        super().__init__()
        self.value, self.slope_only, self.calls = value, slope_only, 0

    def forward(self, logits, target):
        self.calls += 1
        loss = nn.functional.cross_entropy(logits, target, ignore_index=255)
        if self.calls < 3 or not self.training:
            return loss
        return loss + (logits.mean() * 0).sqrt() if self.slope_only else loss * self.value


class Dropping(TinyNetwork):
    """With dropout, so that the random numbers of the step count."""

    def forward(self, image):
        return nn.functional.dropout(super().forward(image), 0.5, self.training)


def fit(folder, loss, network=None, callbacks=(), **settings):
    data = TinyDataModule(batch_size=2, val_images=0)
    module = make_module(data)
    module.loss = loss
    if network is not None:
        module.network = network(3)
    trainer = make_trainer(folder, [StepSeed(), NumericGuard(), *callbacks], max_epochs=3, **settings)
    trainer.fit(module, data)
    return module


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_the_optimiser_steps(tmp_path, value):
    keep = BestAndLast(monitor=None, save_every_steps=1)
    keep.dirpath = str(tmp_path)
    with pytest.raises(
        ValueError, match=rf"the loss is {value} in epoch 0, batch 2, step 2 \(train_\d+, train_\d+\); "
    ) as error:
        fit(tmp_path, Breaks(value), callbacks=[keep], enable_checkpointing=True)
    assert str(error.value).endswith(
        f"python -m structseg.lightning_modules.checkpoints.failed_batch {tmp_path / 'failed_batch.pt'}"
    )
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 2
    failed = torch.load(tmp_path / "failed_batch.pt", weights_only=True)
    assert (failed["epoch"], failed["batch_idx"], failed["global_step"], failed["rank"]) == (0, 2, 2, 0)
    assert all(name in str(error.value) for name in failed["batch"]["name"])
    assert failed["batch"]["image"].shape == (2, 3, 32, 32)
    assert all(torch.equal(kept["state_dict"][name], value) for name, value in failed["state_dict"].items())
    assert not list(tmp_path.glob("*.part"))


def test_a_gradient_that_is_no_number_stops_too(tmp_path):
    with pytest.raises(ValueError, match=r"the gradient of network.layers.0.weight is not finite in epoch 0, batch 2"):
        fit(tmp_path, Breaks(1.0, slope_only=True))
    data = TinyDataModule()
    module = make_module(data)
    module.loss = Breaks(1.0, slope_only=True)
    module.loss.calls = 9
    loss, wrong = failed_loss(tmp_path / "failed_batch.pt", module)
    assert loss.isfinite()
    assert wrong[0] == "network.layers.0.weight"


def test_large_gradients_whose_squares_overflow_pass(tmp_path):
    class Steep(nn.Module):
        ignore_index = 255

        def forward(self, logits, target):
            return logits.mean() * 1e25

    data = TinyDataModule(val_images=0)
    module = make_module(data)
    module.loss, module.optimizer = Steep(), partial(torch.optim.SGD, lr=1e-30)
    make_trainer(tmp_path, [NumericGuard()], max_epochs=1).fit(module, data)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_loss_is_computed_again_to_the_last_bit_dropout_too(tmp_path, precision):
    seen = []

    class Doubles(Breaks):
        def forward(self, logits, target):
            seen.append(nn.functional.cross_entropy(logits, target, ignore_index=255).item())
            return super().forward(logits, target)

    with pytest.raises(ValueError, match="the loss is nan"):
        fit(tmp_path, Doubles(float("nan")), Dropping, precision=precision)
    module = make_module(TinyDataModule())
    module.network = Dropping(3)
    loss, _ = failed_loss(tmp_path / "failed_batch.pt", module)
    assert loss.item() == seen[2]


def test_a_step_that_refuses_its_numbers_leaves_its_batch(tmp_path):
    """ConsensusLoss looks at its logits and raises before there is a loss."""

    class NoNumber(TinyNetwork):
        def forward(self, image):
            return super().forward(image) * float("nan")

    data = TinyDataModule(batch_size=2, val_images=0)
    module = ConsensusSegmenter(data.label_space, NoNumber)
    with (
        pytest.warns(UserWarning, match="the batch is kept: python -m"),
        pytest.raises(ValueError, match=r"logits of train_\d+ hold nan"),
    ):
        make_trainer(tmp_path, [NumericGuard()]).fit(module, data)
    assert "hold nan" in torch.load(tmp_path / "failed_batch.pt", weights_only=True)["what"]


def test_a_disk_that_takes_nothing_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"the loss is nan .*; the batch was not kept \("):
        fit(tmp_path / "file", Breaks(float("nan")))


def test_other_errors_and_good_fits_keep_nothing(tmp_path):
    class Fails(Breaks):
        def forward(self, logits, target):
            raise RuntimeError("out of memory")

    fit(tmp_path, Breaks(1.0))
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(tmp_path, Fails(1.0))
    assert not list(tmp_path.glob("failed*"))


SCRIPT = """
    import sys
    import structseg
    import torch
    from torch import nn
    from structseg.lightning_modules.callbacks.numeric_guard import NumericGuard
    from structseg.lightning_modules.consensus import ConsensusSegmenter
    from tests.data.tiny import TinyDataModule, TinyNetwork
    from tests.data.tiny_runs import make_trainer

    folder, consensus = sys.argv[1], sys.argv[2] == "consensus"

    class Breaks(TinyNetwork):
        calls = 0

        def forward(self, image):
            self.calls += torch.is_grad_enabled()  # not where a fit looks whether one image is enough
            rank = torch.distributed.get_rank()
            logits = super().forward(image)
            return logits * float("nan") if self.calls == 3 and rank == 1 else logits

    torch.manual_seed(0)
    data = TinyDataModule(batch_size=1, val_images=0)
    loss = None if consensus else nn.CrossEntropyLoss(ignore_index=255)
    module = ConsensusSegmenter(data.label_space, Breaks, loss)
    more = dict(devices=2, strategy="ddp", use_distributed_sampler=False, max_epochs=3)
    try:
        make_trainer(folder, [NumericGuard()], **more).fit(module, data)
    finally:  # gloo's threads, if left to the interpreter's end, now and then abort it
        torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cross_entropy", "consensus"])
def test_all_processes_stop_in_the_step_in_which_one_has_no_number(tmp_path, loss):
    """Also where the loss looks at its own numbers, and where the others wait for its counts."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), loss],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    print(f"{time.monotonic() - begin:.1f} s")
    assert done.returncode == 1, done.stderr[-2000:]
    message = "the loss is nan in rank 1, epoch 0, batch 2, step 2 (train_"
    assert done.stderr.count("ValueError: " + message) == 2, done.stderr[-3000:]
    failed = torch.load(tmp_path / "failed_batch.pt", weights_only=True)
    assert failed["rank"] == 1
    assert failed["world_size"] == 2
    assert len(list(tmp_path.glob("failed*"))) == 1
