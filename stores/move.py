"""A database moves to another server: every collection and index, the launchpad and GridFS included."""

from __future__ import annotations

import hashlib
import uuid
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from stores import scan
from stores.scan import batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stores.connection import Connection

    Progress = Callable[[int, int, str], None]

MARKS = "moves"
"""The collection that says where a database came from and where it went; it is not moved itself.

``source`` is the mark of a target: ``moving`` while it is incomplete, then ``moved``. ``target`` is the mark of a
source: ``moving`` while it is copied, ``verifying`` from when nobody may write to it, then ``moved``. While a move goes
on, its target also keeps the digests of what was copied: nothing else is ever deleted from it.
"""

STAMPED = ("schema", MARKS)  # what opening a new database writes into it
DIGEST = 16  # bytes of a SHA-256 that tell documents apart
NO_OPTIONS = ("v", "key", "ns", "background")  # of an index as the server lists it; the last is of the past

Report = dict[str, Any]

_moving: ContextVar[bool] = ContextVar("moving", default=False)


@contextmanager
def moving() -> Iterator[None]:
    """Let connections for writing be made to both sides of a move: for the move itself."""
    token = _moving.set(True)
    try:
        yield
    finally:
        _moving.reset(token)


def move(source: Connection, target: Connection, *, force: bool = False, progress: Progress | None = None) -> Report:
    """Copy everything of a database into an empty one, verify it, and mark the source as moved.

    A move that was interrupted, even by ``kill -9``, is completed by the same call: what is there already is compared
    and not copied again. The source is only read, but for its mark. Before the last comparison the source is closed to
    new writers; a call after that one compares once more what the source holds with what was moved. Connections are
    opened inside :func:`moving`.

    Parameters
    ----------
    force
        Go ahead although others seem to write to the source.
    progress
        Called with (documents done, documents in all, what is being done).

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
        If others write to the source, if a collection is not the same in both at the end, if the target holds what this
        move did not copy, or if the source has changed since it was moved.
    ConnectionError
        If one of the two stops answering; the same call completes the move.
    """
    from stores.outage import LOST

    try:
        return _move(source, target, progress, force=force)
    except LOST as error:
        raise ConnectionError(
            f"{source.uri_redacted} or {target.uri_redacted} does not answer any more ({type(error).__name__}); "
            "run the same command again, it goes on from there"
        ) from error


def moved_to(connection: Connection) -> str | None:
    """Return where a database was moved to, without credentials, or ``None`` if it is still the one."""
    mark = connection.db[MARKS].find_one({"_id": "target", "state": "moved"})
    return None if mark is None else str(mark["uri"])


def closed(connection: Connection) -> tuple[str, str] | None:
    """Return (why a move has closed a database to writers, what to do), or ``None`` if it is open."""
    marks = {mark["_id"]: mark for mark in connection.db[MARKS].find({"_id": {"$in": ["source", "target"]}})}
    came, went = marks.get("source", {}), marks.get("target", {})
    where = connection.uri_redacted
    if went.get("state") == "moved":
        return f"{where} was moved to {went['uri']}", "set `database:` in campaign.yaml to that"
    if went.get("state") == "verifying":
        return (
            f"{where} is being moved to {went['uri']}",
            f"finish with the same `inv-design db move` command (to stay here, drop the mark in {MARKS!r})",
        )
    if came.get("state") == "moving":
        return (
            f"{where} is the target of a move that is not complete",
            "finish with the same `inv-design db move` command",
        )
    return None


def admit(connection: Connection) -> bool:
    """Return whether a connection may be written to as usual; inside :func:`moving` it may be opened all the same.

    Raises
    ------
    ConnectionError
        If it is for writing and a move has closed the database.
    """
    if connection.read_only or (found := closed(connection)) is None:
        return True
    if not _moving.get():
        raise ConnectionError("; ".join(found))
    return False


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


def _move(source: Connection, target: Connection, progress: Progress | None, *, force: bool) -> Report:
    if (source.uri_redacted, source.db.name) == (target.uri_redacted, target.db.name):
        raise ValueError(f"{target.uri_redacted} is where the database is; name another one to move it to")
    _refuse_pending_journal(source, target)
    if moved_to(source) is None and not force:
        _refuse_writers(source)
    identity = _identity(source, target)
    done = _open_target(source, target, identity)
    names = _names(source)
    if done is not None:
        _refuse_changes(source, done, _Counter(progress, _size(source, names)))
        _finish(source, target)
        return {**done, "already": True}
    count = _Counter(progress, 3 * _size(source, names))
    copied = {name: _copy(source, target, name, count) for name in sorted({*names, *_names(target)})}
    indexes = {name: _copy_indexes(source, target, name) for name in names}
    _mark_source(source, target, "verifying")
    report: Report = {"source": source.uri_redacted, "target": target.uri_redacted, "collections": []}
    for name in _names(source):
        documents, digest = fingerprint(source, name, count)
        if (documents, digest) != fingerprint(target, name):
            raise _differ(name, source, target)
        entry = {"name": name, "documents": documents, "copied": copied.get(name, 0), "sha256": digest}
        report["collections"].append({**entry, "indexes": indexes.get(name, 0)})
    if late := _changes(source, report, count):  # by who was connected before the mark
        raise _differ(", ".join(late), source, target)
    report["documents"] = sum(entry["documents"] for entry in report["collections"])
    report["copied"] = sum(copied.values())
    finished = {"state": "moved", "finished_at": _now(), "report": report}
    target.db[MARKS].update_one({"_id": "source"}, {"$set": finished})
    _finish(source, target)
    return {**report, "already": False}


def _names(connection: Connection) -> list[str]:
    names = connection.db.list_collection_names()
    return sorted(name for name in names if name != MARKS and not name.startswith("system."))


def _size(connection: Connection, names: list[str]) -> int:
    return sum(connection.db[name].estimated_document_count() for name in names)


# -- who else writes -------------------------------------------------------------------------------------------------


def _refuse_writers(source: Connection) -> None:
    from stores.migrations.runner import blockers

    if found := blockers(source):
        raise RuntimeError(f"{'; '.join(found)} (--force goes ahead)")


def _changes(source: Connection, report: Report, count: _Counter) -> list[str]:
    """Return the collections of a source that are not what a report says."""
    told = {entry["name"]: (entry["documents"], entry["sha256"]) for entry in report["collections"]}
    nothing = (0, f"{0:064x}")
    return [
        name for name in sorted({*told, *_names(source)}) if fingerprint(source, name, count) != told.get(name, nothing)
    ]


def _refuse_changes(source: Connection, report: Report, count: _Counter) -> None:
    if changed := _changes(source, report, count):
        raise RuntimeError(
            f"{', '.join(changed)} of {source.uri_redacted} changed after it was moved to {report['target']}, "
            "which lacks that; stop what writes there, `inv-design export --all` it and `inv-design import` that"
        )


def _differ(name: str, source: Connection, target: Connection) -> RuntimeError:
    return RuntimeError(
        f"{name} is not the same in {source.uri_redacted} and {target.uri_redacted} after the copy: something "
        "else writes to one of them; stop it and run the same command again"
    )


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
    """Make a collection of the target the source's; return how many documents had to be written.

    What is stale goes first, so that no unique key is taken when the new comes.
    """
    if name in STAMPED:
        return _copy_stamp(source, target, name)
    kept = _drop_stale(source, target, name, count)
    missing = [identity for identity in scan.ids(source, name) if _key(identity) not in kept]
    written = 0
    for part in batches(missing, scan.batch_size(name)):
        documents = list(source.db[name].find({"_id": {"$in": part}}))
        if documents:
            digests = b"".join(_digest(_bytes(document)) for document in documents)
            target.db[MARKS].insert_one({"collection": name, "copied": digests})
            target.db[name].insert_many(documents, ordered=False)
        written += len(documents)
        count.add(len(documents), f"copy {name}")
    return written


def _copy_stamp(source: Connection, target: Connection, name: str) -> int:
    """Replace what opening the target wrote into it."""
    changed = [d for d in source.db[name].find({}) if target.db[name].find_one({"_id": d["_id"]}) != d]
    for document in changed:
        target.db[name].replace_one({"_id": document["_id"]}, document, upsert=True)
    return len(changed)


def _drop_stale(source: Connection, target: Connection, name: str, count: _Counter) -> set[bytes]:
    """Delete what this move copied and the source has no more, or changed; return the keys of what may stay.

    Raises
    ------
    RuntimeError
        If any of it was not copied by this move, or has changed since in the target; nothing is deleted then.
    """
    kept = set()
    stale: list[tuple[Any, bytes]] = []
    for part in batches(scan.ids(target, name), scan.batch_size(name)):
        here = {_key(d["_id"]): _bytes(d) for d in source.db[name].find({"_id": {"$in": part}})}
        for document in target.db[name].find({"_id": {"$in": part}}):
            key, blob = _key(document["_id"]), _bytes(document)
            if here.get(key) == blob:
                kept.add(key)
            else:
                stale.append((document["_id"], _digest(blob)))
        count.add(len(part), f"compare {name}")
    ours = _copied(target, name) if stale else set()
    foreign = [identity for identity, digest in stale if digest not in ours]
    if foreign:
        raise RuntimeError(
            f"{target.uri_redacted} holds {len(foreign)} {name} that this move did not copy, or that changed there "
            f"since (one is {foreign[0]!r}); nothing was deleted: export them, or move to a new database"
        )
    for part in batches([identity for identity, _ in stale]):
        target.db[name].delete_many({"_id": {"$in": part}})
    return kept


def _copied(target: Connection, name: str) -> set[bytes]:
    """Return the digests of all that this move has copied, or was about to, into a collection."""
    entries = target.db[MARKS].find({"collection": name, "copied": {"$exists": True}})
    texts = (bytes(entry["copied"]) for entry in entries)
    return {text[at : at + DIGEST] for text in texts for at in range(0, len(text), DIGEST)}


def _copy_indexes(source: Connection, target: Connection, name: str) -> int:
    """Create the indexes that the target's collection lacks; return how many the source has besides that of ``_id``."""
    information = target.db[name].index_information()
    there = [_index(info) for info in information.values()]
    wanted = {key: info for key, info in source.db[name].index_information().items() if key != "_id_"}
    for key, info in wanted.items():
        fields, options = _index(info)
        if (fields, options) in there:
            continue
        if key in information:  # of the same name, made otherwise when the target was opened
            target.db[name].drop_index(key)
        target.db[name].create_index(fields, name=key, **options)
    return len(wanted)


def _index(info: dict[str, Any]) -> tuple[list[tuple[str, Any]], dict[str, Any]]:
    """Return what an index is, its name aside: fields with directions, and options, as ``create_index`` takes them."""
    options = {
        key: value for key, value in info.items() if key not in NO_OPTIONS and value is not None and value is not False
    }
    if "collation" in options:  # its version is that of the server's library
        options["collation"] = {key: value for key, value in options["collation"].items() if key != "version"}
    fields: list[tuple[str, Any]] = []
    for field, way in info["key"]:
        if field == "_fts":  # a text index lists its fields among its weights
            fields += [(text, "text") for text in options.get("weights", ())]
        elif field != "_ftsx":
            fields.append((field, int(way) if isinstance(way, float) else way))
    return fields, options


def _key(identity: Any) -> bytes:
    import bson

    return bson.encode({"": identity})


def _digest(blob: bytes) -> bytes:
    return hashlib.sha256(blob).digest()[:DIGEST]


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
    state = mark.get("state", "moving") if mark.get("uri") == target.uri_redacted else "moving"
    marks.replace_one(
        {"_id": "target"},
        {**mark, "uri": target.uri_redacted, "state": state, "at": mark.get("at", _now())},
        upsert=True,
    )
    return str(mark["source"])


def _open_target(source: Connection, target: Connection, identity: str) -> Report | None:
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
        mine = {"source": identity, "uri": source.uri_redacted, "state": "moving", "started_at": _now()}
        marks.insert_one({"_id": "source", **mine})
        return None
    if mark["source"] != identity:
        raise ValueError(f"{target.uri_redacted} holds the move of another database; name a new database to move to")
    report: Report | None = mark.get("report") if mark["state"] == "moved" else None
    return report


def _mark_source(source: Connection, target: Connection, state: str) -> None:
    where = {"uri": target.uri_redacted, "state": state, "at": _now()}
    source.db[MARKS].update_one({"_id": "target"}, {"$set": where})


def _finish(source: Connection, target: Connection) -> None:
    _mark_source(source, target, "moved")
    target.db[MARKS].delete_many({"copied": {"$exists": True}})


def _refuse_pending_journal(source: Connection, target: Connection) -> None:
    from stores import journal

    late = moved_to(source) is not None
    if not late:
        journal.deliver_waiting(source)
    waiting = journal.pending(source)
    if waiting:
        cure = "open the database once so that they are delivered, then move it"
        if late:
            cure = f"move them to {journal.folder(target)}, from where they are delivered to {target.uri_redacted}"
        raise ValueError(f"{waiting} records for {source.uri_redacted} wait in {journal.folder(source)}; {cure}")


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None, microsecond=0)
