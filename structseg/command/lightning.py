"""`structseg fit`, `validate` and `test`: LightningCLI with the run folder, loggers and callbacks of the suite."""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.accelerators import CPUAccelerator, CUDAAccelerator
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from pytorch_lightning.utilities.exceptions import SIGTERMException

from structseg.command.loggers import finish_wandb, make_loggers, with_metrics_csv
from structseg.command.processes import exclusive_lock
from structseg.command.resume import (
    check_id,
    find_resume_point,
    find_unfinished,
    id_of,
    is_finished,
    mark_finished,
)
from structseg.command.run_folder import START_NAME, remove_unused, settle_run_folder
from structseg.command.saved_config import KeepConfig, changes, with_card
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
from structseg.options.class_index import import_named
from structseg.options.parser import StructsegParser
from structseg.provenance import Device, commit, hardware

_KNOWN_WARNINGS = (
    "LightningCLI's args parameter",  # the arguments are passed by `main`, not read from sys.argv
    ".*LeafSpec",
    ".*recommended to use .*sync_dist",  # scores are already reduced over the processes
    ".*does not have many workers",
    ".*The number of training batches",
    ".*module\\(s\\) in eval mode at the start of training",  # modules that a stage keeps frozen
    "The `srun` command is available",  # a fit on the login node is no SLURM job
    "Total length of `list`",  # no validation images; the suite reports that itself
    "You're resuming from a checkpoint that ended before the epoch",  # the sampler skips the images already seen
    "Checkpoint directory .* exists and is not empty",  # a resumed run continues in its folder
)

_LINES_OF = ("", "pytorch_lightning.utilities.rank_zero", "pytorch_lightning.trainer.connectors.checkpoint_connector")
_KNOWN_LINES = (
    "\N{ELECTRIC LIGHT BULB} Tip: For seamless",  # an advertisement
    "Images sizes do not match",  # W&B, of photographs
    "`weights_only` was not set",  # said of a checkpoint that is written
)

_RESUME_HELP = "auto: the same command resumes its own run, however it ended; a finished run is not repeated"
_MEMORY_HELP = "keep: on a CPU freed memory is reused by the next step (faster); return: it goes back to the system"
_RUN_ID_HELP = "Name of the run's folder; default: a new one; with --resume auto a hash of the settings"
_RESUME_HINT = (
    "resume a fit with --ckpt_path RUN_FOLDER/checkpoints/last.ckpt, one of --resume auto with the same command"
)
_HOW_TO_PROCEED = "add --resume auto, or give another --run_id"
_AT_EXIT = ExitStack()  # releases the lock of the run's folder when the command ends
_PATIENCE = 30.0  # seconds that a process which is shutting down has to release the run's folder


class Finished(Exception):  # not an error
    """Raised where the fit is already complete."""


@contextmanager
def ended_in_one_line() -> Iterator[None]:
    """Turns Lightning's ways of ending a process into one line and an exit code: 130 on Ctrl-C, 143 on SIGTERM."""
    try:
        yield
    except Finished as done:
        rank_zero_only(print)(done)
    except Exception as error:
        if interrupted(error):
            fail(f"interrupted; {_RESUME_HINT}", 130)
        raise
    except SystemExit as stop:
        if interrupted(stop):
            fail(f"interrupted; {_RESUME_HINT}", 130)
        if isinstance(stop, SIGTERMException):
            sys.stderr.write(f"structseg: error: terminated; {_RESUME_HINT}\n")
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(143)  # exit handlers of libraries could take longer than the grace period
        raise


class StructsegCLI(LightningCLI):
    """LightningCLI with the run's folder, loggers and callbacks of the suite.

    Args:
        args: the subcommand and its arguments.
        parser_class: class of the parser.
    """

    def __init__(self, args: list[str], parser_class: type[StructsegParser] = StructsegParser) -> None:
        self._subcommand = args[:1]
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
                "enable_model_summary": False,  # replaced by one line of the log
            },
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the subcommand that is called, as the options of each take time to set up; without one, all."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in self._subcommand or known}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the suite's own options and links."""
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
        """Does nothing: hyper-parameters come from the configuration or the card, never from a pickle."""

    def before_instantiate_classes(self) -> None:
        """Chooses the run's folder, before anything is written, and the checkpoint to resume from."""
        config = self.config[self.subcommand]
        files = config.get("config") or []
        name = config["experiment"] or (Path(str(files[0])).stem if files else None)
        if name == Path(CONFIG_NAME).stem:
            name = Path(str(files[0])).absolute().parent.parent.name
        name = name or config["model"]["class_path"].rsplit(".", 1)[-1].lower()
        self.step: int | None = None  # optimiser step that the run resumes from
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
            _AT_EXIT.callback(remove_unused, self.folder.path.resolve())
        config["trainer"]["default_root_dir"] = str(self.folder.path)
        if auto and not config["trainer"]["fast_dev_run"]:
            self._resume(config)
        elif run_id is not None and self.folder.resumed:
            raise ValueError(f"{self.folder.path} has a run already; {_HOW_TO_PROCEED}")
        elif self.subcommand == "fit" and writes and not self.folder.resumed and _restarts():
            rank_zero_warn(
                f"job {job_id()} was requeued, and this fit starts again, in {self.folder.path}; its earlier run is "
                "kept; with --resume auto a requeued job continues"
            )
        if self.subcommand == "fit" and writes and not self.folder.resumed and not config.get("ckpt_path"):
            unfinished = find_unfinished(self.folder.path.parent, config.as_dict())
            if unfinished is not None:
                last = unfinished / "checkpoints" / LAST
                rank_zero_info(
                    f"an interrupted fit with these settings is in {unfinished}; --ckpt_path {last} resumes it"
                )
        if not auto and config.get("ckpt_path") and config["ckpt_path"] not in ("best", "last", "hpc"):
            path = Path(config["ckpt_path"])
            trained = read_card(path)["epoch"] + 1
            most = config["trainer"]["max_epochs"]
            if self.subcommand == "fit" and most is not None and 0 <= most < trained:
                raise ValueError(
                    f"{config['ckpt_path']} was trained for {trained} epochs; raise --trainer.max_epochs from {most}"
                )
            if self.subcommand == "fit":
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                if "optimizer_states" not in content:
                    raise ValueError(f"{path} has no optimiser state; resume from {path.with_name(LAST)}")
                if self.folder.resumed:
                    self.step = int(content["global_step"])

    def _resume(self, config: Any) -> None:
        """For `--resume auto`: finds the checkpoint to resume from in the run's folder.

        Raises:
            Finished: the run is complete.
            RuntimeError: another process is using the folder.
            ValueError: all its checkpoints are damaged.
        """
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            _AT_EXIT.enter_context(exclusive_lock(self.folder.path, _PATIENCE))
        if is_finished(self.folder.path, config):
            raise Finished(f"finished already: {self.folder.path}")
        resume_point = find_resume_point(self.folder.checkpoints)
        self.step = resume_point.step
        if resume_point.checkpoint is not None:
            config["ckpt_path"] = str(resume_point.checkpoint)
        rank_zero_info(str(resume_point))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with the suite's loggers, callbacks and plugins; everything is written to the run's folder."""
        config = self._get(self.config_init, "trainer")
        predicting = self.subcommand == "predict"
        if config["barebones"]:
            raise ValueError("--trainer.barebones keeps no checkpoint and no score; use --trainer.fast_dev_run true")
        if config["logger"] is None:
            kwargs["logger"] = False if predicting or config["fast_dev_run"] else make_loggers(self.folder, self.step)
        elif config["logger"] is not False and not predicting and not config["fast_dev_run"]:
            kwargs["logger"] = with_metrics_csv(config["logger"], self.folder, self.step)
        given = config["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        config["callbacks"] = [StepSeed(), NumericGuard(), *given, MidEpoch(), Interruption()]
        if isinstance(self.model, SegmentationModule):
            config["callbacks"] += [ScoreTables(), ImageScores()]
        if config["enable_progress_bar"] is not False and not any(isinstance(one, ProgressBar) for one in given):
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
            rank_zero_info("freed memory is kept for the next step, which saves time; --memory return gives it back")
        self.callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in trainer.checkpoint_callbacks:
            callback.dirpath = str(self.folder.checkpoints.resolve())  # type: ignore[attr-defined]
        return trainer

    def after_instantiate_classes(self) -> None:
        """Checks the configuration and logs what is going to run."""
        self._dump_config()
        self.model.resolved_config = {key: self.config_dump[key] for key in ("model", "data")}
        if self.subcommand == "fit":
            size = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
            rank_zero_info(f"{size:.2f} million parameters; initial weights: {self.model.initial_weights}")
            rank_zero_info(f"run folder: {self.folder.path}")
            check_watched_keys(self.callbacks, self.model, self.datamodule.has_validation)
            rank_zero_info("settings that differ from the defaults:")
            for key, value in changes(self.config_dump, self._parser("fit").get_defaults().as_dict()):
                rank_zero_info(f"  {key}: {value}")

    def before_fit(self) -> None:
        """Checks the data before anything is written."""
        self._begin("train", *(("val",) if self.datamodule.has_validation else ()))

    def before_validate(self) -> None:
        """Like `before_fit`."""
        self._begin("val")

    def before_test(self) -> None:
        """Like `before_fit`."""
        self._begin("test")

    def after_fit(self) -> None:
        """Marks the fit as finished and names the next command."""
        trainer: Trainer = self.trainer
        if trainer.is_global_zero and trainer.state.finished and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            mark_finished(self.folder.path, self.config[self.subcommand])
            best = self.folder.checkpoints / BEST
            if best.is_file():
                labels_pixels = isinstance(self.model, SegmentationModule)
                further = (
                    f"structseg predict {best} PHOTO" if labels_pixels else "the next stage of a structseg pipeline"
                )
                print(f"next: structseg test {best}, or {further}")

    def after_test(self) -> None:
        """Writes the notices of the test beside its figures."""
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if not isinstance(self.model, SegmentationModule):  # whose scores have tables
            found = {key: float(v) for key, v in self.trainer.callback_metrics.items() if key.startswith("test/")}
            print("\n".join(f"{key:32} {value:.4f}" for key, value in found.items()) or "the test has no scores")
        self.folder.notices.unlink(missing_ok=True)
        if notices := self.model.all_notices():
            self.folder.notices.write_text("".join(f"{notice}\n" for notice in notices), encoding="utf-8")

    def _begin(self, *splits: Split) -> None:
        if not self.datamodule.download:  # otherwise the files may not be there yet
            if hasattr(self.datamodule, "check_files"):
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
            self._lock_folder()
            self._write_start()

    def _write_start(self) -> None:
        if not self.trainer.is_global_zero:
            return
        head, dirty = commit()
        device: Device = "cuda" if isinstance(self.trainer.accelerator, CUDAAccelerator) else "cpu"
        start = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": head + "-dirty" * dirty}
        with suppress(OSError):  # the fit does not depend on it
            write_result(self.folder.path / START_NAME, {**start, "hardware": hardware(device)})

    def _lock_folder(self) -> None:
        """Keeps other fits out of the folder; `--resume auto` has locked it already.

        Raises:
            RuntimeError: another fit is using it.
            ValueError: another fit has written to it in the meantime.
        """
        if self.config.fit.resume == "auto" or rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            return
        _AT_EXIT.enter_context(exclusive_lock(self.folder.path, _PATIENCE if self.folder.resumed else 0.0))
        if self.folder.config.is_file() and not self.folder.resumed:
            raise ValueError(f"{self.folder.path} has a run by now; {_HOW_TO_PROCEED}")


def _restarts() -> int:
    """How often SLURM has requeued this job."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or "0")


def _says_more(record: logging.LogRecord) -> bool:
    """Filter of log records: whether one is worth showing. A logger adds the same filter only once."""
    return not record.getMessage().startswith(_KNOWN_LINES)


def main(args: list[str]) -> None:
    """Entry point of Lightning's subcommands; the first of `args` is the subcommand."""
    with ended_in_one_line():
        run(args)


def run(args: list[str]) -> StructsegCLI:
    """Runs one of Lightning's subcommands, with arguments as on the command line.

    Raises:
        Exception: any error; `main` turns it into one line.
    """
    args = as_options(args)
    if job_id() and threading.current_thread() is threading.main_thread():
        signal.signal(REQUEUE, requeue_before_training)
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in _LINES_OF:
        logging.getLogger(name).addFilter(_says_more)
    for known in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=known)
    given = with_card(args)
    import_named(given)
    temporary = Path(given[2]) if given is not args else None
    try:
        return StructsegCLI(given)
    finally:
        _AT_EXIT.close()
        finish_wandb(stopped=isinstance(sys.exc_info()[1], SIGTERMException))
        if temporary is not None:
            temporary.unlink(missing_ok=True)
