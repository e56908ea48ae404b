"""A whole collection, some documents at a time: what reads everything stays small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from stores.connection import Connection

Item = TypeVar("Item")

MANY = 1000  # keys or light documents
BATCH = 100
CHUNKS = 20  # of GridFS, a quarter of a megabyte each


def batches(items: Iterable[Item], size: int = MANY) -> Iterator[list[Item]]:
    """Yield items some at a time."""
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def batch_size(collection: str) -> int:
    """Return how many documents of a collection are read at a time."""
    return CHUNKS if collection.endswith(".chunks") else BATCH


def ids(connection: Connection, collection: str) -> list[Any]:
    """Return the ``_id`` of every document."""
    return [document["_id"] for document in connection.db[collection].find({}, {"_id": 1})]


def documents(connection: Connection, collection: str) -> Iterator[dict[str, Any]]:
    """Yield every document; an embedded database reads a whole query at once, so it is asked for some at a time."""
    size = batch_size(collection)
    if connection.kind != "embedded":
        yield from connection.db[collection].find({}, batch_size=size)
        return
    for part in batches(ids(connection, collection), size):
        yield from connection.db[collection].find({"_id": {"$in": part}})
