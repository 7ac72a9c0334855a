"""`structseg submit`: a SLURM job of a configuration, or jobs of a pipeline that wait for each other."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from structseg.command.arguments import split_further
from structseg.command.config_files import find_config, load_config
from structseg.command.plain_parser import PlainParser
from structseg.command.processes import command_line
from structseg.files import experiments_folder
from structseg.pipelines.file import load_pipeline

TEMPLATES = experiments_folder() / "slurm"
_ARGUMENTS = ': "${1:?'  # how the line of a template begins that asks for arguments; ours are given
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_MEMORY = re.compile(r"\d+[KMGT]?")
_SEEDS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*(%[1-9]\d*)?")
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*")
_NO_JOB = ("bash", "interactive")  # Lightning takes a job of such a name for a shell that someone types into
_SIGNALLED_EARLY = 60  # seconds that SLURM may send a signal ahead of its time
_SETTLED = {
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
        title: what its number is printed with.
        after: how it depends on the job before, `afterok` or `aftercorr`; None: it waits for nothing.
    """

    path: Path
    text: str
    title: str
    after: str | None = None

    def command(self, before: str) -> list[str]:
        """The call of sbatch.

        Args:
            before: number of the job before.
        """
        waits = [f"--dependency={self.after}:{before}", "--kill-on-invalid-dep=yes"] if self.after else []
        return ["sbatch", "--parsable", *waits, str(self.path)]


def seconds_of(time: str) -> int:
    """What SLURM takes a time for: `30` minutes, `30:00`, `4:00:00`, `1-12` days and hours, `1-12:00`, `1-12:00:00`.

    Raises:
        ValueError: it is not such a time, or 0.
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


def script(template: str, options: Mapping[str, str | None], arguments: list[str], origin: str) -> str:
    """A template's text with other options of sbatch and with its arguments filled in.

    Args:
        template: name of a file in `experiments/slurm`.
        options: of sbatch without `--`; those that the template lacks come last, and None takes one out.
        arguments: of the script.
        origin: the command that writes it, for the script's head.
    """
    left, lines = dict(options), []
    text = (TEMPLATES / template).read_text().splitlines()
    directives = [line for line in text if line.startswith("#SBATCH ")]
    for line in directives:
        key = line.removeprefix("#SBATCH --").partition("=")[0]
        value = left.pop(key) if key in left else line
        lines += [] if value is None else [line if value is line else f"#SBATCH --{key}={value}"]
    lines += [f"#SBATCH --{key}={value}" for key, value in left.items() if value is not None]
    body = text[text.index(directives[-1]) + 1 :]
    at = next(number for number, line in enumerate(body) if line.startswith(_ARGUMENTS))
    body[at : at + 1] = [*_path(), f"set -- {shlex.join(arguments)}"]
    return "\n".join([text[0], f"# Written by: {' '.join(origin.split())}", *lines, *body, ""])


def _path() -> list[str]:
    """Lets a job find this installation, whatever is active in the shell that submits it."""
    binaries = Path(sys.executable).parent
    return [f'export PATH={shlex.quote(str(binaries))}:"$PATH"'] if (binaries / "structseg").is_file() else []


def jobs(given: argparse.Namespace, more: list[str], origin: str) -> list[Job]:
    """The jobs to submit, in order; a pipeline's finished stages are left out where there is one seed.

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
    text = script(f"{template}.sbatch", options, [str(given.config), *elsewhere, *more], origin)
    return [Job(_beside_the_runs(given, name), text, name)]


def _pipeline_jobs(given: argparse.Namespace, more: list[str], origin: str) -> list[Job]:
    """A job for each stage; one at a time, as only one process may work in a pipeline's folder."""
    from structseg.pipelines.session import Session  # takes seconds to load

    pipeline = load_pipeline(given.config)
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
        arguments += [*(() if stage == stages[-1] else ("--until", stage)), "--", *more]  # the last one has the table
        options = _options(given, own, _cores(given, configs[stage]))
        text = script("pipeline_stage.sbatch", options, arguments, origin)
        after = ("aftercorr" if given.seeds else "afterok") if found else None
        found.append(Job(_beside_the_runs(given, own), text, stage, after))
    return found


def _check(given: argparse.Namespace, more: list[str]) -> None:
    faults = [
        f"--{key.replace('_', '-')} is {value}; expected a whole number from {least}"
        for key, least in (("nodes", 1), ("gpus_per_node", 0), ("cpus_per_task", 1), ("grace", 10))
        if (value := getattr(given, key)) is not None and value < least
    ]
    try:
        if seconds_of(given.time) <= given.grace + _SIGNALLED_EARLY:
            faults.append(
                f"--time {given.time} is not longer than --grace {given.grace} and a minute; nothing would train"
            )
    except ValueError as error:
        faults.append(str(error))
    if given.grace > 65535:
        faults.append(f"--grace is {given.grace}; SLURM takes 65535 seconds at most")
    if given.mem and not _MEMORY.fullmatch(given.mem):
        faults.append(f"--mem is {given.mem}; expected a number with K, M, G or T, as 16G")
    if given.seeds and not _SEEDS.fullmatch(given.seeds):
        faults.append(f"--seeds is {given.seeds}; expected 0-4, or 0,3,7, or 0-9%2 for two at a time")
    if given.job_name and (not _NAME.fullmatch(given.job_name) or given.job_name in _NO_JOB):
        faults.append(
            f"--job-name is {given.job_name}; use letters, digits, '.', '_' and '-', not {' or '.join(_NO_JOB)}"
        )
    for key in ("partition", "account"):
        value = getattr(given, key)
        if value is not None and not re.fullmatch(r"[\w.,@-]+", value):
            faults.append(f"--{key} is {value!r}; expected a name without spaces")
    settled = {**_SETTLED, **({"--seed_everything": "--seeds"} if given.seeds else {})}
    options = dict.fromkeys(argument.partition("=")[0] for argument in more)
    faults += [f"{option} is set by submit; give {settled[option]} instead" for option in options if option in settled]
    if faults:
        raise ValueError("; ".join(faults))


def _job_name(stem: str) -> str:
    name = re.sub(r"[^\w.-]", "_", stem)
    return f"{name}_fit" if name in _NO_JOB else name


def _devices(given: argparse.Namespace) -> int:
    """Processes of a node: one a GPU, or one."""
    return max(1, int(given.gpus_per_node))


def _cores(given: argparse.Namespace, config: Mapping[str, Any]) -> int:
    """Cores of each process; by default one for itself and one for each worker of its loader."""
    return int(given.cpus_per_task or 1 + (config["data"].get("init_args") or {}).get("num_workers", 0))


def _options(given: argparse.Namespace, name: str, cores: int) -> dict[str, str | None]:
    log = f"{name}-%A_%a.out" if given.seeds else f"{name}-%j.out"
    return {
        "job-name": name,
        "array": given.seeds,
        "nodes": str(given.nodes),
        "ntasks-per-node": str(_devices(given)),
        "gpus-per-node": str(given.gpus_per_node) if given.gpus_per_node else None,
        "cpus-per-task": str(cores),
        "time": given.time,
        "signal": f"USR1@{given.grace}",
        "output": _quoted(f"{str(given.runs_dir.absolute()).replace('%', '%%')}/slurm/{log}"),
        "chdir": _quoted(str(Path.cwd())),
        "mem": given.mem,
        "partition": given.partition,
        "account": given.account,
    }


def _quoted(path: str) -> str:
    """Sbatch reads its lines as a shell reads words."""
    return f'"{path}"' if re.search(r"\s", path) else path


def _beside_the_runs(given: argparse.Namespace, name: str) -> Path:
    return Path(given.runs_dir) / "slurm" / f"{name}.sbatch"


def submit(found: list[Job]) -> list[str]:
    """Writes the scripts and submits them, each after the one before where it depends on that.

    Returns:
        The numbers of the jobs.

    Raises:
        RuntimeError: sbatch is missing or refuses a script; the message says which jobs are in the queue.
    """
    for job in found:
        job.path.parent.mkdir(parents=True, exist_ok=True)  # the logs go there too; without it a job ends unseen
        job.path.write_text(job.text)
    kept = ", ".join(str(job.path) for job in found)
    if shutil.which("sbatch") is None:
        raise RuntimeError(f"there is no sbatch on this machine; submit it where SLURM is: {kept}")
    numbers: list[str] = []
    for job in found:
        done = subprocess.run(job.command(numbers[-1] if numbers else ""), capture_output=True, text=True, check=False)
        if done.returncode:
            reason = done.stderr.strip().removeprefix("sbatch: error: ").replace("sbatch: error: ", "; ")
            hint = "; a cluster without GPUs takes --gpus-per-node 0" if "generic resource" in reason else ""
            queued = f"; in the queue already: {' '.join(numbers)} (take them out with scancel)" if numbers else ""
            raise RuntimeError(f"sbatch refused {job.path}: {reason}{hint}{queued}")
        numbers.append(done.stdout.strip().partition(";")[0])  # ;CLUSTER may follow
        print(f"{job.title}: job {numbers[-1]}", flush=True)
    return numbers


def make_parser() -> PlainParser:
    """The options of `structseg submit`."""
    parser = PlainParser(
        "submit",
        usage="%(prog)s CONFIG [options] [further options of structseg fit]",
        description="Writes a SLURM job of an experiment into RUNS/slurm, shows it and submits it; for a pipeline one "
        "a stage, each after the one before. A job that runs out of time, or is pre-empted, is requeued and resumed.",
    )
    parser.add_argument("config", metavar="CONFIG", help="an experiment or a pipeline, by path or name")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--gpus-per-node", type=int, default=1, metavar="G", help="a process each; 0: CPU; default: 1")
    parser.add_argument("--cpus-per-task", type=int, metavar="C", help="default: the loader's workers and one")
    parser.add_argument("--mem", metavar="M", help="of a node, as 32G; default: the cluster's")
    parser.add_argument("--time", default="04:00:00", metavar="T", help="of a job, which is requeued after it; 4 hours")
    parser.add_argument("--partition", metavar="P", help="default: the cluster's")
    parser.add_argument("--account", metavar="A", help="default: the user's")
    parser.add_argument("--seeds", metavar="0-4", help="a job for each; 0-9%%2: two at a time")
    parser.add_argument(
        "--grace", type=int, default=120, metavar="SECONDS", help="to save before the time is over; 120"
    )
    parser.add_argument("--job-name", metavar="NAME", help="default: the configuration's file name")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"), metavar="FOLDER", help="of all runs")
    parser.add_argument("--dry-run", action="store_true", help="show it; nothing is written or submitted")
    return parser


def parsed(args: list[str]) -> argparse.Namespace:
    """The options of `structseg submit` itself."""
    return make_parser().parse_args(args)


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
