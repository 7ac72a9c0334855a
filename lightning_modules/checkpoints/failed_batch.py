"""Saves a training batch that failed, with all that is needed to compute its loss again.

python -m structseg.lightning_modules.checkpoints.failed_batch RUN_FOLDER/failed_batch.pt
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from structseg.lightning_modules.base import TrainedModule
from structseg.lightning_modules.callbacks.checkpoints import AtomicCheckpointIO
from structseg.lightning_modules.checkpoints.card import KEY, read_card, space_of
from structseg.lightning_modules.checkpoints.from_card import module_from_card

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def save_failed_batch(
    path: Path, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int, torch_seed: int, what: str
) -> None:
    """Writes the batch, the module's state and the step atomically; no pickled code.

    Args:
        path: of the file, which `torch.load(path, weights_only=True)` reads.
        trainer: of the failed fit.
        module: in its state before the optimiser's step.
        batch: the augmented batch.
        batch_idx: its index in the epoch.
        torch_seed: of torch's generator at the start of the step.
        what: description of the failure.

    Raises:
        OSError: the file could not be written.
    """
    content = {
        KEY: module.make_card() if isinstance(module, TrainedModule) else None,
        "what": what,
        "how": f"python -m structseg.lightning_modules.checkpoints.failed_batch {path}",
        "batch": _on_cpu(batch),
        "epoch": trainer.current_epoch,
        "batch_idx": batch_idx,
        "global_step": trainer.global_step,
        "rank": trainer.global_rank,
        "world_size": trainer.world_size,
        "torch_seed": torch_seed,
        "precision": str(trainer.precision),
        "state_dict": {name: value.detach().cpu() for name, value in module.named_parameters()},
        "buffers": {name: value.detach().cpu() for name, value in module.named_buffers()},
    }
    AtomicCheckpointIO().save_checkpoint(content, path)


def _on_cpu(value: Any) -> Any:
    """Tensors, lists, dicts and plain values on the CPU; other values as text."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {str(key): _on_cpu(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_on_cpu(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def failed_loss(path: Path, module: TrainedModule | None = None) -> tuple[Tensor, list[str]]:
    """The loss of a saved batch, computed again on the CPU, and the parameters whose gradients are not finite.

    A batch of one of several processes is computed alone, and without a teacher.

    Args:
        path: the file.
        module: of the same settings; None builds it from the configuration in the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or has no configuration from which to build the module.
    """
    card = read_card(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    if "batch" not in content:
        raise ValueError(f"{path} is a checkpoint and holds no batch; give the failed_batch.pt of a run")
    if module is None:
        if not card["config"]:
            raise ValueError(f"{path} holds no configuration; give the module, or a file that `structseg fit` wrote")
        module = module_from_card(TrainedModule, card, space_of(card))
    for name, value in {**content["state_dict"], **content["buffers"]}.items():
        owner, _, leaf = name.rpartition(".")
        held = module.get_submodule(owner)
        if leaf in held._buffers:
            held._buffers[leaf] = value
        else:
            held.get_parameter(leaf).data.copy_(value)
    module.train()
    torch.manual_seed(content["torch_seed"])
    kind = _AUTOCAST.get(content["precision"])
    with nullcontext() if kind is None else torch.autocast("cpu", kind):
        output: Any = module.training_step(content["batch"], content["batch_idx"])
        loss: Tensor = output["loss"]
    loss.backward()
    grads = {name: one.grad for name, one in module.named_parameters() if one.grad is not None}
    return loss.detach(), [name for name, grad in grads.items() if not bool(grad.isfinite().all())]


def main(args: list[str]) -> None:
    """The command line: computes the loss of a saved batch again and names gradients that are not finite.

    Raises:
        SystemExit: wrong arguments or a fault of the file, in one line.
    """
    if len(args) != 1 or args[0].startswith("-"):
        raise SystemExit(
            "usage: python -m structseg.lightning_modules.checkpoints.failed_batch RUN_FOLDER/failed_batch.pt"
        )
    warnings.filterwarnings("ignore", ".*self.trainer. reference is not registered")  # there is no logger
    try:
        loss, wrong = failed_loss(Path(args[0]))
    except (ArgumentError, OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise SystemExit(f"failed_batch: error: {' '.join(str(error).split())}") from None
    print(f"loss {float(loss)}")
    print(f"gradients that are not finite: {', '.join(wrong) or 'none'}")


if __name__ == "__main__":
    main(sys.argv[1:])
