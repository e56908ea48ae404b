"""Schema 1 -> 2: model files in one form, summaries of several properties, an index by formula.

Schema 1 is that of databases from before versions were stamped. Its model files carry ``format`` and ``config`` as two
keys of the safetensors header, which safetensors writes in random order; schema 2 has one key, so that the same model
is the same bytes. What a generator's property model learned from is two arrays there, one here. A model keeps its
``model_id``, by which everything refers to it, and gets the SHA-256 of its new file. A ``con_cdvae`` of schema 1 is
another network: it is kept, but only the version that made it can sample from it.
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
    """Return a model file of schema 1 in the form of schema 2, with the same numbers.

    Raises
    ------
    ValueError
        If it is none.
    """
    from safetensors.numpy import load, save

    if not is_old(blob):
        raise ValueError("not a model file of schema 1")
    metadata = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]
    content = {"format": FORMAT, "config": json.loads(metadata["config"])}
    return save(_with_descriptors(load(blob)), metadata={"inv_design": json.dumps(content, sort_keys=True)})


def _with_descriptors(tensors: dict[str, Any]) -> dict[str, Any]:
    """Return a property model's tensors with its two processes' standardised inputs as rows of one raw array.

    Each process says by ``kept`` which rows are its own; the volume's lack the last two columns.
    """
    import numpy as np

    tensors = dict(tensors)
    rows: list[Any] = []
    for process in ("property_process", "volume_process"):
        inputs = tensors.pop(f"{process}.inputs", None)
        if inputs is None:
            return tensors
        raw = inputs.astype(np.float64) * tensors[f"{process}.spread"] + tensors[f"{process}.centre"]
        tensors[f"{process}.kept"] = np.arange(len(raw)) + sum(map(len, rows))
        rows.append(raw)
    width = rows[0].shape[1]
    rows[1] = np.pad(rows[1], ((0, 0), (0, width - rows[1].shape[1])))
    return {**tensors, "property_model.descriptors": np.concatenate(rows)}


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
        if done:
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
    Step(
        "models",
        "model files in the form of schema 2, each with a new SHA-256; ids and numbers stay",
        old_models,
        repack_models,
    ),
    Step("summaries", "candidate summaries and metrics are built anew", old_summaries, mark_summaries),
    Step("indexes", "an index of structures by formula", missing_index, create_index),
)
