"""The local journal: what the database would not take is kept here, line by line, until it can be delivered."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from stores.connection import Connection

LOG = logging.getLogger(__name__)

FOLDER_VARIABLE = "INV_DESIGN_JOURNAL"
LOCK_NOW = fcntl.LOCK_EX | fcntl.LOCK_NB


def folder(connection: Connection | None = None) -> Path:
    """Return the folder of this user's journal for a database: ``$INV_DESIGN_JOURNAL`` or the user's state folder."""
    from stores.connection import current

    root = os.environ.get(FOLDER_VARIABLE)
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    base = Path(root) if root else state / "inv_design" / "journal"
    connection = connection or current()
    where = connection.uri_redacted.rstrip("/")
    return base / re.sub(r"[^\w.-]+", "_", f"{where}_{connection.db.name}").strip("_")[-150:]


def keep(collection: str, documents: Sequence[Mapping[str, Any]], *, connection: Connection | None = None) -> Path:
    """Append documents to the journal and return its file; on return they are on the disk.

    The lines are MongoDB Extended JSON, so that dates and numbers come back as they were.
    """
    lines = b"".join(_line(collection, document) for document in documents)
    path = folder(connection) / "records.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a line that a crash cut off was never acknowledged; let it stand alone
                lines = b"\n" + lines
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())
    return path


def keep_blob(blob: bytes, sha256: str, *, connection: Connection | None = None) -> Path:
    """Keep an artifact that GridFS would not take, in a file named by its SHA-256."""
    path = folder(connection) / "artifacts" / sha256
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part")
    with partial.open("wb") as file:
        file.write(blob)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return path


def pending(connection: Connection | None = None) -> int:
    """Return how many records wait in the journal."""
    path = folder(connection) / "records.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(1 for line in file if line.endswith(b"\n") and line.strip())


def deliver(connection: Connection | None = None, *, wait: bool = True) -> dict[str, int]:
    """Send everything in the journal to the database and empty it; return counts of delivered, known and rejected.

    A record that the database has already is ``known`` and dropped, so delivering twice, or being killed between
    delivery and emptying, doubles nothing. A line that no collection takes goes to ``rejected.jsonl``.

    Parameters
    ----------
    wait
        Whether to wait for another process that delivers the same journal.

    Raises
    ------
    ConnectionError
        If the database still does not answer; the journal stays as it is.
    BlockingIOError
        If another process is at it and ``wait`` is false.
    """
    from stores.connection import current

    connection = connection or current()
    counts = {"delivered": 0, "known": 0, "rejected": 0}
    path = folder(connection) / "records.jsonl"
    if not path.parent.exists():
        return counts
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else LOCK_NOW)
        file.seek(0)
        groups, rejected = _grouped(file.read())
        blobs = _deliver_blobs(path.parent / "artifacts", connection)
        for collection, documents in groups.items():
            for inserted, refused in _deliver(collection, documents, connection):
                counts["known" if inserted is False else "delivered"] += inserted is not None
                rejected += [] if refused is None else [refused]
        if rejected:
            counts["rejected"] = len(rejected)
            with path.with_name("rejected.jsonl").open("ab") as other:
                other.writelines(rejected)
                other.flush()
                os.fsync(other.fileno())
        file.truncate(0)
        os.fsync(file.fileno())
        for blob in blobs:
            blob.unlink(missing_ok=True)
    return counts


def deliver_waiting(connection: Connection, *, patience: float = 0.0) -> None:
    """Deliver what waits, unless another process is at it; what fails stays. Called when the database has answered.

    Parameters
    ----------
    patience
        Seconds to wait for another process to finish.
    """
    deadline = time.monotonic() + patience
    while not _try_to_deliver(connection) and time.monotonic() < deadline:
        time.sleep(0.1)


def _try_to_deliver(connection: Connection) -> bool:
    """Deliver what waits; return whether that is over, that is, whether no other process is at it."""
    path = folder(connection) / "records.jsonl"
    try:
        if not path.stat().st_size:
            return True
    except OSError:
        return True
    try:
        counts = deliver(connection, wait=False)
    except BlockingIOError:
        return False
    except OSError as error:
        LOG.warning("the local journal waits in %s: %s", path, error)
    else:
        LOG.warning("delivered the local journal %s: %s", path, counts)
    return True


def _deliver(
    collection: str, documents: Sequence[dict[str, Any]], connection: Connection
) -> Iterator[tuple[bool | None, bytes | None]]:
    """Yield (inserted, None) for each record, or (None, its line) if no collection takes it."""
    from stores.records import insert_documents

    try:
        found = insert_documents(collection, documents, connection=connection, journal=False)
    except ValueError:  # one of them; which?
        if len(documents) == 1:
            yield None, _line(collection, documents[0])
            return
        for document in documents:
            yield from _deliver(collection, [document], connection)
    else:
        yield from ((inserted, None) for _, inserted in found)


def _deliver_blobs(place: Path, connection: Connection) -> list[Path]:
    """Put the artifacts of the journal into GridFS and return their files."""
    from stores import artifacts
    from stores.outage import LOST

    blobs = [path for path in sorted(place.glob("*")) if path.suffix != ".part"]
    for blob in blobs:
        try:
            artifacts.put(blob.read_bytes(), kind="journal", connection=connection)
        except LOST as error:
            raise ConnectionError(f"{connection.uri_redacted} does not answer; the artifacts stay here") from error
    return blobs


def _line(collection: str, document: Mapping[str, Any]) -> bytes:
    from bson.json_util import CANONICAL_JSON_OPTIONS, dumps

    text = dumps({"collection": collection, "document": document}, json_options=CANONICAL_JSON_OPTIONS)
    return text.encode() + b"\n"


def _grouped(content: bytes) -> tuple[dict[str, list[dict[str, Any]]], list[bytes]]:
    """Return (collection -> documents of the journal's lines, the lines that are no records)."""
    from bson.json_util import CANONICAL_JSON_OPTIONS, loads

    groups: dict[str, list[dict[str, Any]]] = {}
    rejected: list[bytes] = []
    for line in content.split(b"\n"):
        if not line.strip():
            continue
        try:
            entry = loads(line, json_options=CANONICAL_JSON_OPTIONS)
            groups.setdefault(entry["collection"], []).append(entry["document"])
        except (ValueError, KeyError, TypeError):
            rejected.append(line + b"\n")
    return groups, rejected
