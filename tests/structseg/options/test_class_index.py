"""Classes are named without their paths, and only the named ones are imported."""

import inspect
import json
import os
import subprocess
import sys

import pytest

from structseg.files import ROOT
from structseg.messages import UsageError
from structseg.options.class_index import class_modules, import_all, import_named, refuse_moved


def test_the_index_has_the_classes_of_the_rooms():
    import_all()
    rooms = tuple(f"structseg.{room}." for room in ("losses", "datamodules", "lightning_modules"))
    found = {}
    for name, module in list(sys.modules.items()):
        if name.startswith(rooms):
            for cls in vars(module).values():
                if inspect.isclass(cls) and cls.__module__ == name and cls.__qualname__ == cls.__name__:
                    found.setdefault(cls.__name__, set()).add(name)
    public = {name: modules for name, modules in found.items() if not name.startswith("_")}
    assert {name: set(modules) for name, modules in class_modules().items()} == public


_MODULES = """
import json, sys
from structseg.command.main import main
sys.argv = ["structseg", *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def loaded(*words, cwd=ROOT):
    """What a command prints to stderr, and the modules that it has loaded."""
    done = subprocess.run(
        [sys.executable, "-c", _MODULES, *words], capture_output=True, text=True, check=True, cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    *lines, modules = done.stderr.splitlines()
    return "\n".join(lines), set(json.loads(modules))


@pytest.mark.slow
def test_a_fit_imports_what_its_configuration_names_and_nothing_heavy_before_its_error(tmp_path):
    line, modules = loaded("fit", "fasseg_v2", "--data.root", str(tmp_path), "--data.batch_size", "x")
    assert "batch_size" in line
    assert {"structseg.lightning_modules.fasseg_unet", "structseg.lightning_modules.networks.smp"} <= modules
    heavy = {"wandb", "timm", "kornia", "skimage", "cc3d", "segmentation_models_pytorch", "requests"}
    assert not heavy & modules
    assert not [
        name for name in modules if name.startswith(("structseg.lightning_modules.conta.", "structseg.datamodules.voc"))
    ]


@pytest.mark.slow
def test_names_are_found_in_files_that_a_configuration_names_and_misspelt_ones_have_a_neighbour(tmp_path):
    (tmp_path / "network.yaml").write_text("class_path: FaceOccNet")
    (tmp_path / "c.yaml").write_text("base: fasseg_v2\nmodel: {init_args: {network: network.yaml}}")
    line, modules = loaded("fit", "c.yaml", "--data.root", str(tmp_path), "--model.loss", "ConsensusLos", cwd=tmp_path)
    assert "there is no class ConsensusLos (did you mean ConsensusLoss?)" in line
    assert "structseg.lightning_modules.networks.face_occ_net" in modules


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("datamodules.fasseg.FASSEGDataModule", "structseg.datamodules.fasseg.datamodule.FASSEGDataModule"),
        ("lightning_modules.consensus.ConsensusSegmenter", "structseg.lightning_modules.consensus.ConsensusSegmenter"),
        ("losses.ConsensusLoss", "structseg.losses.consensus.ConsensusLoss"),
        ("structseg.losses.gone.ConsensusLoss", "structseg.losses.consensus.ConsensusLoss"),
    ],
)
def test_an_old_path_of_a_class_names_the_new_one(tmp_path, old, new):
    for where in ({"model": {"class_path": old}}, [f"--data={old}"]):
        with pytest.raises(UsageError, match=f"a.ckpt: {old} is now {new}; write that, or"):
            refuse_moved(where, "a.ckpt: ")
    (tmp_path / "c.yaml").write_text(f"data: {{class_path: {old}}}")
    with pytest.raises(UsageError, match=f"{old} is now {new}"):
        import_named(["fit", "--config", str(tmp_path / "c.yaml")])


def test_paths_that_are_right_pass(tmp_path, monkeypatch):
    refuse_moved(
        ["structseg.losses.ConsensusLoss", "structseg.losses.consensus.ConsensusLoss", "torch.nn.ReLU", "losses.Other"]
    )
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "__init__.py").write_text("ConsensusLoss = 1")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "losses", raising=False)
    refuse_moved(["losses.ConsensusLoss"])
    monkeypatch.delitem(sys.modules, "losses", raising=False)
