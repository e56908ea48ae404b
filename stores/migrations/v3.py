"""Schema 2 -> 3: a calculation that failed of something that may pass can be attempted again.

The attempts are records of their own: ``calculations`` are unique by structure, kind, protocol and ``attempt``, where
they were unique by the first three. Records of schema 2 stay as they are: a calculation without ``attempt`` is the
first one, and one without ``reason`` failed for good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stores.migrations import Step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stores.connection import Connection

OLD = [("structure_id", 1), ("kind", 1), ("protocol_id", 1)]
NEW = [*OLD, ("attempt", 1)]


def old_index(connection: Connection) -> int:
    """Return 1 if calculations may not be attempted again, 0 otherwise."""
    return len(_old_names(connection))


def replace_index(connection: Connection) -> Iterator[dict[str, Any]]:
    """Create the index that tells attempts apart, then drop the one that does not: there is always one of them."""
    calculations = connection.db["calculations"]
    for name in _old_names(connection):
        created = calculations.create_index(NEW, unique=True)
        calculations.drop_index(name)
        yield {"calculations": [name, created]}


def _old_names(connection: Connection) -> list[str]:
    if "calculations" not in connection.db.list_collection_names():
        return []
    indexes = connection.db["calculations"].index_information()
    return [name for name, index in indexes.items() if list(index["key"]) == OLD and index.get("unique")]


STEPS = (
    Step(
        "attempts", "calculations are unique by attempt too, so that a failure can be retried", old_index, replace_index
    ),
)
