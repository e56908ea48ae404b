"""Schedulers: what Slurm or PBS says about jobs; pure parsers of its commands' output, and the calls."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

Fate = Literal[
    "waiting", "running", "suspended", "completed", "failed", "killed", "timeout", "out_of_memory", "preempted",
    "cancelled", "node_failed", "unknown",
]  # fmt: skip
"""Where a job is, or how it ended."""
ALIVE: frozenset[Fate] = frozenset({"waiting", "running", "suspended"})
UNTOLD: frozenset[Fate] = frozenset({"completed", "failed", "killed", "cancelled"})
"""Ends whose cause the job's own log may tell better."""

SECONDS = 30.0
"""How long a scheduler's command may take."""
DETAILED = 100
"""Ended jobs that are asked for one by one."""
LOG_BYTES = 8192

SLURM_FATES: Mapping[str, Fate] = {
    **dict.fromkeys(("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"), "waiting"),
    **dict.fromkeys(("RESV_DEL_HOLD", "POWER_UP_NODE"), "waiting"),
    **dict.fromkeys(("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING"), "running"),
    **dict.fromkeys(("SUSPENDED", "STOPPED"), "suspended"),
    "COMPLETED": "completed",
    **dict.fromkeys(("FAILED", "LAUNCH_FAILED", "RECONFIG_FAIL"), "failed"),
    **dict.fromkeys(("TIMEOUT", "DEADLINE"), "timeout"),
    "OUT_OF_MEMORY": "out_of_memory",
    "PREEMPTED": "preempted",
    **dict.fromkeys(("CANCELLED", "REVOKED"), "cancelled"),
    **dict.fromkeys(("NODE_FAIL", "BOOT_FAIL"), "node_failed"),
}
SLURM_OOM_SIGNAL = 125
SCONTROL_IDS = re.compile(
    r"JobId=(\d+)(?: ArrayJobId=(\d+) ArrayTaskId=(\S+))?(?: ArrayTaskThrottle=\d+)?"
    r"(?: HetJobId=(\d+) HetJobOffset=(\d+))?"
)
SCONTROL_STATE = re.compile(r"(?<!\S)JobState=(\S+) Reason=(\S*)")
SQUEUE_FORMAT = "%A|%i|%T|%r|%N"
SACCT_FORMAT = "JobIDRaw,JobID,State,ExitCode,NodeList"

PBS_FATES: Mapping[str, Fate] = {
    **dict.fromkeys("QHWT", "waiting"),
    **dict.fromkeys("REB", "running"),
    **dict.fromkeys("SU", "suspended"),
    "M": "unknown",
    **dict.fromkeys("FXC", "completed"),
}
PBS_PRO_EXITS: Mapping[int, Fate] = {-26: "out_of_memory", -27: "out_of_memory", -28: "timeout", -29: "timeout"}
TORQUE_EXITS: Mapping[int, Fate] = {-10: "out_of_memory", -11: "timeout", -12: "timeout"}
PBS_TERMINATED = "91"
"""Substate of a job that was deleted."""

LOG_FATES: Sequence[tuple[str, Fate]] = (
    (r"DUE TO TIME LIMIT|PBS: job killed: (walltime|cput)", "timeout"),
    (r"oom[-_]kill|out[ _-]of[ _-]memory|PBS: job killed: (v|p|pv)?mem|Exceeded job memory limit", "out_of_memory"),
    (r"DUE TO PREEMPTION", "preempted"),
    (r"DUE TO NODE FAILURE", "node_failed"),
    (r"CANCELLED AT \S+ \*\*\*", "cancelled"),
)
"""What schedulers write into a job's standard error, the most telling first."""


@dataclass(frozen=True)
class Job:
    """A job as its scheduler tells it.

    Attributes
    ----------
    id
        As the job's own environment has it.
    fate
        Where it is, or how it ended.
    said
        The scheduler's own words.
    hosts
        Where it runs or ran; empty if nowhere yet.
    """

    id: str
    fate: Fate
    said: str
    hosts: str = ""

    @property
    def ended(self) -> bool:
        """Whether it is known to be over."""
        return self.fate not in ALIVE and self.fate != "unknown"


@dataclass(frozen=True)
class Queue:
    """What a scheduler answered: its name, its cluster's name (empty if it has none) and the jobs that it knows."""

    scheduler: str
    cluster: str
    jobs: Mapping[str, Job]

    def __getitem__(self, job_id: str) -> Job | None:
        """Return a job, ``None`` if the scheduler does not know it (any more)."""
        return self.jobs.get(job_id)

    def owns(self, worker_job: Mapping[str, str]) -> bool:
        """Return whether a job that a worker told about itself is one of this cluster's."""
        return worker_job.get("scheduler") == self.scheduler and worker_job.get("cluster", "") in ("", self.cluster)


class Scheduler(Protocol):
    """A scheduler that can be asked."""

    name: str

    def ask(self, ids: Iterable[str]) -> Queue:
        """Return what the scheduler knows about some jobs.

        Raises
        ------
        OSError
            If its command is not there, fails or takes too long.
        ValueError
            If its output is not understood.
        """
        ...


def find_scheduler(kind: Literal["auto", "slurm", "pbs", "none"] = "auto") -> Scheduler | None:
    """Return the scheduler of this machine by its commands on PATH, or the one that is asked for."""
    if kind == "slurm" or (kind == "auto" and shutil.which("squeue")):
        return Slurm()
    if kind == "pbs" or (kind == "auto" and shutil.which("qstat")):
        return Pbs()
    return None


# -- Slurm ------------------------------------------------------------------------------------------------------------


class Slurm:
    """Slurm: ``squeue``, then ``scontrol`` for what has ended and ``sacct``, if any, for what is forgotten."""

    name = "slurm"

    def ask(self, ids: Iterable[str]) -> Queue:
        """See :class:`Scheduler`."""
        wanted = sorted(set(ids))
        jobs = self._squeue(wanted) if wanted else {}
        for job in [job for job in jobs.values() if job.ended and job.id in wanted][:DETAILED]:
            code, out, _ = call(["scontrol", "--oneliner", "show", "job", job.id])
            if code == 0 and (detailed := parse_scontrol(out, job.id)) is not None:
                jobs[job.id] = detailed
        forgotten = [job_id for job_id in wanted if job_id not in jobs]
        return Queue(self.name, self._cluster(), {**self._sacct(forgotten), **jobs})

    def _squeue(self, ids: list[str]) -> dict[str, Job]:
        code, out, err = call(
            ["squeue", "--noheader", "--states=all", f"--format={SQUEUE_FORMAT}", f"--jobs={','.join(ids)}"]
        )
        if code and "Invalid job id" not in err:  # which it says when none of them is left
            raise OSError(f"squeue failed: {_line(err) or f'exit code {code}'}")
        return parse_squeue("" if code else out)

    def _sacct(self, ids: list[str]) -> dict[str, Job]:
        """Return what the accounting knows; nothing where there is none."""
        if not ids or shutil.which("sacct") is None:
            return {}
        try:
            code, out, _ = call(["sacct", "-n", "-P", "-X", f"--format={SACCT_FORMAT}", f"--jobs={','.join(ids)}"])
            return parse_sacct("" if code else out)
        except (OSError, ValueError):
            return {}

    def _cluster(self) -> str:
        try:
            _, out, _ = call(["scontrol", "show", "config"])
        except OSError:
            return ""
        found = re.search(r"^ClusterName\s*=\s*(\S+)", out, re.MULTILINE)
        return found[1] if found else ""


def parse_squeue(text: str) -> dict[str, Job]:
    """Return job id -> job from lines in :data:`SQUEUE_FORMAT`; an element of an array has two ids.

    Raises
    ------
    ValueError
        If a line is no job.
    """
    jobs: dict[str, Job] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        fields = line.split("|")
        if len(fields) != 5 or not fields[0].isdigit() or not re.fullmatch(r"[A-Z_]+", fields[2]):
            raise ValueError(f"squeue wrote {line[:80]!r}, which is no job")
        raw, shown, state, reason, hosts = fields
        said = state if reason in ("None", "") else f"{state} ({reason})"
        job = Job(raw, SLURM_FATES.get(state, "unknown"), said, hosts)
        jobs |= {raw: job, shown: replace(job, id=shown)}
    return jobs


def parse_scontrol(text: str, job_id: str | None = None) -> Job | None:
    """Return a job from ``scontrol --oneliner show job``: the one of an id, else the first; ``None`` if there is none.

    For the first id of an array, or of a heterogeneous job, scontrol prints every part, each on its line.
    """
    for line in text.splitlines():
        # a job's name comes before its state, comment and folders after: they are its user's own words
        ids, state = SCONTROL_IDS.match(line), SCONTROL_STATE.search(line)
        if ids is None or state is None:
            continue
        raw, array, task, leader, offset = ids.groups()
        if job_id not in (None, raw, f"{array}_{task}", f"{leader}+{offset}"):
            continue
        told: dict[str, str] = {}
        for key, value in re.findall(r"(?<!\S)(ExitCode|NodeList)=(\S*)", line[state.end() :]):
            told.setdefault(key, value)
        said = state[1] if state[2] == "None" else f"{state[1]} ({state[2]})"
        hosts = told.get("NodeList", "").replace("(null)", "")
        return _slurm_job(job_id or raw, state[1], said, hosts, told.get("ExitCode", ""))
    return None


def parse_sacct(text: str) -> dict[str, Job]:
    """Return job id -> job from lines in :data:`SACCT_FORMAT`, parted by ``|``; an element of an array has two ids.

    Raises
    ------
    ValueError
        If a line is no job.
    """
    jobs: dict[str, Job] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        fields = line.split("|")
        if len(fields) != 5 or not fields[0].isdigit() or not fields[2]:
            raise ValueError(f"sacct wrote {line[:80]!r}, which is no job")
        raw, shown, state, exit_code, hosts = fields
        job = _slurm_job(raw, state.split()[0].rstrip("+"), state, hosts.replace("None assigned", ""), exit_code)
        jobs |= {raw: job, shown: replace(job, id=shown)}
    return jobs


def _slurm_job(job_id: str, state: str, said: str, hosts: str, exit_code: str) -> Job:
    """Return a job; of one that failed, ``CODE:SIGNAL`` says how."""
    fate = SLURM_FATES.get(state, "unknown")
    code, _, signal = exit_code.partition(":")
    if fate == "failed" and signal.isdigit() and int(signal):
        fate = "out_of_memory" if int(signal) == SLURM_OOM_SIGNAL else "killed"
        said += f", signal {signal}"
    elif fate == "failed" and code.isdigit() and int(code):
        said += f", exit code {code}"
    return Job(job_id, fate, said, hosts)


# -- PBS --------------------------------------------------------------------------------------------------------------


class Pbs:
    """PBS Pro, OpenPBS and TORQUE: ``qstat -f``, then ``qstat -x -f`` (not on TORQUE) for what has ended."""

    name = "pbs"

    def ask(self, ids: Iterable[str]) -> Queue:
        """See :class:`Scheduler`."""
        wanted = sorted(set(ids))
        jobs = self._qstat(["-f"], wanted)
        forgotten = [job_id for job_id in wanted if job_id not in jobs]
        if forgotten:
            with suppress(OSError, ValueError):  # TORQUE's -x means XML; a server may keep no history
                jobs |= self._qstat(["-x", "-f"], forgotten)
        return Queue(self.name, "", jobs)

    def _qstat(self, options: list[str], ids: list[str]) -> dict[str, Job]:
        if not ids:
            return {}
        code, out, err = call(["qstat", *options, *ids])
        # it fails when one of them is unknown or has finished, and still tells of the others
        gone = re.compile(r"Unknown Job|has finished|Unknown queue", re.IGNORECASE)
        if code and not all(gone.search(line) for line in err.splitlines() if line.strip()):
            raise OSError(f"qstat failed: {_line(err) or f'exit code {code}'}")
        if code and not err.strip():
            raise OSError(f"qstat failed: exit code {code}")
        return parse_qstat(out)


def parse_qstat(text: str) -> dict[str, Job]:
    """Return job id -> job from the output of ``qstat -f``, under the whole id and under its number.

    Raises
    ------
    ValueError
        If it is no such output.
    """
    jobs: dict[str, Job] = {}
    head, *blocks = re.split(r"^Job Id:\s*", text, flags=re.MULTILINE)
    if head.strip():
        raise ValueError(f"qstat wrote {head.strip()[:80]!r}, which is no job")
    for block in blocks:
        whole, _, rest = block.partition("\n")
        rest = re.sub(r"\n\t", "", rest)  # long values go on after a tab
        fields = {key.lower(): value for key, value in re.findall(r"^ {4}([\w.]+) = (.*)$", rest, re.MULTILINE)}
        if not whole.strip() or "job_state" not in fields:
            raise ValueError(f"qstat wrote a job {whole.strip()[:80]!r} without a state")
        job = _pbs_job(whole.strip(), fields)
        jobs |= {job.id: job, job.id.split(".")[0]: job}
    return jobs


def _pbs_job(job_id: str, fields: Mapping[str, str]) -> Job:
    """Return a job from its attributes, whose names are in lower case."""
    state = fields["job_state"].strip()
    fate = PBS_FATES.get(state, "unknown")
    said = f"state {state}"
    if fate == "completed":
        fate, how = _pbs_end(state, fields)
        said += how
    if fields.get("comment"):
        said += f", {fields['comment'].strip()}"
    hosts = ",".join(dict.fromkeys(part.split("/")[0] for part in fields.get("exec_host", "").split("+") if part))
    return Job(job_id, fate, said, hosts)


def _pbs_end(state: str, fields: Mapping[str, str]) -> tuple[Fate, str]:
    """Return how a finished job ended, and its exit status in words."""
    try:
        status = int(fields.get("exit_status", ""))
    except ValueError:  # it never ran
        return "cancelled", ""
    said = f", exit status {status}"
    if status < 0:
        return (TORQUE_EXITS if state == "C" else PBS_PRO_EXITS).get(status, "failed"), said
    if fields.get("substate", "").strip() == PBS_TERMINATED:
        return "cancelled", said
    if status > 128:  # 128 + signal of a shell, 256 + signal of the scheduler
        return "killed", f"{said} (signal {status % 128})"
    return ("failed" if status else "completed"), said


# -- the job's own log, and calls -------------------------------------------------------------------------------------


def fate_of_log(text: str) -> tuple[Fate, str] | None:
    """Return how a job ended by what its scheduler wrote into its standard error, and that line; else ``None``."""
    for pattern, fate in LOG_FATES:
        if found := re.search(rf"^.*(?:{pattern}).*$", text, re.MULTILINE | re.IGNORECASE):
            return fate, found[0].strip()
    return None


def job_logs(folder: Path, job_id: str | None = None) -> list[Path]:
    """Return the files of a job's output at a launch directory or up to two folders above it, standard error first.

    ``rlaunch rapidfire`` makes a folder per firework below the one that its job started in.
    """
    number = re.escape((job_id or "").split(".")[0]) or r"\d+"
    name = re.compile(rf"(.*-{number}\.(error|err|out)|slurm-{number}\.out|.*\.[eo]{number})")
    order = {"r": 0, "t": 1}  # .error and .err before .out
    for place in (folder, *list(folder.parents)[:2]):
        try:
            found = [path for path in place.iterdir() if name.fullmatch(path.name)]
        except OSError:
            continue
        if found:
            return sorted(found, key=lambda path: (order.get(path.name[-1], 0), path.name))
    return []


def job_id_of_log(path: Path) -> str | None:
    """Return the job's number in the name of its output file, ``None`` if it has none."""
    found = re.search(r"-(\d+)\.\w+$|\.[eo](\d+)$", path.name)
    return (found[1] or found[2]) if found else None


def tail(path: Path) -> str:
    """Return the end of a text file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - LOG_BYTES, 0))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def call(command: list[str]) -> tuple[int, str, str]:
    """Run a scheduler's command; return its exit code, output and errors.

    Raises
    ------
    OSError
        If it is not there, or takes longer than :data:`SECONDS`.
    """
    own = ("SQUEUE_", "SACCT_", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "PBS_DEFAULT_FORMAT")  # a user's own formats
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=SECONDS, check=False, env=environment, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise OSError(f"{command[0]} is not on PATH") from None
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]} did not answer within {SECONDS:g} s") from None
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
