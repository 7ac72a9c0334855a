"""`structseg configs`: lists the configurations that are found by name."""

from __future__ import annotations

import re
from pathlib import Path

from structseg.messages import UsageError, nearest
from structseg.options.config_files import config_names, kind_of
from structseg.options.plain_parser import PlainParser

_TITLES = {
    "fit": "fits: structseg fit NAME",
    "pipeline": "pipelines: structseg pipeline NAME",
    "part": "parts of these, for `base:` and `config:`",
}


def make_parser() -> PlainParser:
    """The options of `structseg configs`."""
    parser = PlainParser(
        "configs",
        ("", "fasseg"),
        description="Lists the configurations that are found by name, each with a description.",
    )
    parser.add_argument("word", nargs="?", default="", metavar="WORD", help="only names that contain it")
    return parser


def main(args: list[str]) -> None:
    """Prints the name and description of each configuration: fits, pipelines, and parts of these.

    Raises:
        UsageError: no name contains the word.
    """
    word, known = make_parser().parse_args(args).word, config_names()
    found = [name for name in known if word in name]
    if not found:
        hint = nearest(word, {*known, *(part for name in known for part in name.split("/"))})
        raise UsageError(f"configs: no name contains {word}{hint}; structseg configs lists all")
    kinds, width = {name: kind_of(known[name]) for name in found}, max(map(len, found))
    for kind, title in _TITLES.items():
        lines = [f"  {name:{width}}  {sentence_of(known[name])}" for name in found if kinds[name] == kind]
        if lines:
            print("\n".join([title, *lines]))


def sentence_of(path: Path) -> str:
    """The first sentence of the comment at the top of a configuration."""
    comment = re.match(r"(#.*\n)*", path.read_text(encoding="utf-8") + "\n")
    text = " ".join(line.lstrip("# ").strip() for line in (comment[0] if comment else "").splitlines())
    return re.split(r"(?<=[.!?]) (?=[A-Z-]|structseg )", text)[0]
