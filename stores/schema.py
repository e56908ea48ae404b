"""The version of a database's records: stamped into it, and checked whenever a process connects."""

from __future__ import annotations

import getpass
import socket
import uuid
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stores.connection import Connection

SCHEMA_VERSION = 3
"""The form that this version of inv_design reads and writes; ``stores/migrations`` leads here from earlier ones."""

FIRST = 1
"""The form of databases from before versions were stamped."""

COLLECTION = "schema"
DOCUMENT = "version"
"""``_id`` of the one document: ``version``, ``inv_design`` (that wrote it), ``history``, at times ``migrating``.

Its ``database_id`` is random: by it the local journal knows the database again, under whatever address.
"""

READ_WITH = "run `inv-design db migrate` (first with --dry-run)"

_unchecked: ContextVar[bool] = ContextVar("unchecked", default=False)


@contextmanager
def unchecked() -> Iterator[None]:
    """Let connections be made to a database of any schema, without touching it: for the migration itself."""
    token = _unchecked.set(True)
    try:
        yield
    finally:
        _unchecked.reset(token)


def ready(connection: Connection) -> bool:
    """Return whether a new connection may be used for writing; a new database is stamped.

    A database from before versions were stamped is stamped too if no migration would change anything in it.

    Raises
    ------
    RuntimeError
        If the connection is for writing and the database has an older or a newer schema, or is being migrated. The
        connection is closed then. Reading is allowed, with a warning.
    ConnectionError
        Likewise if a move has closed the database (:func:`stores.move.closed`).
    """
    from stores import move

    if _unchecked.get():
        return False
    connection.database_id = (stamp_of(connection) or {}).get("database_id")
    try:
        if not move.admit(connection):
            return False
    except ConnectionError:
        connection.close()
        raise
    problem = problem_of(connection)
    if problem is None:
        connection.database_id = _database_id(connection)
        return not connection.read_only
    if not connection.read_only:
        connection.close()
        raise RuntimeError(f"{problem}; nothing was written")
    import logging

    logging.getLogger(__name__).warning("%s; what is shown may be incomplete", problem)
    return False


def problem_of(connection: Connection) -> str | None:
    """Return what keeps this version of inv_design from writing to a database, and the cure, or ``None``."""
    from inv_design import __version__

    found = stamp_of(connection)
    if found is None:
        if is_foreign(connection):
            return f"{connection.uri_redacted} holds collections of another program; choose another database name"
        found = _first_stamp(connection)
    version, where = int(found["version"]), connection.uri_redacted
    if version > SCHEMA_VERSION:
        return (
            f"{where} has schema {version}, this is inv_design {__version__} with schema {SCHEMA_VERSION}; "
            f"install inv_design {found.get('inv_design', '')} or newer"
        )
    if found.get("migrating"):
        since = found["migrating"]
        return (
            f"{where} is being migrated (by {since['by']} since {since['at']:%Y-%m-%d %H:%M} UTC); {READ_WITH} to go on"
        )
    if version < SCHEMA_VERSION:
        return (
            f"{where} has schema {version}, this is inv_design {__version__} with schema {SCHEMA_VERSION}; {READ_WITH}"
        )
    return None


def stamp_of(connection: Connection) -> dict[str, Any] | None:
    """Return the document that holds a database's version and history, or ``None``."""
    found: dict[str, Any] | None = connection.db[COLLECTION].find_one({"_id": DOCUMENT})
    return found


def _database_id(connection: Connection) -> str | None:
    """Return a database's own id, given to it here if it has none; ``None`` if its user may not."""
    from pymongo.errors import OperationFailure

    if connection.database_id is None and not connection.read_only:
        lacking = {"_id": DOCUMENT, "database_id": {"$exists": False}}
        with suppress(OperationFailure):
            connection.db[COLLECTION].update_one(lacking, {"$set": {"database_id": uuid.uuid4().hex}})
        return (stamp_of(connection) or {}).get("database_id")
    return connection.database_id


def version_of(connection: Connection) -> int:
    """Return a database's schema version; that of a new one is the present."""
    found = stamp_of(connection)
    if found is not None:
        return int(found["version"])
    return FIRST if has_records(connection) else SCHEMA_VERSION


def has_records(connection: Connection) -> bool:
    """Return whether a database holds any authoritative record."""
    from stores.documents import AUTHORITATIVE

    names = {document._meta["collection"] for document in AUTHORITATIVE}
    return any(
        connection.db[name].find_one({}, {"_id": 1}) is not None
        for name in names.intersection(connection.db.list_collection_names())
    )


def is_foreign(connection: Connection) -> bool:
    """Return whether there are documents in collections of our names, and none that this program can have written."""
    from stores.documents import AUTHORITATIVE
    from stores.records import _KEYS

    there = set(connection.db.list_collection_names())
    met = False
    for document in AUTHORITATIVE:
        name = document._meta["collection"]
        if name in there:
            own = {field: {"$exists": True} for field in (*_KEYS[name], "provenance")}
            if connection.db[name].find_one(own, {"_id": 1}) is not None:
                return False
            met = met or connection.db[name].find_one({}, {"_id": 1}) is not None
    return met


def stamp(connection: Connection, version: int = SCHEMA_VERSION, *, note: str = "new database") -> None:
    """Insert the version document; where another process was first, nothing.

    Raises
    ------
    PermissionError
        If the database's user may not.
    """
    from pymongo.errors import DuplicateKeyError, OperationFailure

    entry = {"from": None, "to": version, **signature(), "changes": {"note": note}}
    document = {"_id": DOCUMENT, "version": version, "inv_design": entry["inv_design"], "history": [entry]}
    document["database_id"] = uuid.uuid4().hex
    try:
        connection.db[COLLECTION].insert_one(document)
    except DuplicateKeyError:
        return
    except OperationFailure as error:
        if error.code == 13:  # Unauthorized
            raise PermissionError(
                f"{connection.uri_redacted} is new and its user may not set it up; a curator calls `inv-design db init`"
            ) from None
        raise


def signature() -> dict[str, Any]:
    """Return who stamps or migrates: ``at`` (UTC), ``by`` (user@host), ``inv_design`` (its version)."""
    from inv_design import __version__

    return {
        "at": datetime.now(UTC).replace(tzinfo=None, microsecond=0),
        "by": f"{getpass.getuser()}@{socket.gethostname()}",
        "inv_design": __version__,
    }


def _first_stamp(connection: Connection) -> dict[str, Any]:
    """Return the version of a database without a stamp, and stamp it where it is (as good as) the present one."""
    if has_records(connection):
        from stores.migrations import plan

        if any(step.count for step in plan(connection, FIRST, SCHEMA_VERSION)):
            return {"version": FIRST}
        note = "from before versions were stamped; nothing to migrate"
    else:
        note = "new database"
    if not connection.read_only:
        stamp(connection, note=note)
    return {"version": SCHEMA_VERSION}
