"""Checkpoints: what a long computation saved on its way, so that any worker goes on from there after it was stopped.

They are no records: the last one of a key is kept, nothing is exported, and it is deleted with the result's arrival.
Tensors and JSON in, tensors and JSON out; nothing that is read is ever executed.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from inv_design.weights import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np

    from stores.connection import Connection

LOG = logging.getLogger(__name__)

COLLECTION = "checkpoints"
PART_BYTES = 8_000_000
"""Of one document; MongoDB takes 16 MiB."""
LARGEST = 512_000_000
"""Bytes beyond which nothing is kept: copying it would cost more than beginning anew."""
KEPT_DAYS = 30
"""After which the checkpoint of a computation that nobody goes on with is deleted, whoever saves the next one."""


def save(
    key: str,
    identity: str,
    tensors: Mapping[str, np.ndarray],
    values: Mapping[str, Any],
    *,
    connection: Connection | None = None,
) -> int:
    """Save named arrays and a JSON-able mapping as the checkpoint of ``key``, in place of the one before; return bytes.

    A process that is killed on the way leaves the one before.

    Raises
    ------
    ValueError
        If it is larger than :data:`LARGEST`.
    pymongo.errors.PyMongoError
        If the database is away for longer than :func:`stores.outage.patience`.
    """
    from bson import Binary

    from stores.connection import current

    connection = connection or current()
    blob = pack(tensors, values)
    if len(blob) > LARGEST:
        size, most = len(blob) / 1e6, LARGEST / 1e6
        raise ValueError(f"a checkpoint of {size:.1f} MB is not kept, it would be larger than {most:g} MB")
    version, now = uuid.uuid4().hex, connection.now()
    starts = range(0, len(blob), PART_BYTES)
    about = {"key": key, "identity": identity, "version": version, "parts": len(starts), "size": len(blob)}
    about |= {"sha256": hashlib.sha256(blob).hexdigest(), "saved_at": now}
    collection = connection.db[COLLECTION]
    for part, start in enumerate(starts):
        collection.insert_one({**about, "part": part, "data": Binary(blob[start : start + PART_BYTES])})
    collection.delete_many({"key": key, "version": {"$ne": version}})
    collection.delete_many({"saved_at": {"$lt": now - timedelta(days=KEPT_DAYS)}})
    return len(blob)


def load(
    key: str, identity: str, *, connection: Connection | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Return (arrays, values) of the last whole checkpoint of ``key``, ``None`` if there is none of this identity."""
    from stores.connection import current

    collection = (connection or current()).db[COLLECTION]
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for part in collection.find({"key": key, "identity": identity}, {"data": 0}):
        found[part["version"]].append(part)
    whole = [parts for parts in found.values() if len(parts) == parts[0]["parts"]]
    for parts in sorted(whole, key=lambda parts: parts[0]["saved_at"], reverse=True):
        ordered = sorted(parts, key=lambda part: part["part"])
        pieces = (collection.find_one({"_id": part["_id"]}, {"data": 1}) or {} for part in ordered)
        blob = b"".join(bytes(piece.get("data", b"")) for piece in pieces)
        if hashlib.sha256(blob).hexdigest() == parts[0]["sha256"]:
            return unpack(blob)
        LOG.warning("the checkpoint of %s is damaged; the work begins anew", key)
    return None


def discard(keys: Iterable[str], *, connection: Connection | None = None) -> None:
    """Delete the checkpoints of keys whose results have arrived."""
    from stores.connection import current

    (connection or current()).db[COLLECTION].delete_many({"key": {"$in": list(keys)}})


def saved_keys(keys: Iterable[str], *, connection: Connection | None = None) -> set[str]:
    """Return which of some keys have a checkpoint."""
    from stores.connection import current

    found = (connection or current()).db[COLLECTION].find({"key": {"$in": list(keys)}}, {"_id": 0, "key": 1})
    return {part["key"] for part in found}
