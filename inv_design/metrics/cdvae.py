"""The metrics of CDVAE: validity, coverage, distances of density and number of elements, diversity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inv_design.metrics.coverage import coverage, diversity, fingerprints
from inv_design.metrics.distribution import densities, element_counts, wasserstein
from inv_design.metrics.share import Share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymatgen.core import Structure

    from inv_design.metrics.generation import GenerationMetrics

FINGERPRINTS = (
    "average minimum distances (100 neighbours, scaled volume) and Mendeleev profiles, in place of CDVAE's "
    "CrystalNN and Magpie: distances and coverage are not comparable with published ones"
)


def cdvae_metrics(
    structures: Sequence[Structure], metrics: GenerationMetrics, reference: Sequence[Structure] | None = None
) -> dict[str, Any]:
    """Return the metrics of Xie et al. 2022 (CDVAE, ICLR, section 5.2 and its ``compute_metrics.py``).

    Parameters
    ----------
    structures
        The generated crystals (n).
    metrics
        Their validity, as :func:`~inv_design.metrics.generation.generation_metrics` has found it.
    reference
        Held-out crystals, CDVAE's test set; without it validity and diversity alone are given.

    Returns
    -------
    dict
        ``valid_structure``, ``valid_composition``, ``valid`` (shares); coverage as in
        :func:`~inv_design.metrics.coverage.coverage`; ``wasserstein_density`` (g/cm^3) and ``wasserstein_elements``
        between the valid crystals and the reference; ``structure_diversity`` and ``composition_diversity`` of the valid
        ones; ``without_fingerprint`` (counts of generated and reference crystals). CDVAE's distance of predicted
        energies is not given: it needs CDVAE's own property model.
    """
    n = len(structures)
    valid = [s and c for s, c in zip(metrics.structural, metrics.compositional, strict=True)]
    good = [structure for structure, ok in zip(structures, valid, strict=True) if ok]
    result: dict[str, Any] = {
        "valid_structure": Share(sum(metrics.structural), n).record(),
        "valid_composition": Share(sum(metrics.compositional), n).record(),
        "valid": Share(sum(valid), n).record(),
        **diversity(fingerprints(good[:1000])),
        "fingerprints": FINGERPRINTS,
    }
    if reference is not None:
        own, other = fingerprints(structures), fingerprints(reference)
        result |= coverage(own, other)
        result["wasserstein_density"] = wasserstein(densities(good), densities(reference))
        result["wasserstein_elements"] = wasserstein(element_counts(good), element_counts(reference))
        result["without_fingerprint"] = {"generated": len(own.errors), "reference": len(other.errors)}
    return result
