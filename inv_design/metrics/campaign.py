"""A round in numbers: funnel, hit rate, target error by every judge, elements; from plain candidate summaries."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import TYPE_CHECKING, Any

from inv_design.screening.target import relative_error
from inv_design.screening.verdict import STAGES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Summary = Mapping[str, Any]

STATUSES = ("passed", "rejected", "failed", "waiting")


def funnel(
    summaries: Sequence[Summary], *, budget: int | None = None, mlip_budget: int | None = None
) -> dict[str, dict[str, Any]]:
    """Return per stage the candidates that entered it and what became of them.

    Returns
    -------
    dict
        Stage -> ``in``, ``passed``, ``rejected``, ``failed``, ``waiting``, ``reasons`` (first rule that failed ->
        candidates) and ``all_reasons`` (every rule that failed). ``in`` is the sum of the four. In the dft stage
        ``passed`` are the hits. ``over_budget`` counts those of ``waiting`` that the round's ``budget`` of labels, or
        its ``mlip_budget`` of relaxations, does not reach.
    """
    result: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        records = [(s, (s.get("stages") or {}).get(stage)) for s in summaries]
        entered = [(s, r) for s, r in records if r is not None]
        counts = Counter(r["status"] for _, r in entered)
        first, every = Counter[str](), Counter[str]()
        for summary, record in entered:
            rules = [r["rule"] for r in summary.get("reasons") or () if r["stage"] == stage]
            if record["status"] in ("rejected", "failed") and rules:
                first[rules[0]] += 1
                every.update(dict.fromkeys(rules, 1))
        result[stage] = {
            "in": len(entered),
            **{status: counts.get(status, 0) for status in STATUSES},
            "reasons": dict(first.most_common()),
            "all_reasons": dict(every.most_common()),
        }
    broken = sum(not s.get("stages") for s in summaries)  # a summary that failed has no stages
    result["predictor"]["in"] += broken
    result["predictor"]["failed"] += broken
    if broken:
        result["predictor"]["reasons"]["summary"] = broken
        result["predictor"]["all_reasons"]["summary"] = broken
    for stage, limit in (("mlip", mlip_budget), ("dft", budget)):
        if limit is not None:
            record = result[stage]
            left = max(limit - (record["in"] - record["waiting"]), 0)
            record["over_budget"] = max(record["waiting"] - left, 0)
    return result


def hit_rate(summaries: Sequence[Summary]) -> dict[str, Any]:
    """Return hits per labelled candidate and per generated one: ``hits``, ``labelled``, ``generated`` and the rates."""
    judged = [s for s in summaries if s.get("hit") is not None]
    hits = sum(bool(s["hit"]) for s in judged)
    return {
        "hits": hits,
        "labelled": len(judged),
        "generated": len(summaries),
        "per_label": hits / len(judged) if judged else None,
        "per_candidate": hits / len(summaries) if summaries else None,
    }


def target_errors(summaries: Sequence[Summary], target: float) -> dict[str, dict[str, Any]]:
    """Return per judge the mean relative error |K - target| / target of the candidates it has a value for.

    Returns
    -------
    dict
        Stage -> ``n``, ``mean_relative_error`` (Li et al. 2025, equation 1), ``mean`` and ``std`` (GPa) and
        ``methods``. The predictor sees every candidate; the later judges only those that passed the stage before.
    """
    result: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        records = [r for s in summaries if (r := (s.get("stages") or {}).get(stage)) and r.get("value") is not None]
        values = [float(r["value"]) for r in records]
        errors = [relative_error(v, target) for v in values]
        result[stage] = {
            "n": len(values),
            "mean_relative_error": statistics.fmean(errors) if errors else None,
            "mean": statistics.fmean(values) if values else None,
            "std": statistics.stdev(values) if len(values) > 1 else None,
            "methods": dict(Counter(str(r.get("method") or stage) for r in records)),
        }
    return result


def element_shares(elements: Iterable[Sequence[str]]) -> dict[str, float]:
    """Return element -> share of crystals that contain it, the most frequent first."""
    lists = [set(e) for e in elements]
    counts = Counter(symbol for group in lists for symbol in sorted(group))
    return {symbol: n / len(lists) for symbol, n in sorted(counts.items(), key=lambda i: (-i[1], i[0]))}


def element_enrichment(
    chosen: Sequence[Sequence[str]], background: Sequence[Sequence[str]]
) -> dict[str, dict[str, float | int]]:
    """Return how much more often elements occur in chosen crystals than in others.

    Returns
    -------
    dict
        Element -> ``share`` in the chosen, ``background`` share, ``count`` and ``ratio``, the highest ratio first. The
        ratio is that of shares with half a crystal added to each count, so that an element that the background lacks
        has a finite one.
    """
    count, base = (Counter(s for e in group for s in set(e)) for group in (chosen, background))
    result = {}
    for symbol in count:
        ratio = ((count[symbol] + 0.5) / (len(chosen) + 1)) / ((base[symbol] + 0.5) / (len(background) + 1))
        result[symbol] = {
            "count": count[symbol],
            "share": count[symbol] / len(chosen),
            "background": base[symbol] / len(background) if background else 0.0,
            "ratio": ratio,
        }
    return dict(sorted(result.items(), key=lambda item: (-item[1]["ratio"], item[0])))
