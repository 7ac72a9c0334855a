"""`structseg completion bash|zsh`: what makes a shell complete subcommands, their usual options and configurations."""

from __future__ import annotations

import argparse

import shtab

from structseg.command.config_files import config_names
from structseg.command.subcommands import LIGHTNING, SUBCOMMANDS, options_of
from structseg.messages import UsageError

SHELLS = ("bash", "zsh")
_WITH_CONFIG = ("pipeline", "check", "submit", "show")


def main(args: list[str]) -> None:
    """Prints the shell's script, for `source <(structseg completion bash)`.

    Raises:
        UsageError: no such shell.
    """
    if args in (["-h"], ["--help"]):
        print(
            "usage: structseg completion bash|zsh\n\nsource <(structseg completion bash), or put that line in ~/.bashrc"
        )
        return
    if len(args) != 1 or args[0] not in SHELLS:
        raise UsageError(f"completion: expected {' or '.join(SHELLS)}, got {' '.join(args) or 'nothing'}")
    print(shtab.complete(tree(), args[0]))


def tree() -> argparse.ArgumentParser:
    """The command line as plain argparse: it completes, and parses nothing."""
    parser = argparse.ArgumentParser(prog="structseg")
    parser.add_argument("--version", action="store_true")
    known = [*config_names(), *(name.partition("/")[2] for name in config_names())]
    subparsers = parser.add_subparsers()
    for name, subcommand in SUBCOMMANDS.items():
        sub = subparsers.add_parser(name, help=subcommand.line)
        if name == "completion":
            sub.add_argument("shell", choices=SHELLS)
        elif name in LIGHTNING:
            for option in options_of(name):
                added = sub.add_argument(option.name, help=option.line.replace("%", "%%"))
                if option.name == "--config":
                    added.choices = known
                elif option.value in ("FILE", "PATH"):
                    added.complete = shtab.FILE  # type: ignore[attr-defined]
                elif option.value == "FOLDER":
                    added.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        if name == "fit" or name in _WITH_CONFIG:
            sub.add_argument("configuration", choices=known)
        elif name in LIGHTNING or name == "rounds":
            sub.add_argument("paths", nargs="*").complete = shtab.FILE  # type: ignore[attr-defined]
    return parser
