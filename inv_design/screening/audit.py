"""Audits: candidates that stage II rejected and that are labelled all the same, so that missed hits can be counted."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Summary = Mapping[str, Any]


def rejected(summaries: Iterable[Summary]) -> list[Summary]:
    """Return the candidates that stage II rejected: those that may be drawn."""
    return [s for s in summaries if s.get("stage") == "mlip" and s.get("status") == "rejected"]


def drawn(summaries: Iterable[Summary], n: int, *, seed: int) -> list[Summary]:
    """Return ``n`` of a round's candidates that stage II rejected, drawn without regard to any of their values.

    The same candidates and seed give the same draw on every machine, whatever has been labelled since.
    """

    def place(summary: Summary) -> bytes:
        return hashlib.sha256(f"{seed}/audit/{summary['candidate_id']}".encode()).digest()

    return sorted(rejected(summaries), key=place)[:n]


def waiting(summaries: Iterable[Summary], n: int, *, seed: int) -> list[Summary]:
    """Return those of the draw that have no label yet, or one that is to be tried again."""
    return [s for s in drawn(summaries, n, seed=seed) if (s.get("audit") or {}).get("status", "waiting") == "waiting"]
