"""CUDA tensors without a GPU: fake ones, of which torch knows device and shape alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class HostReads(TorchDispatchMode):
    """Counts the operations that make the host wait for the GPU, by name, and answers them with a plausible value.

    A fake tensor has no values: `item` is 1.0, or 0, `nonzero` and a boolean index find one element.
    """

    running: HostReads

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        HostReads.running = self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = self._run(func, args, kwargs or {})
        _note_answer(func.overloadpacket, args, found)
        return found

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        first = next((arg for arg in args if isinstance(arg, Tensor)), None)
        if first is None or not first.is_cuda:
            return func(*args, **kwargs)
        name, packet = func.overloadpacket.__name__, func.overloadpacket
        if packet is aten._local_scalar_dense:
            self.counts["item"] += 1
            return (
                getattr(first, "answer", False)
                if first.dtype == torch.bool
                else 1.0
                if first.is_floating_point()
                else 0
            )
        if packet is aten.nonzero:
            self.counts[name] += 1
            return first.new_empty((1, first.ndim), dtype=torch.int64)
        if packet is aten.bincount:
            self.counts[name] += 1
            return first.new_empty(
                (max(1, kwargs.get("minlength", args[2] if len(args) > 2 else 0)),), dtype=torch.int64
            )
        if packet is aten.index and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            self.counts["index by a mask"] += 1
            indices: list[Tensor | None] = []
            for index in args[1]:
                boolean = index is not None and index.dtype in (torch.bool, torch.uint8)
                indices += [index.new_empty((1,), dtype=torch.int64)] * index.ndim if boolean else [index]
            return func(first, indices)
        if packet is aten._to_copy and torch.device(kwargs.get("device") or "cuda").type == "cpu":
            self.counts["copy to the host"] += 1
        return func(*args, **kwargs)


def _note_answer(operation: Any, args: Any, found: Any) -> None:
    """Keeps with a boolean what the host would read of data without a fault: `all` and `isfinite` true, `any` false."""
    source = args[0] if args else None
    answer = getattr(source, "answer", False)
    if operation in (aten.all, aten.mul):  # a product is how torch makes `isfinite`
        answer = True
    elif operation in (aten.bitwise_not, aten.logical_not):
        answer = not answer
    elif operation is aten.stack:
        answer = [getattr(one, "answer", False) for one in source]
    elif operation is aten.select and isinstance(answer, list):
        answer = answer[args[2]]
    elif operation is aten.unbind and isinstance(answer, list):
        for one, of_one in zip(found, answer, strict=True):
            one.answer = of_one
    elif isinstance(answer, list):
        return
    if isinstance(found, Tensor) and found.dtype == torch.bool:
        found.answer = answer  # type: ignore[attr-defined]


def _view(tensor: Tensor, index: Any) -> tuple[Tensor, list[Tensor | None]]:
    """What integers, slices, None and ... of an index select, and the tensors that are left in it."""
    items = list(index) if isinstance(index, tuple) else [index]
    if any(item is Ellipsis for item in items):
        place = next(i for i, item in enumerate(items) if item is Ellipsis)
        used = sum(
            item.ndim
            if isinstance(item, Tensor) and item.dtype == torch.bool
            else item is not None and item is not Ellipsis
            for item in items
        )
        items[place : place + 1] = [slice(None)] * (tensor.ndim - used)
    tensors: list[Tensor | None] = []
    for item in items:
        dim = sum(t.ndim if t is not None and t.dtype == torch.bool else 1 for t in tensors)
        if item is None:
            tensor, more = tensor.unsqueeze(dim), True
        elif isinstance(item, slice):
            tensor, more = aten.slice(tensor, dim, item.start, item.stop, item.step or 1), True
        elif isinstance(item, int):
            tensor, more = tensor.select(dim, item), False
        else:
            tensors.append(item if isinstance(item, Tensor) else torch.tensor(item))
            continue
        if more:
            tensors.append(None)
    return tensor, tensors if any(t is not None for t in tensors) else []


def _getitem(tensor: Tensor, index: Any) -> Tensor:
    view, tensors = _view(tensor, index)
    found: Tensor = aten.index(view, tensors) if tensors else aten.alias(view)
    return found


def _setitem(tensor: Tensor, index: Any, value: Any) -> None:
    view, tensors = _view(tensor, index)
    if tensors:
        aten.index_put_(view, tensors, value if isinstance(value, Tensor) else view.new_full((), value))
    elif isinstance(value, Tensor):
        view.copy_(value)
    else:
        view.fill_(value)


def _to(tensor: Tensor, *args: Any, copy: bool = False, non_blocking: bool = False, **settings: Any) -> Tensor:
    for arg in args:
        if isinstance(arg, Tensor):
            settings |= {"dtype": arg.dtype, "device": arg.device}
        else:
            settings["dtype" if isinstance(arg, torch.dtype) else "device"] = arg
    changes = any(
        value is not None and torch.device(value).type != tensor.device.type
        if key == "device"
        else value != getattr(tensor, key)
        for key, value in settings.items()
    )
    found: Tensor = aten._to_copy(tensor, **settings) if copy or changes else tensor
    return found


def _tolist(tensor: Tensor) -> Any:
    HostReads.running.counts["tolist"] += 1
    answer = getattr(tensor, "answer", False)
    if isinstance(answer, list):
        return answer
    value: Any = answer if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 0
    return np.full(tensor.shape, value).tolist()


def _numpy(tensor: Tensor) -> np.ndarray:
    assert tensor.device.type == "cpu", "numpy() of a CUDA tensor"
    return np.zeros(tensor.shape, str(tensor.dtype).removeprefix("torch."))


# torch's own ask for a driver.
METHODS = {
    "__getitem__": _getitem,
    "__setitem__": _setitem,
    "__invert__": lambda tensor: aten.bitwise_not(tensor),
    "contiguous": lambda tensor, **settings: aten.contiguous(tensor, **settings),
    "copy_": lambda tensor, source, non_blocking=False: aten.copy_(tensor, source, non_blocking),
    "__int__": lambda tensor: int(tensor.item()),
    "to": _to,
    "tolist": _tolist,
    "numpy": _numpy,
    "nonzero": lambda tensor: aten.nonzero(tensor),
    "new_tensor": lambda tensor, values: torch.empty(np.shape(values), dtype=tensor.dtype, device="cuda"),
    "requires_grad_": lambda tensor, wanted=True: tensor,
}


@contextmanager
def fake_cuda() -> Iterator[HostReads]:
    """Within it, tensors made on `cuda` are fake, and what meets a tensor of the CPU raises."""
    with (
        patch.multiple(FakeTensor, create=True, **METHODS),
        FakeTensorMode(allow_non_fake_inputs=True),
        HostReads() as reads,
    ):
        yield reads


def on_cuda(value: Any) -> Any:
    """A fake copy on CUDA: of a tensor, a module with all its buffers and metrics, or a nest of them."""
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device="cuda")
    if isinstance(value, nn.Module):
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            moved = value.requires_grad_(False)._apply(on_cuda)
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(before)
        for module in moved.modules():
            if hasattr(module, "_device"):  # of Lightning's modules and of metrics
                module._device = torch.device("cuda", 0)
        return moved
    if isinstance(value, dict):
        return {key: on_cuda(one) for key, one in value.items()}
    if isinstance(value, list):
        return [on_cuda(one) for one in value]
    return value
