"""Who made a document, when, with which code and settings."""

from __future__ import annotations

import getpass
import os
import platform
import re
import shlex
import socket
import sys
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stores.connection import scrub
from stores.lineage import lineage

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["lineage", "provenance"]

PACKAGES = {
    "inv_design": "inv-design",
    "torch": "torch",
    "pymatgen": "pymatgen",
    "ase": "ase",
    "spglib": "spglib",
    "mace": "mace-torch",
    "chgnet": "chgnet",
    "atomate2": "atomate2",
    "fireworks": "FireWorks",
    "numpy": "numpy",
}

_SECRET = re.compile(r"(?i)((?:password|passwd|secret|token|api[-_]?key)\w*[=\s]+)('[^']*'|\"[^\"]*\"|\S+)")


def provenance(*, inputs: Iterable[str] = (), command: str | None = None, fw_id: int | None = None) -> dict[str, Any]:
    """Return the provenance of a document that is made now.

    Parameters
    ----------
    inputs
        Ids of the documents it is made from.
    command
        The command line; this process's own by default. Credentials are taken out.
    fw_id
        The firework, when one runs.

    Returns
    -------
    dict
        ``created_at`` (UTC), ``created_by`` (user@host), ``versions``, ``command``, ``inputs``, and ``fw_id`` if given.
    """
    record: dict[str, Any] = {
        "created_at": datetime.now(UTC).replace(tzinfo=None),  # BSON dates are UTC without saying so
        "created_by": f"{_user()}@{socket.gethostname()}",
        "versions": dict(versions()),
        "command": scrub_secrets(_command_line() if command is None else command),
        "inputs": list(dict.fromkeys(inputs)),
    }
    if fw_id is not None:
        record["fw_id"] = int(fw_id)
    return record


@cache
def versions() -> dict[str, str]:
    """Return the versions of the software that determines results."""
    found = {"python": platform.python_version()}
    for name, distribution in PACKAGES.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return found


def scrub_secrets(text: str) -> str:
    """Return text without the credentials of URIs and without the values of password-like options."""
    return _SECRET.sub(r"\1***", scrub(text))


def _command_line() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for this user
        return str(os.getuid())
