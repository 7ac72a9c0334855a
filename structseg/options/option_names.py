"""Checks option names against the classes that a command names, without importing them; finds the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from structseg.messages import UsageError
from structseg.options.config_files import load_config, merge
from structseg.options.signatures import Parameter, definition, parameters
from structseg.options.subcommands import OTHER_OPTIONS, ROOTS, options_of

CONFIG = ("--config", "-c")
_SECTIONS = {"trainer": "pytorch_lightning.Trainer", "checkpoint": "BestAndLast", "pictures": "Pictures"}
_OF_THE_PARSER = ("class_path", "init_args", "dict_kwargs", "help")
_PAIR = ("tuple[int, int]", "tuple[int, int] | None")


def given_options(args: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Each option with its value, from `--a b` or `--a=b`; None where it has no value."""
    for word, after in zip(args, [*args[1:], "--"], strict=False):
        if word.startswith("-") and not word.lstrip("-")[:1].isdigit():
            name, equals, value = word.partition("=")
            yield name, value if equals else None if after.startswith("--") else after


def chosen(args: Sequence[str]) -> dict[str, Any]:
    """The merged settings of the configurations and options of a command, without the level `init_args`."""
    whole: Any = {}
    for name, value in given_options(args):
        if name in CONFIG and value:
            whole = merge(whole, load_config(Path(value)) or {})
    options = [name for name, _ in given_options(args)]
    for section in ("model", "data"):
        if section in whole and not {f"--{section}", f"--{section}.class_path", "--ckpt_path"} & set(options):
            _check_class(section, whole[section])
    whole = _plain(whole)
    for name, value in given_options(args):
        *above, last = [part for part in name.lstrip("-").split(".") if part != "init_args"]
        branch = whole
        for part in above:
            if not isinstance(branch.get(part), dict):
                branch[part] = {"class_path": branch[part]} if isinstance(branch.get(part), str) else {}
            branch = branch[part]
        new = _plain(yaml.safe_load(value)) if value and value.startswith("{") else value
        if isinstance(branch.get(last), dict) and isinstance(new, str):
            kept = parameters(new) or branch[last]  # like the parser, which keeps settings that the new class has too
            new = {**{key: value for key, value in branch[last].items() if key in kept}, "class_path": new}
        branch[last] = new
    return whole


def _check_class(key: str, content: Any, nested: bool = False) -> None:
    """Refuses what the parser would misread: settings without a class_path, and settings next to it."""
    if not isinstance(content, dict) or (not nested and "class_path" not in content):
        if not nested and content and not isinstance(content, str):
            shown = ", ".join(content) if isinstance(content, dict) else repr(content)
            raise UsageError(f"{key} has no class_path ({shown[:80]}); expected class_path: NAME and init_args: ...")
        return
    beside = [name for name in content if name not in _OF_THE_PARSER] if "class_path" in content else []
    if beside:
        raise UsageError(f"{key}.{beside[0]} is next to class_path; move it below {key}.init_args")
    for name, value in (content.get("init_args") or {}).items() if "class_path" in content else ():
        _check_class(f"{key}.init_args.{name}", value, nested=True)


def _plain(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    inner = tree.get("init_args")
    tree = {**{k: v for k, v in tree.items() if k != "init_args"}, **(inner if isinstance(inner, dict) else {})}
    return {str(key): _plain(value) for key, value in tree.items()}


def check_names(subcommand: str, args: Sequence[str]) -> list[str]:
    """Checks option names; returns the arguments with a single number for (height, width) doubled: `--data.size 128`.

    Raises:
        UsageError: an option, or a key of a configuration, that no chosen class has; the message has the nearest name.
    """
    tree = chosen(args)
    names = [name[2:] for name, _ in given_options(args) if name.startswith("--")]
    wrong = [name for name in names if name.partition(".")[0].rstrip("+") not in ROOTS[subcommand]]
    for section in ("model", "data", *_SECTIONS):
        branch = tree.get(section)
        if isinstance(branch, dict):
            wrong += _unknown(section, branch, branch.get("class_path") or _SECTIONS.get(section), 0)
    if wrong:
        near = nearest_option(wrong[0], tree, subcommand)
        raise UsageError(f"unknown option --{wrong[0][:100]}{near}; structseg {subcommand} -h shows the usual ones")
    return _with_pairs(args, tree)


def _unknown(prefix: str, branch: dict[str, Any], name: str | None, given_later: int) -> Iterator[str]:
    known = dict(list(((name and parameters(name)) or {}).items())[given_later:])
    for key, value in branch.items() if known else ():
        if key in _OF_THE_PARSER:
            continue
        parameter = known.get(key.rstrip("+"))
        if parameter is None:
            yield f"{prefix}.{key}"
        elif isinstance(value, dict):
            yield from _unknown(f"{prefix}.{key}", value, *_class_at(value, parameter))


def _class_at(value: Any, parameter: Parameter) -> tuple[str | None, int]:
    """The class given for a parameter, and how many of its first arguments are passed by the code."""
    given = value.get("class_path") if isinstance(value, dict) else value
    if isinstance(given, str) and (isinstance(value, dict) or ("str" not in parameter.type and definition(given))):
        return given, parameter.given_later
    return parameter.nested or (None, 0)


def _known(prefix: str, branch: Any, name: str | None, given_later: int = 0) -> Iterator[tuple[str, Parameter]]:
    for key, parameter in list(((name and parameters(name)) or {}).items())[given_later:]:
        yield f"{prefix}.{key}", parameter
        below = branch.get(key) if isinstance(branch, dict) else None
        if key != "label_space":  # the model takes it from the data
            yield from _known(f"{prefix}.{key}", below, *_class_at(below, parameter))


def known_options(tree: dict[str, Any]) -> dict[str, Parameter]:
    """Every option of the chosen classes, by its name without dashes and `init_args`; with its parameter."""
    classes = {**_SECTIONS, **{name: _class_of(tree.get(name)) for name in ("model", "data")}}
    return {
        option: parameter for name, kind in classes.items() for option, parameter in _known(name, tree.get(name), kind)
    }


def _class_of(branch: Any) -> str | None:
    return branch.get("class_path") if isinstance(branch, dict) else branch


def nearest_option(name: str, tree: dict[str, Any], subcommand: str = "fit") -> str:
    """` (did you mean --X?)` with the nearest option of the chosen classes; knows common names of other suites."""
    known = list(known_options(tree))
    sections = {option.partition(".")[0] for option in known}
    usual = [option.name[2:] for option in options_of(subcommand)]
    known += [option for option in [*usual, *ROOTS[subcommand]] if option.partition(".")[0] not in sections]
    section, last = name.partition(".")[0], name.rpartition(".")[2].rstrip("+").replace("-", "_").lower()
    synonym = OTHER_OPTIONS.get(last, "")
    for wanted in filter(None, (last, synonym.rpartition(".")[2])):
        same = [option for option in known if option.rpartition(".")[2] == wanted]
        if same:
            best = min(same, key=lambda option: (not option.startswith(f"{section}."), option != synonym, len(option)))
            return f" (did you mean --{best}?)"
    near = {option: difflib.SequenceMatcher(None, last, option.rpartition(".")[2]).ratio() for option in known}
    best = max(near, key=lambda option: near[option] + 0.15 * option.startswith(f"{section}."), default="")
    return f" (did you mean --{best}?)" if near.get(best, 0) >= 0.6 else ""


def _with_pairs(args: Sequence[str], tree: dict[str, Any]) -> list[str]:
    expanded = list(args)
    for number, word in enumerate(args):
        option, equals, value = word.partition("=")
        value = value if equals else next(iter(args[number + 1 : number + 2]), "")
        if not option.startswith("--") or "." not in option or not value.isdigit():
            continue
        parameter = known_options(tree).get(option[2:].replace(".init_args", ""))
        if parameter is not None and parameter.type in _PAIR:
            both = f"[{value}, {value}]"
            expanded[number if equals else number + 1] = f"{option}={both}" if equals else both
    return expanded


def with_pairs(config: Any) -> Any:
    """A configuration with a single number for (height, width) doubled: `size: 128`."""
    for section in ("model", "data"):
        if isinstance(config, dict) and isinstance(config.get(section), dict):
            _expand(config[section], config[section].get("class_path"), 0)
    return config


def _expand(branch: dict[str, Any], name: str | None, given_later: int) -> None:
    settings = branch.get("init_args", {}) if "class_path" in branch else branch
    known = dict(list(((isinstance(name, str) and parameters(name)) or {}).items())[given_later:])
    for key, value in settings.items() if isinstance(settings, dict) else ():
        parameter = known.get(key)
        if parameter is not None and parameter.type in _PAIR and type(value) is int:
            settings[key] = [value, value]
        elif parameter is not None and isinstance(value, dict):
            _expand(value, *_class_at(value, parameter))
