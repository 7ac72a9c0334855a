"""What a pipeline says of its rounds: a report of each, and the room that they take on the disk; `structseg rounds`."""

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


def leave_report(pipeline: Pipeline, folder: Path, stage: str, records: Mapping[str, Record]) -> None:
    """Writes `report.json` into the folder of the round of a stage, if all its stages are done: `round_report`."""
    for name, members in pipeline.rounds.items():
        if stage in members and set(members) <= set(records):
            write_result(folder / name / REPORT, round_report(name, {stage: records[stage] for stage in members}))


def drop_report(pipeline: Pipeline, folder: Path, stage: str) -> None:
    """Removes the report of a round whose stage is about to run anew: it speaks of what will be gone."""
    for name, members in pipeline.rounds.items():
        if stage in members:
            (folder / name / REPORT).unlink(missing_ok=True)


def round_report(name: str, records: Mapping[str, Record]) -> dict[str, Any]:
    """What the stages of a round measured and noticed, by the stage's name; of several tests, each by its own."""
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
    """Of the stage and its tests."""
    tested = (notice for scored in record.tests.values() for notice in scored.notices)
    return list(dict.fromkeys([*record.notices, *tested]))


def say_disk(pipeline: Pipeline, folder: Path, stages: Collection[str]) -> None:
    """Says how much room is still to be taken: as finished rounds did, else as the file says, less what is there.

    Args:
        pipeline: the stages.
        folder: of the run.
        stages: names of those that are asked for.

    Raises:
        OSError: there is less.
    """
    done = [name for name, members in pipeline.rounds.items() if all(read_record(folder / one) for one in members)]
    each = max((size(folder / name) / _MB for name in done), default=pipeline.round_megabytes)
    coming = [name for name, members in pipeline.rounds.items() if name not in done and set(members) & set(stages)]
    needed = sum(max(each - size(folder / name) / _MB, 0) for name in coming)
    free = shutil.disk_usage(folder).free / _MB
    if coming and not each:
        print(f"disk: round_megabytes is not set, the need is unknown; {free:.0f} MB free at {folder}", flush=True)
    if not needed:
        return
    print(f"disk: about {needed:.0f} MB for {len(coming)} rounds; {free:.0f} MB are free at {folder}", flush=True)
    if needed > free:
        raise OSError(f"{needed:.0f} MB are needed at {folder}, {free:.0f} MB are free; set --runs_dir")


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
