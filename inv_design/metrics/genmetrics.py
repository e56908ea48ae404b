"""The metrics of matbench-genmetrics: validity, coverage, novelty, uniqueness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inv_design.metrics.distribution import space_group, wasserstein
from inv_design.metrics.fingerprint import mendeleev_shares
from inv_design.metrics.share import Share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymatgen.core import Structure

MATCH = {"ltol": 0.3, "stol": 0.5, "angle_tol": 10.0}


def genmetrics(
    structures: Sequence[Structure], train: Sequence[Structure], test: Sequence[Structure] | None = None
) -> dict[str, Any]:
    """Return the metrics of matbench-genmetrics (Baird et al., JOSS 9, 5618, 2024; its ``core/metrics.py``).

    With its ``match_type="StructureMatcher"`` and that matcher's tolerances (0.3, 0.5, 10°), which are wider than those
    of the other metrics here. Its default matches CDVAE's fingerprints instead.

    - validity: the mean of two terms 1 - W(known, generated) / W(known, dummy) with first Wasserstein distances W of
      space group numbers and of the elements' places in a chemical order; the dummy is all 1 (P1; the first element).
      The order is Pettifor's of 1984 (pymatgen's Mendeleev numbers), not the modified one of Glawe et al. 2016.
    - coverage: generated crystals that match any of the test set, over the size of the test set (it can exceed 1).
    - novelty: 1 - generated crystals that match any of the training set, over those generated.
    - uniqueness: 1 - ordered pairs of different generated crystals that match, over all n^2 - n of them.

    Parameters
    ----------
    structures
        The generated crystals (n).
    train, test
        Known crystals and held-out ones; without the latter there is no coverage.

    Returns
    -------
    dict
        ``validity``, ``validity_space_group``, ``validity_elements`` (numbers, ``None`` where the known crystals equal
        the dummy), ``novelty``, ``uniqueness``, ``coverage`` (shares), ``tolerances``.
    """
    known = [*train, *(test or ())]
    symmetry = _scaled([space_group(s) for s in known], [space_group(s) for s in structures])
    elements = _scaled_elements(known, structures)
    both = [value for value in (symmetry, elements) if value is not None]
    n = len(structures)
    result: dict[str, Any] = {
        "validity": sum(both) / 2 if len(both) == 2 else None,
        "validity_space_group": symmetry,
        "validity_elements": elements,
        "novelty": Share(n - _matching(structures, train), n).record(),
        "uniqueness": Share(n * n - n - _duplicate_pairs(structures), n * n - n).record(),
        "tolerances": dict(MATCH),
    }
    if test is not None:
        result["coverage"] = Share(_matching(structures, test), len(test)).record()
    return result


def _matching(structures: Sequence[Structure], others: Sequence[Structure]) -> int:
    """Return how many of ``structures`` match any of ``others``."""
    from inv_design.structures.matching import first_matches

    return sum(match is not None for match in first_matches(structures, others, **MATCH))


def _duplicate_pairs(structures: Sequence[Structure]) -> int:
    """Return how many ordered pairs of different crystals match."""
    from inv_design.structures.matching import StructureIndex

    index, pairs = StructureIndex(**MATCH), 0
    for i, structure in enumerate(structures):
        pairs += sum(1 for _ in index.matches(structure, str(i)))
        if str(i) not in index.skipped:
            index.add(str(i), structure)
    return 2 * pairs


def _scaled_elements(known: Sequence[Structure], generated: Sequence[Structure]) -> float | None:
    first, second = _element_shares(known), _element_shares(generated)
    return _scaled(list(first), list(second), list(first.values()), list(second.values()))


def _element_shares(structures: Sequence[Structure]) -> dict[int, float]:
    """Return Mendeleev number -> share, every crystal with the same weight; strange ones are left out."""
    total: dict[int, float] = {}
    for structure in structures:
        try:
            shares = mendeleev_shares(structure)
        except Exception:  # no atoms, an unknown species
            continue
        for number, share in shares.items():
            total[number] = total.get(number, 0.0) + share
    return total


def _scaled(
    known: Sequence[float],
    generated: Sequence[float],
    known_weights: Sequence[float] | None = None,
    generated_weights: Sequence[float] | None = None,
) -> float | None:
    dummy = wasserstein(known, [1], known_weights, None)
    distance = wasserstein(known, generated, known_weights, generated_weights)
    return None if not dummy or distance is None else 1.0 - distance / dummy
