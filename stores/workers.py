"""Which process works: what it says about itself, and whether it is known to be dead."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def this_worker() -> dict[str, Any]:
    """Return what a claim says about its worker: host, process id, and which boot and namespace the id belongs to.

    Inside a job of Slurm or PBS, ``job`` says which: :func:`this_job`.
    """
    worker = {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine()}
    job = this_job()
    return {**worker, "job": job} if job else worker


def this_job(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the scheduler's job that this process runs in: ``scheduler``, ``id`` and ``cluster`` ("" if unnamed).

    It is empty outside of one.
    """
    environment = os.environ if environment is None else environment
    if job_id := environment.get("SLURM_JOB_ID", ""):
        return {"scheduler": "slurm", "id": job_id, "cluster": environment.get("SLURM_CLUSTER_NAME", "")}
    if job_id := environment.get("PBS_JOBID", ""):
        return {"scheduler": "pbs", "id": job_id, "cluster": ""}
    return {}


def is_dead(worker: Mapping[str, Any]) -> bool:
    """Return whether a worker is known to be dead: a process of this machine that is not there any more."""
    return bool(worker.get("machine")) and worker["machine"] == _machine() and has_ended(worker.get("pid"))


def is_alive(worker: Mapping[str, Any]) -> bool:
    """Return whether a worker is known to be alive: a process of this machine that is there."""
    here = bool(worker.get("machine")) and worker["machine"] == _machine()
    return here and isinstance(worker.get("pid"), int) and not has_ended(worker["pid"])


def has_ended(pid: Any) -> bool:
    """Return whether no process of this machine has an id; False for what is no id."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, TypeError, ValueError):  # it runs as someone else; it is no number
        return False
    return False


@cache
def _machine() -> str:
    """Return what process ids are unique in: this boot of this machine, and the namespace of ids."""
    boot = namespace = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return f"{boot} {namespace}" if boot and namespace else ""
