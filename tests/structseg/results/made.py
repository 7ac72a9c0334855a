"""Rows and runs for the tests of the results."""

import yaml

from structseg.results.files import Run
from structseg.results.manifest import Row

ROW = {
    "what": "A row.",
    "config": "experiments/fasseg_unet/synthetic.yaml",
    "seeds": [0, 1, 2],
    "data": "synthetic",
    "headline": "clean.miou",
    "minutes": {"cpu": 8, "gpu": 1},
}
CLASSES = ("background", "face")
HEADER = ["name", *(f"{count}/{name}" for count in ("tp", "fp", "fn") for name in CLASSES), "component_error"]


def row(name="a", **changes):
    content = {**ROW, **changes}
    return Row(name, **{**content, "seeds": tuple(content["seeds"])})


def manifest(folder, text=None, **rows):
    path = folder / "manifest.yaml"
    path.write_text(text or yaml.safe_dump({name: {**ROW, **changes} for name, changes in rows.items()}))
    return path


def run(name="a", seed=0, metrics=0.5, hardware="EPYC, 2 cores", recipe="r", **more):
    """`metrics`: by path, or the value of `clean.miou`."""
    known = metrics if isinstance(metrics, dict) else {"clean.miou": metrics}
    content = {"commit": "c0ffee", "date": "2026-11-22T13:00:00+00:00", "threads": 2, "minutes": 1.5}
    content |= {"train_images": 4, "test_images": 3, **more}
    return Run(name, seed, hardware=hardware, recipe=recipe, metrics=known, **content)


def image(name, tp=(50, 30), fp=(10, 10), fn=(10, 10), error=2):
    return [name, *map(str, (*tp, *fp, *fn, error))]
