"""Large objects in GridFS, found by their SHA-256 and verified when read; parts of documents above 1 MB go here too."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bson import ObjectId

    from stores.connection import Connection

SPILL_BYTES = 1_000_000  # documents stay below this; what is larger goes to GridFS in parts
LARGEST_DOCUMENT = 15_000_000  # MongoDB takes 16 MiB; some is left for what an insert adds
SHORT = 200  # characters of a text that stays in its document


def put(blob: bytes, *, kind: str = "", connection: Connection | None = None) -> ObjectId:
    """Store bytes and return their GridFS file id; bytes that are there already, undamaged, are not stored again."""
    from stores.connection import current

    digest = hashlib.sha256(blob).hexdigest()
    found = find(digest, connection=connection)
    if found is not None:
        return found
    return (connection or current()).gridfs().put(blob, filename=digest, sha256=digest, kind=kind)


def find(sha256: str, *, connection: Connection | None = None) -> ObjectId | None:
    """Return the GridFS file id of the bytes with a SHA-256, ``None`` if there are none or all are damaged."""
    return next((identity for identity, _ in _sound(sha256, connection)), None)


def _sound(sha256: str, connection: Connection | None) -> Iterator[tuple[ObjectId, bytes]]:
    from gridfs.errors import CorruptGridFile

    from stores.connection import current

    for file in (connection or current()).gridfs().find({"filename": sha256}):
        try:
            blob = file.read()
        except CorruptGridFile:
            continue
        if hashlib.sha256(blob).hexdigest() == sha256:
            yield file._id, blob


def get(sha256: str, *, connection: Connection | None = None) -> bytes:
    """Return the bytes with a SHA-256.

    Raises
    ------
    KeyError
        If there are none.
    ValueError
        If what is stored does not have this SHA-256 (damaged or cut off).
    """
    from stores.connection import current

    for _, blob in _sound(sha256, connection):
        return blob
    if not (connection or current()).gridfs().exists(filename=sha256):
        raise KeyError(f"no artifact with SHA-256 {sha256}; it was not imported with its document")
    raise ValueError(f"artifact {sha256} is damaged: its bytes have another SHA-256; import an archive that has it")


def spill(
    document: Mapping[str, Any], *, limit: int = SPILL_BYTES, connection: Connection | None = None
) -> dict[str, Any]:
    """Return the document with its largest parts moved to GridFS until it is smaller than ``limit`` bytes of BSON.

    A part that was moved is empty in the document and listed in ``spilled`` by its path, SHA-256 and size; of a mapping
    the numbers stay, so that queries still find them. A document of which nothing can be moved (its provenance names
    very many inputs) is left as it is, as long as MongoDB takes it.

    Raises
    ------
    ValueError
        If no part is left to move, and the document is larger than MongoDB takes.
    """
    import bson

    document = dict(document)
    size = len(bson.encode(document))
    while size > limit:
        path, blob = _largest(document)
        if len(blob) < limit // 100:
            if size <= LARGEST_DOCUMENT:
                break
            raise ValueError(f"a document of {size} bytes cannot be made smaller than {limit}; store fewer fields")
        put(blob, kind="spilled", connection=connection)
        _replace(document, path, _emptied)
        part = {"path": path, "sha256": hashlib.sha256(blob).hexdigest(), "size": len(blob)}
        document["spilled"] = [*document.get("spilled", []), part]
        if (smaller := len(bson.encode(document))) >= size:
            _replace(document, path, lambda value: type(value)())
            smaller = len(bson.encode(document))
        size = smaller
    return document


def unspill(
    document: Mapping[str, Any],
    *,
    connection: Connection | None = None,
    blob_of: Callable[[str], bytes] | None = None,
) -> dict[str, Any]:
    """Return the document with everything back that :func:`spill` moved, the last part first.

    ``blob_of`` reads the bytes with a SHA-256 from elsewhere than GridFS.

    Raises
    ------
    KeyError, ValueError
        If a part is missing or damaged; see :func:`get`.
    """
    import bson

    document = dict(document)
    for part in reversed(document.pop("spilled", None) or []):
        blob = blob_of(part["sha256"]) if blob_of else get(part["sha256"], connection=connection)
        value = bson.decode(blob)["value"]
        _replace(document, part["path"], lambda _, value=value: value)
    return document


def _largest(document: Mapping[str, Any]) -> tuple[list[str], bytes]:
    """Return (path, BSON) of the largest field, of depth one, or two inside of a mapping."""
    import bson

    best: tuple[list[str], bytes] = ([], b"")
    for key, value in document.items():
        if key in {"_id", "provenance", "spilled"} or not isinstance(value, (dict, list, str, bytes)):
            continue
        blob = bson.encode({"value": value})
        if len(blob) <= len(best[1]):
            continue
        best = ([key], blob)
        if isinstance(value, dict) and value:  # take the one large thing out of it, if that is most of it
            parts = ((name, bson.encode({"value": item})) for name, item in value.items())
            inner = max(parts, key=lambda part: len(part[1]))
            if len(inner[1]) > len(blob) // 2:
                best = ([key, inner[0]], inner[1])
    return best


def _emptied(value: Any) -> Any:
    """Return what stands in a document for a part that was moved: of a mapping, its numbers and short texts."""
    if isinstance(value, dict):
        few = {name: item for name, item in value.items() if not isinstance(item, (dict, list, str, bytes))}
        return few | {name: item for name, item in value.items() if isinstance(item, str) and len(item) <= SHORT}
    return [] if isinstance(value, list) else None


def _replace(document: dict[str, Any], path: list[str], change: Any) -> None:
    """Replace the value at a path; the mappings on the way are copied."""
    for name in path[:-1]:
        document[name] = dict(document.get(name) or {})  # a projection may have left it out
        document = document[name]
    document[path[-1]] = change(document.get(path[-1]))
