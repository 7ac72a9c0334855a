"""`structseg init FOLDER`: writes the `dataset.yaml` of a folder of images and masks, and says what it assumed."""

from __future__ import annotations

from pathlib import Path

from structseg.files import write_whole
from structseg.messages import counted
from structseg.options.plain_parser import PlainParser
from structseg.provenance import available_cores

FILE = "dataset.yaml"
_SHOWN = 20  # faults that are printed


def make_parser() -> PlainParser:
    """The options of `structseg init`."""
    parser = PlainParser(
        "init",
        ("FOLDER",),
        description=f"Writes FOLDER/{FILE}: where images and masks lie, the classes, a split, sizes. It asks nothing "
        "and says what it assumed. Name the classes in it, then: structseg fit own/fasseg_unet --data.root FOLDER",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds images and masks, or images and tags")
    parser.add_argument("--overwrite", action="store_true", help=f"replace an existing {FILE}")
    parser.add_argument(
        "--workers",
        type=int,
        default=available_cores(),
        metavar="N",
        help="processes that read masks; default: all cores",
    )
    return parser


def main(args: list[str]) -> None:
    """Entry point of `structseg init`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: the folder holds nothing to train on.
        SystemExit: 1 with faults, which are listed; 2 where the command is wrong.
    """
    parser = make_parser()
    given = parser.parse_args(args)
    if given.workers < 1:
        parser.error(f"--workers is {given.workers}; 1 or more processes read")
    home = given.folder.expanduser()
    if not home.is_dir():
        raise FileNotFoundError(f"no folder {home}; give the folder that holds images and masks")
    target = home / FILE
    if target.exists() and not given.overwrite:
        raise ValueError(f"{target} is there already; --overwrite replaces it")
    from structseg.own_data.propose import as_yaml, propose  # loads numpy

    tree, report, faults = propose(home, given.workers)
    write_whole(target, as_yaml(tree).encode())
    print("\n".join(f"  {line}" for line in report))
    if faults:
        print(f"{counted(len(faults), 'fault')}, which fit refuses:")
        print("\n".join([f"  {fault}" for fault in faults[:_SHOWN]] + ["  ..."] * (len(faults) > _SHOWN)))
    if faults:
        print(f"wrote {target}; next: mend the faults, then structseg init {given.folder} --overwrite")
        raise SystemExit(1)
    method = "structseg fit own/fasseg_unet" if "masks" in str(tree) else "structseg pipeline own/conta"
    print(f"wrote {target}; next: {method} --data.root {given.folder}")
