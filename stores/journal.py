"""The local journal: what the database would not take is kept here, line by line, until it can be delivered."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stores.connection import Connection

FOLDER_VARIABLE = "INV_DESIGN_JOURNAL"


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


def deliver(connection: Connection | None = None) -> dict[str, int]:
    """Send everything in the journal to the database and empty it; return counts of delivered, known and rejected.

    A record that the database has already is ``known`` and dropped, so delivering twice, or being killed between
    delivery and emptying, doubles nothing. A line that no collection takes goes to ``rejected.jsonl``.

    Raises
    ------
    ConnectionError
        If the database still does not answer; the journal stays as it is.
    """
    from stores import artifacts
    from stores.connection import current
    from stores.records import insert_documents

    connection = connection or current()
    counts = {"delivered": 0, "known": 0, "rejected": 0}
    path = folder(connection) / "records.jsonl"
    blobs = sorted((path.parent / "artifacts").glob("*")) if path.parent.exists() else []
    for blob in blobs:
        if blob.suffix != ".part":
            artifacts.put(blob.read_bytes(), kind="journal", connection=connection)
    if path.exists():
        with path.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            groups, rejected = _grouped(file.read())
            for collection, documents in groups.items():
                for document in documents:
                    try:
                        [(_, inserted)] = insert_documents(collection, [document], connection=connection, journal=False)
                        counts["delivered" if inserted else "known"] += 1
                    except ValueError:
                        rejected.append(_line(collection, document))
            if rejected:
                counts["rejected"] = len(rejected)
                with path.with_name("rejected.jsonl").open("ab") as other:
                    other.writelines(rejected)
            file.truncate(0)
            os.fsync(file.fileno())
    for blob in blobs:
        if blob.suffix != ".part":
            blob.unlink()
    return counts


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
