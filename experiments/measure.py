"""Measures one seed of one row in this process: `python -m experiments.measure ROW SEED ...`; see `run_rows`."""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from datamodules.packed import packed_copy
from experiments.cli import StructsegCLI, run
from experiments.manifest import ROOT, Device, Row, args_to_fit, args_to_score, data_folder, find_row, load_manifest
from experiments.result_files import (
    commit,
    hardware,
    images_path,
    nest_metrics,
    portable,
    result_path,
    versions,
    write_images,
    write_result,
)
from lightning_modules.callbacks.image_scores import images_file, read_table


def measure(row: Row, seed: int, device: Device, data_root: Path | None, runs_dir: str, results: Path) -> Path:
    """Trains and tests, and writes the images' scores and the result at the very end.

    Args:
        row: the row.
        seed: one of its seeds.
        device: what to train on.
        data_root: folder that holds the row's data folder.
        runs_dir: folder of all runs.
        results: folder of the result.

    Returns:
        The result's file.

    Raises:
        RuntimeError: the training or the test did not come to its end.
    """
    head, dirty = commit()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    data = data_folder(row, data_root)
    name = None if data is None else str(data)

    start = time.perf_counter()
    fit = _whole(run(args_to_fit(row, seed, device, name, str(ROOT / row.config), runs_dir)), "training")
    wall = time.perf_counter() - start
    config = yaml.safe_load(fit.folder.config.read_text())

    split = row.scored_on
    left = images_file(fit.folder.path, split)
    metrics: dict[str, Any] = {}
    images: dict[str, list[list[str]]] = {}
    start = time.perf_counter()
    for test, args in args_to_score(row, str(fit.folder.checkpoints / "best.ckpt"), seed, device).items():
        left.unlink(missing_ok=True)  # what the test before has left must not be taken for this one's
        scored = _whole(run(args), "test")
        logged = {key: round(float(value), 6) for key, value in scored.trainer.callback_metrics.items()}
        metrics[test], images[test] = nest_metrics(logged, split), read_table(left)
    test_wall = time.perf_counter() - start

    path = result_path(results, row.name, seed)
    content: dict[str, Any] = {
        "row": row.name,
        "seed": seed,
        "method": type(fit.model).__name__,
        "data": row.data,
        "packed": None if data is None else packed_copy(data),
        "date": date,
        "commit": head,
        "dirty": dirty,
        "hardware": hardware(device),
        "versions": versions(),
        "wall_seconds": round(wall, 1),
        "test_seconds": round(test_wall, 1),
        "initial_weights": fit.model.initial_weights,
        "train_images": len(fit.datamodule.dataset("train")),
        "scored_on": split,
        f"{split}_images": len(scored.datamodule.dataset(split)),
        "images": write_images(images_path(path), images),
        "metrics": metrics.get("", metrics),
        "config": portable(config, data_root),
    }
    write_result(path, content)
    return path


def _whole(cli: StructsegCLI, what: str) -> StructsegCLI:
    """An interrupted run returns like one that is done, and must not be scored."""
    if cli.trainer.interrupted or not cli.trainer.state.finished:
        raise RuntimeError(f"the {what} was interrupted; nothing is written")
    return cli


def main() -> None:
    """Entry point of the process that `structseg results --run` starts for each seed."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("row")
    parser.add_argument("seed", type=int)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    for name in ("manifest", "results"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--data_root", type=Path)
    parser.add_argument("--runs_dir", default="runs")
    args = parser.parse_args()
    row = find_row(load_manifest(args.manifest), args.row)
    print(measure(row, args.seed, args.device, args.data_root, args.runs_dir, args.results))


if __name__ == "__main__":
    main()
