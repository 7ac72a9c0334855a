"""The words after `structseg fit`, `validate`, `test` and `predict`: what can be checked before torch is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from structseg.command.subcommands import ROOTS, check_options, check_subcommand
from structseg.messages import UsageError, nearest

_CONFIG = ("--config", "-c")
_OTHER_DATA = (
    "--data",
    "--data.class_path",
    "--print_config",
    "--help",
    "-h",
)  # what leaves a config's data class aside
_KEYWORDS = ("best", "last", "hpc")  # that Lightning takes for a checkpoint
_SECTIONS = {"trainer", "checkpoint", "pictures"}


def as_options(args: Sequence[str]) -> list[str]:
    """A subcommand and options alone, for the parser: no positional arguments, configurations by their paths, no `--`.

    Positional arguments follow the subcommand: configurations; for all but `fit` a checkpoint first; for `predict`
    then images, folders, a video or a camera.

    Raises:
        UsageError: an option that does not exist, one that would be lost before `--config`, something given twice, or
            a configuration that cannot be used, which the parser would take apart first.
        FileNotFoundError: no such checkpoint, image or folder.
        ValueError: nothing to predict.
    """
    if not args:
        raise UsageError("a subcommand is missing; structseg --help lists them")
    subcommand, *words = args
    check_subcommand(subcommand)
    end = next((number for number, word in enumerate(words) if word.startswith("-")), len(words))
    positional, options = words[:end], words[end:]
    if "--" in options:  # as where a subcommand's own options stand before it
        options.remove("--")
    check_options(subcommand, options)
    added = []
    checkpoint = value_of("--ckpt_path", options)
    if subcommand != "fit" and positional and not _is_config(positional[0]) and checkpoint is None:
        checkpoint = positional.pop(0)
        added += ["--ckpt_path", checkpoint]
    if checkpoint is not None and checkpoint not in _KEYWORDS and not Path(checkpoint).is_file():
        raise FileNotFoundError(f"no checkpoint at {checkpoint}; check --ckpt_path")
    configs = [word for word in positional if subcommand != "predict" or _is_config(word)]
    images = [word for word in positional if word not in configs]
    if images:
        _check_images(images, options)
        added += ["--data.predict_dir", json.dumps(images)]
    elif subcommand == "predict" and checkpoint is not None and not _names_data(options):
        raise ValueError("predict needs images: give images, folders, a video or camera:0 after the checkpoint")
    first = [word for config in configs for word in ("--config", _config_path(config))]
    return [subcommand, *first, *_with_paths(options), *added]


def check_data(args: Sequence[str]) -> None:
    """Of data that lie in a folder: that it is given, and is there; the DataModule would say so seconds later.

    Args:
        args: as `as_options` gives them.

    Raises:
        UsageError: the configuration's data need `data.root`, which is missing.
        FileNotFoundError: no such folder, and nothing is to be downloaded into it.
    """
    from structseg.command.class_index import required_arguments
    from structseg.command.config_files import load_config, merge

    whole: Any = {}
    for option, value in pairwise(args):
        if option in _CONFIG:
            whole = merge(whole, load_config(Path(value)) or {})
    data = whole.get("data")
    settings = (data.get("init_args") or {}) if isinstance(data, dict) else None
    if not isinstance(settings, dict) or any(word.partition("=")[0] in _OTHER_DATA for word in args):
        return
    given = value_of("--data.root", args) or value_of("--data.init_args.root", args) or settings.get("root")
    names = [word[len("--data.") :].partition("=")[0] for word in args if word.startswith("--data.")]
    misspelt = any(nearest(name, ["root"]) for name in names)  # the parser says which
    if given is None and not misspelt and "root" in required_arguments(str(data.get("class_path"))):
        raise UsageError("data: missing root; give it on the command line or in --config: --data.root FOLDER")
    download = value_of("--data.download", args) or settings.get("download")
    if isinstance(given, str) and str(download).lower() != "true" and not Path(given).expanduser().is_dir():
        raise FileNotFoundError(f"no folder {given}; give the folder of the data as --data.root")


def split_further(args: Sequence[str], own: Iterable[str]) -> tuple[list[str], list[str]]:
    """A command's own words, and the options that it hands on to `fit`, whether `--` stands before them or not.

    Args:
        args: the words after the subcommand.
        own: the command's own options, such as `--seed`.
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
    return taken, [*further, *args[at + 1 :]]


def value_of(option: str, args: Sequence[str]) -> str | None:
    """The value of an option among words, of several the last, as the parser takes it; None without any."""
    for number, word in reversed(list(enumerate(args))):
        name, equals, value = word.partition("=")
        if name == option:
            return value if equals else next(iter(args[number + 1 : number + 2]), None)
    return None


def _is_config(word: str) -> bool:
    if word.endswith((".yaml", ".yml")) or Path(word).exists():
        return word.endswith((".yaml", ".yml"))
    from structseg.command.config_files import config_names

    return any(word in (name, name.partition("/")[2]) for name in config_names())


def _names_data(options: Sequence[str]) -> bool:
    return any(word.startswith(("--data", *_CONFIG, "--print_config", "--help")) for word in options)


def _check_images(images: Sequence[str], options: Sequence[str]) -> None:
    if value_of("--data.predict_dir", options) is not None:
        raise UsageError(f"images are given twice: {images[0]}, and by --data.predict_dir")
    for image in images:
        if not image.startswith("camera:") and not Path(image).exists():
            raise FileNotFoundError(f"no file or folder {image}; give images, folders, a video or camera:0")


def _with_paths(options: Sequence[str]) -> list[str]:
    """The options with the paths of configurations that are given by name."""
    found = list(options)
    for position, word in enumerate(options):
        option, equals, value = word.partition("=")
        if option not in _CONFIG:
            continue
        before = [w for w in options[:position] if w.startswith("-") and w.partition("=")[0] not in _CONFIG]
        if before:
            raise UsageError(f"{before[0]} stands before --config, which would override it; give --config first")
        if equals:
            found[position] = f"{option}={_config_path(value)}"
        elif position + 1 < len(found):
            found[position + 1] = _config_path(found[position + 1])
    return found


def _config_path(given: str) -> str:
    from structseg.command.config_files import find_config, load_config

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
        if not isinstance((tree or {})[key], dict | None):  # the parser would pass over it
            raise UsageError(f"{path}: {key} holds {str((tree or {})[key])[:40]!r}, not keys and values")
    return str(path)
