"""Claims of workflow steps: who inserts a step's key first puts its workflow on the launchpad."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stores.provenance import provenance
from stores.records import insert_documents

if TYPE_CHECKING:
    from collections.abc import Mapping


def claim_step(key: str, payload: Mapping[str, Any] | None = None) -> bool:
    """Return whether this call claimed the step; ``False`` says that somebody has it already.

    ``payload`` is kept with the claim; its ``campaign`` is what :func:`steps` asks for. Unlike results, a claim is
    never journalled: it raises ConnectionError when the database does not answer.
    """
    payload = dict(payload or {})
    record = {"key": key, "campaign": payload.get("campaign"), "payload": payload, "provenance": provenance()}
    return insert_documents("steps", [record], journal=False)[0][1]


def step_exists(key: str) -> bool:
    """Return whether a key is claimed."""
    from stores.connection import current

    return current().db["steps"].find_one({"key": key}, {"_id": 1}) is not None


def release_step(key: str) -> bool:
    """Give a claim back whose workflow could not be added; return whether there was one."""
    from stores.connection import current

    return bool(current().db["steps"].delete_one({"key": key}).deleted_count)


def steps(campaign: str) -> list[dict[str, Any]]:
    """Return a campaign's claims in the order of their making: ``{"key", "payload", "provenance", ...}`` each."""
    from stores.connection import current

    found = current().db["steps"].find({"campaign": campaign}, {"_id": 0})
    return sorted(found, key=lambda step: (step["provenance"]["created_at"], step["key"]))
