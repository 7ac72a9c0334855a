"""Bad YAML, and the real command line on damaged inputs: one line on stderr, exit code 1 or 2."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from structseg.command.main import main
from structseg.files import ROOT
from structseg.pipelines.file import load_pipeline
from structseg.results.manifest import load_manifest
from tests.fuzz.harm import NOISE, Damage, cut, fault_of, part_of
from tests.fuzz.test_checkpoints import BUILT, FILES, OTHER, TAMPERED, lay
from tests.fuzz.test_images import png, whole


def _laughs(levels: int = 9) -> str:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


BAD: dict[str, str | bytes] = {
    "nothing closed": "model: {class_path: [\n",
    "tabs": "model:\n\tclass_path: FASSEGUNet\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "a list": "- model\n- data\n",
    "a text": "just words\n",
    "a number": "7\n",
    "noise": NOISE,
    "UTF-16": "model: 1\n".encode("utf-16"),
    "zero bytes": b"model: \0\0\0\n",
    "a million laughs": _laughs(),
    "an alias of itself": "a: &a [*a]\n",
    "an alias of nobody": "a: *b\n",
    "10,000 levels": "[" * 10_000,
    "10,000 levels of keys": "{a: " * 10_000,
    "a python object": "!!python/object/apply:os.system ['touch ran']\n",
    "a python object in a value": "model: !!python/object/apply:os.system ['touch ran']\n",
    "a python name": "model: !!python/name:os.system\n",
    "a python module": "model: !!python/module:antigravity\n",
    "a new python object": "model: !!python/object/new:subprocess.Popen [['touch', 'ran']]\n",
    "an unknown tag": "model: !secret value\n",
    "a date that is none": "model: 2020-99-99\n",
    "a number of 10^5 digits": "model: " + "9" * 100_000 + "\n",
    "a key that is a list": "? [1, 2]\n: 3\n",
    "a merge of a number": "<<: 3\n",
    "a file of 5 MB": "a: 1\n" * 1_000_000,
    "an image": whole("png"),
    "a git conflict": "<<<<<<< HEAD\na: 1\n=======\na: 2\n>>>>>>> other\n",
}
PIPELINES: dict[str, str] = {
    "stages that are a list": "config: a.yaml\nstages: [coarse]\n",
    "a stage that is a text": "config: a.yaml\nstages: {coarse: fit}\n",
    "a stage that leads out": "config: a.yaml\nstages: {../../x: {}}\n",
    "settings that are a list": "config: a.yaml\nstages: {coarse: {model: [1]}}\n",
    "an unknown key": "config: a.yaml\nstagse: {}\n",
    "rounds of 10^12": "config: a.yaml\nrounds: 1000000000000\nstages: {coarse: {}}\n",
    "rounds of a text": "config: a.yaml\nrounds: many\nstages: {coarse: {}}\n",
    "a config that is a list": "config: [a]\nstages: {coarse: {}}\n",
    "a config with a zero byte": 'config: "a\\0b"\nstages: {coarse: {}}\n',
    "megabytes of nan": "config: a.yaml\nround_megabytes: .nan\nstages: {coarse: {}}\n",
    "a prediction of a list": "config: a.yaml\nstages: {coarse: {}, m: {predict: [1], makes: [m]}}\n",
    "a prediction by itself": "config: a.yaml\nstages: {m: {predict: m, makes: [m]}}\n",
    "a stage that is a number": "config: a.yaml\nstages: {1: {}}\n",
    "tests that are a number": "config: a.yaml\nstages: {coarse: {test: 3}}\n",
    "arms that are a list": "config: a.yaml\nrounds: 1\narms: [a]\nstages: {coarse: {}}\n",
    "stages that are null": "config: a.yaml\nstages:\n",
}
MANIFESTS: dict[str, str] = {
    "a row that is a list": "row: [1]\n",
    "a row of nothing": "row: {}\n",
    "seeds that are a text": "row: {what: a, config: b, data: c, headline: d, minutes: {}, seeds: all}\n",
    "minutes of texts": "row: {what: a, config: b, data: c, headline: d, minutes: {cpu: long}, seeds: [0]}\n",
    "minutes of nan": "row: {what: a, config: pyproject.toml, data: c, headline: d, minutes: {cpu: .nan}, seeds: [0]}\n",
    "a config with a zero byte": 'row: {what: a, config: "b\\0", data: c, headline: d, minutes: {}, seeds: [0]}\n',
    "a row that is a number": "1: {what: a}\n",
    "seeds of 10^400": f"row: {{what: a, config: b, data: c, headline: d, minutes: {{}}, seeds: [{'9' * 400}, x]}}\n",
    "tests that are a list": "row: {what: a, config: b, data: c, headline: d, minutes: {}, seeds: [0], tests: [1]}\n",
}


def written(name: str, content: str | bytes) -> Callable[[Path], Path]:
    def lay_it(folder: Path) -> Path:
        (folder / "a.yaml").write_text("trainer: {max_epochs: 1}\n")
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return folder / name

    return lay_it


def beside_a_checkpoint(name: str, content: str | bytes) -> Callable[[Path], Path]:
    return lambda folder: written(name, content)(FILES(folder))


def structseg(*args: str) -> Callable[[Path], None]:
    """The command line in this process, its line as an error; `PATH` stands for what is damaged."""

    def run(path: Path) -> None:
        before, sys.argv = sys.argv, ["structseg", *(arg.replace("PATH", str(path)) for arg in args)]
        said = StringIO()
        os.environ["WANDB_MODE"] = "disabled"
        here = Path.cwd()
        os.chdir(path.parent)
        try:
            with redirect_stderr(said), redirect_stdout(StringIO()):
                main()
        except SystemExit as stop:
            lines = [line for line in said.getvalue().splitlines() if line.startswith("structseg: error: ")]
            if stop.code not in (1, 2) or len(lines) != 1 or "STRUCTSEG_TRACEBACK" in lines[0]:
                raise RuntimeError(f"exit {stop.code}: {said.getvalue()[-300:]}") from None
            raise ValueError(lines[0]) from None
        finally:
            sys.argv = before
            os.chdir(here)

    return run


FIT = ("fit", "--model", "FASSEGUNet", "--model.network", "tests.data.tiny.TinyNetwork", "--data", "tests.data.tiny.TinyDataModule",
       "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false")  # fmt: skip
PREDICT = ("predict", "PATH", str(ROOT / "docs"), "--out", "out", "--device", "cpu")
TEST = ("test", "--ckpt_path", "PATH", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")
ABSURD: dict[str, tuple[str, ...]] = {
    "a size of 10^9": ("--data.size", "[0, 1000000000]"),
    "a size of texts": ("--data.size", "large"),
    "a negative size": ("--data.size", "[-5, 5]"),
    "a batch of 0": ("--data.batch_size", "0"),
    "a batch of a text": ("--data.batch_size", "many"),
    "a batch of 1.5": ("--data.batch_size", "1.5"),
    "negative workers": ("--data.num_workers", "-1"),
    "a std of 0": ("--data.std", "[0, 0, 0]"),
    "a mean of two": ("--data.mean", "[0.5, 0.5]"),
    "an unknown space": ("--data.label_space", "no\u2603such"),
    "a space that is not closed": ("--data.label_space", "voc[cat"),
    "a space of no such class": ("--data.label_space", "voc[unicorn]"),
    "a seed of a text": ("--seed_everything", "lucky"),
    "epochs of a text": ("--trainer.max_epochs", "[1, 2]"),
    "an unknown accelerator": ("--trainer.accelerator", "abacus"),
    "an option with a snowman": ("--data.\u2603", "1"),
    "an option of 10,000 letters": ("--data." + "x" * 10_000, "1"),
    "YAML that runs": ("--data.size", "!!python/object/apply:os.system ['touch ran']"),
    "a class that runs": (
        "--model.loss",
        '{"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "ran"]}}',
    ),
    "a class of no module": ("--model.loss", "no.such.Loss"),
    "a checkpoint that is a folder": ("--ckpt_path", "/"),
    "a checkpoint of a zero byte in YAML": ("--ckpt_path", "gone\u2603.ckpt"),
    "a runs folder that is a file": ("--runs_dir", "PATH"),
}

CASES: list[Damage] = [
    *(Damage(f"pipeline: {name}", written("p.yaml", text), load_pipeline, r"p\.yaml") for name, text in {**BAD, "empty": "", **PIPELINES}.items()),
    *(Damage(f"manifest: {name}", written("m.yaml", text), load_manifest, r"m\.yaml") for name, text in {**BAD, "empty": "", **MANIFESTS}.items()),
    *(Damage(f"fit --config: {name}", written("c.yaml", text), structseg("fit", "--config", "PATH"), r"c\.yaml") for name, text in BAD.items()),
    *(
        Damage(f"fit --config: {name}", written("c.yaml", text), structseg(*FIT[:1], "--config", "PATH", *FIT[1:]), says)
        for name, text, says in (
            ("an unknown key", "trianer: {max_epochs: 1}\n", "trianer"),
            ("an unknown option", "trainer: {max_epoch: 1}\n", "max_epoch"),
            ("a wrong type", "trainer: {max_epochs: [1]}\n", "max_epochs"),
            ("a trainer that is a list", "trainer: [1]\n", "trainer"),
            ("a model that is a number", "model: 3\n", "model"),
        )
    ),
    *(Damage(f"fit: {name}", written("a", ""), structseg(*FIT, *args), "structseg: error: ") for name, args in ABSURD.items()),
    Damage("fit --config: a folder", lambda folder: folder, structseg("fit", "--config", "PATH"), "--config|config"),
    Damage("fit --config: nowhere", lambda folder: folder / "gone.yaml", structseg("fit", "--config", "PATH"), "--config|config"),
    Damage("fit --config: nothing behind", lambda folder: folder / "a", structseg("fit", "--config"), "--config"),
    *(Damage(f"predict --ckpt_path: {name}", lay("a.ckpt", TAMPERED[name]), structseg(*PREDICT), r"a\.ckpt") for name in (
        "a payload", "a bare pickle with a payload", "an archive without its pickle", "a card that is a text", "a card without classes",
        "a card of a size of 10^12", "a card of settings that are texts",
    )),
    *(Damage(f"test --ckpt_path: {name}", lay("a.ckpt", OTHER[name]), structseg(*TEST), r"error: .*(a\.ckpt|checkpoint|weight)") for name in OTHER),
    *(Damage(f"test --ckpt_path: {name}", lay("a.ckpt", BUILT[name]), structseg(*TEST), "structseg: error: ") for name in BUILT),
    *(Damage(f"predict: {name}", beside_a_checkpoint(file, content), structseg("predict", "a.ckpt", "PATH", "--out", "out", "--device", "cpu"), says) for name, file, content, says in (
        ("a broken image of a name of two lines", "two\nlines \u2603.png", cut(0.4)(whole("png")), r"lines \u2603\.png"),
        ("a bomb", "a.png", png(60000, 60000, 1, 0), r"a\.png"),
    )),
]  # fmt: skip


@pytest.mark.parametrize("case", part_of(CASES))
def test_bad_yaml_and_commands(case: Damage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    assert fault_of(case, tmp_path) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "args"),
    [
        ("a.ckpt", TAMPERED["a payload"], ("test", "--ckpt_path", "PATH")),
        ("a.yaml", lambda folder: str(BAD["a python object"]).encode(), ("fit", "--config", "PATH")),
        *(
            pytest.param(*case, marks=pytest.mark.fuzz)
            for case in (
                ("a.ckpt", TAMPERED["a bare pickle with a payload"], ("predict", "PATH", str(ROOT / "docs"))),
                ("a.yaml", lambda folder: str(BAD["a million laughs"]).encode(), ("fit", "--config", "PATH")),
                ("p.yaml", lambda folder: NOISE, ("pipeline", "PATH")),
            )
        ),
    ],
)
def test_a_process_of_its_own_says_one_line(
    name: str, content: Callable[[Path], bytes], args: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "structseg", *(arg.replace("PATH", str(tmp_path / name)) for arg in args)],
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert re.search(rf"^structseg: error: .*{re.escape(name)}.*$", done.stderr, re.MULTILINE)
    assert not (tmp_path / "ran").exists()
