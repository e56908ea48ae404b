"""The local journal: what the database would not take is kept here, line by line, until it can be delivered."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
import uuid
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pymongo.errors import PyMongoError

from stores.connection import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from stores.connection import Connection

LOG = logging.getLogger(__name__)

FOLDER_VARIABLE = "INV_DESIGN_JOURNAL"
RECORDS = "records.jsonl"
FALLBACK = "inv_design_journal"
"""Folder below the working directory, where the journal's own cannot be written."""
LOCK_NOW = fcntl.LOCK_EX | fcntl.LOCK_NB

_fallbacks: set[Path] = set()
"""What this process wrote below a working directory."""


def folder(connection: Connection | None = None) -> Path:
    """Return the folder of this user's journal for a database, below ``$INV_DESIGN_JOURNAL`` or the state folder."""
    root = os.environ.get(FOLDER_VARIABLE)
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    base = Path(root) if root else state / "inv_design" / "journal"
    return base / _names(connection)[0]


def _names(connection: Connection | None) -> list[str]:
    """Return what a database's folder is called, and was called before databases had an id.

    One database has several addresses, and one address (a tunnel's) in time several databases.
    """
    from stores.connection import current

    connection = connection or current()
    where = connection.uri_redacted.rstrip("/")
    address = re.sub(r"[^\w.-]+", "_", f"{where}_{connection.db.name}").strip("_")[-150:]
    return [f"db_{connection.database_id}", address] if connection.database_id else [address]


def keep(collection: str, documents: Sequence[Mapping[str, Any]], *, connection: Connection | None = None) -> Path:
    """Append documents to the journal and return its file; on return they are on the disk.

    The lines are MongoDB Extended JSON, so that dates and numbers come back as they were.

    Raises
    ------
    OSError
        If neither the journal's folder nor the working directory can be written.
    """
    lines = b"".join(_line(collection, document) for document in documents)
    return _somewhere(connection, lambda place: _append(place, lines))


def keep_blob(blob: bytes, sha256: str, *, connection: Connection | None = None) -> Path:
    """Keep an artifact that GridFS would not take, in a file named by its SHA-256. It raises what :func:`keep` does."""
    return _somewhere(connection, lambda place: _write(place / "artifacts" / sha256, blob))


def _somewhere(connection: Connection | None, write: Callable[[Path], Path]) -> Path:
    """Write into the journal's folder, or, if that is not possible, below the working directory."""
    place = folder(connection)
    try:
        return write(place)
    except OSError as error:
        other = Path.cwd() / FALLBACK / place.name
        LOG.warning("the local journal %s cannot be written (%s); %s is written instead", place, error, other)
        _fallbacks.add(other)
        return write(other)


def _append(place: Path, lines: bytes) -> Path:
    """Append lines to the file of all processes; where it cannot be locked at once, to one of their own."""
    path = place / RECORDS
    place.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        try:
            fcntl.flock(file, LOCK_NOW)
        except OSError:  # a process that delivers, or a file system without locks
            return _write(place / f"records.{uuid.uuid4().hex}.jsonl", lines)
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a line that a crash cut off was never acknowledged; let it stand alone
                lines = b"\n" + lines
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())
    return path


def _write(path: Path, content: bytes) -> Path:
    """Write a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return partial.replace(path)


def _folders(connection: Connection | None) -> list[Path]:
    """Return the folders in which records for a database may lie."""
    names, base = _names(connection), folder(connection).parent
    places = [above / name for above in (base, Path.cwd() / FALLBACK) for name in names]
    places += [other for other in sorted(_fallbacks) if other.name in names and other not in places]
    return [place for place in places if place.exists()]


def _files(place: Path) -> list[Path]:
    """Return the files with records in a folder: the one of all processes first."""
    return [path for path in (place / RECORDS, *sorted(place.glob("records.*.jsonl"))) if path.exists()]


def pending(connection: Connection | None = None) -> int:
    """Return how many records wait in the journal."""
    return sum(
        1
        for place in _folders(connection)
        for path in _files(place)
        for line in path.read_bytes().splitlines(keepends=True)
        if line.endswith(b"\n") and line.strip()
    )


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
    for place in _folders(connection):
        _deliver_folder(place, connection, counts, wait=wait)
    return counts


def _deliver_folder(place: Path, connection: Connection, counts: dict[str, int], *, wait: bool) -> None:
    """Deliver what lies in a folder, add to the counts, and empty it; where the database takes only some, all stays."""
    with (place / RECORDS).open("ab+") as file:
        _lock(file, wait=wait)
        file.seek(0)
        alone = _files(place)[1:]
        groups, rejected = _grouped(b"\n".join([file.read(), *(path.read_bytes() for path in alone)]))
        blobs = _deliver_blobs(place, connection)
        refusal: Exception | None = None
        for collection, documents in groups.items():
            try:
                for inserted, unusable in _deliver(collection, documents, connection):
                    counts["known" if inserted is False else "delivered"] += inserted is not None
                    rejected += [] if unusable is None else [unusable]
            except (OSError, PyMongoError) as error:  # the others must not wait for these
                refusal = refusal or error
        if refusal is not None:
            raise refusal
        if rejected:
            counts["rejected"] += len(rejected)
            with (place / "rejected.jsonl").open("ab") as other:
                other.writelines(rejected)
                other.flush()
                os.fsync(other.fileno())
            LOG.warning("%d lines that are no records are in %s", len(rejected), place / "rejected.jsonl")
        file.truncate(0)
        os.fsync(file.fileno())
        for path in (*alone, *blobs):
            path.unlink(missing_ok=True)


def _lock(file: IO[bytes], *, wait: bool) -> None:
    """Lock a journal's file; BlockingIOError says that another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else LOCK_NOW)
    except BlockingIOError:
        raise
    except OSError as error:  # no locks on this file system: then nobody appends to it, and delivering twice is fine
        LOG.debug("no lock on %s: %s", file.name, error)


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
    where = ""
    try:
        places = _folders(connection)
        waiting = [path for place in places for path in _files(place) if path.stat().st_size]
        waiting += [blob for place in places for blob in _blobs(place)]
        if not waiting:
            return True
        where = ", ".join(str(path) for path in waiting)
        counts = deliver(connection, wait=False)
    except BlockingIOError:
        return False
    except Exception as error:  # who has just written something must not fail for what others could not
        LOG.warning("the local journal waits in %s: %s", where or "its folder", first_line(error))
    else:
        LOG.warning("delivered the local journal %s: %s", where, counts)
    return True


def _blobs(place: Path) -> list[Path]:
    """Return the files of the artifacts in a folder."""
    return [path for path in sorted((place / "artifacts").glob("*")) if path.suffix != ".part"]


def _deliver(
    collection: str, documents: Sequence[dict[str, Any]], connection: Connection
) -> Iterator[tuple[bool | None, bytes | None]]:
    """Yield (inserted, None) for each record, or (None, its line) if no collection takes it.

    Raises
    ------
    OSError, pymongo.errors.PyMongoError
        If the database takes nothing now.
    """
    from stores.records import insert_documents, is_of_the_record

    try:
        found = insert_documents(collection, documents, connection=connection, journal=False)
    except Exception as error:
        if not is_of_the_record(error):
            raise
        if len(documents) == 1:  # else one of them; which?
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

    blobs = _blobs(place)
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
            collection, document = str(entry["collection"]), dict(entry["document"])
        except Exception:  # a damaged line may raise anything
            rejected.append(line + b"\n")
        else:
            groups.setdefault(collection, []).append(document)
    return groups, rejected
