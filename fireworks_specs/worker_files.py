"""The files that FireWorks' workers read: launchpad, workers and queue adapters, filled in for a campaign."""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CLUSTERS = ("slurm", "pbs")
KINDS = ("gpu", "cpu")
SECRET = ("my_launchpad.yaml", "jobflow.yaml")
"""The files in which a password may stand."""
_PLAIN_PATH = re.compile(r"[\w./+@=-]+")


def worker_files(cluster: str, *, database: str, folder: Path, programs: Path) -> dict[str, str]:
    """Return the files for a cluster, name -> text.

    Parameters
    ----------
    cluster
        One of :data:`CLUSTERS`.
    database
        URI of the campaign's database, which is the launchpad's.
    folder
        Absolute path of the folder in which they will lie: jobs start elsewhere.
    programs
        Absolute path of the folder that holds ``rlaunch``: a job's login shell need not have it on its PATH.

    Raises
    ------
    ValueError
        If the database is no server, or a path cannot stand in the scripts that FireWorks writes.
    """
    from stores.connection import redact

    if not re.match(r"mongodb(\+srv)?://", database):
        raise ValueError(
            f"{redact(database)!r} is a file of one process; workers need a server: give --database "
            "mongodb://HOST/NAME, or set it in campaign.yaml"
        )
    for path in (folder, programs):
        if not _PLAIN_PATH.fullmatch(str(path)):  # FireWorks' scripts do not quote
            raise ValueError(f"{str(path)!r} cannot stand in a queue script; choose a path without blanks and signs")
    values = {
        "DATABASE_URI": _quoted(database),
        "DATABASE_NAME": _quoted(database_name(database)),
        "FOLDER": str(folder),
        "PROGRAMS": str(programs),
    }
    sources = {name: name for name in (*SECRET, *(f"my_fworker_{kind}.yaml" for kind in KINDS))}
    sources |= {f"my_qadapter_{kind}.yaml": f"my_qadapter_{cluster}_{kind}.yaml" for kind in KINDS}
    return {name: _filled(source, values) for name, source in sources.items()}


def database_name(uri: str) -> str:
    """Return the database that a URI names, or the default one."""
    from stores.connection import DEFAULT_NAME

    match = re.match(r"[^:]+://[^/]+/([^?]+)", uri)
    return match.group(1) if match else DEFAULT_NAME


def _filled(template: str, values: dict[str, str]) -> str:
    text = resources.files("fireworks_specs").joinpath("templates", template).read_text()
    return re.sub("|".join(values), lambda found: values[found.group()], text)


def _quoted(text: str) -> str:
    """Return a text as YAML in single quotes."""
    return "'" + text.replace("'", "''") + "'"
