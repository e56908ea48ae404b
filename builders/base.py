"""CampaignBuilder: what the builders have in common; a builder that fails on an item leaves a failed document."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from maggma.core import Builder

from builders.state import STATES
from stores.maggma import CampaignStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from inv_design.config import CampaignConfig
    from stores.connection import Connection

BATCH = 100
"""Ids per query: the embedded database, and the server of the tests, compare each document found with all of them."""
WHOLE = 3
"""A collection with at most so many documents per document wanted is read as a whole, which no index can beat."""
ATTEMPTS = 3


@dataclass
class Counts:
    """What a run did.

    Attributes
    ----------
    read
        Records that the builder's documents are about: candidates, or summaries.
    processed
        Items that went through ``process_item``: what was not up to date.
    written
        Documents written.
    failed
        Items that raised.
    """

    read: int = 0
    processed: int = 0
    written: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return f"read {self.read}, processed {self.processed}, wrote {self.written}, failed {self.failed}"


class CampaignBuilder(Builder):
    """A builder that owns one derived collection of a campaign's database.

    Parameters
    ----------
    campaign
        Build for this campaign only; ``None`` builds for all.
    chunk_size
        Documents per write.
    from_scratch
        Build everything anew, also what is up to date: the cure for derived documents that somebody edited.

    It is MSONable without credentials: the stores connect through this process's connection, or through
    ``$INV_DESIGN_DATABASE``.

    Attributes
    ----------
    counts
        What the last run did.
    """

    version = "1"
    """Raise it when the code changes what the documents say: all are built anew."""

    def __init__(self, campaign: str | None = None, chunk_size: int = 500, *, from_scratch: bool = False) -> None:
        self.campaign = campaign
        self.from_scratch = from_scratch
        self.read = {name: CampaignStore(name, key=key) for name, key in self.source_keys().items()}
        self.target = CampaignStore(*self.target_key())
        self.states = CampaignStore(STATES, key="_id")
        self.counts = Counts()
        self._states: dict[str, dict[str, Any]] = {}
        self._error: Exception | None = None
        super().__init__(
            sources=list(self.read.values()), targets=[self.target, self.states], chunk_size=chunk_size
        )  # fmt: skip

    @classmethod
    def source_keys(cls) -> dict[str, str]:
        """Return the collections that are read -> their key."""
        raise NotImplementedError

    @classmethod
    def target_key(cls) -> tuple[str, str]:
        """Return (collection that is written, its key)."""
        raise NotImplementedError

    def items(self) -> Iterator[Any]:
        """Yield what has to be processed."""
        raise NotImplementedError

    def bind(self, connection: Connection) -> None:
        """Use a given connection instead of the process's own."""
        for store in [*self.read.values(), self.target, self.states]:
            store.bind(connection)

    # -- a run -----------------------------------------------------------------------------------------------------

    def build(
        self, connection: Connection | None = None, *, progress: Callable[[int, int, str], None] | None = None
    ) -> int:
        """Run in this process without logging set-up; return the number of documents written.

        ``progress`` is called with (items processed, items in all as far as known, the collection).
        """
        if connection is not None:
            self.bind(connection)
        self.connect()
        items = []
        for number, item in enumerate(self.get_items(), start=1):
            items.append(self.process_item(item))
            if progress is not None:
                progress(number, max(number, getattr(self, "total", None) or 0), self.target_key()[0])
            if len(items) >= self.chunk_size:
                self.update_targets(items)
                items = []
        self.update_targets(items)
        self.finalize()
        return self.counts.written

    def get_items(self) -> Iterator[Any]:
        """Yield what has to be processed; see :meth:`items`.

        An error after the first item is raised when what was yielded is written: maggma's multiprocess runner waits
        for ever for a generator that raises.
        """
        self.counts, self._states, self._error = Counts(), {}, None
        started = False
        try:
            for item in self.items():
                started = True
                yield item
        except Exception as error:
            if not started:
                raise
            self._error = error
            self.logger.error("no more items: %s", one_line(error))

    def update_targets(self, items: list[Any]) -> None:
        """Write what was processed; see :meth:`write`."""
        self.counts.processed += len(items)
        self.counts.written += self.write(items)

    def write(self, items: list[Any]) -> int:
        """Write what was processed, and return how many documents that is."""
        for item in items:
            if item.get("state") == "failed":
                self.counts.failed += 1
                self._states.pop(item["campaign"], None)  # it is tried again at the next run
        self.upsert(items, self.target.key)
        return len(items)

    def upsert(self, documents: list[dict[str, Any]], key: str | list[str]) -> None:
        """Write documents by their key; where another worker builds the same, the last one wins.

        Raises
        ------
        BulkWriteError
            If the database refuses them for another reason than a race between two inserts.
        """
        upsert(self.target, documents, key)

    def delete(self, keys: Iterable[dict[str, Any]]) -> None:
        """Remove documents, each by its unique key: one look-up each, where a list of ids would be a scan."""
        from pymongo import DeleteOne

        requests = [DeleteOne(key) for key in keys]
        for start in range(0, len(requests), self.chunk_size):
            self.target._collection.bulk_write(requests[start : start + self.chunk_size], ordered=False)

    def finalize(self) -> None:
        """Say what was done, remember what is up to date, and let go of the stores."""
        error, self._error = self._error, None
        if error is None:
            upsert(self.states, list(self._states.values()), "_id")
        self._states = {}
        super().finalize()
        self.say()
        if error is not None:
            raise error

    def say(self) -> None:
        """Log what was done."""
        self.logger.info("%s", self.counts)

    # -- what is up to date ----------------------------------------------------------------------------------------

    def state(self, place: str) -> dict[str, Any]:
        """Return what was remembered of a place (a campaign, or one of its rounds); nothing to build from scratch."""
        if self.from_scratch:
            return {}
        return next(self.states.query({"_id": self._state_id(place)}), {})

    def up_to_date(self, place: str, seen: str, present: str) -> bool:
        """Return whether a place was left with the same inputs and the same documents; see :meth:`remember`."""
        state = self.state(place)
        return not state.get("error") and state.get("seen") == seen and state.get("present") == present

    def remember(self, place: str, seen: str, present: str, *, error: str | None = None) -> None:
        """Remember at the end of the run with which inputs and documents a place is left.

        Parameters
        ----------
        seen
            Digest of the inputs, taken before any of them was read in full: what arrives while the builder runs
            makes a difference at the next run.
        present
            Digest of the documents that the builder leaves.
        error
            Why an item of a builder without a document per item failed; it is tried again at the next run.
        """
        failure = {"state": "failed", "error": error} if error else {"state": "successful"}
        left = {"_id": self._state_id(place), "seen": seen, "present": present}
        self._states[place] = {**left, **failure, **self.stamp()}

    def _state_id(self, place: str) -> str:
        return f"{type(self).__name__}/{place}"

    # -- reading -------------------------------------------------------------------------------------------------

    def campaigns(self) -> Iterator[tuple[str, CampaignConfig]]:
        """Yield (name, configuration) of the campaigns to build for.

        Raises
        ------
        ValueError
            If the campaign asked for is not in the database, or its configuration is not valid.
        """
        from pydantic import ValidationError

        from inv_design.config import CampaignConfig, describe_error

        criteria = {} if self.campaign is None else {"name": self.campaign}
        found = sorted(self.legible(self.read["campaigns"].query(criteria), "name"), key=lambda c: c["name"])
        if self.campaign is not None and not found:
            others = self.legible(self.read["campaigns"].query({}, properties=["name"]), "name")
            known = ", ".join(sorted(c["name"] for c in others)) or "none yet"
            raise ValueError(f"campaign {self.campaign!r} is not in this database; it holds {known}")
        for document in found:
            try:
                yield document["name"], CampaignConfig.model_validate(document.get("config"))
            except ValidationError as error:
                message = f"campaign {document['name']!r}: {describe_error(error)}"
                if self.campaign is not None:
                    raise ValueError(message) from None
                self.logger.error("%s; it is left out", message)

    def fetch(
        self,
        collection: str,
        field: str,
        values: Iterable[str],
        *,
        criteria: dict[str, Any] | None = None,
        properties: dict[str, int] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield the documents whose ``field`` is one of ``values``; parts in GridFS are put back.

        They are asked for in batches, or, where most of the collection is wanted, by reading all of it.
        """
        wanted = dict.fromkeys(values)
        store = self.read[collection]
        if not wanted:
            return
        if store._collection.estimated_document_count() <= WHOLE * len(wanted):
            for document in store.query(criteria, properties=properties):
                value = document.get(field)
                if isinstance(value, str) and value in wanted:
                    yield self._whole(document)
            return
        ids = list(wanted)
        for start in range(0, len(ids), BATCH):
            query = {field: {"$in": ids[start : start + BATCH]}, **(criteria or {})}
            for document in store.query(query, properties=properties):
                yield self._whole(document)

    def _whole(self, document: dict[str, Any]) -> dict[str, Any]:
        """Return a document with the parts that are in GridFS put back; without those that are lost."""
        if not document.get("spilled"):
            return document
        from stores.artifacts import unspill

        try:
            return unspill(document)
        except (KeyError, ValueError) as error:
            self.logger.error("a part of %s is lost: %s", document.get("_id"), one_line(error))
            return document

    def legible(self, documents: Iterable[dict[str, Any]], *texts: str, own: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the documents whose fields ``texts`` are text and whose round is a number, or absent if not ``own``.

        Another was changed by somebody: it is removed where it is this builder's ``own``, and else told and left out.
        """
        for document in documents:
            number = document.get("round")
            number_is_sound = (number is None and not own) or (isinstance(number, int) and not isinstance(number, bool))
            if number_is_sound and all(isinstance(document.get(name), str) for name in texts):
                yield document
            elif own:
                self.target.remove_docs({"_id": document["_id"]})
            else:
                self.logger.error("a record is damaged and left out (`inv-design db check`): %s", document.get("_id"))

    def stamp(self, inputs: Iterable[str | None] = ()) -> dict[str, Any]:
        """Return the fields that say when, by what and from what a document was built."""
        now = datetime.now(UTC).replace(tzinfo=None)
        made = {
            "created_at": now,
            "builder": type(self).__name__,
            "inputs": list(dict.fromkeys(i for i in inputs if isinstance(i, str))),
        }
        return {"builder_version": self.version, "last_updated": now, "provenance": made}


def upsert(store: CampaignStore, documents: list[dict[str, Any]], key: str | list[str]) -> None:
    """Write documents into a store by their key; see :meth:`CampaignBuilder.upsert`."""
    from pymongo.errors import BulkWriteError

    for attempt in range(ATTEMPTS):
        try:
            if documents:
                store.update(documents, key=key)
            return
        except BulkWriteError as error:
            lost_race = all(problem["code"] == 11000 for problem in error.details["writeErrors"])
            if not lost_race or attempt == ATTEMPTS - 1:
                raise


def one_line(error: BaseException) -> str:
    """Return type and text of an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def newest(records: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the newest completed record, else the newest failed one, else ``None``.

    Ties are broken by what identifies a record, so that the order in which records arrived makes no difference.
    """
    ranked = sorted(
        records,
        key=lambda r: (
            r.get("state", "completed") == "completed" and not r.get("error"),
            str((r.get("provenance") or {}).get("created_at", "")),
            str(r.get("protocol_id", "")),
            int(r.get("attempt") or 1),
            str(r.get("calculation_id", "")),
        ),
    )
    return ranked[-1] if ranked else None
