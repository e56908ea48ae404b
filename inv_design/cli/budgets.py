"""Budgets that are used up: candidates that wait for a stage and that it will not take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    Place = tuple[str, int, str]

STAGES = ("mlip", "dft")
"""Those that may have a budget."""


def spent_budgets(database: Any, campaigns: Iterable[str]) -> frozenset[Place]:
    """Return (campaign, round, stage) of the budgets that reach none of those who wait, as the rounds' metrics count.

    What waits there keeps the status ``waiting`` for good: the round goes on, and closes, without it.
    """
    shown = {"campaign": 1, "round": 1, **{f"funnel.{s}.{n}": 1 for s in STAGES for n in ("waiting", "over_budget")}}
    found = database["campaign_metrics"].find({"campaign": {"$in": sorted(set(campaigns))}}, shown)
    return frozenset(
        (metrics["campaign"], metrics["round"], stage)
        for metrics in found
        for stage, counts in (metrics.get("funnel") or {}).items()
        if counts.get("waiting") and counts.get("over_budget") == counts["waiting"]
    )


def beyond_budget(summary: Mapping[str, Any], spent: Collection[Place]) -> str:
    """Return that a candidate waits for nothing, in words; ``""`` if it does not wait, or waits for its turn."""
    place = (summary.get("campaign"), summary.get("round"), summary.get("stage"))
    if summary.get("status") != "waiting" or place not in spent:
        return ""
    return f"beyond the budget of round {summary['round']}"
