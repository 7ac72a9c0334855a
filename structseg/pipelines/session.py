"""Runs the stages of a pipeline with one seed, each in its own process, and skips finished ones."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from structseg.command.configs import resolved_config
from structseg.command.processes import exclusive_lock, run_structseg
from structseg.command.run_folder import NOTICES_NAME
from structseg.datamodules.round_files import ArtefactManifest
from structseg.lightning_modules.checkpoints.card import read_card
from structseg.lightning_modules.conta.dense_crf import require_pydensecrf
from structseg.pipelines.file_faults import argument_faults
from structseg.pipelines.record import (
    Inputs,
    Record,
    Scored,
    StageStatus,
    checkpoint_of,
    digest,
    outputs,
    read_record,
    stage_status,
)
from structseg.pipelines.round_report import print_disk_need, remove_report, write_report
from structseg.pipelines.stages import RUN_ID, Pipeline, Stage, pipeline_folder
from structseg.provenance import commit

_SPLIT = ("--data.predict_split", "train")  # unless a stage sets another
_SEEDS_A_ROUND = 100  # added to the seed in each round, so that every round has its own random numbers


@dataclass(frozen=True)
class Session:
    """A pipeline with one seed in its folder.

    Attributes:
        pipeline: the stages.
        seed: of every stage; plus 100 N in round N.
        runs_dir: folder of all runs.
        more: further arguments of every fit and test.
        last: run only this stage and those that it depends on; None: all stages.
        stages: the stages to run, in order.
    """

    pipeline: Pipeline
    seed: int = 0
    runs_dir: Path = Path("runs")
    more: tuple[str, ...] = ()
    last: str | None = None
    stages: list[Stage] = field(init=False)

    def __post_init__(self) -> None:
        faults = list(argument_faults(self.more, places=False))
        if faults:
            raise ValueError("; ".join(faults))
        object.__setattr__(self, "stages", self.pipeline.needed(self.last))

    @property
    def folder(self) -> Path:
        """The folder of all stages."""
        return pipeline_folder(self.pipeline.path, self.seed, self.runs_dir)

    def checkpoint(self, stage: str) -> Path:
        """The best checkpoint of a stage, or its future path."""
        record = read_record(self.folder / stage)
        return checkpoint_of(self.folder / stage, RUN_ID if record is None else record.run)

    def _best(self, stage: str, pending: Sequence[str]) -> Path:
        return checkpoint_of(self.folder / stage, RUN_ID) if stage in pending else self.checkpoint(stage)

    def args(self, stage: Stage, pending: Sequence[str] = ()) -> list[str]:
        """The arguments of `structseg` that run a stage.

        Args:
            stage: the stage.
            pending: earlier stages that have to run first, so that the ids of their runs are unknown.
        """
        paths = {
            place: str(self.folder / place if place in stage.makers else self._best(place, pending))
            for place in stage.places
        }
        own, folder = stage.args_with(paths), (self.folder / stage.name).parent
        base = [arg for config in stage.configs for arg in ("--config", str(config))]
        if stage.predicts is None:
            where = ["--experiment", Path(stage.name).name, "--runs_dir", str(folder)]
            return ["fit", *base, *own, *self.more, *where, *self._seeded(stage)]
        where = ["--ckpt_path", str(self._best(stage.predicts, pending)), "--data.predict_out", str(folder)]
        return ["predict", *base, *_SPLIT, *own, *self.more, *where, *self._seeded(stage)]

    def test_args(self, stage: Stage, test: str, checkpoint: Path) -> list[str]:
        """The arguments of `structseg` that run one of a stage's tests."""
        return ["test", "--ckpt_path", str(checkpoint), *self.more, *stage.tests[test], *self._seeded(stage)]

    def _seed(self, stage: Stage) -> int:
        return self.seed + _SEEDS_A_ROUND * stage.round

    def _seeded(self, stage: Stage) -> list[str]:
        return ["--seed_everything", str(self._seed(stage))]

    def configs(self) -> dict[str, dict[str, Any]]:
        """The resolved configuration of each stage, with `STAGE.ckpt` for checkpoints and names for artefacts.

        Raises:
            ValueError: a stage's arguments, or those of one of its tests, are refused; the message names it.
        """
        resolved = lru_cache(None)(lambda *args: resolved_config(args))  # rounds differ only in paths and seeds
        found = {}
        for stage in self.stages:
            last = [Path(place).name for place in stage.places]
            named = {p: name if last.count(name) == 1 else p for p, name in zip(stage.places, last, strict=True)}
            places = {place: name if place in stage.makers else f"{name}.ckpt" for place, name in named.items()}
            own = [arg for config in stage.configs for arg in ("--config", str(config))]
            own += [*(_SPLIT if stage.predicts else ()), *stage.args_with(places), *self.more]
            try:
                config = resolved("predict" if stage.predicts else "fit", *own)
                for args in stage.tests.values():
                    if args:
                        resolved("test", *own, *args)
            except ValueError as error:
                raise ValueError(f"{self.pipeline.path}: stage {stage.name}: {error}") from None
            found[stage.name] = {**config, "seed_everything": self._seed(stage)}
        return found

    def status(self, stage: Stage, config: Mapping[str, Any], pending: Sequence[str] = ()) -> StageStatus:
        """Whether a stage has to run."""
        return stage_status(stage, self.folder, self._inputs(stage, config, pending), pending)

    def _inputs(self, stage: Stage, config: Mapping[str, Any], pending: Sequence[str] = ()) -> Inputs:
        records = {name: read_record(self.folder / name) for name in stage.needs if name not in pending}
        return Inputs.of(config, {name: record.checkpoint for name, record in records.items() if record is not None})

    def statuses(
        self, configs: Mapping[str, Mapping[str, Any]]
    ) -> Iterator[tuple[Stage, StageStatus, tuple[str, ...]]]:
        """The status of each stage, with the earlier stages that have to run.

        Args:
            configs: the result of `configs()`.
        """
        pending: tuple[str, ...] = ()
        for stage in self.stages:
            status = self.status(stage, configs[stage.name], pending)
            yield stage, status, pending
            pending += (stage.name,) if status.fit else ()

    def refuse_overwriting(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuses to replace finished predictions by those of another configuration, as they have the same folder.

        Args:
            configs: the result of `configs()`.

        Raises:
            ValueError: a prediction would be replaced; the message has the differences.
        """
        reasons: dict[str, str] = {}
        for stage in self.stages:
            record = read_record(self.folder / stage.name)
            if record is None:
                continue
            own = Inputs.of(configs[stage.name], record.inputs.checkpoints).changes(record.inputs)
            why = (
                f"{stage.name}: {own}" if own else next((reasons[name] for name in stage.needs if name in reasons), "")
            )
            if why:
                reasons[stage.name] = why
            if why and stage.predicts is not None:
                raise ValueError(
                    f"{self.folder / stage.name} was made with another configuration ({why}); nothing was run. "
                    "structseg pipeline --anew replaces it and the stages that depend on it; or give another --runs_dir"
                )

    def survey(
        self, configs: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Iterator[tuple[Stage, StageStatus, list[list[str]]]]:
        """The status of each stage, with the arguments of the commands that would run.

        Args:
            configs: the result of `configs()`; None calls it.
        """
        for stage, status, pending in self.statuses(configs or self.configs()):
            commands = [self.args(stage, pending)] if status.fit else []
            path = self._best(stage.name, [stage.name] if status.fit else [])
            commands += [self.test_args(stage, test, path) for test in status.tests]
            yield stage, status, commands

    def run(self, tests: bool = True, anew: bool = False) -> dict[str, Record]:
        """Runs the unfinished stages one after the other.

        Args:
            tests: whether to test the stages too.
            anew: whether to replace finished predictions of another configuration.

        Returns:
            The records of all stages.

        Raises:
            ValueError: a stage's arguments are refused, there are predictions of another configuration, or the CRF for
                relation labels is not installed; nothing was run.
            RuntimeError: a stage failed, or another process uses the folder.
            OSError: the disk is too small for the remaining rounds; nothing was run.
        """
        configs = self.configs()
        if any(Path(made).name == "relation_labels" for stage in self.stages for made in stage.makes):
            require_pydensecrf()
        records: dict[str, Record] = {}
        with exclusive_lock(self.folder) as lock:
            if not anew:
                self.refuse_overwriting(configs)
            print_disk_need(self.pipeline, self.folder, [stage.name for stage in self.stages])
            for number, stage in enumerate(self.stages, 1):
                status = self.status(stage, configs[stage.name])
                print(f"[{number}/{len(self.stages)}] {stage.name}: {status}", flush=True)
                record = self._run_stage(stage, configs[stage.name], lock) if status.fit else self._finished(stage)
                for test in status.tests if tests else ():
                    record = record.with_test(test, self._test(stage, test, record, lock))
                    record.write(self.folder / stage.name)
                records[stage.name] = record
                write_report(self.pipeline, self.folder, stage.name, records)
        return records

    def _finished(self, stage: Stage) -> Record:
        record = read_record(self.folder / stage.name)
        assert record is not None  # `status` has just read it
        return record

    def _run_stage(self, stage: Stage, config: Mapping[str, Any], lock: IO[str]) -> Record:
        inputs, (head, dirty) = self._inputs(stage, config), commit()
        remove_report(self.pipeline, self.folder, stage.name)
        before = _written(self.folder / stage.name)
        args, own = self.args(stage), inputs.fingerprint[:8]
        if stage.predicts is None and read_record(self.folder / stage.name) is None:
            args += [
                "--resume",
                "auto",
                "--run_id",
                own,
            ]  # continues an interrupted run; a finished stage gets a new run
        seconds = round(run_structseg(f"stage {stage.name}", args, lock.fileno()), 1)
        scores: dict[str, Scored] = {}
        if stage.predicts is None:
            run, notices = self._new_run(stage, before, own)
        else:
            run, (scored, notices) = "", self._predictions(stage)
            scores[""] = Scored((), scored, 0.0)
        checksum = digest(outputs(stage, self.folder, run))
        record = Record(inputs, run, checksum, seconds, head, dirty, scores, notices)
        record.write(self.folder / stage.name)
        return record

    def _new_run(self, stage: Stage, before: Mapping[Path, int], own: str) -> tuple[str, tuple[str, ...]]:
        """The id of the run that a fit has written, or `own` where that was complete already; and its notices."""
        folder = self.folder / stage.name
        new = [path for path, when in _written(folder).items() if before.get(path) != when]
        new = new or [path for path in [checkpoint_of(folder, own)] if path.is_file()]
        if not new:
            raise RuntimeError(f"stage {stage.name} left no checkpoint in {folder}, which the stages after it need")
        best = max(new, key=lambda path: path.stat().st_mtime_ns)
        return best.parent.parent.name, tuple(read_card(best).get("notices", ()))

    def _predictions(self, stage: Stage) -> tuple[dict[str, float], tuple[str, ...]]:
        """The scores and notices in the output folders of a prediction."""
        made = outputs(stage, self.folder, "")
        missing = [path for path in made if not path.exists()]
        if missing:
            raise RuntimeError(f"stage {stage.name} left no {missing[0]}, which the stages after it need")
        manifests = [ArtefactManifest.read(path) for path in made if path.is_dir()]
        scores = {key: value for manifest in manifests for key, value in manifest.scores.items()}
        return scores, tuple(dict.fromkeys(notice for manifest in manifests for notice in manifest.notices))

    def _test(self, stage: Stage, test: str, record: Record, lock: IO[str]) -> Scored:
        path = checkpoint_of(self.folder / stage.name, record.run)
        log = path.parent.parent / "metrics.csv"
        before = len(_test_figures(log))
        seconds = run_structseg(f"stage {stage.name}", self.test_args(stage, test, path), lock.fileno())
        figures = _test_figures(log)[before:]
        if not figures:
            raise RuntimeError(
                f"the test of stage {stage.name} left no figures in {log}; do not change --trainer.logger"
            )
        file = path.parent.parent / NOTICES_NAME
        notices = tuple(file.read_text(encoding="utf-8").splitlines()) if file.is_file() else ()
        return Scored(stage.tests[test], figures[-1], round(seconds, 1), notices)


def _written(folder: Path) -> dict[Path, int]:
    """The best checkpoint of each run, with its modification time in ns."""
    return {path: path.stat().st_mtime_ns for path in folder.glob(str(checkpoint_of(Path(), "*")))}


def _test_figures(log: Path) -> list[dict[str, float]]:
    """The values that each test of a run logged, by name without `test/`."""
    if not log.is_file():
        return []
    with log.open(encoding="utf-8", newline="") as file:
        lines = [
            {key[5:]: float(value) for key, value in line.items() if key.startswith("test/") and value}
            for line in csv.DictReader(file)
        ]
    return [line for line in lines if line]
