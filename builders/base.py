"""CampaignBuilder: what the builders have in common; a builder that fails on an item leaves a failed document."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from maggma.core import Builder

from stores.maggma import CampaignStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from inv_design.config import CampaignConfig
    from stores.connection import Connection

BATCH = 100
"""Ids per query: the embedded database compares each document found with all of them."""
ATTEMPTS = 3


class CampaignBuilder(Builder):
    """A builder that owns one derived collection of a campaign's database.

    Parameters
    ----------
    campaign
        Build for this campaign only; ``None`` builds for all.
    chunk_size
        Documents per write.

    It is MSONable without credentials: the stores connect through this process's connection, or through
    ``$INV_DESIGN_DATABASE``.
    """

    version = "1"
    """Raise it when the code changes what the documents say: all are built anew."""

    def __init__(self, campaign: str | None = None, chunk_size: int = 500) -> None:
        self.campaign = campaign
        self.read = {name: CampaignStore(name, key=key) for name, key in self.source_keys().items()}
        self.target = CampaignStore(*self.target_key())
        super().__init__(sources=list(self.read.values()), targets=[self.target], chunk_size=chunk_size)

    @classmethod
    def source_keys(cls) -> dict[str, str]:
        """Return the collections that are read -> their key."""
        raise NotImplementedError

    @classmethod
    def target_key(cls) -> tuple[str, str]:
        """Return (collection that is written, its key)."""
        raise NotImplementedError

    def bind(self, connection: Connection) -> None:
        """Use a given connection instead of the process's own."""
        for store in [*self.read.values(), self.target]:
            store.bind(connection)

    def build(self, connection: Connection | None = None) -> int:
        """Run in this process without logging set-up or progress bars; return the number of documents written."""
        if connection is not None:
            self.bind(connection)
        self.connect()
        written, items = 0, []
        for item in self.get_items():
            items.append(self.process_item(item))
            if len(items) >= self.chunk_size:
                written += self.write(items)
                items = []
        written += self.write(items)
        self.finalize()
        return written

    def update_targets(self, items: list[Any]) -> None:
        """Write what was processed; see :meth:`write`."""
        self.write(items)

    def write(self, items: list[Any]) -> int:
        """Write what was processed, and return how many documents that is."""
        documents = [item for item in items if item is not None]
        self.upsert(documents, self.target.key)
        return len(documents)

    def upsert(self, documents: list[dict[str, Any]], key: str | list[str]) -> None:
        """Write documents by their key; where another worker builds the same, the last one wins.

        Raises
        ------
        BulkWriteError
            If the database refuses them for another reason than a race between two inserts.
        """
        from pymongo.errors import BulkWriteError

        for attempt in range(ATTEMPTS):
            try:
                if documents:
                    self.target.update(documents, key=key)
                return
            except BulkWriteError as error:
                lost_race = all(problem["code"] == 11000 for problem in error.details["writeErrors"])
                if not lost_race or attempt == ATTEMPTS - 1:
                    raise

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
        found = sorted(self.read["campaigns"].query(criteria), key=lambda c: c["name"])
        if self.campaign is not None and not found:
            known = ", ".join(sorted(self.read["campaigns"].distinct("name"))) or "none yet"
            raise ValueError(f"campaign {self.campaign!r} is not in this database; it holds {known}")
        for document in found:
            try:
                yield document["name"], CampaignConfig.model_validate(document["config"])
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
        """Yield the documents whose ``field`` is one of ``values``, in batches; parts in GridFS are put back."""
        wanted = list(dict.fromkeys(values))
        for start in range(0, len(wanted), BATCH):
            query = {field: {"$in": wanted[start : start + BATCH]}, **(criteria or {})}
            for document in self.read[collection].query(query, properties=properties):
                yield whole(document)

    def stamp(self, inputs: Iterable[str] = ()) -> dict[str, Any]:
        """Return the fields that say when, by what and from what a document was built."""
        now = datetime.now(UTC).replace(tzinfo=None)
        made = {
            "created_at": now,
            "builder": type(self).__name__,
            "inputs": list(dict.fromkeys(i for i in inputs if i)),
        }
        return {"builder_version": self.version, "last_updated": now, "provenance": made}


def whole(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document with the parts that are in GridFS put back."""
    if not document.get("spilled"):
        return document
    from stores.artifacts import unspill

    return unspill(document)


def one_line(error: BaseException) -> str:
    """Return type and text of an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def newest(records: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the newest completed record, else the newest failed one, else ``None``."""
    ranked = sorted(
        records,
        key=lambda r: (
            r.get("state", "completed") == "completed" and not r.get("error"),
            str((r.get("provenance") or {}).get("created_at", "")),
            str(r.get("protocol_id", "")),
        ),
    )
    return ranked[-1] if ranked else None
