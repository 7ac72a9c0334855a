"""Checks the arguments of `structseg fit`, `validate` and `test` before torch is loaded."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path

from structseg.messages import UsageError
from structseg.options.config_files import config_names, find_config, load_config
from structseg.options.option_names import CONFIG, check_names, chosen, given_options
from structseg.options.plain_parser import PlainParser
from structseg.options.signatures import parameters
from structseg.options.subcommands import EXAMPLES, ROOTS, check_subcommand

_KEYWORDS = ("best", "last", "hpc")  # values of --ckpt_path with a meaning for Lightning
_SECTIONS = {"trainer", "checkpoint", "pictures"}
_CHECKPOINTS = "give the path of a checkpoint, such as runs/EXPERIMENT/ID/checkpoints/best.ckpt"


def as_options(args: Sequence[str]) -> list[str]:
    """Arguments in the form that the parser takes: a subcommand and options, configurations by path, no `--`.

    Positional arguments follow the subcommand: configurations; except for `fit` a checkpoint first. A single number for
    a height and width becomes two. `predict` is a pipeline's stage here, which predicts a split of the data.

    Raises:
        UsageError: an unknown option, an option before `--config` that would be overridden, or no usable configuration
            or checkpoint.
        FileNotFoundError: no such checkpoint.
    """
    if not args:
        raise UsageError("a subcommand is missing; structseg --help lists them")
    subcommand, *words = args
    check_subcommand(subcommand)
    end = next((number for number, word in enumerate(words) if word.startswith("-")), len(words))
    positional, options = words[:end], words[end:]
    if "--" in options:  # separates a subcommand's own options from these
        options.remove("--")
    added = []
    checkpoint = dict(given_options(options)).get("--ckpt_path")
    if subcommand != "fit" and positional and not _is_config(positional[0]) and checkpoint is None:
        checkpoint = positional.pop(0)
        added += ["--ckpt_path", checkpoint]
    if checkpoint is not None and checkpoint not in _KEYWORDS and not Path(checkpoint).is_file():
        raise FileNotFoundError(f"no checkpoint at {checkpoint}; {_CHECKPOINTS}")
    configs = [word for config in positional for word in ("--config", _config_path(config))]
    words = [*configs, *_with_paths(options), *added]
    if _asks(words, "--help", ".help"):
        return [subcommand, *words]
    words = check_names(subcommand, words)
    sources = {*CONFIG, "--ckpt_path", "--model", "--model.class_path"} & dict(given_options(words)).keys()
    if not sources and not _asks(words, "--print_config"):
        needed = "configuration" if subcommand == "fit" else "checkpoint"
        example = EXAMPLES.get(subcommand, ("structseg predict --ckpt_path CHECKPOINT --data.predict_split train",))[0]
        raise UsageError(f"{subcommand} needs a {needed}, such as: {example}")
    return [subcommand, *words]


def check_data(args: Sequence[str]) -> None:
    """Checks that the folder of the data is given and exists, seconds before the DataModule would.

    Args:
        args: arguments as returned by `as_options`.

    Raises:
        UsageError: the configuration's data need `data.root`, which is missing.
        FileNotFoundError: no such folder, and nothing is to be downloaded into it.
    """
    data = {} if _asks(args, "--help", ".help", "--print_config") else chosen(args).get("data")
    if not isinstance(data, dict) or not isinstance(data.get("class_path"), str):
        return
    root, known = data.get("root"), parameters(data["class_path"]) or {}
    if root is None and "root" in known and known["root"].default is None:
        raise UsageError("data: missing root; give it on the command line or in --config: --data.root FOLDER")
    if isinstance(root, str) and str(data.get("download")).lower() != "true" and not Path(root).expanduser().is_dir():
        raise FileNotFoundError(f"no folder {root}; give the folder of the data as --data.root")


def _asks(args: Sequence[str], *ends: str) -> bool:
    """Whether any option ends like this, as those that only print help or settings do."""
    return any(word.partition("=")[0].endswith(ends) for word in args if word.startswith("-"))


def parse_tool(parser: PlainParser, args: Sequence[str]) -> tuple[Namespace, list[str]]:
    """The options of a tool that uses the data of a configuration, and `--config PATH --data...` for `parse_data`.

    Raises:
        UsageError: no such configuration, or a pipeline, or an option that does not exist.
    """
    own, further = split_further(args, parser._option_string_actions)
    given = parser.parse_args(own)
    return given, check_names("fit", ["--config", _config_path(given.config), *further])


def split_further(args: Sequence[str], own: Iterable[str]) -> tuple[list[str], list[str]]:
    """Splits arguments into those of a command and those that it passes on to `fit`, with or without `--` before them.

    Args:
        args: the arguments after the subcommand.
        own: the command's own options, such as `--seed`.

    Raises:
        UsageError: one of the command's own options after `--`.
    """
    at = args.index("--") if "--" in args else len(args)
    words, taken, further = iter(args[:at]), [], []
    own = set(own)
    for word in words:
        name = word.partition("=")[0]
        if name in own or not name.startswith("--") or name[2:].partition(".")[0].rstrip("+") not in ROOTS["fit"]:
            taken.append(word)
            continue
        further.append(word)
        if "=" not in word and name != "--print_config":
            further += [value for value in [next(words, None)] if value is not None]
    for word in args[at + 1 :]:
        name = word.partition("=")[0]
        if name in own and name[2:] not in ROOTS["fit"]:
            raise UsageError(f"{name} stands after --, where the options of structseg fit are; give it before --")
    return taken, [*further, *args[at + 1 :]]


def _is_config(word: str) -> bool:
    if word.endswith((".yaml", ".yml")) or Path(word).exists():
        return word.endswith((".yaml", ".yml"))
    return any(word in (name, name.partition("/")[2]) for name in config_names())


def _with_paths(options: Sequence[str]) -> list[str]:
    """The options with configurations given by name replaced by `--config PATH`."""
    resolved: list[str] = []
    words = iter(options)
    for word in words:
        option, equals, value = word.partition("=")
        if option not in CONFIG:
            resolved.append(word)
            continue
        before = [w for w in resolved if w.startswith("-") and w not in CONFIG]
        if before:
            raise UsageError(f"{before[0]} stands before --config, which would override it; give --config first")
        value = value if equals else next(words, "")
        if not value:
            raise UsageError(f"{option} has no value; give a configuration, by path or name")
        resolved += ["--config", _config_path(value)]
    return resolved


def _config_path(given: str) -> str:
    try:
        path = find_config(given)
        tree = load_config(path)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    if not isinstance(tree, dict | None):
        raise UsageError(f"{path} holds {str(tree)[:40]!r}, not keys and values such as `model: ...`")
    if "stages" in (tree or {}):
        raise UsageError(f"{path} is a pipeline; structseg pipeline {given} runs it")
    for key in _SECTIONS & (tree or {}).keys():
        if not isinstance((tree or {})[key], dict | None):  # the parser would ignore it
            raise UsageError(f"{path}: {key} holds {str((tree or {})[key])[:40]!r}, not keys and values")
    return str(path)
