"""`structseg completion bash|zsh`: a script that completes subcommands, options, values, configurations and rows."""

from __future__ import annotations

import argparse
from importlib import import_module

import shtab

from structseg.files import experiments_folder
from structseg.options.config_files import config_names, kind_of, load_config
from structseg.options.plain_parser import PlainParser
from structseg.options.subcommands import LIGHTNING, SUBCOMMANDS, options_of
from structseg.yaml_files import load_yaml

SHELLS = ("bash", "zsh")
_VALUES = {
    "--trainer.accelerator": ("cpu", "gpu", "auto"),
    "--trainer.precision": ("32", "bf16-mixed", "16-mixed"),
    "--resume": ("auto", "never"),
    "--memory": ("keep", "return"),
}


def make_parser() -> PlainParser:
    """The options of `structseg completion`."""
    parser = PlainParser(
        "completion",
        ("bash",),
        description="Prints a completion script: source <(structseg completion bash), in the shell or in ~/.bashrc.",
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=" or ".join(SHELLS))
    return parser


def main(args: list[str]) -> None:
    """Prints the shell's script."""
    print(shtab.complete(tree(), make_parser().parse_args(args).shell))


def tree() -> argparse.ArgumentParser:
    """The command line as a plain argparse parser, which serves for completion only."""
    parser = argparse.ArgumentParser(prog="structseg")
    parser.add_argument("--version", action="store_true")
    kinds = {name: kind_of(path) for name, path in config_names().items()}
    pipelines = [load_config(path) for name, path in config_names().items() if kinds[name] == "pipeline"]
    rows, _ = load_yaml(experiments_folder() / "results" / "manifest.yaml")
    sources = {str(row.get("config") or row.get("pipeline")) for row in rows.values()}
    choices = {
        "CONFIG": _short([name for name, kind in kinds.items() if kind != "pipeline"]),
        "PIPELINE": _short([name for name, kind in kinds.items() if kind == "pipeline"]),
        "ARM": sorted({"all", *(arm for tree in pipelines for arm in tree.get("arms") or ())}),
        "ROW": [*rows],
        "METHOD": sorted({source.split("/")[-2] for source in sources}),
        "SHELL": [*SHELLS],
    }
    subparsers = parser.add_subparsers()
    for name, subcommand in SUBCOMMANDS.items():
        if name in LIGHTNING:
            sub = subparsers.add_parser(name, help=subcommand.line)
            for option in options_of(name):
                values = _VALUES.get(option.name)
                sub.add_argument(option.name, help=option.line.replace("%", "%%"), metavar=option.value, choices=values)
            sub.add_argument("paths", nargs="*", metavar="CONFIG" if name == "fit" else "FILE")
        else:
            parent = import_module(subcommand.module).make_parser()
            sub = subparsers.add_parser(name, help=subcommand.line, parents=[parent], add_help=False)
        for action in sub._actions:
            if action.metavar in choices:
                action.choices = choices[str(action.metavar)]
            elif action.metavar in ("FILE", "PATH", "FOLDER", "RUN_FOLDER", "PICTURE", "PNG"):
                place = shtab.DIRECTORY if "FOLDER" in action.metavar else shtab.FILE
                action.complete = place  # type: ignore[attr-defined]
    return parser


def _short(names: list[str]) -> list[str]:
    return [*names, *(name.partition("/")[2] for name in names)]
