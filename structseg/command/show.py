"""`structseg show CONFIG`: draws an augmented batch with its labels, as the network will see it."""

from __future__ import annotations

from pathlib import Path

from structseg.options.arguments import check_data, parse_tool
from structseg.options.plain_parser import PlainParser


def make_parser() -> PlainParser:
    """The options of `structseg show`."""
    parser = PlainParser(
        "show",
        ("fasseg_v2 --data.root FASSEG", "fasseg_unet/synthetic --data.augmentation.rotate 45 --out rotated.png"),
        usage="%(prog)s CONFIG [options] [--data.OPTION VALUE ...]",
        description="Draws an augmented batch with its labels to a PNG.",
    )
    parser.add_argument("config", metavar="CONFIG", help="an experiment, by path or name; its data part is used")
    parser.add_argument("--out", type=Path, default=Path("show.png"), metavar="FILE", help="default: show.png")
    parser.add_argument("--split", default="train", choices=["train", "val", "test"], help="default: train")
    parser.add_argument("--count", type=int, default=16, metavar="N", help="images; default: 16")
    parser.add_argument("--plain", action="store_true", help="without augmentation")
    parser.add_argument(
        "--draw", type=int, default=0, metavar="N", help="number of the random augmentation; default: 0"
    )
    return parser


def main(args: list[str]) -> None:
    """Draws an augmented training batch with its labels to a PNG and prints its path.

    Raises:
        FileNotFoundError: no such configuration, or no data.
        ValueError: the configuration has no data.
    """
    given, options = parse_tool(make_parser(), args)
    if given.count < 1:
        raise ValueError(f"--count is {given.count}; at least 1 image is drawn")
    check_data(options)
    from structseg.command.batch_sheet import save_batch  # takes seconds to load
    from structseg.command.configs import parse_data

    draw = None if given.plain else given.draw
    count = save_batch(parse_data(options, "show"), given.out, given.split, given.count, draw)
    print(f"{count} images with their labels: {given.out}")
