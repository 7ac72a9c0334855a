"""The configuration of a run: saved in its folder, taken from a checkpoint's card, compared with the defaults."""

import inspect
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.loggers import WandbLogger

from structseg.files import CONFIG_NAME
from structseg.lightning_modules.checkpoints.card import read_card
from structseg.messages import fail
from structseg.options.class_index import refuse_moved
from structseg.yaml_files import flatten


class KeepConfig(SaveConfigCallback):
    """Writes `experiment.yaml` into the run's folder and into the W&B run, once."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called on the first process; does so for a fit, and prints the settings that a resumed run changes."""
        if stage != "fit":
            return
        path = Path(trainer.default_root_dir) / CONFIG_NAME
        text = self.parser.dump(self.config, skip_none=False)
        text = re.sub(r"(?m)^(resume|run_id|memory): .*\n", "", text)  # how the run was started, not its settings
        new = yaml.safe_load(text)
        if path.is_file():
            old = flatten(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
            for key, value in flatten(new).items():
                before = old.get(key)
                if (type(before), before) != (type(value), value) and key != "ckpt_path":  # 1.0 is all, 1 is one
                    print(f"resumed with {key}: {before} -> {value}")
        path.write_text(text, encoding="utf-8")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                settings = {**new, "initial_weights": pl_module.initial_weights}
                logger.experiment.config.update(settings, allow_val_change=True)
                logger.experiment.save(str(path), base_path=str(path.parent), policy="now")


def changes(config: Any, usual: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a configuration that differ from the defaults, and from those of the classes that it names.

    Args:
        config: a resolved configuration, or a part of it.
        usual: its defaults.
        key: dotted name of the part.
    """
    if isinstance(config, dict) and "class_path" in config:
        named = config["class_path"].rsplit(".", 1)
        found = getattr(import_module(named[0]), named[1])
        if found is not usual:
            yield key, named[1]
        makers = [vars(kind)["__init__"] for kind in reversed(found.__mro__) if "__init__" in vars(kind)]
        parameters = [p for maker in makers for p in inspect.signature(maker).parameters.values()]
        usual = {p.name: None if p.default is p.empty else p.default for p in parameters}
        config = config.get("init_args") or {}
    if isinstance(config, dict):
        usual = asdict(usual) if is_dataclass(usual) and not isinstance(usual, type) else usual
        for name, value in config.items():
            if name not in ("config", "ckpt_path", "default_root_dir", "subcommand"):
                before = usual.get(name) if isinstance(usual, dict) else None
                yield from changes(value, before, f"{key}.{name}" if key else name)
    elif config is not None and config != (list(usual) if isinstance(usual, tuple) else usual):
        yield key, config


def with_card(args: list[str]) -> list[str]:
    """The arguments with the configuration of the checkpoint's card, where they give none; unchanged for a fit."""
    names = [arg.split("=", 1)[0] for arg in args]
    if args[0] == "fit" or "--ckpt_path" not in names or {"--config", "-c", "--model", "--print_config"} & set(names):
        return args
    at = names.index("--ckpt_path")
    if "=" not in args[at] and at + 1 == len(args):
        fail("--ckpt_path has no value; give the path of a checkpoint", 2)
    path = Path(args[at].split("=", 1)[1] if "=" in args[at] else args[at + 1])
    card = read_card(path)
    if not card["config"]:
        fail(f"{path} was not written by `structseg fit` and holds no configuration; give --config")
    refuse_moved(card["config"], f"{path} was written before its classes moved: ")
    config = dict(card["config"])
    config.get("data", {}).get("init_args", {}).pop("predict_dir", None)  # an option of earlier versions
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".yaml", prefix="card-", delete=False) as file:
        yaml.safe_dump(config, file)
    return [args[0], "--config", file.name, "--experiment", path.resolve().parent.parent.parent.name, *args[1:]]
