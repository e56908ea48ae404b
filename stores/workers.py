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
    """Return what a claim says about its worker: host, process id, and which boot and namespace the id belongs to."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine()}


def is_dead(worker: Mapping[str, Any]) -> bool:
    """Return whether a worker is known to be dead: a process of this machine that is not there any more."""
    return bool(worker.get("machine")) and worker["machine"] == _machine() and has_ended(worker.get("pid"))


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
