"""Coverage: how much of a reference set generated crystals reach, and how much of what is generated lies near it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inv_design.metrics.fingerprint import MENDELEEV_NUMBERS, NEIGHBOURS, average_minimum_distances, composition_profile
from inv_design.metrics.share import Share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymatgen.core import Structure

STRUCTURE_CUTOFF = 0.05
"""Half the distance of hcp from fcc, the closest pair of the simple packings; in units of (V/N)^(1/3)."""
COMPOSITION_CUTOFF = 5.0
"""Steps of Mendeleev numbers that an average atom is moved."""
CHUNK = 256


@dataclass(frozen=True)
class Fingerprints:
    """The fingerprints of a set of crystals, and why some have none.

    Attributes
    ----------
    structure
        (n, 100), average minimum distances divided by 10, so that the Euclidean distance of two is their root mean
        square difference.
    composition
        (n, 120), profiles whose city-block distance is an earth mover's distance.
    errors
        Index in the set -> one line; these crystals have no row.
    """

    structure: np.ndarray
    composition: np.ndarray
    errors: dict[int, str]


def fingerprints(structures: Sequence[Structure]) -> Fingerprints:
    """Return the fingerprints of all crystals that have them."""
    cells: list[np.ndarray] = []
    profiles: list[np.ndarray] = []
    errors: dict[int, str] = {}
    for i, structure in enumerate(structures):
        try:
            cell, profile = average_minimum_distances(structure), composition_profile(structure)
        except Exception as error:  # one strange crystal never stops it
            errors[i] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            continue
        cells.append(cell / NEIGHBOURS**0.5)
        profiles.append(profile)
    if not cells:
        return Fingerprints(np.empty((0, NEIGHBOURS)), np.empty((0, MENDELEEV_NUMBERS)), errors)
    return Fingerprints(np.array(cells), np.array(profiles), errors)


def coverage(
    generated: Fingerprints,
    reference: Fingerprints,
    *,
    structure_cutoff: float = STRUCTURE_CUTOFF,
    composition_cutoff: float = COMPOSITION_CUTOFF,
) -> dict[str, Any]:
    """Return COV-R, COV-P, AMSD and AMCD: Xie et al., CDVAE (ICLR 2022), appendix on metrics, and its ``compute_cov``.

    A reference crystal is covered (recall) where the nearest generated structure fingerprint is within the one cutoff
    and the nearest generated composition fingerprint within the other (as in CDVAE's code, they need not belong to the
    same crystal); precision is the same the other way round, as a share of all that was generated, those without
    fingerprint included. AMSD and AMCD are the mean nearest distances. CDVAE's fingerprints (CrystalNN order parameters
    and Magpie statistics, cutoffs 0.4 and 10 on MP-20) are replaced by average minimum distances and Mendeleev
    profiles: the definition is CDVAE's, **the numbers are not comparable with published ones**.

    Returns
    -------
    dict
        ``coverage_recall``, ``coverage_precision`` (shares); ``amsd_recall``, ``amsd_precision``, in units of
        (V/N)^(1/3); ``amcd_recall``, ``amcd_precision``, in Mendeleev steps; ``cutoffs``.
    """
    cells = nearest_distances(generated.structure, reference.structure, "euclidean")
    elements = nearest_distances(generated.composition, reference.composition, "cityblock")
    precision = (cells[0] <= structure_cutoff) & (elements[0] <= composition_cutoff)
    recall = (cells[1] <= structure_cutoff) & (elements[1] <= composition_cutoff)
    n = len(generated.structure) + len(generated.errors)
    return {
        "coverage_recall": Share(int(recall.sum()), len(recall)).record(),
        "coverage_precision": Share(int(precision.sum()), n).record(),
        "amsd_recall": _mean(cells[1]),
        "amsd_precision": _mean(cells[0]),
        "amcd_recall": _mean(elements[1]),
        "amcd_precision": _mean(elements[0]),
        "cutoffs": {"structure": structure_cutoff, "composition": composition_cutoff},
    }


def nearest_distances(first: np.ndarray, second: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of each of ``first`` (n, d) to the nearest of ``second`` (m, d), and the other way round.

    Infinite where the other set is empty.
    """
    from scipy.spatial.distance import cdist

    to_second, to_first = np.full(len(first), np.inf), np.full(len(second), np.inf)
    if len(first) and len(second):
        for start in range(0, len(first), CHUNK):
            block: Any = cdist(first[start : start + CHUNK], second, metric)
            to_second[start : start + CHUNK] = block.min(axis=1)
            to_first = np.minimum(to_first, block.min(axis=0))
    return to_second, to_first


def diversity(generated: Fingerprints) -> dict[str, float | None]:
    """Return the mean pairwise distance of structures and of compositions (CDVAE's ``get_fp_pdist``).

    Of the first 1,000 crystals, as CDVAE takes 1,000 samples.
    """
    from scipy.spatial.distance import pdist

    rows = slice(0, 1000)
    cells: Any = pdist(generated.structure[rows], "euclidean")
    profiles: Any = pdist(generated.composition[rows], "cityblock")
    return {"structure_diversity": _mean(cells), "composition_diversity": _mean(profiles)}


def _mean(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None
