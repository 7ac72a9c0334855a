"""`structseg check CONFIG`: reports every broken file of a data set, before one of them stops a training."""

from __future__ import annotations

from structseg.messages import UsageError
from structseg.options.arguments import check_data, parse_tool
from structseg.options.plain_parser import PlainParser
from structseg.provenance import available_cores


def make_parser() -> PlainParser:
    """The options of `structseg check`."""
    parser = PlainParser(
        "check",
        ("fasseg_v2 --data.root FASSEG", "consensus/lfw_parts --data.root LFW --workers 4"),
        usage="%(prog)s CONFIG [options] [--data.OPTION VALUE ...]",
        description="Reports every broken file of a data set at once; the exit code is 1 with any.",
    )
    parser.add_argument("config", metavar="CONFIG", help="an experiment, by path or name; its data part is used")
    parser.add_argument(
        "--workers", type=int, default=available_cores(), metavar="N", help="processes; 0 reads in this one"
    )
    return parser


def main(args: list[str]) -> None:
    """Checks the data of a configuration and prints their faults by kind.

    Raises:
        SystemExit: 1 with any fault, 2 where the command is wrong.
    """
    parser = make_parser()
    try:
        given, options = parse_tool(parser, args)
    except (OSError, ValueError) as error:  # exit code 1 is for faults of the data
        raise UsageError(str(error)) from None
    if given.workers < 0:
        parser.error(f"--workers is {given.workers}; give 0 or more processes")
    check_data(options)
    from structseg.audit.check import print_report  # takes seconds to load
    from structseg.command.configs import parse_data

    try:
        datamodule = parse_data(options, "check")
    except ValueError as error:
        raise UsageError(str(error)) from None
    print_report(datamodule, given.workers)
