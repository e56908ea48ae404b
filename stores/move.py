"""A database moves to another server: every collection and index, the launchpad and GridFS included."""

from __future__ import annotations

import hashlib
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from stores import scan
from stores.references import batches

if TYPE_CHECKING:
    from collections.abc import Callable

    from stores.connection import Connection

    Progress = Callable[[int, int, str], None]

MARKS = "moves"
"""The collection that says where a database came from and where it went; it is not moved itself."""

STAMPED = ("schema", MARKS)  # what opening a new database writes into it
INDEX_OPTIONS = ("unique", "sparse", "expireAfterSeconds", "partialFilterExpression")

Report = dict[str, Any]


def move(source: Connection, target: Connection, *, progress: Progress | None = None) -> Report:
    """Copy everything of a database into an empty one, verify it, and mark the source as moved.

    A move that was interrupted, even by ``kill -9``, is completed by the same call: what is there already is compared
    and not copied again. The source is only read, but for its mark.

    Returns
    -------
    dict
        ``source``, ``target`` (without credentials), ``collections`` (name, documents, copied, sha256, indexes),
        ``documents``, ``copied``, ``already`` (whether an earlier call had completed it).

    Raises
    ------
    ValueError
        If the target is the source or holds other data, or the source was moved elsewhere.
    RuntimeError
        If a collection is not the same in both at the end, because something else writes to one of them.
    ConnectionError
        If one of the two stops answering; the same call completes the move.
    """
    from stores.outage import LOST

    try:
        return _move(source, target, progress)
    except LOST as error:
        raise ConnectionError(
            f"{source.uri_redacted} or {target.uri_redacted} does not answer any more ({type(error).__name__}); "
            "run the same command again, it goes on from there"
        ) from error


def moved_to(connection: Connection) -> str | None:
    """Return where a database was moved to, without credentials, or ``None`` if it is still the one."""
    mark = connection.db[MARKS].find_one({"_id": "target", "state": "moved"})
    return None if mark is None else str(mark["uri"])


def fingerprint(connection: Connection, collection: str, count: _Counter | None = None) -> tuple[int, str]:
    """Return (number of documents, SHA-256 of them all in any order) of a collection.

    It is the sum of the SHA-256 of every document's BSON, so that neither the order on the disk nor a server's sorting
    matters.
    """
    number = total = 0
    for document in scan.documents(connection, collection):
        total += int.from_bytes(hashlib.sha256(_bytes(document)).digest(), "big")
        number += 1
        if count is not None:
            count.add(1, f"verify {collection}")
    return number, f"{total % 2**256:064x}"


def _move(source: Connection, target: Connection, progress: Progress | None) -> Report:
    if (source.uri_redacted, source.db.name) == (target.uri_redacted, target.db.name):
        raise ValueError(f"{target.uri_redacted} is where the database is; name another one to move it to")
    _refuse_pending_journal(source)
    identity = _identity(source, target)
    done = _open_target(target, identity)
    if done is not None:
        _mark_source(source, target)
        return {**done, "already": True}
    names = sorted(n for n in source.db.list_collection_names() if n != MARKS and not n.startswith("system."))
    total = 2 * sum(source.db[name].estimated_document_count() for name in names)
    count = _Counter(progress, total)
    copied = {name: _copy(source, target, name, count) for name in names}
    indexes = {name: _copy_indexes(source, target, name) for name in names}
    report: Report = {"source": source.uri_redacted, "target": target.uri_redacted, "collections": []}
    for name in names:
        documents, digest = fingerprint(source, name, count)
        if (documents, digest) != fingerprint(target, name):
            raise RuntimeError(
                f"{name} is not the same in {source.uri_redacted} and {target.uri_redacted} after the copy: something "
                "else writes to one of them; stop it and run the same command again"
            )
        entry = {"name": name, "documents": documents, "copied": copied[name], "sha256": digest}
        report["collections"].append({**entry, "indexes": indexes[name]})
    report["documents"] = sum(entry["documents"] for entry in report["collections"])
    report["copied"] = sum(copied.values())
    finished = {"state": "moved", "finished_at": _now(), "report": report}
    target.db[MARKS].update_one({"_id": "source"}, {"$set": finished})
    _mark_source(source, target)
    return {**report, "already": False}


# -- copying ---------------------------------------------------------------------------------------------------------


class _Counter:
    """Counts documents for a progress display."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def add(self, number: int, text: str) -> None:
        self.done += number
        if self.progress is not None:
            self.progress(self.done, max(self.total, self.done), text)


def _copy(source: Connection, target: Connection, name: str, count: _Counter) -> int:
    """Make a collection of the target the source's; return how many documents had to be written."""
    ids = scan.ids(source, name)
    there = {_key(identity) for identity in scan.ids(target, name)}
    written = 0
    for part in batches(ids, scan.batch_size(name)):
        documents = list(source.db[name].find({"_id": {"$in": part}}))
        known = [d["_id"] for d in documents if _key(d["_id"]) in there]
        same = {_key(d["_id"]): _bytes(d) for d in target.db[name].find({"_id": {"$in": known}})} if known else {}
        new = [d for d in documents if _key(d["_id"]) not in same]
        if new:
            target.db[name].insert_many(new, ordered=False)
        changed = [d for d in documents if same.get(_key(d["_id"]), _bytes(d)) != _bytes(d)]
        for document in changed:  # the source went on between two calls
            target.db[name].replace_one({"_id": document["_id"]}, document)
        written += len(new) + len(changed)
        count.add(len(documents), f"copy {name}")
    wanted = {_key(identity) for identity in ids}
    gone = [identity for identity in scan.ids(target, name) if _key(identity) not in wanted] if there - wanted else []
    for part in batches(gone):
        target.db[name].delete_many({"_id": {"$in": part}})
    return written


def _copy_indexes(source: Connection, target: Connection, name: str) -> int:
    """Create the indexes that the target's collection lacks; return how many the source has besides that of ``_id``."""
    there = [_index(info) for info in target.db[name].index_information().values()]
    wanted = {key: info for key, info in source.db[name].index_information().items() if key != "_id_"}
    for key, info in wanted.items():
        if _index(info) not in there:
            options = {option: info[option] for option in INDEX_OPTIONS if info.get(option) not in (None, False)}
            target.db[name].create_index([tuple(field) for field in info["key"]], name=key, **options)
    return len(wanted)


def _index(info: dict[str, Any]) -> tuple[Any, ...]:
    """Return what makes two indexes the same: fields and directions, and uniqueness."""
    return tuple((field, way) for field, way in info["key"]), bool(info.get("unique"))


def _key(identity: Any) -> bytes:
    import bson

    return bson.encode({"": identity})


def _bytes(document: dict[str, Any]) -> bytes:
    """Return a document's BSON with ``_id`` first, where servers put it."""
    import bson

    return bson.encode({"_id": document["_id"], **document})


# -- marks -----------------------------------------------------------------------------------------------------------


def _identity(source: Connection, target: Connection) -> str:
    """Return the source's own id, made on its first move.

    Raises
    ------
    ValueError
        If it was moved to another target before.
    """
    marks = source.db[MARKS]
    mark = marks.find_one({"_id": "target"})
    if mark is not None and mark["state"] == "moved" and mark["uri"] != target.uri_redacted:
        raise ValueError(
            f"{source.uri_redacted} was moved to {mark['uri']} at {mark['at']:%Y-%m-%d %H:%M} UTC; "
            f"move that one, or drop the mark (collection {MARKS!r}) if it is lost"
        )
    if mark is None:
        mark = {"_id": "target", "source": uuid.uuid4().hex}
    marks.replace_one(
        {"_id": "target"},
        {**mark, "uri": target.uri_redacted, "state": mark.get("state", "moving"), "at": mark.get("at", _now())},
        upsert=True,
    )
    return str(mark["source"])


def _open_target(target: Connection, identity: str) -> Report | None:
    """Make the target ours; return the report of a move that is complete already.

    Raises
    ------
    ValueError
        If it holds anything but a part of this same move.
    """
    marks = target.db[MARKS]
    mark = marks.find_one({"_id": "source"})
    if mark is None:
        for name in sorted(target.db.list_collection_names()):
            if name not in STAMPED and not name.startswith("system.") and target.db[name].find_one({}, {"_id": 1}):
                number = target.db[name].estimated_document_count()
                raise ValueError(
                    f"{target.uri_redacted} is not empty: it holds {number} {name}; name a new database to move to "
                    "(to merge two databases use `inv-design export --all` and `inv-design import`)"
                )
        marks.insert_one({"_id": "source", "source": identity, "state": "moving", "started_at": _now()})
        return None
    if mark["source"] != identity:
        raise ValueError(f"{target.uri_redacted} holds the move of another database; name a new database to move to")
    report: Report | None = mark.get("report") if mark["state"] == "moved" else None
    return report


def _mark_source(source: Connection, target: Connection) -> None:
    where = {"uri": target.uri_redacted, "state": "moved", "at": _now()}
    source.db[MARKS].update_one({"_id": "target"}, {"$set": where})


def _refuse_pending_journal(source: Connection) -> None:
    from stores import journal

    waiting = journal.pending(source)
    if waiting:
        raise ValueError(
            f"{waiting} records for {source.uri_redacted} wait in {journal.folder(source)}; open the database once so "
            "that they are delivered, then move it"
        )


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None, microsecond=0)
