"""Which training sets a campaign's rounds learned from."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maggma.core import Store


def training_set_ids(training_sets: Store, models: Store, campaign: str) -> dict[int, list[str]]:
    """Return round -> ids of the training sets that belong to it, the newest last.

    A training set is known by its content and names only the first campaign and round that had it; which rounds
    learned from it is told by their models.
    """
    found: dict[int, set[str]] = defaultdict(set)
    records: list[dict[str, Any]] = []
    for store in (training_sets, models):
        records += list(store.query({"campaign": campaign}, properties=["round", "training_set_id"]))
    for record in records:
        if isinstance(record.get("round"), int) and isinstance(record.get("training_set_id"), str):
            found[record["round"]].add(record["training_set_id"])
    first: dict[str, int] = {}  # a kept model brings the older set that it learned from
    for number in sorted(found):
        for identity in found[number]:
            first.setdefault(identity, number)
    return {n: sorted(ids, key=lambda i: (first[i], i)) for n, ids in sorted(found.items())}
