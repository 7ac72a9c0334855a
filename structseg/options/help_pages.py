"""Help pages of `fit`, `validate`, `test` and of the suite's classes, without loading torch."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from structseg.messages import UsageError, nearest
from structseg.options.class_index import class_modules
from structseg.options.option_names import given_options
from structseg.options.signatures import class_help, definition, descends
from structseg.options.subcommands import EXAMPLES, LIGHTNING, USAGE, options_of

# The base class and the package of the classes that an option takes, by the last part of its name.
_KINDS = {
    "model": ("TrainedModule", "structseg.lightning_modules."),
    "data": ("SegmentationDataModule", "structseg.datamodules."),
    "network": ("Module", "structseg.lightning_modules.networks."),
    "loss": ("Module", "structseg.losses."),
}


def help_page(subcommand: str, args: Sequence[str]) -> str | None:
    """The page for `-h`, `--model.help` or `--model.help CLASS`; None without such an argument."""
    if "-h" in args and subcommand in LIGHTNING:
        return one_page(subcommand)
    for name, value in given_options(args):
        option = name.removesuffix(".help")
        kind = option.lstrip("-").rpartition(".")[2]
        if option != name and kind in _KINDS:
            return _class_list(subcommand, option, kind) if value is None else _class_page(option, kind, value)
    return None


def _classes(kind: str) -> list[str]:
    base, room = _KINDS[kind]
    found = [name for name, modules in class_modules().items() if modules[0].startswith(room) and name[0] != "_"]
    return [name for name in found if descends(name, base) and not any(descends(other, name) for other in found)]


def _class_list(subcommand: str, option: str, kind: str) -> str:
    lines = [f"{option} takes one of these, or a class of your own by its import path:"]
    lines += [f"  {name:28}{_first_line(name)}" for name in _classes(kind)]
    return "\n".join([*lines, f"structseg {subcommand} {option}.help CLASS lists the options of one"])


def _class_page(option: str, kind: str, name: str) -> str | None:
    if definition(name) is None and "." not in name:
        raise UsageError(f"{option}: there is no class {name}{nearest(name, _classes(kind))}")
    lines = class_help(name, option)
    return "\n".join([f"{name}: {_first_line(name)}", *lines]) if lines else None


def _first_line(name: str) -> str:
    found = definition(name)
    return ((ast.get_docstring(found.node) if found else None) or "").partition("\n")[0]


def one_page(subcommand: str) -> str:
    """The short help of a subcommand: description, three examples, the usual options."""
    lines = [f"usage: {USAGE[subcommand]}", "", LIGHTNING[subcommand].line, "", "examples:"]
    lines += [f"  {example}" for example in EXAMPLES[subcommand]]
    lines += ["", "usual options:"]
    for option in options_of(subcommand):
        default = "" if option.default is None else f"; default: {option.default}"
        lines.append(f"  {f'{option.name} {option.value}':28}{option.line}{default}")
    more = f"structseg {subcommand} --help lists every option, --model.help CLASS those of a class"
    lines += ["", more]
    return "\n".join(lines)
