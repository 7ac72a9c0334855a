"""The reports of a pipeline's rounds, and the disk space that rounds need."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from structseg.files import write_result
from structseg.metric_names import nested
from structseg.pipelines.record import Record, read_record
from structseg.pipelines.stages import Pipeline

REPORT = "report.json"
_MB = 10**6


def write_report(pipeline: Pipeline, folder: Path, stage: str, records: Mapping[str, Record]) -> None:
    """Writes `report.json`, the `round_report` of a stage's round, once all stages of the round are finished."""
    for name, members in pipeline.rounds.items():
        if stage in members and set(members) <= set(records):
            write_result(folder / name / REPORT, round_report(name, {stage: records[stage] for stage in members}))


def remove_report(pipeline: Pipeline, folder: Path, stage: str) -> None:
    """Removes the report of a round before one of its stages runs again, as its scores become invalid."""
    for name, members in pipeline.rounds.items():
        if stage in members:
            (folder / name / REPORT).unlink(missing_ok=True)


def round_report(name: str, records: Mapping[str, Record]) -> dict[str, Any]:
    """Scores and notices of a round by stage, and by test where a stage has several."""
    stages = {}
    for stage, record in records.items():
        tests = {test: nested(scored.metrics) for test, scored in record.tests.items()}
        stages[stage.removeprefix(f"{name}/")] = {
            "seconds": record.seconds,
            "notices": _notices(record),
            "scores": tests.get("", {}) if set(tests) <= {""} else tests,
        }
    notices = list(dict.fromkeys(notice for record in records.values() for notice in _notices(record)))
    commits = sorted({record.commit[:8] + ("+changes" if record.dirty else "") for record in records.values()})
    if len(commits) > 1:
        notices.append(f"the stages were run at different commits of the suite: {', '.join(commits)}")
    return {"round": name, "commits": commits, "notices": notices, "stages": stages}


def _notices(record: Record) -> list[str]:
    """The notices of a stage and its tests."""
    tested = (notice for scored in record.tests.values() for notice in scored.notices)
    return list(dict.fromkeys([*record.notices, *tested]))


def print_disk_need(pipeline: Pipeline, folder: Path, stages: Collection[str]) -> None:
    """Prints the space that the unfinished rounds need: for each that of a finished one, else `round_megabytes`.

    Args:
        pipeline: the stages.
        folder: of the pipeline's run.
        stages: names of the stages to run.

    Raises:
        OSError: there is less free space.
    """
    done = [name for name, members in pipeline.rounds.items() if all(read_record(folder / one) for one in members)]
    each = max((size(folder / name) / _MB for name in done), default=pipeline.round_megabytes)
    pending = [name for name, members in pipeline.rounds.items() if name not in done and set(members) & set(stages)]
    needed = sum(max(each - size(folder / name) / _MB, 0) for name in pending)
    free = shutil.disk_usage(folder).free / _MB
    if pending and not each:
        print(f"disk: round_megabytes is not set, the need is unknown; {free:.0f} MB free at {folder}", flush=True)
    if not needed:
        return
    print(f"disk: about {needed:.0f} MB for {len(pending)} rounds; {free:.0f} MB are free at {folder}", flush=True)
    if needed > free:
        raise OSError(f"{needed:.0f} MB are needed at {folder}, {free:.0f} MB are free; set --runs_dir")


def size(folder: Path) -> int:
    """Size in bytes of all files below a folder."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
