"""Tampered checkpoints and weights: refused before anything of theirs is run or believed."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from structseg.datamodules.label_spaces import label_space
from structseg.lightning_modules.checkpoints.card import read_card
from structseg.lightning_modules.checkpoints.from_card import load_teacher
from structseg.lightning_modules.checkpoints.warm_start import load_trained_parts
from structseg.lightning_modules.fasseg_unet import FASSEGUNet
from structseg.lightning_modules.networks.deeplab_v2 import _tensors
from structseg.lightning_modules.segmentation import SegmentationModule
from tests.data.tiny import TinyNetwork
from tests.fuzz.harm import Damage, fault_of, flip, part_of, ruin, template
from tests.fuzz.test_artefacts import Payload

SPACE = label_space("parts")
NETWORK = {"class_path": "tests.data.tiny.TinyNetwork"}


@cache
def _good() -> dict[str, Any]:
    torch.manual_seed(0)
    module = FASSEGUNet(SPACE, TinyNetwork)
    module.resolved_config = {
        "model": {"class_path": "FASSEGUNet", "init_args": {"network": NETWORK}},
        "data": {"class_path": "tests.data.tiny.TinyDataModule", "init_args": {}},
    }
    content: dict[str, Any] = {
        "state_dict": module.state_dict(),
        "epoch": 3,
        "global_step": 9,
        "pytorch-lightning_version": "2.6.0",
    }
    module.on_save_checkpoint(content)
    content["structseg"]["trained"] = ["network"]
    content["structseg"]["size"] = [32, 32]
    return content


def _saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def changed(**parts: object) -> Callable[[Path], bytes]:
    return lambda folder: _saved({**_good(), **parts})


def card(**values: object) -> Callable[[Path], bytes]:
    return lambda folder: _saved({**_good(), "structseg": {**_good()["structseg"], **values}})


def without(*keys: str) -> Callable[[Path], bytes]:
    return lambda folder: _saved(
        {**_good(), "structseg": {key: value for key, value in _good()["structseg"].items() if key not in keys}}
    )


def weights(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], bytes]:
    def make(folder: Path) -> bytes:
        state = dict(_good()["state_dict"])
        change(state)
        return _saved({**_good(), "state_dict": state})

    return make


def _entries(change: Callable[[dict[str, bytes]], object], method: int = zipfile.ZIP_STORED) -> Callable[[Path], bytes]:
    """The archive that a checkpoint is, with other entries."""

    def make(folder: Path) -> bytes:
        with zipfile.ZipFile(io.BytesIO(_saved(_good()))) as packed:
            entries = {name: packed.read(name) for name in packed.namelist()}
        change(entries)
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as packed:
            for name, body in entries.items():
                packed.writestr(name, body)
        return file.getvalue()

    return make


def _drop(end: str) -> Callable[[dict[str, bytes]], object]:
    return lambda entries: [entries.pop(name) for name in list(entries) if name.endswith(end)]


def _swap(end: str, body: bytes) -> Callable[[dict[str, bytes]], object]:
    return lambda entries: entries.update({name: body for name in entries if name.endswith(end)})


class Memory:
    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (3 << 30,)


def _first(state: dict[str, Any]) -> str:
    return next(iter(state))


TAMPERED: dict[str, Callable[[Path], bytes]] = {
    "a payload": lambda folder: _saved({**_good(), "extra": Payload(folder)}),
    "a payload in its weights": lambda folder: _saved({**_good(), "state_dict": {"network.a": Payload(folder)}}),
    "a payload in its card": lambda folder: card(notices=[Payload(folder)])(folder),
    "a payload and nothing else": lambda folder: _saved(Payload(folder)),
    "a bare pickle with a payload": lambda folder: pickle.dumps(Payload(folder)),
    "a bare pickle with a payload and more behind": lambda folder: pickle.dumps(Payload(folder)) + _saved(_good()),
    "an old pickle with a payload": lambda folder: pickle.dumps(Payload(folder), 0),
    "a file of the old format with a payload": lambda folder: _legacy(Payload(folder)),
    "a whole module": lambda folder: _saved(TinyNetwork(3)),
    "a reference to os.system": _entries(_swap("data.pkl", b"cos\nsystem\n(S'touch ran'\ntR.")),
    "a reference to builtins.exec": _entries(_swap("data.pkl", b"cbuiltins\nexec\n(S'1'\ntR.")),
    "a pickle that asks for 3 GiB": lambda folder: _saved({**_good(), "extra": Memory()}),
    "a pickle that is cut off": _entries(_swap("data.pkl", b"\x80\x02}q\x00(X\x05\x00")),
    "a pickle of noise": _entries(_swap("data.pkl", bytes(range(256)))),
    "an archive without its pickle": _entries(_drop("data.pkl")),
    "an archive without its tensors": _entries(lambda entries: [entries.pop(n) for n in list(entries) if "/data/" in n]),
    "an archive with short tensors": _entries(lambda entries: entries.update({n: b"1234" for n in entries if "/data/" in n})),
    "an archive that is compressed": _entries(lambda entries: None, zipfile.ZIP_DEFLATED),
    "a bomb for a tensor": _entries(lambda entries: entries.update({n: bytes(64 << 20) for n in entries if n.endswith("/data/0")}), zipfile.ZIP_DEFLATED),
    "an archive of nothing": _entries(lambda entries: entries.clear()),
    "a list": lambda folder: _saved([1, 2]),
    "a number": lambda folder: _saved(7),
    "no card": lambda folder: _saved({key: value for key, value in _good().items() if key != "structseg"}),
    "a card that is a text": changed(structseg="card"),
    "a card that is a list": changed(structseg=[]),
    "an epoch that is a text": changed(epoch="last"),
    "weights that are a list": changed(state_dict=[1]),
    "weights that are texts": changed(state_dict={"network.layers.0.weight": "heavy"}),
    **{f"a card without {key}": without(key) for key in ("method", "label_space", "classes", "palette", "flip_pairs", "groups", "ignore_index", "mean", "std", "initial_weights", "config")},
    "a card of a number for a method": card(method=3),
    "a card of numbers for classes": card(classes=[1, 2, 3]),
    "a card of a text for classes": card(classes="background"),
    "a card of no classes": card(classes=[], palette=[]),
    "a card of 300 classes": card(classes=[str(n) for n in range(300)], palette=[[0, 0, 0]] * 300),
    "a card of classes that repeat": card(classes=["a", "a", "b"]),
    "a card of two colours": card(palette=[[0, 0, 0], [1, 1, 1]]),
    "a card of colours of two values": card(palette=[[0, 0]] * 3),
    "a card of colours beyond 255": card(palette=[[0, 0, 999]] * 3),
    "a card of a colour that is a text": card(palette=["red", "abc", "def"]),
    "a card of pairs beyond": card(flip_pairs=[[1, 77]]),
    "a card of groups of texts": card(groups={"a": ["b"]}),
    "a card of groups that are a list": card(groups=[1]),
    "a card of an index of text": card(ignore_index="none"),
    "a card of a mean of nan": card(mean=[float("nan")] * 3),
    "a card of a mean of two": card(mean=[0.5, 0.5]),
    "a card of texts for std": card(std=["a", "b", "c"]),
    "a card of a size of 10^12": card(size=[10**12, 10**12]),
    "a card of a negative size": card(size=[-1, 5]),
    "a card of a size that is a text": card(size="large"),
    "a card of settings that are a text": card(config="yaml"),
    "a card of settings that are texts": card(config={"model": "FASSEGUNet"}),
    "a card of settings without a class": card(config={"model": {"init_args": {}}, "data": {}}),
    "a card of trained that is a number": card(trained=3),
}  # fmt: skip
# The card is whole; what is built from it is not.
OTHER: dict[str, Callable[[Path], bytes]] = {
    "a weight of another shape": weights(lambda state: state.update({_first(state): torch.zeros(1, 2)})),
    "a weight that is missing": weights(lambda state: state.pop(_first(state))),
    "a weight too many": weights(lambda state: state.update({"network.more": torch.zeros(1)})),
    "no weights": changed(state_dict={}),
    "other classes": card(classes=["background", "cat", "dog"]),
}
BUILT: dict[str, Callable[[Path], bytes]] = {
    "no settings": card(config={}),
    "settings of an unknown class": card(config={"model": {"class_path": "NoSuchModule", "init_args": {}}}),
    "settings of a class that is none of ours": card(config={"model": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "ran"]}}}),
    "settings of a function": card(config={"model": {"class_path": "os.system", "init_args": {"command": "touch ran"}}}),
    "settings of a network that is none": card(config={"model": {"class_path": "FASSEGUNet", "init_args": {"network": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "ran"]}}}}}),
    "settings of an unknown argument": card(config={"model": {"class_path": "FASSEGUNet", "init_args": {"network": NETWORK, "netwrok": 1}}}),
    "settings of a wrong type": card(config={"model": {"class_path": "FASSEGUNet", "init_args": {"network": 5}}}),
    "settings that are no keys": card(config={"model": {"class_path": "FASSEGUNet", "init_args": [1]}}),
}  # fmt: skip


def _legacy(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def lay(name: str, make: Callable[[Path], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(make(folder))
        return folder / name

    return write


def teacher(path: Path) -> SegmentationModule:
    return load_teacher(path, SPACE)


def stages(path: Path) -> set[str]:
    return load_trained_parts({"network": TinyNetwork(3)}, [path], {"classes": list(SPACE.classes)})


FILES = template("checkpoints", lambda folder: [
    (folder / "a.ckpt").write_bytes(_saved(_good())), (folder / "a.pth").write_bytes(_saved(_good()["state_dict"]))
])  # fmt: skip


def _at(name: str) -> Callable[[Path], Path]:
    return lambda folder: FILES(folder) / name


WEIGHTS: dict[str, Callable[[Path], bytes]] = {
    "a payload": TAMPERED["a payload"],
    "a bare pickle with a payload": TAMPERED["a bare pickle with a payload"],
    "a file of the old format with a payload": TAMPERED["a file of the old format with a payload"],
    "a list": TAMPERED["a list"],
    "a number": TAMPERED["a number"],
    "texts": lambda folder: _saved({"a": "b"}),
    "an archive without its pickle": TAMPERED["an archive without its pickle"],
    "an archive without its tensors": TAMPERED["an archive without its tensors"],
    "a pickle of noise": TAMPERED["a pickle of noise"],
}
SAFETENSORS: dict[str, bytes] = {
    "nothing": b"", "noise": bytes(range(256)), "a header of 2^60 bytes": (1 << 60).to_bytes(8, "little") + b"{}",
    "a header that is no JSON": (4).to_bytes(8, "little") + b"nope",
    "a tensor beyond the file": (75).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}   ',
}  # fmt: skip

CASES: list[Damage] = [
    *ruin("checkpoint", _at("a.ckpt"), "a.ckpt", read_card),
    *(Damage(f"checkpoint: flipped bytes {n}", lay("a.ckpt", lambda _, n=n: flip(n, 6)(_saved(_good()))), teacher, r"a\.ckpt", bears=True) for n in range(20)),
    *(Damage(f"checkpoint: {name}", lay("a.ckpt", make), read_card, r"a\.ckpt") for name, make in TAMPERED.items()),
    *(Damage(f"teacher: {name}", lay("a.ckpt", make), teacher, r"a\.ckpt") for name, make in {**OTHER, **BUILT}.items()),
    *(Damage(f"init_from: {name}", lay("a.ckpt", make), stages, r"a\.ckpt") for name, make in OTHER.items()),
    *(
        Damage(f"init_from: {name}", lay("a.ckpt", make), stages, r"a\.ckpt")
        for name, make in {
            "nothing trained": card(trained=[]), "an unknown part": card(trained=["localizer"]), "no list": without("trained"),
            "a payload": TAMPERED["a payload"], "a bare pickle with a payload": TAMPERED["a bare pickle with a payload"],
        }.items()
    ),
    *ruin("weights", _at("a.pth"), "a.pth", _tensors, odd=False),
    *(Damage(f"weights: {name}", lay("a.pth", make), _tensors, r"a\.pth") for name, make in WEIGHTS.items()),
    *(Damage(f"safetensors: {name}", lay("a.safetensors", lambda _, body=body: body), _tensors, r"a\.safetensors") for name, body in SAFETENSORS.items()),
]  # fmt: skip


@pytest.mark.parametrize("case", part_of(CASES))
def test_tampered_checkpoints(case: Damage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where `touch ran` would leave it
    assert fault_of(case, tmp_path) is None


def test_the_good_one_is_read(tmp_path: Path) -> None:
    path = FILES(tmp_path) / "a.ckpt"
    assert read_card(path)["epoch"] == 3
    assert teacher(path)(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 8, 8)
    assert stages(path) == {"network"}
