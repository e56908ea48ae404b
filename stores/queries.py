"""The named queries, each beside the index that serves it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stores.connection import Connection


def ensure_indexes(connection: Connection | None = None) -> dict[str, list[str]]:
    """Create the indexes of every collection that lacks them; return collection -> index names.

    A user who may only read is left alone.
    """
    from pymongo import IndexModel
    from pymongo.errors import OperationFailure

    from stores.connection import current

    database = (connection or current()).db
    made: dict[str, list[str]] = {}
    for collection, models in indexes().items():
        try:
            made[collection] = database[collection].create_indexes(
                [IndexModel(list(model["fields"]), unique=model["unique"]) for model in models]
            )
        except OperationFailure as error:
            if error.code != 13:  # Unauthorized
                raise
    return made


def indexes() -> dict[str, list[dict[str, Any]]]:
    """Return collection -> its indexes, ``{"fields": [(name, 1), ...], "unique": bool}`` each, from the documents."""
    from stores.documents import AUTHORITATIVE, DERIVED

    return {
        document._meta["collection"]: [_index(spec) for spec in document._meta["indexes"]]
        for document in (*AUTHORITATIVE, *DERIVED)
    }


def _index(spec: Any) -> dict[str, Any]:
    """Return one of mongoengine's three ways to write an index in one form."""
    unique = False
    if isinstance(spec, dict):
        spec, unique = spec["fields"], bool(spec.get("unique"))
    fields = [spec] if isinstance(spec, str) else list(spec)
    return {"fields": [(field, 1) for field in fields], "unique": unique}
