"""`structseg pipeline`: runs fits and predictions that depend on each other, and skips finished ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from structseg.command.processes import FolderInUseError, command_line, is_locked
from structseg.messages import nearest
from structseg.options.arguments import check_data, split_further
from structseg.options.config_files import find_config
from structseg.options.option_names import check_names
from structseg.options.plain_parser import PlainParser
from structseg.pipelines.file import load_pipeline
from structseg.pipelines.record import Record
from structseg.pipelines.stages import pipeline_folder
from structseg.tables import TextTable

if TYPE_CHECKING:
    from structseg.pipelines.session import Session


def comparison(session: Session, records: Mapping[str, Record]) -> TextTable:
    """The table of the stages' test scores, with notes on metrics that no test has."""
    wanted, lines = session.pipeline.table, []
    known: set[str] = set()
    for name, record in records.items():
        stage = session.pipeline.stages[name]
        tests = {test: record.tests[test] for test in stage.tests or record.tests if test in record.tests}
        for number, (test, scored) in enumerate(tests.items()):
            known |= set(scored.metrics)
            values = [scored.metrics.get(metric, math.nan) for metric in wanted]
            minutes = f"{record.seconds / 60:.1f}" if number == 0 else ""
            figures = ("-" if math.isnan(value) else f"{value:.4f}" for value in values)
            lines.append((f"{name} {test}".rstrip(), *figures, minutes))
    notes = [f"no test has {metric}{nearest(metric, known)}" for metric in wanted if metric not in known]
    title = f"{session.pipeline.path.stem}, seed {session.seed}"
    return TextTable(("stage", *wanted, "min"), lines, title=title, notes=notes)


def make_parser() -> PlainParser:
    """The options of `structseg pipeline`."""
    parser = PlainParser(
        "pipeline",
        ("stn_icnn/synthetic", "conta/voc_photos --arm sum", "stn_icnn/helen --data.root HELEN --dry-run"),
        usage="%(prog)s PIPELINE [options] [further options of every stage's fit and test]",
        description="Runs fits and predictions that depend on each other. A finished stage is skipped unless its "
        "configuration or inputs have changed; a prediction of another configuration is replaced only with --anew. "
        "Remove a stage's folder to run it again.",
    )
    parser.add_argument("file", metavar="PIPELINE", help="YAML that names the stages, by path or name")
    parser.add_argument(
        "--dry-run", action="store_true", help="print which stages would run and why, with their commands"
    )
    parser.add_argument("--anew", action="store_true", help="replace finished predictions of another configuration")
    parser.add_argument("--until", metavar="STAGE", help="only this stage and those that it depends on")
    parser.add_argument("--arm", metavar="ARM", help="only this arm of the rounds; `all`: every one")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of every stage; default: 0")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"), metavar="FOLDER", help="folder of all runs")
    return parser


def main(args: list[str]) -> None:
    """Entry point of `structseg pipeline`."""
    parser = make_parser()
    own, further = split_further(args, parser._option_string_actions)
    given = parser.parse_args(own)
    if given.seed < 0:
        parser.error(f"--seed is {given.seed}; expected a whole number from 0")
    pipeline = load_pipeline(find_config(given.file)).of_arm(given.arm, given.until)
    folder = pipeline_folder(pipeline.path, given.seed, given.runs_dir)
    if not given.dry_run and is_locked(folder):
        raise FolderInUseError(
            f"another process is at work in {folder}; wait until it ends, or give another --runs_dir or --seed"
        )
    for stage in pipeline.needed(given.until):
        base = [word for config in stage.configs for word in ("--config", str(config))]
        try:
            check_data(check_names("predict" if stage.predicts else "fit", [*base, *stage.args, *further]))
        except (ValueError, OSError) as error:
            raise type(error)(f"{given.file}: stage {stage.name}: {error}") from None
    print(pipeline.size(given.until), flush=True)
    from structseg.pipelines.session import Session  # takes seconds to load

    session = Session(pipeline, given.seed, given.runs_dir, tuple(further), given.until)
    if given.dry_run:
        configs = session.configs()
        for stage, status, commands in session.survey(configs):
            print("\n    ".join([f"{stage.name}: {status}", *map(command_line, commands)]))
        if not given.anew:
            try:
                session.refuse_overwriting(configs)
            except ValueError as error:
                print(f"without --dry-run: {error}")
        return
    print(comparison(session, session.run(anew=given.anew)).text())
