"""Outages: while the server is away, what was asked of it waits and is asked again, and nothing is done twice.

pymongo repeats a write only on replica sets. Here every call is repeated, on any server, until it answers or
:func:`patience` is over:

- an insert is sent again with the same ``_id``; a duplicate that has it is the document of the first attempt;
- ``find_one_and_update`` with ``$set`` leaves a mark in the document, by which the next attempt knows the first one;
- every other write says the same when it is said twice (``$inc`` excepted: a counter may skip numbers, which FireWorks'
  counters of ids may);
- a read starts again; one that was cut off after it had given documents raises.
"""

from __future__ import annotations

import functools
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from bson import ObjectId
from pymongo import ReadPreference
from pymongo.collection import Collection
from pymongo.cursor import Cursor
from pymongo.database import Database
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConnectionFailure,
    CursorNotFound,
    DuplicateKeyError,
    ExecutionTimeout,
    ServerSelectionTimeoutError,
)
from pymongo.results import InsertManyResult, InsertOneResult

from stores.connection import first_line
from stores.seconds import seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from fireworks import LaunchPad

LOG = logging.getLogger(__name__)

PATIENCE_VARIABLE = "INV_DESIGN_PATIENCE"
PATIENCE = 60.0
"""Seconds that an outage is waited for."""
PAUSES = (0.05, 1.0)
"""Seconds between two attempts: first, and at most."""
BATCH = 2000
"""Documents per reply: most reads are one reply and cannot be cut off."""
MARK = "last_write"

NOT_LASTING = frozenset({6, 7, 64, 89, 91, 189, 10107, 11600, 11602, 13435, 13436})
"""Codes of a write concern that failed for the time being; the write may be undone, so it is said again."""

LOST = (ConnectionFailure, ExecutionTimeout)
"""The errors that say that a server is gone, not that a record is wrong."""

Result = TypeVar("Result")
Client = Any

_lost_since: WeakKeyDictionary[Client, float] = WeakKeyDictionary()


def patience() -> float:
    """Return how long an outage is waited for, in seconds: ``$INV_DESIGN_PATIENCE``, else :data:`PATIENCE`.

    Raises
    ------
    ValueError
        If the variable is no number of seconds.
    """
    return seconds_of(PATIENCE_VARIABLE, PATIENCE, "seconds, such as 60")


def patiently(call: Callable[[int], Result], client: Client) -> Result:
    """Return ``call(attempt)``, called again while the server is away; attempts count from 0.

    An outage is waited for once: when patience is over, the calls that follow fail at once until the server is back.

    Raises
    ------
    pymongo.errors.PyMongoError
        What the last attempt raised.
    """
    attempt, pause = 0, PAUSES[0]
    first = 0.0  # of this call: others, such as reads of a server without a primary, may succeed in between
    while True:
        try:
            if _given_up(client):
                raise ServerSelectionTimeoutError("the server has not come back")
            result = call(attempt)
        except LOST as error:
            now = time.monotonic()
            since = _lost_since.setdefault(client, now)
            first = first or now
            if now - min(since, first) >= patience():
                raise
            if since == now:
                LOG.warning("the database does not answer (%s); waiting for it", first_line(error))
            time.sleep(pause)
            attempt, pause = attempt + 1, min(2 * pause, PAUSES[1])
        except Exception:  # an answer too: the server is there
            _lost_since.pop(client, None)
            raise
        else:
            since = _lost_since.pop(client, 0.0)
            if since and time.monotonic() - since > PAUSES[1]:
                LOG.warning("the database answers again after %.0f s", time.monotonic() - since)
            return result


def wait_for_server(client: Client) -> bool:
    """Return whether the server answers, now or before patience is over."""
    deadline = time.monotonic() + patience()
    while True:
        try:
            client.admin.command("ping")
        except LOST:
            if time.monotonic() >= deadline:
                return False
            time.sleep(PAUSES[1])
        else:
            _lost_since.pop(client, None)
            return True


def until_done(work: Callable[[], Result], client: Client, *, attempts: int = 5) -> Result:
    """Return ``work()``, begun anew after an outage that cut it off: for work that does what is left to do.

    What this process put into the journal meanwhile is delivered before, so that it counts as done.

    Raises
    ------
    pymongo.errors.PyMongoError
        If the server stays away, or cuts the work off time and again.
    """
    while True:
        attempts -= 1
        try:
            return work()
        except (*LOST, CursorNotFound) as error:
            if attempts <= 0 or not wait_for_server(client):
                raise
            LOG.warning("the database was away (%s); the work goes on", first_line(error))
            _deliver_journal(client)


def _deliver_journal(client: Client) -> None:
    """Deliver the journal of this process's connection on a client; another process that does it is waited for."""
    from stores import journal
    from stores.connection import current

    with suppress(ConnectionError):  # a client of its own, of no connection
        connection = current()
        if connection.client is client and not connection.read_only:
            journal.deliver_waiting(connection, patience=patience())


def _given_up(client: Client) -> bool:
    """Return whether this outage was waited for in vain; the client's monitor tells when it is over."""
    since = _lost_since.get(client)
    if since is None or time.monotonic() - since < patience():
        return False
    return not client.topology_description.has_known_servers


# -- pymongo's classes, with patience ---------------------------------------------------------------------------------


class PatientDatabase(Database[dict[str, Any]]):
    """A database whose collections wait for the server."""

    def __getitem__(self, name: str) -> PatientCollection:
        """Return a collection."""
        return PatientCollection(self, name)

    def get_collection(self, name: str, *arguments: Any, **options: Any) -> PatientCollection:
        """Return a collection with options."""
        return PatientCollection.of(super().get_collection(name, *arguments, **options))

    def with_options(self, *arguments: Any, **options: Any) -> PatientDatabase:  # type: ignore[override]
        """Return this database with other options."""
        other = super().with_options(*arguments, **options)
        return PatientDatabase(
            other.client, other.name, other.codec_options, other.read_preference, other.write_concern,
            other.read_concern,
        )  # fmt: skip


class PatientCollection(Collection[dict[str, Any]]):
    """A collection that waits for the server; a repeated write is done once (see the module)."""

    @classmethod
    def of(cls, other: Collection[Any]) -> PatientCollection:
        """Return a patient collection in place of another one."""
        return cls(
            other.database, other.name, False, other.codec_options, other.read_preference, other.write_concern,
            other.read_concern,
        )  # fmt: skip

    def __getitem__(self, name: str) -> PatientCollection:
        """Return a sub-collection."""
        return self.of(super().__getitem__(name))

    def with_options(self, *arguments: Any, **options: Any) -> PatientCollection:  # type: ignore[override]
        """Return this collection with other options."""
        return self.of(super().with_options(*arguments, **options))

    def find(self, *arguments: Any, **options: Any) -> PatientCursor:
        """Return a cursor that waits for the server."""
        return PatientCursor(self, *arguments, **{"batch_size": BATCH, **options})

    def insert_one(self, document: Any, *arguments: Any, **options: Any) -> InsertOneResult:
        """Insert a document; the duplicate that a repeated attempt meets is its own."""

        def insert(attempt: int) -> InsertOneResult:
            try:
                return super(PatientCollection, self).insert_one(document, *arguments, **options)
            except DuplicateKeyError:
                if attempt and self._present([document["_id"]]):
                    return InsertOneResult(document["_id"], True)
                raise

        return patiently(insert, self.database.client)

    def insert_many(
        self, documents: Iterable[Any], ordered: bool = True, *arguments: Any, **options: Any
    ) -> InsertManyResult:
        """Insert documents; the duplicates that a repeated attempt meets are its own."""
        documents = list(documents)
        for document in documents:
            if "_id" not in document:
                document["_id"] = ObjectId()

        def insert(attempt: int) -> InsertManyResult:
            try:  # what the first attempt inserted must not keep the next one from the rest: not in order
                in_order = ordered and not attempt
                return super(PatientCollection, self).insert_many(documents, in_order, *arguments, **options)
            except BulkWriteError as error:
                concerns = {concern.get("code") for concern in error.details.get("writeConcernErrors") or []}
                if concerns & NOT_LASTING:
                    raise AutoReconnect("the primary changed before the others had the write") from error
                problems = error.details["writeErrors"] if attempt else []
                own = self._present([documents[p["index"]]["_id"] for p in problems if p["code"] == 11000])
                left = [p for p in problems if p["code"] != 11000 or documents[p["index"]]["_id"] not in own]
                if left or not attempt or error.details.get("writeConcernErrors"):
                    raise BulkWriteError(dict(error.details) | ({"writeErrors": left} if attempt else {})) from None
                return InsertManyResult([d["_id"] for d in documents], True)

        return patiently(insert, self.database.client)

    def find_one_and_update(
        self, filter: Mapping[str, Any], update: Any, *arguments: Any, **options: Any
    ) -> dict[str, Any] | None:
        """Update one document and return it; a repeated attempt returns the document that the first one updated.

        Such a document is as it is after the update, whatever ``return_document`` says.
        """
        mark = ObjectId()
        if marked := isinstance(update, dict) and "$set" in update and "$inc" not in update:
            update = {**update, "$set": {**update["$set"], MARK: mark}}

        def change(attempt: int) -> dict[str, Any] | None:
            if attempt and marked:
                done = self._plain().find_one({MARK: mark}, options.get("projection"))
                if done is not None:
                    return done
            return super(PatientCollection, self).find_one_and_update(filter, update, *arguments, **options)

        return patiently(change, self.database.client)

    def _present(self, ids: list[Any]) -> set[Any]:
        """Return which ``_id`` the collection has."""
        return {found["_id"] for found in self._plain().find({"_id": {"$in": ids}}, {"_id": 1})} if ids else set()

    def _plain(self) -> Collection[dict[str, Any]]:
        """Return the primary's collection without patience, for what belongs to an attempt."""
        return Collection(
            self.database, self.name, False, self.codec_options, ReadPreference.PRIMARY, self.write_concern,
            self.read_concern,
        )  # fmt: skip


def _repeatable(name: str) -> Callable[..., Any]:
    """Return a method of Collection that is simply called again."""
    method = getattr(Collection, name)

    @functools.wraps(method)
    def call(self: PatientCollection, *arguments: Any, **options: Any) -> Any:
        return patiently(lambda _: method(self, *arguments, **options), self.database.client)

    return call


for _name in (
    "update_one", "update_many", "replace_one", "delete_one", "delete_many", "bulk_write", "find_one_and_replace",
    "find_one_and_delete", "create_index", "create_indexes", "drop", "index_information", "count_documents",
    "estimated_document_count", "distinct", "aggregate",
):  # fmt: skip
    setattr(PatientCollection, _name, _repeatable(_name))


class PatientCursor(Cursor[dict[str, Any]]):
    """A cursor whose first reply waits for the server."""

    def next(self) -> dict[str, Any]:
        """Return the next document."""
        if self._retrieved:
            return super().next()

        def first(attempt: int) -> dict[str, Any] | None:
            if attempt:
                self.rewind()
            try:
                return super(PatientCursor, self).next()
            except StopIteration:
                return None

        found = patiently(first, self.collection.database.client)
        if found is None:
            raise StopIteration
        return found


def patient_launchpad(launchpad: LaunchPad, database: PatientDatabase) -> None:
    """Make a launchpad wait for the server too: it is given the collections of a patient database."""
    launchpad.db = database
    for name in ("fireworks", "launches", "offline_runs", "fw_id_assigner", "workflows"):
        setattr(launchpad, name, database[name])
