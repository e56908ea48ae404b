"""Attempts at one result: a failure that may pass is computed again, each attempt is a record of its own."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from inv_design.screening.retries import attempt_of, retry_due

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stores.connection import Connection

BATCH = 500
FIELDS = {"_id": 0, "structure_id": 1, "calculation_id": 1, "state": 1, "reason": 1, "attempt": 1, "error": 1}

Attempts = dict[str, list[dict[str, Any]]]


def attempts_at(
    structure_ids: Iterable[str], kind: str, protocol_id: str, *, connection: Connection | None = None
) -> Attempts:
    """Return structure id -> its calculations of a kind and protocol, the first attempt first, of those that have any.

    Each has ``calculation_id, state, reason, attempt, error``; ``reason`` and ``attempt`` may be absent.
    """
    from stores.connection import current

    ids = list(dict.fromkeys(structure_ids))
    collection = (connection or current()).db["calculations"]
    found: Attempts = defaultdict(list)
    for start in range(0, len(ids), BATCH):
        criteria = {"structure_id": {"$in": ids[start : start + BATCH]}, "kind": kind, "protocol_id": protocol_id}
        for calculation in collection.find(criteria, FIELDS):
            found[calculation["structure_id"]].append(calculation)
    return {identity: sorted(group, key=attempt_of) for identity, group in found.items()}


def lacking(
    structure_ids: Sequence[str],
    kind: str,
    protocol_id: str,
    *,
    retries: int = 0,
    connection: Connection | None = None,
) -> list[str]:
    """Return the structure ids without a calculation of a kind and protocol, or whose failure asks for a retry."""
    known = attempts_at(structure_ids, kind, protocol_id, connection=connection)
    return [i for i in structure_ids if i not in known or retry_due(known[i], retries)]


def next_attempts(
    structure_ids: Sequence[str], kind: str, protocol_id: str, *, connection: Connection | None = None
) -> dict[str, int]:
    """Return structure id -> the number that its next attempt has, from 1."""
    known = attempts_at(structure_ids, kind, protocol_id, connection=connection)
    return {i: attempt_of(known[i][-1]) + 1 if i in known else 1 for i in structure_ids}
