"""The metrics of MatterGen: stable, unique, novel, and how far a relaxation moves the atoms."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from inv_design.metrics.share import Share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inv_design.metrics.generation import GenerationMetrics

STABLE = 0.1
"""eV/atom above the hull; MatterGen's threshold."""


def mattergen_metrics(
    metrics: GenerationMetrics,
    *,
    e_above_hull: Sequence[float | None] | None = None,
    rmsd: dict[str, Any] | None = None,
    failed: int = 0,
) -> dict[str, Any]:
    """Return the metrics of Zeni et al. 2025 (MatterGen, Nature 639, 624; its ``evaluation`` module).

    S.U.N. is the number of crystals that are stable, unique (the first of their kind) and novel (like none of the
    reference) over all crystals, failed ones included. Stable is 0.1 eV/atom above the hull or less, there; 0 or less
    in the fields that end with ``_strict``. A crystal without an energy above the hull is not stable. Likeness is that
    of ``metrics``: the ordered matcher (MatterGen's default also matches disordered versions, which counts fewer
    crystals as unique and novel).

    Parameters
    ----------
    metrics
        Uniqueness and novelty of the crystals, as :func:`~inv_design.metrics.generation.generation_metrics` found them.
    e_above_hull
        eV/atom per crystal (n); ``None`` where there is none. Without it nothing is said of stability.
    rmsd
        :func:`~inv_design.metrics.stability.relaxation_rmsds`.
    failed
        Crystals that could not even be read; they count in every total.

    Returns
    -------
    dict
        ``unique``, ``novel``, ``novel_unique``, ``stable``, ``stable_strict``, ``sun``, ``sun_strict`` (shares),
        ``mean_e_above_hull`` and ``median_e_above_hull`` (eV/atom), ``without_e_above_hull`` (count), ``rmsd`` (Å),
        ``threshold``; those that need a reference or a hull only where there is one.
    """
    total = len(metrics.structural) + failed
    unique, novel = metrics.unique, metrics.novel
    result: dict[str, Any] = {"unique": Share(sum(unique), total).record(), "threshold": STABLE}
    if metrics.has_reference:
        result["novel"] = Share(sum(novel), total).record()
        both = [u and k for u, k in zip(unique, novel, strict=True)]
        result["novel_unique"] = Share(sum(both), total).record()
    if e_above_hull is not None:
        known = [value for value in e_above_hull if value is not None]
        for suffix, limit in (("", STABLE), ("_strict", 0.0)):
            stable = [value is not None and value <= limit + 1e-9 for value in e_above_hull]
            result[f"stable{suffix}"] = Share(sum(stable), total).record()
            if metrics.has_reference:
                sun = [s and b for s, b in zip(stable, both, strict=True)]
                result[f"sun{suffix}"] = Share(sum(sun), total).record()
        result["mean_e_above_hull"] = statistics.fmean(known) if known else None
        result["median_e_above_hull"] = statistics.median(known) if known else None
        result["without_e_above_hull"] = len(e_above_hull) - len(known)
    if rmsd is not None:
        result["rmsd"] = rmsd
    return result
