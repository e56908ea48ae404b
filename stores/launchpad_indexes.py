"""The indexes of FireWorks' launchpad: its own, and those by which a campaign finds its fireworks and workflows."""

from __future__ import annotations

from typing import Any


def _index(*fields: str, unique: bool = False) -> dict[str, Any]:
    return {"fields": [(field.lstrip("-"), -1 if field.startswith("-") else 1) for field in fields], "unique": unique}


INDEXES: dict[str, list[dict[str, Any]]] = {
    "fireworks": [
        _index("fw_id", unique=True),
        _index("launches"),
        _index("state", "-spec._priority"),  # what is handed out next
        _index("state", "spec._category", "-spec._priority"),
        _index("spec.campaign", "state"),
        _index("updated_on"),
    ],
    "launches": [
        _index("launch_id", unique=True),
        _index("fw_id"),
        _index("state_history.reservation_id"),
        _index("state"),
    ],
    "workflows": [
        _index("nodes"),
        _index("metadata.campaign", "metadata.round"),
        _index("metadata.key"),
        _index("state"),
    ],
}
"""Collection -> its indexes, in the form of :func:`stores.queries.indexes`.

Of those that FireWorks' ``lpad admin tuneup`` makes, these are the ones that a campaign's work asks for; it makes the
others beside them.
"""
