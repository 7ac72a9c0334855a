"""The command `structseg`."""

import inspect
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn

import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.accelerators import CPUAccelerator, CUDAAccelerator
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from pytorch_lightning.utilities.exceptions import SIGTERMException

from structseg.command.processes import exclusive_lock
from structseg.command.resume import (
    check_id,
    find_resume_point,
    find_unfinished,
    id_of,
    is_finished,
    mark_finished,
)
from structseg.command.run_folder import START_NAME, leave_unused, make_loggers, settle_run_folder, with_metrics_csv
from structseg.datamodules.base import SegmentationDataModule
from structseg.datamodules.batch import Split
from structseg.files import CONFIG_NAME, write_result
from structseg.freed_memory import keep_freed_memory
from structseg.lightning_modules.base import TrainedModule
from structseg.lightning_modules.callbacks.checkpoints import BEST, LAST, AtomicCheckpointIO, BestAndLast
from structseg.lightning_modules.callbacks.image_scores import ImageScores
from structseg.lightning_modules.callbacks.interruption import REQUEUE, Interruption, job_id, requeue_before_training
from structseg.lightning_modules.callbacks.mid_epoch import MidEpoch
from structseg.lightning_modules.callbacks.numeric_guard import NumericGuard
from structseg.lightning_modules.callbacks.pictures import Pictures
from structseg.lightning_modules.callbacks.step_seed import StepSeed
from structseg.lightning_modules.callbacks.tables import ScoreTables
from structseg.lightning_modules.callbacks.watched_keys import check_watched_keys
from structseg.lightning_modules.checkpoints.card import read_card
from structseg.lightning_modules.segmentation import SegmentationModule
from structseg.messages import fail, interrupted
from structseg.options.arguments import as_options
from structseg.options.class_index import import_named, refuse_moved
from structseg.options.parser import StructsegParser
from structseg.provenance import Device, commit, hardware

_KNOWN_WARNINGS = (
    "LightningCLI's args parameter",  # `main` hands over what it was given
    ".*LeafSpec",
    ".*recommended to use .*sync_dist",  # the scores have already met over the processes
    ".*does not have many workers",
    ".*The number of training batches",
    ".*module\\(s\\) in eval mode at the start of training",  # those that a stage leaves as they are
    "The `srun` command is available",  # a fit on the login node is no SLURM job
    "Total length of `list`",  # nothing is held out, and that is said
    "You're resuming from a checkpoint that ended before the epoch",  # the sampler leaves out what has been seen
    "Checkpoint directory .* exists and is not empty",  # a resumed run continues in its folder
)


_RESUME_HELP = "auto: the same command resumes its own run, whatever ended it, and ends at once where it is finished"
_MEMORY_HELP = "keep: on a CPU freed memory serves the next step (faster); return: it goes back to the system"
_RUN_ID_HELP = "Name of the run's folder; default: a new one, or, with --resume auto, one that stands for the settings"
_RESUME_HINT = (
    "resume a fit with --ckpt_path RUN_FOLDER/checkpoints/last.ckpt, one of --resume auto with the same command"
)
_ANOTHER = "add --resume auto, or give another --run_id"
_HELD = ExitStack()  # the lock of the run's folder, until the command ends
_WANDB_SECONDS = 5
_PATIENCE = 30.0  # seconds for a process that is being ended to leave the run's folder


class Finished(Exception):  # no error
    """There is nothing left to do."""


@contextmanager
def ended_in_one_line() -> Iterator[None]:
    """What Lightning ends a process with becomes a line and an exit code: 130 where interrupted, 143 on SIGTERM."""
    try:
        yield
    except Finished as done:
        rank_zero_only(print)(done)
    except Exception as error:
        if interrupted(error):
            fail(f"interrupted; {_RESUME_HINT}", 130)
        raise
    except SystemExit as stop:
        if interrupted(stop):  # Lightning shuts down by exit
            fail(f"interrupted; {_RESUME_HINT}", 130)
        if isinstance(stop, SIGTERMException):
            sys.stderr.write(f"structseg: error: terminated; {_RESUME_HINT}\n")
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(143)  # what libraries do at exit could outlast the grace that is left
        raise


class KeepConfig(SaveConfigCallback):
    """Writes `experiment.yaml` into the run's folder and into the W&B run, once."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """On the first process of a fit; what a resumed run changes is printed."""
        if stage != "fit":
            return
        path = Path(trainer.default_root_dir) / CONFIG_NAME
        text = self.parser.dump(self.config, skip_none=False)
        text = re.sub(r"(?m)^(resume|run_id|memory): .*\n", "", text)  # how it was started, not what it is
        new = yaml.safe_load(text)
        if path.is_file():
            old = _flat(yaml.safe_load(path.read_text()))
            for key, value in _flat(new).items():
                before = old.get(key)
                if (type(before), before) != (type(value), value) and key != "ckpt_path":  # 1.0 is all, 1 is one
                    print(f"resumed with {key}: {before} -> {value}")
        path.write_text(text)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                settings = {**new, "initial_weights": pl_module.initial_weights}
                logger.experiment.config.update(settings, allow_val_change=True)
                logger.experiment.save(str(path), base_path=str(path.parent), policy="now")


class StructsegCLI(LightningCLI):
    """LightningCLI with the run's folder, loggers and callbacks of the suite.

    Args:
        args: the command line from the subcommand on.
        parser_class: what parses it.
    """

    def __init__(self, args: list[str], parser_class: type[StructsegParser] = StructsegParser) -> None:
        self._called = args[:1]
        super().__init__(
            model_class=TrainedModule,
            datamodule_class=SegmentationDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=KeepConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_class=parser_class,
            trainer_defaults={
                "use_distributed_sampler": False,
                "log_every_n_steps": 10,
                "enable_model_summary": False,  # one line of ours says how large the model is
            },
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that is called, or all of them: the options of each cost as much time again."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in self._called or known}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The suite's own options and links."""
        parser.add_argument("--experiment", type=str | None, default=None, help="Name; default: the config's file name")
        parser.add_argument("--runs_dir", type=str, default="runs", help="Folder of all runs")
        parser.add_lightning_class_args(BestAndLast, "checkpoint")
        parser.add_lightning_class_args(Pictures, "pictures")
        parser.link_arguments("data.label_space", "model.init_args.label_space", apply_on="instantiate")
        parser.link_arguments("data.mean", "model.init_args.mean", apply_on="instantiate")
        parser.link_arguments("data.std", "model.init_args.std", apply_on="instantiate")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            parser.add_argument("--resume", type=Literal["never", "auto"], default="never", help=_RESUME_HELP)
            parser.add_argument("--run_id", type=str | None, default=None, help=_RUN_ID_HELP)
        parser.add_argument("--memory", type=Literal["keep", "return"], default="keep", help=_MEMORY_HELP)
        if subcommand in ("validate", "test"):
            parser.set_defaults(verbose=False)  # the suite's own table is shorter
        return parser

    def _parse_ckpt_path(self) -> None:
        """Nothing: hyper-parameters come from the configuration or the card, never from a pickle."""

    def before_instantiate_classes(self) -> None:
        """Settles the run's folder before anything could write elsewhere."""
        config = self.config[self.subcommand]
        files = config.get("config") or []
        name = config["experiment"] or (Path(str(files[0])).stem if files else None)
        if name == Path(CONFIG_NAME).stem:
            name = Path(str(files[0])).absolute().parent.parent.name
        name = name or config["model"]["class_path"].rsplit(".", 1)[-1].lower()
        self.step: int | None = None  # that the run resumes from, if it does
        auto, run_id = config.get("resume") == "auto", config.get("run_id")
        if run_id is not None:
            check_id(run_id)
        if auto and config.get("ckpt_path"):
            raise ValueError("--resume auto finds the checkpoint itself; drop --ckpt_path, or --resume")
        if auto and run_id is None:
            run_id = id_of(config.as_dict())
        writes = self.subcommand != "predict" and not config["trainer"]["fast_dev_run"]
        self.folder = settle_run_folder(Path(config["runs_dir"]), name, config.get("ckpt_path"), run_id, writes)
        if writes and not self.folder.resumed and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            _HELD.callback(leave_unused, self.folder.path.resolve())
        config["trainer"]["default_root_dir"] = str(self.folder.path)
        if auto and not config["trainer"]["fast_dev_run"]:
            self._resume(config)
        elif run_id is not None and self.folder.resumed:
            raise ValueError(f"{self.folder.path} has a run already; {_ANOTHER}")
        elif self.subcommand == "fit" and writes and not self.folder.resumed and _restarts():
            rank_zero_warn(
                f"job {job_id()} was requeued, and this fit begins anew, in {self.folder.path}; what it had done is "
                "left as it was; with --resume auto a requeued job continues"
            )
        if self.subcommand == "fit" and writes and not self.folder.resumed and not config.get("ckpt_path"):
            left = find_unfinished(self.folder.path.parent, config.as_dict())
            if left is not None:
                where = left / "checkpoints" / LAST
                rank_zero_info(f"an interrupted fit of these settings is in {left}; --ckpt_path {where} resumes it")
        if not auto and config.get("ckpt_path") and config["ckpt_path"] not in ("best", "last", "hpc"):
            path = Path(config["ckpt_path"])
            seen = read_card(path)["epoch"] + 1
            most = config["trainer"]["max_epochs"]
            if self.subcommand == "fit" and most is not None and 0 <= most < seen:
                raise ValueError(
                    f"{config['ckpt_path']} has seen {seen} epochs; raise --trainer.max_epochs from {most}"
                )
            if self.subcommand == "fit":
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                if "optimizer_states" not in content:
                    raise ValueError(f"{path} has no state of the optimiser; resume from {path.with_name(LAST)}")
                if self.folder.resumed:
                    self.step = int(content["global_step"])

    def _resume(self, config: Any) -> None:
        """For `--resume auto`: where the run in the folder is.

        Raises:
            Finished: at its end.
            RuntimeError: another process is at work there.
            ValueError: there are checkpoints, and none is whole.
        """
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            _HELD.enter_context(exclusive_lock(self.folder.path, _PATIENCE))
        if is_finished(self.folder.path, config):
            raise Finished(f"finished already: {self.folder.path}")
        resume_point = find_resume_point(self.folder.checkpoints)
        self.step = resume_point.step
        if resume_point.checkpoint is not None:
            config["ckpt_path"] = str(resume_point.checkpoint)
        rank_zero_info(str(resume_point))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Loggers in the run's folder, checkpoints written whole, loaders left to the datamodule."""
        config = self._get(self.config_init, "trainer")
        predicting = self.subcommand == "predict"
        if config["logger"] is None:
            kwargs["logger"] = False if predicting or config["fast_dev_run"] else make_loggers(self.folder, self.step)
        elif config["logger"] is not False and not predicting and not config["fast_dev_run"]:
            kwargs["logger"] = with_metrics_csv(config["logger"], self.folder, self.step)
        given = config["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        config["callbacks"] = [StepSeed(), NumericGuard(), *given, MidEpoch(), Interruption()]
        if isinstance(self.model, SegmentationModule):
            config["callbacks"] += [ScoreTables(), ImageScores()]
        if config["enable_progress_bar"] is not False:
            config["callbacks"].append(RichProgressBar())
        if predicting:
            from structseg.lightning_modules.conta.round_writers import artefact_writer

            config["callbacks"].append(artefact_writer(self.model, self.datamodule))
        config["plugins"] = [*(config["plugins"] or []), AtomicCheckpointIO()]
        if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():  # Lightning's own order
            config["plugins"].append(SLURMEnvironment(auto_requeue=False))  # `Interruption` does it, between two steps
        if config["enable_checkpointing"] is False:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")
        trainer = super().instantiate_trainer(**kwargs)
        on_cpu = isinstance(trainer.accelerator, CPUAccelerator)
        if on_cpu and self.config[self.subcommand]["memory"] == "keep" and keep_freed_memory():
            rank_zero_info("freed memory stays with this process, which saves time; --memory return gives it back")
        self.callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in trainer.checkpoint_callbacks:
            callback.dirpath = str(self.folder.checkpoints.resolve())  # type: ignore[attr-defined]
        return trainer

    def after_instantiate_classes(self) -> None:
        """What is checked and said before a run starts."""
        self._dump_config()
        self.model.resolved_config = {key: self.config_dump[key] for key in ("model", "data")}
        if self.subcommand == "fit":
            size = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
            rank_zero_info(f"{size:.2f} million parameters; initial weights: {self.model.initial_weights}")
            rank_zero_info(f"run folder: {self.folder.path}")
            check_watched_keys(self.callbacks, self.model, self.datamodule.has_validation)
            rank_zero_info("what differs from the defaults:")
            for key, value in changes(self.config_dump, self._parser("fit").get_defaults().as_dict()):
                rank_zero_info(f"  {key}: {value}")

    def before_fit(self) -> None:
        """Missing data is found before anything is written."""
        self._begin("train", *(("val",) if self.datamodule.has_validation else ()))

    def before_validate(self) -> None:
        """As `before_fit`."""
        self._begin("val")

    def before_test(self) -> None:
        """As `before_fit`."""
        self._begin("test")

    def after_fit(self) -> None:
        """Leaves word that the fit came to its end."""
        trainer: Trainer = self.trainer
        if trainer.is_global_zero and trainer.state.finished and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            mark_finished(self.folder.path, self.config[self.subcommand])
            best = self.folder.checkpoints / BEST
            if best.is_file():
                print(f"next: structseg test {best}, or structseg predict {best} PHOTO")

    def after_test(self) -> None:
        """Leaves what the test noticed beside its figures."""
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.folder.notices.unlink(missing_ok=True)
        if notices := self.model.all_notices():
            self.folder.notices.write_text("".join(f"{notice}\n" for notice in notices))

    def _begin(self, *splits: Split) -> None:
        if not self.datamodule.download:  # what is not downloaded yet cannot be checked
            if hasattr(self.datamodule, "check_files"):  # of the suite
                self.datamodule.check_files(splits)
            for split in splits:
                self.datamodule.dataset(split)
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]  # it writes nothing
            return
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"no run folder {self.folder.path} ({error.strerror}); set --runs_dir") from None
        if self.subcommand == "fit":
            self._hold()
            self._note_start()

    def _note_start(self) -> None:
        if not self.trainer.is_global_zero:
            return
        head, dirty = commit()
        device: Device = "cuda" if isinstance(self.trainer.accelerator, CUDAAccelerator) else "cpu"
        start = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": head + "-dirty" * dirty}
        with suppress(OSError):  # a fit goes on without
            write_result(self.folder.path / START_NAME, {**start, "hardware": hardware(device)})

    def _hold(self) -> None:
        """Keeps other fits out of the folder; `--resume auto` does since it looked at it.

        Raises:
            RuntimeError: another fit is at work there.
            ValueError: another fit has been there since.
        """
        if self.config.fit.resume == "auto" or rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            return
        _HELD.enter_context(exclusive_lock(self.folder.path, _PATIENCE if self.folder.resumed else 0.0))
        if self.folder.config.is_file() and not self.folder.resumed:
            raise ValueError(f"{self.folder.path} has a run by now; {_ANOTHER}")


def _restarts() -> int:
    """How often SLURM has requeued this job."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or "0")


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {k: v for name, branch in tree.items() for k, v in _flat(branch, f"{prefix}{name}.").items()}


def changes(config: Any, usual: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """What a configuration says that the defaults, those of the classes that it names, do not."""
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


def _with_card(args: list[str]) -> list[str]:
    """For all but `fit`, without a configuration: that of the checkpoint's card."""
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
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="card-", delete=False) as file:
        yaml.safe_dump(config, file)
    return [args[0], "--config", file.name, "--experiment", path.resolve().parent.parent.parent.name, *args[1:]]


def main(args: list[str]) -> None:
    """Entry point of the four subcommands; `args` begin with the subcommand."""
    with ended_in_one_line():
        run(args)


def run(args: list[str]) -> StructsegCLI:
    """One of Lightning's subcommands, as if from the command line.

    Raises:
        Exception: whatever goes wrong; `main` makes one line of it.
    """
    args = as_options(args)
    if job_id() and threading.current_thread() is threading.main_thread():
        signal.signal(REQUEUE, requeue_before_training)
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in ("pytorch_lightning", "lightning"):  # an advertisement
        logger = logging.getLogger(f"{name}.utilities.rank_zero")
        logger.addFilter(lambda record: "Tip: For seamless" not in record.getMessage())
    for known in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=known)
    given = _with_card(args)
    import_named(given)
    temporary = Path(given[2]) if given is not args else None
    try:
        return StructsegCLI(given)
    finally:
        _HELD.close()
        _finish_wandb(stopped=isinstance(sys.exc_info()[1], SIGTERMException))
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _finish_wandb(stopped: bool) -> None:
    """A second run in this process would continue the first one's W&B run.

    A job that is cancelled loses W&B's own process too: nothing is to wait for an answer from it.
    """
    wandb = sys.modules.get("wandb")
    if wandb is None:
        return

    def give_up(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001  # a handler's arguments
        raise TimeoutError

    if not stopped:
        wandb.finish()
        return
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_WANDB_SECONDS)
    try:
        wandb.finish()
    except Exception as error:  # noqa: BLE001  # the fit is saved
        rank_zero_warn(f"W&B was not ended in order ({type(error).__name__}: {error}); its files up to here are kept")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
