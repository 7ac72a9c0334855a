"""Measures one seed of one row in this process: `python -m structseg.results.measure ROW SEED ...`; see `run_rows`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from structseg.command.configs import make_datamodule
from structseg.command.lightning import StructsegCLI, run
from structseg.command.run_folder import CONFIG_NAME
from structseg.files import write_result
from structseg.lightning_modules.callbacks.image_scores import images_file, read_table
from structseg.lightning_modules.callbacks.round_folder_writer import IMAGES
from structseg.lightning_modules.checkpoints.card import read_card
from structseg.metric_names import nest_metrics
from structseg.pipelines.file import load_pipeline
from structseg.pipelines.record import Record
from structseg.pipelines.round_report import round_report
from structseg.pipelines.session import Session
from structseg.pipelines.stages import round_and_arm
from structseg.provenance import Device, commit, hardware, versions
from structseg.results.files import images_path, portable, result_path, write_images
from structseg.results.manifest import (
    Recipes,
    Row,
    args_of_stages,
    args_to_fit,
    args_to_score,
    data_folder,
    find_row,
    load_manifest,
)


@dataclass(frozen=True)
class Trained:
    """What a training left, and what the result keeps of it.

    Attributes:
        checkpoint: the best one.
        config: of the fit, as it was resolved.
        method: name of the module's class.
        initial_weights: where the first weights came from.
        train_images: how many it saw.
        seconds: of the training, with all stages that it builds on.
        dirty: whether one of those was trained with changes that were not committed.
        more: what the result also holds.
        rounds: scores of the stages of each round, `round_1`: `pseudo_masks`, where a pipeline has rounds.
        images: what each image scored there, as `ImageScores` writes it, by `round_1.pseudo_masks`.
    """

    checkpoint: Path
    config: dict[str, Any]
    method: str
    initial_weights: str
    train_images: int
    seconds: float
    dirty: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)
    rounds: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, list[list[str]]] = field(default_factory=dict)


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
        RuntimeError: the training or the test was interrupted.
    """
    (head, dirty), recipe = commit(), Recipes().of(row)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    data = data_folder(row, data_root)
    name = None if data is None else str(data)
    train = _train if row.pipeline is None else _train_stages
    trained = train(row, seed, device, name, runs_dir)

    split = row.scored_on
    left = images_file(trained.checkpoint.parent.parent, split)
    metrics: dict[str, Any] = {}
    images: dict[str, list[list[str]]] = {}
    start = time.perf_counter()
    for test, args in args_to_score(row, str(trained.checkpoint), seed, device).items():
        left.unlink(missing_ok=True)  # scores of the test before must not be taken for this one's
        scored = _finished(run(args), "test")
        logged = {key: round(float(value), 6) for key, value in scored.trainer.callback_metrics.items()}
        metrics[test], images[test] = nest_metrics(logged, split), read_table(left)
    test_wall = time.perf_counter() - start

    path = result_path(results, row.name, seed)
    content: dict[str, Any] = {
        "row": row.name,
        "seed": seed,
        "method": trained.method,
        "data": row.data,
        "date": date,
        "commit": head,
        "dirty": dirty or trained.dirty,
        "hardware": hardware(device),
        "versions": versions(),
        "wall_seconds": round(trained.seconds, 1),
        "test_seconds": round(test_wall, 1),
        "recipe": recipe,
        **trained.more,
        "initial_weights": trained.initial_weights,
        "train_images": trained.train_images,
        "scored_on": split,
        f"{split}_images": len(scored.datamodule.dataset(split)),
        "images": write_images(images_path(path), {**images, **trained.images}),
        "metrics": {**metrics.get("", metrics), **trained.rounds},
        "config": portable(trained.config, data_root),
    }
    write_result(path, content)
    return path


def _train(row: Row, seed: int, device: Device, data: str | None, runs_dir: str) -> Trained:
    start = time.perf_counter()
    fit = _finished(run(args_to_fit(row, seed, device, data, str(row.path), runs_dir)), "training")
    seconds = time.perf_counter() - start
    config, images = yaml.safe_load(fit.folder.config.read_text()), len(fit.datamodule.dataset("train"))
    best = fit.folder.checkpoints / "best.ckpt"
    return Trained(best, config, type(fit.model).__name__, fit.model.initial_weights, images, seconds)


def _train_stages(row: Row, seed: int, device: Device, data: str | None, runs_dir: str) -> Trained:
    """Runs the row's stage and those that it builds on; rows of a pipeline share the finished ones."""
    more = tuple(args_of_stages(row, device, data))
    session = Session(load_pipeline(row.path), seed, Path(runs_dir), more, row.stage)
    records = session.run(tests=bool(session.pipeline.rounds), anew=True)
    rounds, scored = _rounds(session, records)
    stage = session.pipeline.stages[str(row.stage)]
    best = session.checkpoint(stage.predicts or stage.name)  # of a prediction, the checkpoint that made it is tested
    card, config = read_card(best), yaml.safe_load((best.parent.parent / CONFIG_NAME).read_text())
    images: Any = make_datamodule(config).dataset("train")
    return Trained(
        best,
        config,
        card["method"],
        card["initial_weights"],
        len(images),
        sum(record.seconds for record in records.values()),
        any(record.dirty for record in records.values()),
        {
            "stage_seconds": {name: record.seconds for name, record in records.items()},
            "stage_commits": {name: record.commit for name, record in records.items()},
        },
        rounds,
        scored,
    )


def _rounds(
    session: Session, records: Mapping[str, Record]
) -> tuple[dict[str, dict[str, Any]], dict[str, list[list[str]]]]:
    """The scores of each round and its images', under names without the arm, so that rows of two arms compare."""
    scores: dict[str, dict[str, Any]] = {}
    images: dict[str, list[list[str]]] = {}
    for folder, members in session.pipeline.rounds.items():
        done = {stage: records[stage] for stage in members if stage in records}
        number, _ = round_and_arm(folder) or (0, "")
        name = f"round_{number}"
        if done:
            stages = round_report(folder, done)["stages"]
            scores[name] = {stage: report["scores"] for stage, report in stages.items() if report["scores"]}
            scores[name]["notices"] = sum(len(report["notices"]) for report in stages.values())
        for stage in done:
            table = session.folder / stage / IMAGES
            if table.is_file():
                images[f"{name}.{Path(stage).name}"] = read_table(table)
    return scores, images


def _finished(cli: StructsegCLI, what: str) -> StructsegCLI:
    """Refuses an interrupted run, which returns like a finished one and must not be scored."""
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
