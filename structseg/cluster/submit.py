"""`structseg submit`: writes and submits a SLURM job for a configuration, or dependent jobs for a pipeline."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from platformdirs import user_config_dir

from structseg.command.processes import command_line
from structseg.files import experiments_folder
from structseg.messages import UsageError, nearest
from structseg.options.arguments import split_further
from structseg.options.config_files import find_config, load_config
from structseg.options.option_names import nearest_option
from structseg.options.plain_parser import PlainParser
from structseg.options.subcommands import options_of
from structseg.pipelines.file import load_pipeline
from structseg.yaml_files import load_yaml

TEMPLATES = experiments_folder() / "slurm"
_ARGUMENTS = ': "${1:?'  # start of the template line that asks for arguments, which is replaced
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_MEMORY = re.compile(r"\d+[KMGT]?")
_GPUS = re.compile(r"(?:([A-Za-z][\w.-]*):)?(\d+)|[A-Za-z][\w.-]*")
_SITE = "slurm.yaml"
_TEST = """
srun --nodes=1 --ntasks=1 --kill-on-bad-exit=1 --cpus-per-task="${{SLURM_CPUS_PER_TASK:-1}}" \\
  structseg test {} --trainer.devices 1 --trainer.num_nodes 1"""
_OF_SBATCH = ("--gpus-per-task", "--cpus-per-gpu")  # look like misspelt options of submit
_SEEDS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*(%[1-9]\d*)?")
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*")
_NO_JOB = ("bash", "interactive")  # names by which Lightning recognises an interactive session
_SIGNALLED_EARLY = 60  # seconds by which SLURM may send a signal too early
_SET_BY_SUBMIT = {
    "--config": "CONFIG",
    "-c": "CONFIG",
    "--trainer.num_nodes": "--nodes",
    "--trainer.devices": "--gpus-per-node",
    "--runs_dir": "--runs_dir, before any --,",
    "--resume": "nothing: every job resumes its run",
    "--ckpt_path": "nothing: every job resumes its run",
    "--print_config": "structseg fit",
}


@dataclass(frozen=True)
class Job:
    """A script and how it is submitted.

    Attributes:
        path: of the script.
        text: of the script.
        title: printed with the number of the job.
        after: kind of dependency on the previous job, `afterok` or `aftercorr`; None: it depends on no job.
    """

    path: Path
    text: str
    title: str
    after: str | None = None

    def command(self, before: str) -> list[str]:
        """The call of sbatch.

        Args:
            before: number of the previous job.
        """
        waits = [f"--dependency={self.after}:{before}", "--kill-on-invalid-dep=yes"] if self.after else []
        return ["sbatch", "--parsable", *waits, str(self.path)]


def seconds_of(time: str) -> int:
    """Seconds of a SLURM time limit: `30` (minutes), `30:00`, `4:00:00`, `1-12` (days-hours), `1-12:00`, `1-12:00:00`.

    Raises:
        ValueError: it has another form, or is 0.
    """
    found = _TIME.fullmatch(time)
    if not found:
        raise ValueError(f"--time is {time}; expected hours:minutes:seconds, or days-hours")
    days, *rest = found.groups()
    a, b, c = (int(part or 0) for part in rest)
    if days is not None:
        seconds = int(days) * 86400 + a * 3600 + b * 60 + c
    elif rest[2] is None:
        seconds = a * 60 + b
    else:
        seconds = a * 3600 + b * 60 + c
    if not seconds:
        raise ValueError(f"--time is {time}, which leaves no time to train")
    return seconds


def script(
    template: str,
    options: Mapping[str, str | None],
    arguments: list[str],
    origin: str,
    setup: Sequence[str] = (),
    test: Path | None = None,
) -> str:
    """The text of a template with options of sbatch and arguments filled in.

    Args:
        template: name of a file in `experiments/slurm`.
        options: of sbatch without `--`; those that the template lacks come last, None removes one.
        arguments: of the script.
        origin: the command that writes it, for a comment at the top.
        setup: shell lines to run first.
        test: folder of the run, which may contain shell variables: the fit gets its id, then its best checkpoint is
            tested.
    """
    left, lines = dict(options), []
    text = (TEMPLATES / template).read_text(encoding="utf-8").splitlines()
    directives = [line for line in text if line.startswith("#SBATCH ")]
    for line in directives:
        key = line.removeprefix("#SBATCH --").partition("=")[0]
        value = left.pop(key) if key in left else line
        lines += [] if value is None else [line if value is line else f"#SBATCH --{key}={value}"]
    lines += [f"#SBATCH --{key}" + f"={value}" * (value != "") for key, value in left.items() if value is not None]
    body = text[text.index(directives[-1]) + 1 :]
    at = next(number for number, line in enumerate(body) if line.startswith(_ARGUMENTS))
    given = f"set -- {shlex.join(arguments)}" + (f' --run_id "{test.name}"' if test else "")
    checkpoint = f'{shlex.quote(str(test.parent))}/"{test.name}"/checkpoints/best.ckpt' if test else ""
    then = [_TEST.format(checkpoint)] if test else []
    own = ["set +u", *setup, "set -u"] if setup else []  # scripts that activate an environment often fail under -u
    body[at : at + 1] = [*own, *_path(), given]
    return "\n".join([text[0], f"# Written by: {' '.join(origin.split())}", *lines, *body, *then, ""])


def _path() -> list[str]:
    """Lines that let the job find this installation, whatever environment is active at submission."""
    binaries = Path(sys.executable).parent
    return [f'export PATH={shlex.quote(str(binaries))}:"$PATH"'] if (binaries / "structseg").is_file() else []


def jobs(given: argparse.Namespace, more: list[str], origin: str) -> list[Job]:
    """The jobs to submit, in order; with one seed, without a pipeline's finished stages.

    Raises:
        ValueError: the options, the configuration or the further arguments are refused.
        FileNotFoundError: no such configuration.
    """
    _check(given, more)
    given.config = find_config(given.config)
    content = load_config(given.config)
    if isinstance(content, dict) and "stages" in content:
        return _pipeline_jobs(given, more, origin)
    from structseg.command.configs import resolved_config  # takes seconds to load

    name = given.job_name or _job_name(given.config.stem)
    elsewhere = [] if given.runs_dir == Path("runs") else ["--runs_dir", str(given.runs_dir)]
    config = resolved_config(["fit", "--config", str(given.config), *more])
    template = "seeds_array" if given.seeds else "many_nodes" if given.nodes * _devices(given) > 1 else "one_node"
    options = _options(given, name, _cores(given, config))
    run = None
    if given.then:
        from structseg.command.resume import id_of

        own = f"{id_of(config)}_${{SLURM_ARRAY_TASK_ID}}" if given.seeds else id_of(config)
        run = given.runs_dir / (config["experiment"] or given.config.stem) / own
    arguments = [str(given.config), *elsewhere, *more]
    text = script(f"{template}.sbatch", options, arguments, origin, given.setup, run)
    return [Job(_beside_the_runs(given, name), text, name)]


def _pipeline_jobs(given: argparse.Namespace, more: list[str], origin: str) -> list[Job]:
    """A job for each stage, each after the previous one, as only one process may work in a pipeline's folder."""
    if given.then:
        raise ValueError(f"--then {given.then} is for a single fit; the stages of a pipeline are tested anyway")
    pipeline = load_pipeline(given.config).of_arm(given.arm)
    print(f"# {pipeline.size()}", flush=True)
    from structseg.pipelines.session import Session  # takes seconds to load

    devices = _devices(given)
    many = ["--trainer.devices", str(devices), "--trainer.num_nodes", str(given.nodes)]
    session = Session(pipeline, 0, given.runs_dir, (*(many if given.nodes * devices > 1 else ()), *more))
    configs = session.configs()
    if given.seeds:
        stages = [stage.name for stage in session.stages]
    else:
        session.refuse_overwriting(configs)
        stages = [stage.name for stage, status, _ in session.statuses(configs) if status.fit or status.tests]
    name = given.job_name or _job_name(f"{given.config.resolve().parent.name}_{given.config.stem}")
    found: list[Job] = []
    for stage in stages:
        own = f"{name}-{stage.replace('/', '_')}"
        arguments = [str(given.config), "--runs_dir", str(given.runs_dir)]
        arguments += ["--arm", given.arm] if given.arm else []
        arguments += [*(() if stage == stages[-1] else ("--until", stage)), "--", *more]  # the last one has the table
        options = _options(given, own, _cores(given, configs[stage]))
        text = script("pipeline_stage.sbatch", options, arguments, origin, given.setup)
        after = ("aftercorr" if given.seeds else "afterok") if found else None
        found.append(Job(_beside_the_runs(given, own), text, stage, after))
    return found


def _check(given: argparse.Namespace, more: list[str]) -> None:
    faults = [
        f"--{key.replace('_', '-')} is {value}; expected a whole number from {least}"
        for key, least in (("nodes", 1), ("cpus_per_task", 1), ("grace", 10))
        if (value := getattr(given, key)) is not None and value < least
    ]
    try:
        if seconds_of(given.time) <= given.grace + _SIGNALLED_EARLY:
            faults.append(
                f"--time {given.time} is not longer than --grace {given.grace} and a minute; nothing would train"
            )
    except ValueError as error:
        faults.append(str(error))
    if not _GPUS.fullmatch(given.gpus_per_node):
        expected = "expected a whole number from 0, or TYPE:NUMBER"
        faults.append(f"--gpus-per-node is {given.gpus_per_node}; {expected}")
    if given.grace > 65535:
        faults.append(f"--grace is {given.grace}; SLURM takes 65535 seconds at most")
    memory = given.sbatch.get("mem")
    if memory is not None and not _MEMORY.fullmatch(memory):
        faults.append(f"--mem is {memory}; expected a number with K, M, G or T, as 16G")
    if given.seeds and not _SEEDS.fullmatch(given.seeds):
        faults.append(f"--seeds is {given.seeds}; expected 0-4, or 0,3,7, or 0-9%2 for two at a time")
    if given.job_name and (not _NAME.fullmatch(given.job_name) or given.job_name in _NO_JOB):
        faults.append(
            f"--job-name is {given.job_name}; use letters, digits, '.', '_' and '-', not {' or '.join(_NO_JOB)}"
        )
    for key, value in given.sbatch.items():
        if re.search(r"[^\w]", key.replace("-", "")) or re.search(r"[\n\r\"]", value):
            faults.append(f"--{key} is {value!r}; expected one line without quotes")
    fixed = {**_SET_BY_SUBMIT, **({"--seed_everything": "--seeds"} if given.seeds else {})}
    options = dict.fromkeys(argument.partition("=")[0] for argument in more)
    faults += [f"{option} is set by submit; give {fixed[option]} instead" for option in options if option in fixed]
    if faults:
        raise ValueError("; ".join(faults))


def _job_name(stem: str) -> str:
    name = re.sub(r"[^\w.-]", "_", stem)
    return f"{name}_fit" if name in _NO_JOB else name


def _devices(given: argparse.Namespace) -> int:
    """Processes on a node: one for each GPU, or one."""
    found = _GPUS.fullmatch(given.gpus_per_node)
    return max(1, int(found[2] or 1)) if found else 1


def _cores(given: argparse.Namespace, config: Mapping[str, Any]) -> int:
    """Cores for each process; by default one, and one more for each loader worker."""
    return int(given.cpus_per_task or 1 + (config["data"].get("init_args") or {}).get("num_workers", 0))


def _options(given: argparse.Namespace, name: str, cores: int) -> dict[str, str | None]:
    log = f"{name}-%A_%a.out" if given.seeds else f"{name}-%j.out"
    return {
        "job-name": name,
        "array": given.seeds,
        "nodes": str(given.nodes),
        "ntasks-per-node": str(_devices(given)),
        "gpus-per-node": None if given.gpus_per_node == "0" or "gres" in given.sbatch else given.gpus_per_node,
        "cpus-per-task": str(cores),
        "time": given.time,
        "signal": f"USR1@{given.grace}",
        "output": _quoted(f"{str(given.runs_dir.absolute()).replace('%', '%%')}/slurm/{log}"),
        "chdir": _quoted(str(Path.cwd())),
        **{key: _quoted(value) for key, value in given.sbatch.items()},
    }


def _quoted(path: str) -> str:
    """The path in quotes if it has spaces, as sbatch splits its lines like a shell."""
    return f'"{path}"' if re.search(r"\s", path) else path


def _beside_the_runs(given: argparse.Namespace, name: str) -> Path:
    return Path(given.runs_dir) / "slurm" / f"{name}.sbatch"


def submit(found: list[Job]) -> list[str]:
    """Writes the scripts and submits them with their dependencies.

    Returns:
        The numbers of the jobs.

    Raises:
        RuntimeError: sbatch is missing or refuses a script; the message names the jobs already in the queue.
    """
    for job in found:
        job.path.parent.mkdir(
            parents=True, exist_ok=True
        )  # the logs go there too; without the folder a job fails silently
        job.path.write_text(job.text, encoding="utf-8")
    kept = ", ".join(str(job.path) for job in found)
    if shutil.which("sbatch") is None:
        raise RuntimeError(f"there is no sbatch on this machine; submit on a machine with SLURM: {kept}")
    numbers: list[str] = []
    for job in found:
        done = subprocess.run(job.command(numbers[-1] if numbers else ""), capture_output=True, text=True, check=False)
        if done.returncode:
            reason = done.stderr.strip().removeprefix("sbatch: error: ").replace("sbatch: error: ", "; ")
            hint = "; a cluster without GPUs takes --gpus-per-node 0" if "generic resource" in reason else ""
            queued = f"; in the queue already: {' '.join(numbers)} (scancel removes them)" if numbers else ""
            raise RuntimeError(f"sbatch refused {job.path}: {reason}{hint}{queued}")
        numbers.append(done.stdout.strip().partition(";")[0])  # ;CLUSTER may follow
        print(f"{job.title}: job {numbers[-1]}", flush=True)
    return numbers


def make_parser() -> PlainParser:
    """The options of `structseg submit`."""
    parser = PlainParser(
        "submit",
        ("fasseg_v2 --data.root FASSEG", "fasseg_v2 --partition gpu --qos high --setup setup.sh --then test"),
        usage="%(prog)s CONFIG [options] [options of sbatch] [options of structseg fit]",
        description="Writes a SLURM job for an experiment into RUNS/slurm, shows and submits it; for a pipeline one a "
        "stage, after the previous one. A job that runs out of time, or is pre-empted, is requeued and resumed. "
        "Options that are not listed go to sbatch (--partition, --account, --qos, --mem). Options for all jobs go "
        f"into {_SITE}, here or in the user's configuration folder: `partition: gpu`, `setup: setup.sh`.",
    )
    parser.add_argument("config", metavar="CONFIG", help="an experiment or a pipeline, by path or name")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument(
        "--gpus-per-node", default="1", metavar="G", help="one process each; a100:2; 0: CPU; default: 1"
    )
    parser.add_argument("--cpus-per-task", type=int, metavar="C", help="default: one and the loader's workers")
    parser.add_argument(
        "--time", default="04:00:00", metavar="T", help="time limit, after which a job is requeued; 4 hours"
    )
    parser.add_argument("--setup", metavar="FILE", help="shell lines to run before the job: module load cuda")
    parser.add_argument("--then", choices=["test"], help="test the best checkpoint once the fit is complete")
    parser.add_argument("--arm", metavar="ARM", help="arm of a pipeline with rounds; `all`: every one")
    parser.add_argument("--seeds", metavar="0-4", help="a job for each; 0-9%%2: two at a time")
    parser.add_argument("--grace", type=int, default=120, metavar="SECONDS", help="time to save before the limit; 120")
    parser.add_argument("--job-name", metavar="NAME", help="default: the configuration's file name")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"), metavar="FOLDER", help="folder of all runs")
    parser.add_argument("--dry-run", action="store_true", help="show the job; write and submit nothing")
    return parser


def parsed(args: list[str]) -> argparse.Namespace:
    """The options of `structseg submit`, with those of sbatch in `sbatch` and the set-up lines in `setup`.

    Raises:
        ValueError: an unknown option, or a site file that does not hold options.
        OSError: the set-up file cannot be read.
    """
    parser = make_parser()
    site, settings = _site()
    known = parser._option_string_actions
    words = [f"--{key}={value}" for key, value in settings.items() if f"--{key}" in known]
    given, rest = parser.parse_known_args([*words, *args])
    given.sbatch = {key: value for key, value in settings.items() if f"--{key}" not in known}
    fits = {option.name.rpartition(".")[2] for option in options_of("fit")}
    for word, after in zip(rest, [*rest[1:], "--"], strict=False):
        name, equals, value = word.partition("=")
        if not word.startswith("--"):
            continue
        if "_" in name or name[2:] in fits:
            raise UsageError(f"submit: unknown option {name}{nearest_option(name[2:], {})}")
        if get_close_matches(name, known, 1, 0.8) and name not in _OF_SBATCH:
            raise UsageError(f"submit: unknown option {name}{nearest(name, known)}")
        given.sbatch[name[2:]] = value if equals else "" if after.startswith("--") else after
    if given.setup:
        on_command_line = any(word.partition("=")[0] == "--setup" for word in args)
        given.setup = (
            (Path(given.setup) if on_command_line else site.parent / given.setup)
            .read_text(encoding="utf-8")
            .splitlines()
        )
    return given


def _site() -> tuple[Path, dict[str, str]]:
    """The options of the site and their file, in this folder or in the user's configuration folder."""
    for path in (Path(_SITE), Path(user_config_dir("structseg")) / _SITE):
        if path.is_file():
            _, node = load_yaml(path)
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            if not pairs or not all(isinstance(value, yaml.ScalarNode) for _, value in pairs):
                raise ValueError(f"{path}: expected options of submit and sbatch, such as `partition: gpu`")
            return path, {key.value: value.value for key, value in pairs}  # as written: 1:30:00 is no number
    return Path(_SITE), {}


def main(args: list[str]) -> None:
    """Entry point of `structseg submit`."""
    own, further = split_further(args, make_parser()._option_string_actions)
    origin = [arg for arg in own if arg != "--dry-run"] + ([] if not further else ["--", *further])
    found = jobs(parsed(own), further, command_line(["submit", *origin]))
    if not found:
        print("every stage is finished")
    for job in found:
        print(job.text, end="", flush=True)
        print(f"# {shlex.join(job.command('JOB_BEFORE'))}", flush=True)
    if "--dry-run" not in own:
        submit(found)
