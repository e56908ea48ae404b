"""Schema 1 -> 2: one header key in model files, summaries of several properties, an index by formula.

Schema 1 is that of databases from before versions were stamped. Its model files carry ``format`` and ``config`` as two
keys of the safetensors header, which safetensors writes in random order; schema 2 has one key, so that the same model
is the same bytes. The tensors are copied as they are; a model keeps its ``model_id``, by which everything refers to it,
and gets the SHA-256 of its new file.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from stores.migrations import Step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stores.connection import Connection

MODEL_KINDS = ("predictor", "generator", "mlip", "journal")
FORMAT = "inv-design-weights-1"
SUMMARIES = {"input_hash": {"$ne": None}, "properties": {"$exists": False}}
FORMULA = "formula"


# -- model files ------------------------------------------------------------------------------------------------------


def old_models(connection: Connection) -> int:
    """Return how many model files have the header of schema 1."""
    return sum(1 for _ in _old_files(connection))


def repack_models(connection: Connection) -> Iterator[dict[str, Any]]:
    """Give model files the header of schema 2: new file, then the models that refer to it, then the old file away."""
    from stores import artifacts

    models, files = connection.db["models"], connection.gridfs()
    for file in _old_files(connection):
        old = file.read()
        digest = hashlib.sha256(old).hexdigest()
        if digest != file.filename:
            raise ValueError(f"artifact {file.filename} is damaged: its SHA-256 is {digest}; restore it from a backup")
        new = repacked(old)
        sha256 = hashlib.sha256(new).hexdigest()
        artifact = artifacts.put(new, kind=file.kind, connection=connection)
        known = sorted(model["model_id"] for model in models.find({"sha256": digest}, {"model_id": 1}))
        models.update_many({"sha256": digest}, {"$set": {"sha256": sha256, "artifact": artifact, "size": len(new)}})
        files.delete(file._id)
        yield {"models": known, "sha256": [digest, sha256]}


def repacked(blob: bytes) -> bytes:
    """Return a model file of schema 1 with the header of schema 2; the tensors are the same bytes.

    Raises
    ------
    ValueError
        If it is none.
    """
    if not is_old(blob):
        raise ValueError("not a model file of schema 1")
    size = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + size])
    old = header.pop("__metadata__")
    content = json.dumps({"format": old["format"], "config": json.loads(old["config"])}, sort_keys=True)
    text = json.dumps({"__metadata__": {"inv_design": content}, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at multiples of eight bytes
    return len(text).to_bytes(8, "little") + text + blob[8 + size :]


def is_old(head: bytes) -> bool:
    """Return whether bytes, or the first of them, are a model file of schema 1."""
    size = int.from_bytes(head[:8], "little")
    if len(head) < 8 or not 2 <= size <= len(head) - 8:
        return False
    try:
        metadata = json.loads(head[8 : 8 + size])["__metadata__"]
        return set(metadata) == {"format", "config"} and metadata["format"] == FORMAT
    except (ValueError, KeyError, TypeError):
        return False


def _old_files(connection: Connection) -> list[Any]:
    found = []
    for file in connection.gridfs().find({"kind": {"$in": list(MODEL_KINDS)}}):
        size = int.from_bytes(file.read(8), "little")
        head = size.to_bytes(8, "little") + file.read(min(size, file.length))
        file.seek(0)
        if is_old(head):
            found.append(file)
    return found


# -- derived records --------------------------------------------------------------------------------------------------


def old_summaries(connection: Connection) -> int:
    """Return how many candidate summaries and metrics were made by builders of schema 1."""
    return int(connection.db["candidate_summaries"].count_documents(SUMMARIES)) + _old_metrics(connection)


def mark_summaries(connection: Connection) -> Iterator[dict[str, Any]]:
    """Mark derived records of schema 1 as out of date; the next build, which `db migrate` calls, makes them anew."""
    stale = {"$set": {"input_hash": None}}
    for campaign in sorted(connection.db["campaigns"].distinct("name")):
        chosen = {"campaign": campaign}
        done = connection.db["candidate_summaries"].update_many({**chosen, **SUMMARIES}, stale).modified_count
        connection.db["campaign_metrics"].update_many({**chosen, **METRICS}, stale)
        yield {"campaign": campaign, "summaries": int(done)}


METRICS = {"input_hash": {"$ne": None}, "warnings": {"$exists": False}, "state": "successful"}


def _old_metrics(connection: Connection) -> int:
    return int(connection.db["campaign_metrics"].count_documents(METRICS))


# -- indexes ----------------------------------------------------------------------------------------------------------


def missing_index(connection: Connection) -> int:
    """Return 1 if the index of structures by formula, the bucket of duplicates, is missing."""
    return int(not _has_index(connection))


def create_index(connection: Connection) -> Iterator[dict[str, Any]]:
    """Create the index of structures by formula."""
    if not _has_index(connection):
        yield {"structures": connection.db["structures"].create_index([(FORMULA, 1)])}


def _has_index(connection: Connection) -> bool:
    indexes = connection.db["structures"].index_information()
    return any(list(index["key"]) == [(FORMULA, 1)] for index in indexes.values())


STEPS = (
    Step("models", "model files get one header key and a new SHA-256; tensors and ids stay", old_models, repack_models),
    Step("summaries", "candidate summaries and metrics are built anew", old_summaries, mark_summaries),
    Step("indexes", "an index of structures by formula", missing_index, create_index),
)
