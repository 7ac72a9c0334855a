"""Commands that load no torch, and `import structseg`."""

import json
import os
import subprocess
import sys

import pytest

from structseg.files import ROOT
from structseg.messages import interrupted
from structseg.options import subcommands

_HEAVY = ("torch", "pytorch_lightning", "lightning_fabric", "jsonargparse", "numpy", "PIL", "rich")
_RUN = rf"""
import contextlib, io, json, re, sys
from pathlib import Path
from structseg.command.main import main
sys.argv, code, out, err = ["structseg", *sys.argv[1:]], 0, io.StringIO(), io.StringIO()
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
        main()
    except SystemExit as stop:
        code = stop.code
status = Path("/proc/self/status")
peak = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else []
print(json.dumps([code, out.getvalue(), err.getvalue(), sorted({_HEAVY!r} & sys.modules.keys()), int(*peak) / 1024]))
""".replace(repr(_HEAVY), repr(set(_HEAVY)))


def light(*words, cwd=ROOT):
    """Exit code, stdout and stderr of a command, which must have loaded nothing heavy."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *words], capture_output=True, text=True, check=True, env=environment, cwd=cwd
    )
    code, out, err, heavy, memory = json.loads(done.stdout)
    assert heavy == []
    assert memory < 60, "MiB"
    return code, out, err


@pytest.mark.parametrize("words", [(), ("-h",), ("--help",)], ids=" ".join)
def test_help_names_every_subcommand(words):
    code, out, err = light(*words)
    assert (code, err) == (0, "")
    assert all(f"  {name} " in out for name in subcommands.SUBCOMMANDS)


def test_the_version():
    code, out, _ = light("--version")
    assert code == 0
    assert out.startswith("structseg 0.")


@pytest.mark.parametrize("name", subcommands.LIGHTNING)
def test_short_help_is_one_page(name):
    code, out, _ = light(name, "-h")
    lines = out.splitlines()
    assert code == 0
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 120
    assert lines[0].startswith(f"usage: structseg {name} ")
    assert sum(line.startswith(f"  structseg {name} ") for line in lines) == 3
    assert sum(line.startswith("  --") for line in lines) >= 10


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["ft"], "ft is no subcommand; did you mean fit?", 2),
        (["fit", "fasseg_v2"], "data: missing root; give it on the command line or in --config: --data.root FOLDER", 2),
        (["test", "fasseg_v2", "--data.root=gone"], "no folder gone; give the folder of the data as --data.root", 1),
        (["train"], "did you mean fit?", 2),
        (["trian"], "did you mean fit?", 2),
        (["Evaluate"], "did you mean test?", 2),
        (["inference"], "did you mean predict?", 2),
        (["xyzzy"], "the subcommand comes first: fit, validate", 2),
        (["--config", "x.yaml", "fit"], "the subcommand comes first: fit, validate", 2),
        (["fit", "--lr", "0.1"], "unknown option --lr (did you mean --model.optimizer.lr?)", 2),
        (["fit", "--epochs=3"], "unknown option --epochs (did you mean --trainer.max_epochs?)", 2),
        (["fit", "--trainr.max_epochs", "3"], "(did you mean --trainer.max_epochs?)", 2),
        (["test", "--resum", "auto"], "unknown option --resum", 2),
        (["predict", "a.ckpt", "--flip_tets", "true"], "unknown option --flip_tets (did you mean --flip_test?)", 2),
        (["predict", "a.ckpt", "--data.predict_out", "x"], "--data.predict_out is --out now", 2),
        (["predict", "--ckpt_path=a.ckpt"], "the checkpoint comes first: structseg predict CHECKPOINT IMAGE", 2),
        (["predict", "a.ckpt", "b.jpg", "--model.crf", "true"], "--model.crf is --crf now", 2),
        (["predict", "a.ckpt", "b.jpg", "--trainer.gpus", "2"], "unknown option --trainer.gpus", 2),
        (["predict", "a.ckpt", "--flip_test", "maybe"], "maybe is neither true nor false", 2),
        (["predict", "a.ckpt", "--test_scales", "1,x"], "1,x is not a list of numbers", 2),
        (["predict", "a.ckpt", "--tile", "big"], "argument --tile: invalid int value: 'big'", 2),
        (["predict"], "CHECKPOINT is missing, as in: structseg predict runs/", 2),
        (["test", "none.ckpt"], "no checkpoint at none.ckpt; give the path", 1),
        (["predict", "none.ckpt", "docs"], "no checkpoint at none.ckpt", 1),
        (["predict", "README.md", "none.ckpt", "docs"], "no checkpoint at none.ckpt", 1),
        (["predict", "pyproject.toml"], "predict needs images", 1),
        (["predict", "pyproject.toml", "none.jpg"], "no file or folder none.jpg", 1),
    ],
)
def test_mistakes_are_found_before_torch_is_loaded(words, message, code):
    found, out, err = light(*words)
    assert (found, out) == (code, "")
    assert err.startswith("structseg: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_importing_structseg_is_light_and_its_names_are_found_beside_folders_of_the_same_names(tmp_path):
    for room in ("losses", "datamodules", "lightning_modules", "experiments"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise ImportError('the wrong one')")
    code = (
        "import sys, structseg\n"
        "assert not {'torch', 'numpy', 'PIL'} & sys.modules.keys()\n"
        "assert set(structseg.__all__) <= set(dir(structseg))\n"
        "from structseg import ConsensusLoss, LabelSpace, consensus_loss\n"
        "assert callable(structseg.consensus_loss)\n"
        "assert 'pytorch_lightning' not in sys.modules\n"
        "try:\n    structseg.nothing\nexcept AttributeError as error:\n    print(error, ConsensusLoss.__module__)\n"
    )
    (tmp_path / "script.py").write_text(code)
    for words in (["-c", code], ["script.py"]):
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, cwd=tmp_path, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.stderr == ""
        assert done.stdout == "module 'structseg' has no attribute 'nothing' structseg.losses.consensus\n"


@pytest.mark.parametrize("name", [name for name in subcommands.SUBCOMMANDS if name not in subcommands.LIGHTNING])
def test_every_help_is_a_page(name):
    code, out, err = light(name, "-h")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: structseg {name}")
    assert len(out.splitlines()) <= 45
    assert "lambda" not in out


@pytest.mark.parametrize("words", [["configs"], ["fit", "--data.help"]], ids=" ".join)
def test_a_closed_pipe_ends_the_command_without_a_message(words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "structseg", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=ROOT)
    process.stdout.close()  # before anything is written
    assert (process.stderr.read(), process.wait()) == (b"", 141)


def test_an_error_caused_by_an_interruption_is_an_interruption():
    error = RuntimeError("enforce fail at inline_container.cc")
    assert not interrupted(error)
    error.__context__ = OSError()
    error.__context__.__context__ = KeyboardInterrupt()
    assert interrupted(error)
