"""What a builder saw when it was last done: where it sees the same again, there is nothing to build."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

STATES = "build_states"
"""The collection: a derived one, which only saves time. Without it everything is looked at again."""


def digest(*groups: Iterable[Any]) -> str:
    """Return a hash of groups of rows of plain data; the order of the rows in a group makes no difference.

    Builders compare the ids of all their inputs by it. Counts would miss a record that took another's place, and "newer
    than" would miss one that arrived late: ids and times come from many writers' clocks. Authoritative records are
    never rewritten, so that the same ids are the same content.
    """
    found = hashlib.sha256()
    for group in groups:
        rows = sorted(json.dumps(row, sort_keys=True, default=str) for row in group)
        found.update(f"{len(rows)}:".encode())
        for row in rows:
            found.update(row.encode())
            found.update(b"\n")
    return found.hexdigest()[:32]
