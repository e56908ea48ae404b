"""A Slurm cluster of one node on the loopback interface: munged, slurmctld and slurmd in a folder of their own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX = "inv-design-slurm-"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "srun", "scontrol")
INSTALL = "apt-get install --no-install-recommends slurm-wlm munge"
START_SECONDS = 60.0

CONFIGURATION = """\
ClusterName=inv-design-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=30
MessageTimeout=60
InactiveLimit=0
OverTimeLimit=0
SchedulerParameters=sched_min_interval=500000,bf_interval=5
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Gres=gpu:1 State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES MaxTime=UNLIMITED State=UP
PartitionName=gpu Nodes={host} MaxTime=UNLIMITED State=UP
"""
"""No systemd, no cgroups, no accounting. The graphics cards are promised, not there: what counts is who gets them."""


class SlurmCluster:
    """A cluster of one node with two partitions, ``cpu`` (the default) and ``gpu``.

    Parameters
    ----------
    cpus
        What the node says it has, whatever the machine has.

    Attributes
    ----------
    folder
        Keys, state, spool and logs. In the system's temporary folder: munge's socket must be within reach of all.
    """

    def __init__(self, *, cpus: int = 2) -> None:
        self.cpus = cpus
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.folder.chmod(0o755)
        (self.folder / "owner").write_text(str(os.getpid()))
        self._daemons: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        """What points Slurm's commands to this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start the daemons and wait until the node takes jobs.

        Raises
        ------
        RuntimeError
            If one of them ends or the node stays away; the message shows the tails of the logs.
        """
        host = socket.gethostname().split(".")[0]
        ports = free_ports(2)
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=host, controller_port=ports[0], node_port=ports[1], folder=self.folder, cpus=self.cpus
            )
        )
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        key = self.folder / "munge.key"
        key.touch(mode=0o400)
        key.write_bytes(secrets.token_bytes(1024))
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{option}={self.folder}/munge.{name}" for option, name in files.items()]
        self._start("munged", "--foreground", *options)
        self._wait((self.folder / "munge.socket").exists, "munged")
        self._start("slurmctld", "-D", "-i")
        self._start("slurmd", "-D")
        self._wait(lambda: self.call("sinfo", "-h", "-o", "%T", "-p", "cpu").stdout.strip() == "idle", "the node")

    def stop(self) -> None:
        """Cancel the jobs, end the daemons by their ids and remove the folder."""
        if len(self._daemons) == 3 and all(daemon.poll() is None for daemon in self._daemons):
            with suppress(subprocess.TimeoutExpired):
                self.call("scancel", "--user", "root")
                deadline = time.monotonic() + 40
                while self.jobs() and time.monotonic() < deadline:
                    time.sleep(0.5)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(timeout=15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        remove(self.folder)

    def call(self, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands on this cluster."""
        return subprocess.run(
            words,
            cwd=cwd,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )

    def jobs(self, state: str | None = None) -> list[str]:
        """Return the ids of the jobs in the queue, or of those in one state such as ``RUNNING``."""
        words = ["squeue", "-h", "-o", "%A"] + ([] if state is None else ["-t", state])
        return self.call(*words).stdout.split()

    def processes(self, *, program: str) -> dict[int, str]:
        """Return the processes of jobs of this cluster that run a program, such as a script, and their jobs."""
        return {
            pid: variables["SLURM_JOB_ID"]
            for pid, variables in processes_of(self.folder).items()
            if "SLURM_JOB_ID" in variables and any(word.endswith(program) for word in command_line(pid).split()[:2])
        }

    def logs(self) -> str:
        """Return the tails of the daemons' logs."""
        tails = []
        for path in sorted(self.folder.glob("*.log")):
            tails.append(f"-- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:]))
        return "\n".join(tails)

    def _start(self, *words: str) -> None:
        with (self.folder / f"{words[0]}.log").open("wb") as output:
            self._daemons.append(
                subprocess.Popen(
                    words,
                    env=os.environ | self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            ended = [daemon for daemon in self._daemons if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                names = ", ".join(f"{daemon.args[0]} ended with {daemon.returncode}" for daemon in ended)  # type: ignore[index]
                raise RuntimeError(f"{what} is not ready: {names or f'waited {START_SECONDS:g} s'}\n{self.logs()}")
            time.sleep(0.3)


def why_not() -> str | None:
    """Return what is missing for a cluster here, after an attempt to install it; ``None`` if nothing is."""
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if os.geteuid() != 0:
        return "Slurm's daemons are started as root, who may run the jobs of all; run this lane as root"
    if missing:
        return f"no {', '.join(missing)} here; install them: {INSTALL} (tests/hpc/install.sh does)"
    return None


def sweep() -> None:
    """End what killed test runs left behind: clusters whose owner is gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            os.kill(int((folder / "owner").read_text()), 0)
        except (OSError, ValueError):
            remove(folder)


def remove(folder: Path) -> None:
    """Kill the processes of the cluster in a folder, by their ids, and remove the folder."""
    for pid in processes_of(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> dict[int, dict[str, str]]:
    """Return the processes that were started with the configuration in a folder, and their variables."""
    mark = f"SLURM_CONF={folder}/slurm.conf".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            variables = (entry / "environ").read_bytes().split(b"\0")
            if mark in variables:
                pairs = (variable.decode(errors="replace").partition("=") for variable in variables)
                found[int(entry.name)] = {name: value for name, _, value in pairs}
    return found


def command_line(pid: int) -> str:
    """Return a process's command line, or "" if it has ended."""
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
