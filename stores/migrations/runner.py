"""Run migrations: check that nothing stands in the way, do what is left to do, write it into the history."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from stores.migrations import plan
from stores.schema import (
    COLLECTION,
    DOCUMENT,
    FIRST,
    SCHEMA_VERSION,
    has_records,
    is_foreign,
    signature,
    stamp,
    stamp_of,
)
from stores.workers import has_ended

if TYPE_CHECKING:
    from collections.abc import Callable

    from stores.connection import Connection

    Progress = Callable[[int, int, str], None]

ACTIVE = ("RUNNING", "RESERVED")


def target_version(current: int, to: int | None) -> int:
    """Return the version to migrate to, the present one by default.

    Raises
    ------
    ValueError
        If there is no such version, or it is older than the database's.
    """
    wanted = SCHEMA_VERSION if to is None else to
    if current > SCHEMA_VERSION:
        raise ValueError(
            f"the database has schema {current}, newer than the {SCHEMA_VERSION} of this inv_design; "
            "install the newer version of inv_design"
        )
    if wanted > SCHEMA_VERSION or wanted < FIRST:
        raise ValueError(f"there is no schema {wanted}; this version of inv_design knows {FIRST} to {SCHEMA_VERSION}")
    if wanted < current:
        raise ValueError(f"the database has schema {current}; a migration leads forward only, restore a backup instead")
    return wanted


def blockers(connection: Connection) -> list[str]:
    """Return what stands in the way of a migration, one line each; nothing is written."""
    from stores.roles import lacking

    found = []
    if lacks := lacking(connection, "curator"):
        found.append(f"this user may not {', '.join(lacks[:3])}; migrate as a curator (`inv-design db users`)")
    other = (stamp_of(connection) or {}).get("migrating")
    if other and not _is_gone(other):
        found.append(
            f"{other['by']} (process {other['pid']}) has been migrating it since {other['at']:%Y-%m-%d %H:%M} UTC"
        )
    if connection.kind == "embedded":  # its lock says that nobody else writes
        return found
    running = connection.db["fireworks"].count_documents({"state": {"$in": list(ACTIVE)}})
    if running:
        found.append(f"{running} fireworks are running or reserved; wait for them, or see `inv-design doctor`")
    claims = connection.db["claims"].count_documents({"expires_at": {"$gt": connection.now()}})
    if claims:
        found.append(f"{claims} results are claimed by workers; stop them, or wait until the claims are past")
    return found


def migrate(
    connection: Connection, to: int | None = None, *, force: bool = False, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Bring a database to a schema version and return the entries that its history got.

    A migration that was killed is taken up where it was. The connection must be one for writing, made inside
    :func:`stores.schema.unchecked`.

    Parameters
    ----------
    force
        Go ahead although others seem to write.
    progress
        Called with (changes done, changes in all, what is being done).

    Raises
    ------
    ValueError
        If the version is impossible.
    RuntimeError
        If something stands in the way (see :func:`blockers`).
    """
    current = _begin_version(connection)
    end = target_version(current, to)
    if current == end:  # one that was killed after its last step still holds the database
        connection.db[COLLECTION].update_one({"_id": DOCUMENT}, {"$unset": {"migrating": 1}})
        connection.ensure_indexes()
        return []
    if (found := blockers(connection)) and not force:
        raise RuntimeError(f"{'; '.join(found)} (--force goes ahead)")
    documents = connection.db[COLLECTION]
    mine = {**signature(), "to": end, "host": socket.gethostname(), "pid": os.getpid()}
    documents.update_one({"_id": DOCUMENT}, {"$set": {f"migrating.{key}": value for key, value in mine.items()}})
    planned = plan(connection, current, end)
    done, total = 0, sum(item.count for item in planned)
    entries = []
    for version in range(current + 1, end + 1):
        for item in (item for item in planned if item.version == version):
            for number, change in enumerate(item.step.run(connection), start=1):
                documents.update_one({"_id": DOCUMENT}, {"$push": {f"migrating.changes.{item.step.name}": change}})
                if progress is not None:
                    progress(done + min(number, item.count), total, item.step.name)
            done += item.count  # one change may be of many documents
        entries.append(_finish_version(connection, version))
    if progress is not None and total:
        progress(total, total, "done")
    documents.update_one({"_id": DOCUMENT}, {"$unset": {"migrating": 1}})
    connection.ensure_indexes()
    return entries


def _begin_version(connection: Connection) -> int:
    """Return the version of a database; one that never had a stamp gets it."""
    found = stamp_of(connection)
    if found is None:
        if is_foreign(connection):
            raise RuntimeError(f"{connection.uri_redacted} holds collections of another program; nothing was changed")
        old = has_records(connection)
        stamp(connection, FIRST if old else SCHEMA_VERSION, note="from before versions were stamped" if old else "new")
        found = stamp_of(connection)
    assert found is not None
    return int(found["version"])


def _finish_version(connection: Connection, version: int) -> dict[str, Any]:
    """Write a version and what led to it into the history, in one update; return the entry."""
    found = stamp_of(connection) or {}
    changes = found.get("migrating", {}).get("changes", {})
    entry = {"from": version - 1, "to": version, **signature(), "changes": changes}
    connection.db[COLLECTION].update_one(
        {"_id": DOCUMENT, "version": version - 1},
        {
            "$set": {"version": version, "inv_design": entry["inv_design"], "migrating.changes": {}},
            "$push": {"history": entry},
        },
    )
    return entry


def _is_gone(claim: dict[str, Any]) -> bool:
    """Return whether the process that began a migration is known to be dead: it ran here, and its id is free."""
    if claim.get("host") != socket.gethostname():
        return False
    return claim.get("pid") == os.getpid() or has_ended(claim.get("pid"))
