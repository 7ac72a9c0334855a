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
from structseg.files import CONFIG_NAME
from structseg.lightning_modules.callbacks.image_scores import images_file, read_table
from structseg.lightning_modules.callbacks.round_folder_writer import IMAGES
from structseg.messages import nearest
from structseg.metric_names import flat_metrics, nest_metrics
from structseg.pipelines.file import load_pipeline
from structseg.pipelines.record import Record
from structseg.pipelines.round_report import round_report
from structseg.pipelines.session import Session
from structseg.pipelines.stages import round_and_arm
from structseg.provenance import Device, commit, hardware
from structseg.results.files import Run, write_run
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

_OF_ROUNDS = (".pseudo_masks", ".segmenter")  # stages whose images' scores are kept


@dataclass(frozen=True)
class Trained:
    """The outcome of a training.

    Attributes:
        checkpoint: the best one.
        train_images: number of training images.
        seconds: of the training, with all stages that it depends on.
        dirty: whether one of these was trained with uncommitted changes.
        rounds: for a pipeline with rounds the scores by round and stage: `round_1`, `pseudo_masks`.
        images: the scores of each image there, as `ImageScores` writes them, by `round_1.pseudo_masks`.
    """

    checkpoint: Path
    train_images: int
    seconds: float
    dirty: bool = False
    rounds: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, list[list[str]]] = field(default_factory=dict)


def measure(row: Row, seed: int, device: Device, data_root: Path | None, runs_dir: str, results: Path) -> Run:
    """Trains and tests a row, then writes what the row keeps.

    Args:
        row: the row.
        seed: one of its seeds.
        device: to train on.
        data_root: folder that holds the row's data folder.
        runs_dir: folder of all runs.
        results: folder of the results.

    Raises:
        RuntimeError: the training or the test was interrupted.
        ValueError: the test has no such headline.
    """
    (head, dirty), recipe = commit(), Recipes().of(row)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    data = data_folder(row, data_root)
    train = _train if row.pipeline is None else _train_stages
    trained = train(row, seed, device, None if data is None else str(data), runs_dir)

    split = row.scored_on
    image_scores = images_file(trained.checkpoint.parent.parent, split)
    metrics: dict[str, Any] = {}
    images: dict[str, list[list[str]]] = {}
    start = time.perf_counter()
    for test, args in args_to_score(row, str(trained.checkpoint), seed, device).items():
        image_scores.unlink(missing_ok=True)  # those of an earlier test
        scored = _finished(run(args), "test")
        logged = {key: float(value) for key, value in scored.trainer.callback_metrics.items()}
        metrics[test] = nest_metrics(logged, split)
        if image_scores.is_file():  # the test of a classifier writes none
            images[test] = read_table(image_scores)
    processor, _, threads = hardware(device).removesuffix(" threads").rpartition(", ")
    measured = Run(
        row=row.name,
        seed=seed,
        commit=head[:12] + "-dirty" * (dirty or trained.dirty),
        date=date,
        hardware=processor if device == "cpu" else hardware(device),
        threads=int(threads) if device == "cpu" else 0,
        minutes=round((trained.seconds + time.perf_counter() - start) / 60, 1),
        recipe=recipe,
        train_images=trained.train_images,
        test_images=len(scored.datamodule.dataset(split)),
        metrics=kept_metrics(row, flat_metrics({**metrics.get("", metrics), **trained.rounds})),
    )
    write_run(results, measured, kept_images(row, seed, {**images, **trained.images}))
    return measured


def kept_metrics(row: Row, metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that the row keeps; prints a line for each that is missing.

    Raises:
        ValueError: the headline is missing; the message has the nearest path.
    """
    for key in (key for key in row.kept if key not in metrics):
        message = f"row {row.name}: its test has no metric {key}{nearest(key, metrics)}; change the manifest"
        if key == row.headline:
            raise ValueError(message)
        print(message)
    return {key: metrics[key] for key in row.kept if key in metrics}


def kept_images(row: Row, seed: int, tables: Mapping[str, list[list[str]]]) -> dict[str, list[list[str]]]:
    """The image scores that the row keeps: of the headline's test, and of the rounds' pseudo-masks and segmenters.

    Only for the first seed, as an interval over images is within one training, and to save space: pixel counts of each
    class, and the component error and boundary F1 where the row keeps those of the data set.
    """
    if seed != row.seeds[0]:
        return {}
    ends = {key.rpartition(".")[2].removeprefix("mean_") for key in row.kept}
    scored = {test: table for test, table in tables.items() if test == row.headline_test or test.endswith(_OF_ROUNDS)}
    kept = {}
    for test, (header, *lines) in scored.items():
        columns = [i for i, name in enumerate(header) if name == "name" or "/" in name or name in ends]
        kept[test] = [[line[i] for i in columns] for line in (header, *lines)]
    return kept


def _train(row: Row, seed: int, device: Device, data: str | None, runs_dir: str) -> Trained:
    start = time.perf_counter()
    fit = _finished(run(args_to_fit(row, seed, device, data, str(row.path), runs_dir)), "training")
    best = fit.folder.checkpoints / "best.ckpt"
    return Trained(best, len(fit.datamodule.dataset("train")), time.perf_counter() - start)


def _train_stages(row: Row, seed: int, device: Device, data: str | None, runs_dir: str) -> Trained:
    """Runs the row's stage and those that it depends on; rows of a pipeline share finished stages."""
    more = tuple(args_of_stages(row, device, data))
    session = Session(load_pipeline(row.path), seed, Path(runs_dir), more, row.stage)
    records = session.run(tests=bool(session.pipeline.rounds), anew=True)
    rounds, scored = _rounds(session, records, str(row.stage))
    stage = session.pipeline.stages[str(row.stage)]
    best = session.checkpoint(stage.predicts or stage.name)  # for a prediction its fit is tested
    images: Any = make_datamodule(
        yaml.safe_load((best.parent.parent / CONFIG_NAME).read_text(encoding="utf-8"))
    ).dataset("train")
    seconds = sum(record.seconds for record in records.values())
    return Trained(best, len(images), seconds, any(record.dirty for record in records.values()), rounds, scored)


def _rounds(
    session: Session, records: Mapping[str, Record], last: str
) -> tuple[dict[str, dict[str, Any]], dict[str, list[list[str]]]]:
    """The scores of each round and of its images, by names without the arm, so that rows of two arms can be compared.

    The images of the last stage are left out, as the row's own test scores them again.
    """
    scores: dict[str, dict[str, Any]] = {}
    images: dict[str, list[list[str]]] = {}
    for folder, members in session.pipeline.rounds.items():
        done = {stage: records[stage] for stage in members if stage in records}
        number, arm = round_and_arm(folder) or (0, "")
        name = f"round_{number}"
        if done:
            stages = round_report(folder, done)["stages"]
            scores[name] = {stage: report["scores"] for stage, report in stages.items() if report["scores"]}
        for stage in done if number or arm else ():  # a round 0 without an arm is shared by all arms
            of_test = images_file(session.checkpoint(stage).parent.parent, "test") if stage != last else None
            for table in filter(None, (session.folder / stage / IMAGES, of_test)):
                if table.is_file():
                    images[f"{name}.{Path(stage).name}"] = read_table(table)
    return scores, images


def _finished(cli: StructsegCLI, what: str) -> StructsegCLI:
    """The run; raises for an interrupted one, which returns like a finished run."""
    if cli.trainer.interrupted or not cli.trainer.state.finished:
        raise RuntimeError(f"the {what} was interrupted; nothing is written")
    return cli


def main() -> None:
    """Entry point of the process that `structseg results --run` starts for a row and seed."""
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
