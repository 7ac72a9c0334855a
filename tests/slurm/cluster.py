"""A real SLURM cluster of two nodes on this machine, in one folder, for tests: needs root and Debian's packages.

    python -m tests.slurm.cluster up /tmp/lab      # installs slurm-wlm and munge where they are missing, starts, says what to export
    python -m tests.slurm.cluster down /tmp/lab    # ends every process of it and removes the folder; the packages stay

Everything that it writes is in the folder, munge's socket and key too; the ports are free ones.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NODES = ("n1", "n2")
_DAEMONS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "scancel", "squeue")
_MARK = "STRUCTSEG_TEST_CLUSTER"  # in the environment of the daemons
_CONFIGURATION = """\
ClusterName=lab
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5,socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
EnforcePartLimits=ALL
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=6
KillWait=20
JobRequeue=1
FirstJobId={first}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=2 RealMemory=2000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=2 RealMemory=2000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=30 State=UP
"""


class NoCluster(RuntimeError):
    """A cluster cannot be had here; the message says why."""


def install() -> None:
    """Debian's packages, where they are missing.

    Raises:
        NoCluster: not root, no apt, or no network.
    """
    if os.geteuid():
        raise NoCluster("the daemons of SLURM are started as root, and this is another user")
    if all(map(shutil.which, _DAEMONS)):
        return
    if not shutil.which("apt-get"):
        raise NoCluster("SLURM is not installed, and there is no apt-get to install it with")
    settings = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    wanted = ["install", "--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=60", "slurm-wlm", "munge"]
    for args in (["update"], wanted):
        done = subprocess.run(["apt-get", "-qq", *args], env=settings, capture_output=True, text=True, timeout=300)
    if done.returncode or not all(map(shutil.which, _DAEMONS)):
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise NoCluster(f"apt-get could not install slurm-wlm and munge: {reason}")


class Cluster:
    """The cluster in a folder.

    Args:
        folder: absolute, short (it holds a socket); need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def environment(self) -> dict[str, str]:
        """What clients and jobs need: where the cluster is, and an address for what the names of its nodes stand for."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1"}

    def up(self) -> None:
        """Starts it, and waits until both nodes are idle.

        Raises:
            NoCluster: it did not start; with the last line of a log.
        """
        for name in ("state", *NODES):
            (self.folder / name).mkdir(parents=True)
        names = ("controller", *NODES)
        with contextlib.ExitStack() as stack:  # all at once, so that no port comes twice
            sockets = [stack.enter_context(socket.socket()) for _ in names]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            ports = {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}
        first = random.randrange(1000, 9000)  # Lightning makes its port from the number of the job
        text = _CONFIGURATION.format(folder=self.folder, host=socket.gethostname().split(".")[0], first=first, **ports)
        (self.folder / "slurm.conf").write_text(text)
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        paths = [f"--{option}={self.folder}/munge.{suffix}" for option, suffix in files.items()]
        self._start("munged", "--force", *paths)  # force: its folder need not be open to all
        self._start("slurmctld")
        for node in NODES:
            self.start_node(node)
        self.wait(lambda: self.states() == dict.fromkeys(NODES, "idle"), "idle nodes", 30)

    def _start(self, *command: str) -> None:
        env = {**os.environ, **self.environment, _MARK: str(self.folder)}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            raise NoCluster(f"{command[0]} did not start: {(done.stderr.strip().splitlines() or ['?'])[-1]}")

    def start_node(self, node: str) -> None:
        """Starts the daemon of a node."""
        self._start("slurmd", "-N", node)

    def kill_node(self, node: str) -> None:
        """Kills the daemon of a node, as if its machine had died; what runs on it lives on, as the machine does."""
        os.kill(int((self.folder / f"{node}.pid").read_text()), signal.SIGKILL)

    def call(self, *command: str, **more: str) -> str:
        """What a command of SLURM prints.

        Args:
            command: and its arguments.
            more: environment.
        """
        env = {**os.environ, **self.environment, **more}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def states(self) -> dict[str, str]:
        """The state of each node."""
        try:
            lines = self.call("sinfo", "--noheader", "--Node", "--format=%N %t").splitlines()
        except RuntimeError:  # the controller is not there yet
            return {}
        return dict(line.split() for line in lines)

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        words = self.call("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def hurry(self, number: str) -> None:
        """A requeued job begins now, not after the lifetime of its credential."""
        with contextlib.suppress(RuntimeError):
            self.call("scontrol", "update", f"JobId={number}", "StartTime=now")

    def wait(self, condition: Callable[[], object], what: str, seconds: float) -> None:
        """Waits for something.

        Raises:
            NoCluster: it did not come.
        """
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                log = self.folder / "slurmctld.log"
                last = log.read_text().splitlines()[-1:] if log.is_file() else []
                raise NoCluster(f"no {what} after {seconds:.0f} s; nodes {self.states()}; controller: {last}")
            time.sleep(0.2)

    def _processes(self) -> Iterator[int]:
        """Its daemons, and the processes of its jobs; not a shell that merely was told where the cluster is."""
        daemon, known = f"{_MARK}={self.folder}".encode(), f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                found = path.read_bytes().split(b"\0")
                if daemon in found or (known in found and any(one.startswith(b"SLURM_JOB_ID=") for one in found)):
                    yield int(path.parent.name)

    def down(self) -> None:
        """Ends everything and removes the folder."""
        if not (self.folder / "slurm.conf").is_file():
            return
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            self.call("scancel", "--signal=KILL", "--full", "--user=root")
        for number in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + 5
            for process in (found := list(self._processes())):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)
            while found and list(self._processes()) and time.monotonic() < end:
                time.sleep(0.1)
        shutil.rmtree(self.folder)


def main(args: list[str]) -> None:
    """The command line."""
    if len(args) != 2 or args[0] not in ("up", "down"):
        raise SystemExit(__doc__)
    cluster = Cluster(Path(args[1]).absolute())
    if args[0] == "down":
        cluster.down()
        return
    try:
        install()
        cluster.up()
    except NoCluster as error:
        cluster.down()
        raise SystemExit(f"no cluster: {error}") from None
    print("\n".join(f"export {name}={value}" for name, value in cluster.environment.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
