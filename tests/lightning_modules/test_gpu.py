"""What only a GPU can show: `pytest -m gpu`. Fits in bf16 that resume, NCCL, synchronised batch norm, torch.compile."""

import subprocess
import sys
import time

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn

from structseg.datamodules.label_spaces import PARTS
from structseg.lightning_modules.fasseg_unet import FASSEGUNet
from structseg.lightning_modules.networks.readme_unet import ReadmeUNet
from tests.data.ranks import CASES, RankData
from tests.structseg.conftest import config_text

GPU, DEVICES = "gpu", torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator"),
]
METHODS = ("cross_entropy", "consensus", "stn_end_to_end", "classifier", "relation", "segmenter")


def trainer(folder, epochs, **settings):
    settings = {"devices": 1, "precision": "bf16-mixed", "enable_checkpointing": False, **settings}
    return Trainer(
        accelerator=GPU, max_epochs=epochs, logger=False, num_sanity_val_steps=0, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=folder, **settings,
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_fit_in_bf16_is_the_undisturbed_one(method, tmp_path):
    case = CASES[method]

    def fitted(epochs, checkpoint=None):
        torch.manual_seed(0)
        module = case.make()
        run = trainer(tmp_path, epochs)
        run.fit(module, RankData(case.kind, 2, (8, 2, 2)), ckpt_path=checkpoint)
        return run, module

    whole = fitted(2)[1].state_dict()
    fitted(1)[0].save_checkpoint(tmp_path / "half.ckpt")
    run, module = fitted(2, tmp_path / "half.ckpt")
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, whole[key], rtol=1e-2, atol=1e-3, msg=key)
    assert run.callback_metrics["train/loss"].isfinite()
    run.test(module, RankData(case.kind, 2, (8, 2, 2)), verbose=False)


@pytest.mark.parametrize("sync_batchnorm", ["false", "true"])
def test_ddp_over_nccl_through_the_command_line(sync_batchnorm, tmp_path):
    (tmp_path / "tiny.yaml").write_text(config_text())
    command = [sys.executable, "-m", "structseg", "fit", "--config", str(tmp_path / "tiny.yaml"), "--runs_dir", str(tmp_path),
               "--trainer.accelerator", GPU, "--trainer.devices", str(DEVICES), "--trainer.strategy", "ddp",
               "--trainer.sync_batchnorm", sync_batchnorm, "--trainer.max_epochs", "1"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*/*/checkpoints/last.ckpt"))) == 1


def test_a_compiled_network_gives_the_same_logits():
    device = torch.device("cuda" if GPU == "gpu" else GPU)
    network = ReadmeUNet(3).to(device).eval()
    image = torch.rand(2, 3, 64, 64, device=device)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(network)(image), network(image), rtol=1e-3, atol=1e-3)


def test_throughput_beside_a_plain_loop(capsys, tmp_path):
    """States the ratio; no assertion on time."""
    device = torch.device("cuda" if GPU == "gpu" else GPU)
    batch = {
        "image": torch.rand(8, 3, 128, 128, device=device),
        "mask": torch.zeros(8, 128, 128, dtype=torch.long, device=device),
    }
    module = FASSEGUNet(PARTS, ReadmeUNet).to(device)
    loss = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(module.parameters())

    def seconds(step):
        times = []
        for _ in range(12):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            optimizer.zero_grad()
            step().backward()
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return sorted(times)[len(times) // 2]

    plain = seconds(lambda: loss(module.network(batch["image"]), batch["mask"]))
    ours = seconds(lambda: module.training_step(batch, 0)["loss"])
    with capsys.disabled():
        print(f"\n  a training step: {ours / plain:.2f} of a plain loop's time")
