"""`structseg results`: prints claims and measured rows, compares rows, measures them."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from structseg.files import ROOT, write_whole
from structseg.messages import fail
from structseg.options.plain_parser import PlainParser
from structseg.pipelines.record import checkpoint_of
from structseg.pipelines.stages import RUN_ID, pipeline_folder
from structseg.provenance import Device
from structseg.results.claims import CLAIMS, judge, load_claims
from structseg.results.files import Run, read_runs
from structseg.results.manifest import (
    MANIFEST,
    MINUTES_KEYS,
    MISSING_ROWS,
    SYNTHETIC,
    Recipes,
    Row,
    args_to_fit,
    args_to_score,
    find_data_root,
    find_row,
    load_manifest,
)
from structseg.results.run_rows import Job, Place, run_jobs
from structseg.results.table import claims_table, details, method_table, page, readme_lines, rows_of_method, stale_seeds

# Options that have an effect only with one of these.
_ONLY_WITH: dict[str, tuple[str, ...]] = {
    "again": ("run",),
    "across": ("compare",),
    "runs_dir": ("run", "missing"),
    "device": ("run", "missing"),
    "seeds": ("run", "missing", "compare"),
    "data_root": ("run", "missing"),
}
_MODES = ("details", "missing", "run", "compare", "write")
_MARKS = ("<!-- structseg results --write -->", "<!-- end -->")  # around the generated part of a page


def make_parser() -> PlainParser:
    """The options of `structseg results`."""
    parser = PlainParser(
        "results",
        description="Prints the claims about each method with their verdicts, or the rows of one method; compares rows "
        "and measures them.",
    )
    parser.add_argument("method", nargs="?", metavar="METHOD", help="claims and rows of this method: conta")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--details", metavar="ROW", help="all kept metrics of a row, by seed")
    what.add_argument(
        "--missing", action="store_true", help="rows not yet measured, with the commands that measure them"
    )
    what.add_argument("--run", nargs="+", metavar="ROW", help=f"measure rows, or `{MISSING_ROWS}` for all of them")
    what.add_argument("--compare", nargs=2, metavar="ROW", help="the second row minus the first, by seed")
    what.add_argument("--write", action="store_true", help="write the tables and plots of README and docs/results.md")
    parser.add_argument("--across", action="store_true", help="compare seeds of different processors too")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="only these seeds")
    parser.add_argument("--again", action="store_true", help="measure rows again")
    parser.add_argument("--device", choices=tuple(MINUTES_KEYS), help="device to train on; default: cpu")
    parser.add_argument("--data_root", metavar="FOLDER", help="holds the data folders; default: STRUCTSEG_DATA")
    parser.add_argument("--runs_dir", type=Path, metavar="FOLDER", help="folder of all runs; default: runs")
    parser.add_argument("--manifest", type=Path, default=MANIFEST, metavar="FILE", help="file that lists the rows")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="folder of runs.csv; default: the manifest's")
    return parser


def _parsed(args: list[str]) -> argparse.Namespace:
    parser = make_parser()
    given = parser.parse_args(args)
    for option, modes in _ONLY_WITH.items():
        if getattr(given, option) not in (None, False) and not any(getattr(given, mode) for mode in modes):
            parser.error(f"--{option} has no effect without {' or '.join(f'--{mode}' for mode in modes)}")
    mode = next((mode for mode in _MODES if getattr(given, mode)), None)
    if given.method and mode:
        parser.error(f"METHOD ({given.method}) is not allowed with --{mode}")
    return given


def main(args: list[str]) -> None:
    """Entry point of `structseg results`; exit code 1 where a row failed."""
    given = _parsed(args)
    rows = load_manifest(given.manifest, stages=bool(given.run or given.missing))
    folder = given.results or given.manifest.parent
    runs = read_runs(folder)
    data_root = find_data_root(given.data_root)
    device: Device = given.device or "cpu"
    runs_dir = given.runs_dir or Path("runs")
    if given.details:
        print(details(find_row(rows, given.details), runs).text())
    elif given.missing:
        _print_missing(choose_jobs(rows, runs, [MISSING_ROWS], given.seeds), device, data_root, runs_dir)
    elif given.run:
        jobs = choose_jobs(rows, runs, given.run, given.seeds, again=given.again)
        if not jobs:
            print("every row is measured; --again measures them again")
        failed = run_jobs(jobs, Place(device, data_root, runs_dir, given.manifest, folder))
        if failed:
            fail(f"results: failed: {', '.join(map(str, failed))}")
    elif given.compare:
        from structseg.results.compare import compare_rows  # loads numpy

        first, second = (find_row(rows, name) for name in given.compare)
        print("\n\n".join(t.text() for t in compare_rows(first, second, runs, folder, given.seeds, given.across)))
    else:
        found = judge(load_claims(given.manifest.parent / CLAIMS, rows), rows, runs)
        if given.write:
            _write(*page(rows, runs, found), readme_lines(found))
        elif given.method:
            own = rows_of_method(rows, given.method)
            print(method_table(own, runs, [item for item in found if item.claim.row in own]))
        else:
            print(claims_table(found))


def _write(tables: str, pictures: Mapping[str, str], first: str) -> None:
    for name, text in (("docs/results.md", tables), ("README.md", first)):
        path = ROOT / name
        write_whole(path, with_block(path.read_text(encoding="utf-8"), text).encode())
        print(name)
    for method, picture in pictures.items():
        write_whole(ROOT / "docs" / "results" / f"{method}.svg", picture.encode())


def with_block(page: str, text: str) -> str:
    """The page with the text between its two marks replaced.

    Raises:
        ValueError: the page has no such marks.
    """
    head, begins, rest = page.partition(_MARKS[0])
    _, ends, tail = rest.partition(_MARKS[1])
    if not (begins and ends):
        raise ValueError(
            f"the page has no {_MARKS[0]} with {_MARKS[1]} after it; put them around the place of the tables"
        )
    return f"{head}{begins}\n{text}\n{ends}{tail}"


def choose_jobs(
    rows: Mapping[str, Row],
    runs: Sequence[Run],
    names: Sequence[str],
    seeds: Sequence[int] | None,
    again: bool = False,
) -> list[Job]:
    """The seeds to measure, in the manifest's order.

    Args:
        rows: of the manifest.
        runs: the measured ones; a run whose settings differ from those of its row does not count.
        names: rows, or `missing` for all.
        seeds: only these; None: all of each row.
        again: whether to include measured seeds.

    Raises:
        ValueError: no such row, or a seed that none of the rows has.
    """
    named = rows if MISSING_ROWS in names else {name: find_row(rows, name) for name in names}
    chosen = [Job(row, seed) for name, row in rows.items() if name in named for seed in row.seeds]
    for seed in seeds or ():
        if seed not in {job.seed for job in chosen}:
            raise ValueError(f"none of the rows {', '.join(named)} has seed {seed}; choose one of the manifest's")
    recipes = Recipes()
    measured = {(run.row, run.seed) for run in runs}
    measured -= {(name, seed) for name, row in named.items() for seed in stale_seeds(row, runs, recipes)}
    return [
        job
        for job in chosen
        if (seeds is None or job.seed in seeds) and (again or (job.row.name, job.seed) not in measured)
    ]


def _print_missing(jobs: Sequence[Job], device: Device, data_root: Path | None, runs_dir: Path) -> None:
    for job in jobs:
        row = job.row
        minutes = row.minutes.get(MINUTES_KEYS[device])
        print(f"{job}: {'not for this device' if minutes is None else f'about {minutes:g} min'} ({device})")
        root = "$STRUCTSEG_DATA" if data_root is None else os.path.relpath(data_root)
        data = None if row.data == SYNTHETIC else f"{root}/{row.data}"
        fit = args_to_fit(row, job.seed, device, data, os.path.relpath(row.path), str(runs_dir))
        folder = runs_dir / row.name
        if row.stage is not None:
            folder = pipeline_folder(row.path, job.seed, runs_dir) / row.stage
        checkpoint = str(checkpoint_of(folder, RUN_ID))
        for command in (fit, *args_to_score(row, checkpoint, job.seed, device).values()):
            print("    structseg " + " ".join(arg if arg.startswith("$") else shlex.quote(arg) for arg in command))
    if jobs:
        print("RUN_ID is the folder that fit prints. `structseg results --run ROW` does all this and keeps the result.")
    else:
        print("every row is measured")
